"""Whether a data set is what was built: shards, catalog, rejects and lock against ``dataset.json`` and each other.

The proof rests on hashes of shards, catalog rows, lock and recipe; ``dataset.json`` has no hash of its own. What
nothing else says again is taken as it stands there: name, versions, facts about the build, the number of objects.
Of the rejects, frames by reason, origins and series are compared, not the words.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
from lumid.catalog.errors import DatasetError
from lumid.catalog.examine import EXAMINED, Examined, examine_shard
from lumid.catalog.findings import Checked, DamagedShard, Finding, Verification
from lumid.catalog.layout import Layout, Manifest, Shard
from lumid.catalog.schema import CATALOG, FORMAT_VERSION

__all__ = ["Checked", "DamagedShard", "Finding", "Verification", "verify"]

IN_FLIGHT_PER_WORKER = 2

Progress = Callable[[int, int], None]
"""Told the bytes looked at so far, and how many it will be in all."""


def verify(
    root: Path, *, deep: bool = False, workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Verify a data set.

    Every shard is hashed; one whose hash is wrong is looked into, sample by sample. ``deep`` does that for every shard,
    decodes every image, and compares image and JSON with the sample's row. ``workers`` threads, by default one a core,
    hold the rows of two shards each. Raises :class:`~lumid.catalog.errors.DatasetError` when there is nothing to verify:
    no ``dataset.json``, or one of another format.

    >>> verify(Path("demo-data")).sound  # doctest: +SKIP
    True
    """
    started = time.monotonic()
    manifest = load_manifest(root)
    if isinstance(manifest, Finding):
        return Verification(deep, (manifest,), (), Checked(), time.monotonic() - started)
    if manifest.format_version < FORMAT_VERSION:
        raise DatasetError(
            f"{root}: written in format {manifest.format_version} by lumid {manifest.lumid_version}; this lumid verifies "
            f"format {FORMAT_VERSION}: build it again, or verify it with that version"
        )
    layout = Layout(root)
    findings = [*check_manifest(manifest), *check_files(layout, manifest)]
    files, unreadable = read_catalog_files(layout)
    findings += [*unreadable, *check_catalog(files, manifest)]
    findings += [] if unreadable else check_queries(root)
    rejects = read_books(layout)
    if isinstance(rejects, Finding):
        findings.append(rejects)
    else:
        findings += check_books(rejects, manifest)
    books = None if isinstance(rejects, Finding) else rejects
    findings += check_lock(layout, manifest, files, books)
    meter = _Meter(manifest, files, deep=deep, progress=progress)
    examined = list(_examine(layout, manifest, files, meter, deep=deep, workers=workers or os.cpu_count() or 1))
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


def _examine(
    layout: Layout, manifest: Manifest, files: Sequence[CatalogFile], meter: _Meter, *, deep: bool, workers: int
) -> Iterator[Examined]:
    """Every shard, in the manifest's order; a bounded number of them at once."""
    rows = _Rows(files)
    pool = ThreadPoolExecutor(workers)
    running: dict[Future[Examined], int] = {}
    done: dict[int, Examined] = {}
    following = 0
    try:
        for number, shard in enumerate(manifest.shards):
            path = layout.shards / shard.name
            future = pool.submit(examine_shard, path, shard, rows.of(shard), deep=deep, advance=meter.advance)
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
