"""A finished data set as the beginning of its next build: its shards serve as parts, so that only some series are fetched.

``.build/base/`` holds a part for each shard (the shard itself, linked) and one for the rejects; with them the lock.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.errors import DatasetError
from lumid.catalog.fingerprint import FILE_NAME
from lumid.catalog.layout import Layout, Manifest, Shard, write_table
from lumid.catalog.lock import load_lock
from lumid.catalog.paths import AnyPath, link_or_copy, parquet_metadata, read_parquet, remove, sizes
from lumid.catalog.schema import CATALOG, FORMAT_VERSION, REJECTS
from lumid.catalog.shards import END_OF_TAR
from lumid.catalog.verify import verify
from lumid.dags.progress import BuildProgress
from lumid.pipeline.pack import ELSEWHERE, SAME_PIXELS
from lumid.pipeline.parts import (
    UNFETCHED,
    PartAccount,
    PartFiles,
    SeriesAccount,
    write_rejects_of,
    write_rows,
)

REJECTS_PART = "rejects"
IDENTITY = b"lumid.made_of"


@dataclass(frozen=True, slots=True)
class Again:
    """What of a finished data set is to be built again, as rows of its lock.

    ``missing``: series that an archive did not give whole, and how many frames it did not. ``redone``: those that share an instance or the pixels
    of one with another series; of such only one is kept, and with some series fetched anew it is decided anew which.
    """

    lock: pa.Table = field(repr=False)
    missing: dict[int, int]
    redone: frozenset[int]

    @property
    def rows(self) -> frozenset[int]:
        """All of them."""
        return self.redone | self.missing.keys()


def read_again(layout: Layout[AnyPath], finished: Manifest | None) -> Again | None:
    """What is to be built again of a finished data set, or of one whose next build was being put in its place.

    None where there is neither, or nothing is missing, or where it is of an older format: nothing is added to that.
    """
    base = PartFiles(_folder(layout), REJECTS_PART)
    if _is_laid(layout, finished):
        lock, rejects = load_lock(_base_lock(layout)), read_parquet(base.rejects)
    elif finished is not None and finished.format_version == FORMAT_VERSION:
        lock, rejects = load_lock(layout.lock), _rejects(layout)
    else:
        return None
    origins = Origins(lock)
    lost = rejects.filter(pc.equal(rejects["code"], UNFETCHED))
    missing: Counter[int] = Counter()
    for row, frames in zip(origins.of(lost), lost["frames"].to_pylist(), strict=True):
        missing[row] += frames
    # whose pixels a rejected duplicate had may have other pixels now: a series' range is that of all its slices
    again = pc.or_(pc.equal(rejects["message"], ELSEWHERE.message), pc.equal(rejects["code"], SAME_PIXELS.code))
    redone = origins.of(rejects.filter(again))
    return Again(lock, dict(missing), frozenset(redone)) if missing else None


def base_parts(layout: Layout[AnyPath]) -> list[PartFiles]:
    """The parts that a finished data set was laid out as; none where it was not."""
    if not _base_lock(layout).is_file():
        return []
    folder, suffix = _folder(layout), ".rejects.parquet"
    return [PartFiles(folder, name.removesuffix(suffix)) for name in sorted(sizes(folder)) if name.endswith(suffix)]


def lay_base(layout: Layout[AnyPath], manifest: Manifest, progress: BuildProgress) -> None:
    """Lay a finished data set out as parts of its next build.

    Raises :class:`DatasetError` when it is damaged: what it holds would be handed on.
    """
    if _is_laid(layout, manifest):
        return
    if not verify(layout.root, progress=progress.checked).sound:
        raise DatasetError(f"{layout.root}: is damaged, and is not built on; see: lumid verify {layout.root}")
    remove(_folder(layout))
    lock = load_lock(layout.lock)
    rejects = _rejects(layout)
    lost = Origins(lock).of(rejects.filter(pc.equal(rejects["code"], UNFETCHED)))
    origins = Origins(lock, frozenset(lost))
    seen = _Seen(lock)
    for shard, rows in shard_rows(layout, manifest):
        _shard_part(layout, shard, rows, origins, seen)
    _rejects_part(layout, rejects, origins, seen, manifest.unknown)
    identity = lock.replace_schema_metadata({IDENTITY: _identity(manifest)})
    write_table(_base_lock(layout), identity)  # last: with it, the base is whole


def _is_laid(layout: Layout[AnyPath], finished: Manifest | None) -> bool:
    """Whether there is a whole base, and of the data set that is there now, if any is.

    That of an earlier one is left when a build was killed after it had put the new one in its place.
    """
    if not _base_lock(layout).is_file():
        return False
    stated = (parquet_metadata(_base_lock(layout)).metadata or {}).get(IDENTITY)
    return finished is None or stated == _identity(finished)


def _identity(manifest: Manifest) -> bytes:
    text = f"{manifest.catalog_hash} {manifest.lock_hash} {sorted(manifest.rejects.items())}"
    return hashlib.sha256(text.encode()).hexdigest().encode()


def _folder(layout: Layout[AnyPath]) -> AnyPath:
    return layout.work / "base"


def _base_lock(layout: Layout[AnyPath]) -> AnyPath:
    return _folder(layout) / "lock.parquet"


class Origins:
    """From which row of the lock a sample or reject comes: by the archive's name, by the series, or by the collection.

    Only the images of ChestX-ray14 are found by the last: nothing tells which of its archives one was in, but that it
    was in none that is ``lost``.
    """

    def __init__(self, lock: pa.Table, lost: frozenset[int] = frozenset()) -> None:
        self._by_name: dict[tuple[str, str], int] = {}
        self._by_series: dict[tuple[str, str, str], int] = {}
        self._by_collection: dict[tuple[str, str], list[int]] = {}
        columns = [lock[name].to_pylist() for name in ("source", "collection", "series", "location")]
        for row, (source, collection, series, location) in enumerate(zip(*columns, strict=True)):
            for name in (location, series):
                self._by_name.setdefault((source, name or series), row)
            self._by_series.setdefault((source, collection, series), row)
            if row not in lost:
                self._by_collection.setdefault((source, collection), []).append(row)

    def of(self, table: pa.Table) -> list[int]:
        """The lock's row for each of a table's; needs the columns source, collection, source_id and series."""
        return [rows[0] for rows in self.candidates(table)]

    def candidates(self, table: pa.Table) -> list[list[int]]:
        """For each of a table's rows all rows of the lock that it can come from; mostly that is one."""
        columns = [table[name].to_pylist() for name in ("source", "collection", "source_id", "series")]
        return [self._one(*values) for values in zip(*columns, strict=True)]

    def _one(self, source: str, collection: str, source_id: str, series: str) -> list[int]:
        found = self._by_name.get((source, source_id.rpartition("/")[0] or source_id))
        if found is None:
            found = self._by_series.get((source, collection, series))
        return self._by_collection.get((source, collection), [0]) if found is None else [found]


def shard_rows(layout: Layout[AnyPath], manifest: Manifest) -> Iterator[tuple[Shard, pa.Table]]:
    """Every shard with its rows of the catalog, under :data:`CATALOG`, by key."""
    chunks: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(sizes(layout.catalog)):
        if FILE_NAME.fullmatch(name):
            chunks[name.partition("/")[2]].append(name)
    shards = {shard.name: shard for shard in manifest.shards}
    for name in sorted(chunks):
        pieces = []
        for file in chunks[name]:
            table = read_parquet(layout.catalog / file)
            modality = file.partition("/")[0].partition("=")[2]
            table = table.append_column("modality", pa.repeat(pa.scalar(modality), table.num_rows))
            pieces.append(table.select(CATALOG.names).cast(CATALOG))
        rows = pa.concat_tables(pieces).sort_by([("key", "ascending")])
        for shard in pc.unique(rows["shard"]).to_pylist():
            yield shards[shard], rows.filter(pc.equal(rows["shard"], shard))


class _Seen:
    """What has been found of every series: its samples, and its objects where the archive has not counted them."""

    def __init__(self, lock: pa.Table) -> None:
        self.counted: list[int | None] = lock["objects"].to_pylist()
        self.kept: Counter[int] = Counter()
        self._named: defaultdict[int, set[str]] = defaultdict(set)
        self._unnamed: Counter[int] = Counter()

    def add(self, lock_rows: list[int], table: pa.Table) -> None:
        """Objects that samples or rejects name."""
        frames = table["frames"].to_pylist() if "frames" in table.column_names else [1] * len(lock_rows)
        whole = table["frame"].is_null().to_pylist()
        codes = table["code"].to_pylist() if "code" in table.column_names else [""] * len(lock_rows)
        for row, name, count, alone, code in zip(
            lock_rows, table["source_id"].to_pylist(), frames, whole, codes, strict=True
        ):
            if self.counted[row] is not None:
                continue
            if code == UNFETCHED and alone:  # stands for as many objects as frames
                self._unnamed[row] += count
            else:
                self._named[row].add(name)

    def objects(self, row: int) -> int:
        """How many objects the series has."""
        counted = self.counted[row]
        return len(self._named[row]) + self._unnamed[row] if counted is None else counted


def _shard_part(layout: Layout[AnyPath], shard: Shard, rows: pa.Table, origins: Origins, seen: _Seen) -> None:
    """The part that a shard is."""
    files = PartFiles(_folder(layout), shard.name.removesuffix(".tar"))
    link_or_copy(layout.shards / shard.name, files.samples)
    lock_rows = origins.of(rows)
    kept = Counter(lock_rows)
    seen.kept.update(kept)
    seen.add(lock_rows, rows)
    series = tuple(SeriesAccount(row, 0, count, 0) for row, count in sorted(kept.items()))
    write_rejects_of(files, REJECTS.empty_table(), [])
    write_rows(files, rows, lock_rows, PartAccount(series, 0, shard.bytes - len(END_OF_TAR), 0.0))


def _rejects_part(
    layout: Layout[AnyPath], rejects: pa.Table, origins: Origins, seen: _Seen, unknown: dict[str, int]
) -> None:
    """The part that the rejects are. It also accounts for every series' objects, which no shard's part does."""
    files = PartFiles(_folder(layout), REJECTS_PART)
    lock_rows = origins.of(rejects)
    seen.add(lock_rows, rejects)
    rejected: Counter[int] = Counter()
    missing: Counter[int] = Counter()
    for row, frames, code in zip(lock_rows, rejects["frames"].to_pylist(), rejects["code"].to_pylist(), strict=True):
        rejected[row] += frames
        missing[row] += frames if code == UNFETCHED else 0
    series = tuple(
        SeriesAccount(row, seen.objects(row), 0, rejected[row], missing[row]) for row in range(len(seen.counted))
    )
    write_rejects_of(files, rejects, lock_rows)
    write_rows(files, CATALOG.empty_table(), [], PartAccount(series, 0, 0, 0.0, tuple(unknown.items())))


def _rejects(layout: Layout[AnyPath]) -> pa.Table:
    names = [name for name in sorted(sizes(layout.rejects)) if name.endswith(".parquet")]
    return pa.concat_tables([read_parquet(layout.rejects / name) for name in names]).cast(REJECTS)
