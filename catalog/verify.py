"""Whether a data set is what was built: shards, catalog, rejects and lock against ``dataset.json`` and each other.

The proof rests on hashes of shards, catalog rows, lock and recipe; ``dataset.json`` has no hash of its own. What
nothing else says again is taken as it stands there: name, versions, facts about the build, the number of objects.
Of the rejects, frames by reason, origins and series are compared, not the words.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid.catalog.account import (
    UNREADABLE,
    CatalogFile,
    check_books,
    check_catalog,
    check_files,
    check_lock,
    check_manifest,
    check_queries,
    load_manifest,
    read_books,
    read_catalog_files,
)
from lumid.catalog.examine import EXAMINED, Examined, examine_shard
from lumid.catalog.findings import Checked, DamagedShard, Finding, Verification
from lumid.catalog.layout import Layout, Manifest, Shard
from lumid.catalog.paths import AnyPath, StorePath, download, link_or_copy, sizes
from lumid.catalog.schema import CATALOG

__all__ = ["Checked", "DamagedShard", "Finding", "Verification", "verify"]

IN_FLIGHT_PER_WORKER = 2
OWN_FILES = ("dataset.json", "lock.parquet")

Progress = Callable[[int, int], None]
"""Told the bytes looked at so far, and how many it will be in all."""


def verify(
    root: AnyPath, *, deep: bool = False, workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Verify a data set, in a folder or in an object store.

    Every shard is hashed; one whose hash is wrong is looked into, sample by sample. ``deep`` does that for every shard,
    decodes every image, and compares image and JSON with the sample's row. ``workers`` threads, by default one a core,
    hold the rows of two shards each. Of one in a store everything is fetched, two shards a thread at a time. Raises :class:`~lumid.catalog.errors.DatasetError` when there is nothing to verify:
    no ``dataset.json``, or one of another format.

    >>> verify(DATASET).sound
    True
    """
    started = time.monotonic()
    manifest = load_manifest(root)
    if isinstance(manifest, Finding):
        return Verification(deep, (manifest,), (), Checked(), time.monotonic() - started)
    with _at_hand(root) as (layout, names):
        return _verify(layout, names, root, manifest, started, deep=deep, workers=workers, progress=progress)


def _verify(
    layout: Layout, names: Mapping[str, int], root: AnyPath, manifest: Manifest, started: float, *,
    deep: bool, workers: int | None, progress: Progress | None,
) -> Verification:  # fmt: skip
    findings = [*check_manifest(manifest), *check_files(names, manifest)]
    files, unreadable = read_catalog_files(layout)
    findings += [*unreadable, *check_catalog(files, manifest)]
    findings += [] if unreadable else check_queries(layout.root)
    rejects = read_books(layout)
    if isinstance(rejects, Finding):
        findings.append(rejects)
    else:
        findings += check_books(rejects, manifest)
    books = None if isinstance(rejects, Finding) else rejects
    findings += check_lock(layout, manifest, files, books)
    meter = _Meter(manifest, files, deep=deep, progress=progress)
    examined = list(_examine(layout, root, manifest, files, meter, deep=deep, workers=workers or os.cpu_count() or 1))
    counts = Checked(
        shards=len(examined),
        samples=sum(one.samples for one in examined),
        bytes=sum(one.bytes for one in examined),
        images_decoded=sum(one.images_decoded for one in examined),
        catalog_rows=sum(file.rows for file in files),
        rejects=books.rows if books else 0,
    )
    findings += [finding for one in examined for finding in one.findings]
    damaged = tuple(one.damaged for one in examined if one.damaged is not None)
    return Verification(deep, tuple(findings), damaged, counts, time.monotonic() - started)


@contextmanager
def _at_hand(root: AnyPath) -> Iterator[tuple[Layout, dict[str, int]]]:
    """A data set on this machine, and its files' names and sizes: of one in a store copies of all but the shards."""
    if not isinstance(root, StorePath):
        layout = Layout(root)
        names = {f"{folder.name}/{name}": size
                 for folder in (layout.shards, layout.catalog, layout.rejects) for name, size in sizes(folder).items()}  # fmt: skip
        own = (path for path in root.iterdir() if path.is_file())
        yield layout, names | {path.name: path.stat().st_size for path in own}
        return
    names = sizes(root)
    with tempfile.TemporaryDirectory(prefix="lumid-verify-") as folder:
        layout = Layout(Path(folder))
        layout.shards.mkdir()
        for name in names:
            if name in OWN_FILES or (name.startswith(("catalog/", "rejects/")) and name.endswith(".parquet")):
                link_or_copy(root / name, layout.root / name)
        yield layout, names


def _examine_shard(
    layout: Layout, root: AnyPath, shard: Shard, rows: pa.Table, *, deep: bool, advance: Callable[[int], None]
) -> Examined:
    """Examine a shard: one in a store is here for as long as that takes."""
    path = layout.shards / shard.name
    if not isinstance(root, StorePath):
        return examine_shard(path, shard, rows, deep=deep, advance=advance)
    try:
        with suppress(FileNotFoundError):
            download(root / "shards" / shard.name, path)
        return examine_shard(path, shard, rows, deep=deep, advance=advance)
    finally:
        path.unlink(missing_ok=True)


def _examine(
    layout: Layout, root: AnyPath, manifest: Manifest, files: Sequence[CatalogFile], meter: _Meter, *,
    deep: bool, workers: int,
) -> Iterator[Examined]:  # fmt: skip
    """Every shard, in the manifest's order; a bounded number of them at once."""
    rows = _Rows(files)
    pool = ThreadPoolExecutor(workers)
    running: dict[Future[Examined], int] = {}
    done: dict[int, Examined] = {}
    following = 0
    try:
        for number, shard in enumerate(manifest.shards):
            mine = rows.of(shard)
            future = pool.submit(_examine_shard, layout, root, shard, mine, deep=deep, advance=meter.advance)
            running[future] = number
            while len(running) >= IN_FLIGHT_PER_WORKER * workers or (running and number + 1 == len(manifest.shards)):
                for finished in wait(running, return_when=FIRST_COMPLETED).done:
                    done[running.pop(finished)] = finished.result()
            while following in done:
                yield done.pop(following)
                following += 1
    finally:
        pool.shutdown(cancel_futures=True)


class _Rows:
    """The rows of one shard after the other. Shards come in the order of chunks, so one chunk is kept at a time."""

    def __init__(self, files: Sequence[CatalogFile]) -> None:
        self._files: defaultdict[int, list[CatalogFile]] = defaultdict(list)
        self._chunks: defaultdict[str, set[int]] = defaultdict(set)
        for file in files:
            self._files[file.chunk].append(file)
            for shard in file.shards:
                self._chunks[shard].add(file.chunk)
        self._kept: tuple[int, pa.Table] | None = None

    def of(self, shard: Shard) -> pa.Table:
        """The shard's rows by offset, with the columns :data:`EXAMINED`."""
        pieces = [self._chunk(number) for number in sorted(self._chunks[shard.name])]
        mine = [piece.filter(pc.equal(piece["shard"], shard.name)) for piece in pieces]
        table = pa.concat_tables(mine) if mine else SCHEMA.empty_table()
        return table.sort_by([("offset", "ascending"), ("key", "ascending")])

    def _chunk(self, number: int) -> pa.Table:
        if self._kept is None or self._kept[0] != number:
            self._kept = None  # the old one goes before the new one comes
            self._kept = (number, pa.concat_tables([_examined_columns(file) for file in self._files[number]]))
        return self._kept[1]


SCHEMA = pa.schema([CATALOG.field(name) for name in EXAMINED])


def _examined_columns(file: CatalogFile) -> pa.Table:
    """The columns of a catalog file; no rows where a second reading finds it damaged: its hash has said so."""
    try:
        with pq.ParquetFile(file.path) as parquet:
            table = parquet.read([name for name in EXAMINED if name != "modality"])
        table = table.append_column("modality", pa.repeat(pa.scalar(file.modality), table.num_rows)).select(EXAMINED)
        table = table.cast(SCHEMA)
        table.validate(full=True)
    except UNREADABLE:
        return SCHEMA.empty_table()
    return table


class _Meter:
    """Adds up what the workers have looked at, and tells."""

    def __init__(
        self, manifest: Manifest, files: Sequence[CatalogFile], *, deep: bool, progress: Progress | None
    ) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        images = sum(_image_bytes(file) for file in files) if deep and progress else 0
        self._total = sum(shard.bytes for shard in manifest.shards) + images

    def advance(self, more: int) -> None:
        """So many more bytes have been looked at."""
        if self._progress is None:
            return
        with self._lock:
            self._done += more
            self._progress(min(self._done, self._total), self._total)


def _image_bytes(file: CatalogFile) -> int:
    try:
        with pq.ParquetFile(file.path) as parquet:
            return int(pc.sum(parquet.read(["length"])["length"]).as_py() or 0)
    except UNREADABLE:
        return 0
