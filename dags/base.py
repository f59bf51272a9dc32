"""A finished data set as the beginning of another build: its shards serve as parts, so that only some series are fetched.

A folder under ``.build/`` holds a part for each shard (the shard itself, linked or copied) and one for the rejects, and last the
lock: with that, the base is whole, and the data set that it was made of is not needed any more.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.errors import DatasetError
from lumid.catalog.fingerprint import FILE_NAME
from lumid.catalog.layout import Layout, Manifest, Shard, atomic_file, read_manifest, write_table
from lumid.catalog.lock import load_lock, lock_hash
from lumid.catalog.paths import (
    AnyPath,
    StorePath,
    download,
    link_or_copy,
    parquet_metadata,
    read_parquet,
    remove,
    sizes,
)
from lumid.catalog.schema import CATALOG, REJECTS, CatalogRow
from lumid.catalog.shards import END_OF_TAR, image_offset, read_range, sample_members
from lumid.catalog.verify import verify
from lumid.dags.progress import BuildProgress
from lumid.pipeline.parts import (
    UNFETCHED,
    PartAccount,
    PartFiles,
    SeriesAccount,
    read_account,
    write_rejects_of,
    write_rows,
)
from lumid.pipeline.unknown import unknown_by_series

REJECTS_PART = "rejects"
IDENTITY = b"lumid.made_of"
NOT_TAKEN = -1
"""The row of the lock, in a base's parts, of series that are not taken from it."""
STATED = ("source_version", "license", "doi")
"""What a sample's row says as the lock does, whatever its pixels."""
REWRITE_ROWS = 256


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished data set, with its books."""

    layout: Layout[AnyPath]
    manifest: Manifest
    lock: pa.Table = field(repr=False)
    rejects: pa.Table = field(repr=False)

    @property
    def identity(self) -> str:
        """What tells it from any other."""
        manifest = self.manifest
        text = f"{manifest.catalog_hash} {manifest.lock_hash} {sorted(manifest.rejects.items())}"
        return hashlib.sha256(text.encode()).hexdigest()


def open_finished(root: AnyPath) -> Finished:
    """A data set with its lock and rejects; raises :class:`DatasetError` when it is not finished, or they cannot be read."""
    layout: Layout[AnyPath] = Layout(root)
    manifest = read_manifest(root)
    names = [name for name in sorted(sizes(layout.rejects)) if name.endswith(".parquet")]
    try:
        rejects = pa.concat_tables([read_parquet(layout.rejects / name).cast(REJECTS) for name in names])
    except (OSError, pa.ArrowException, ValueError):
        raise DatasetError(f"{root}: its rejects cannot be read; see: lumid verify {root}") from None
    return Finished(layout, manifest, load_lock(layout.lock), rejects)


@dataclass(frozen=True, slots=True)
class Base:
    """A data set laid out as parts in ``folder``, whether it is yet or not."""

    folder: AnyPath

    @property
    def lock(self) -> AnyPath:
        """The lock of the build that it is the base of; written last."""
        return self.folder / "lock.parquet"

    @property
    def rejects(self) -> PartFiles:
        """The part that has the rejects, and the account of every series that is taken."""
        return PartFiles(self.folder, REJECTS_PART)

    def is_laid(self, finished: Finished | None = None, lock: pa.Table | None = None) -> bool:
        """Whether it is whole, and of this data set and for this lock, where they are given."""
        if not self.lock.is_file():
            return False
        made_of = (parquet_metadata(self.lock).metadata or {}).get(IDENTITY, b"").decode()
        same = finished is None or made_of == finished.identity
        return same and (lock is None or lock_hash(load_lock(self.lock)) == lock_hash(lock))

    def parts(self) -> list[PartFiles]:
        """Its parts, without what is not taken; none where it is not laid."""
        if not self.is_laid():
            return []
        suffix = ".rejects.parquet"
        names = [name.removesuffix(suffix) for name in sorted(sizes(self.folder)) if name.endswith(suffix)]
        return [PartFiles(self.folder, name, frozenset({NOT_TAKEN})) for name in names]

    def series(self) -> frozenset[int]:
        """The rows of the lock whose series are taken from it."""
        return frozenset(one.lock_row for one in read_account(self.rejects).series) if self.is_laid() else frozenset()

    def lay(
        self, finished: Finished, lock: pa.Table, taken: Mapping[int, int], progress: BuildProgress, lost: frozenset[int] = frozenset()
    ) -> None:  # fmt: skip
        """Lay a finished data set out as parts of a build of ``lock``.

        ``taken``: by row of its own lock, the row of ``lock`` that is the same series; the others are left out. Where the
        two locks say another licence, DOI or version of it, its rows and JSON get those of ``lock``. ``lost``: rows
        that no sample is from. Raises :class:`DatasetError` when the data set is damaged: what it holds would be handed on.
        """
        root = finished.layout.root
        if not verify(root, progress=progress.checked).sound:
            raise DatasetError(f"{root}: is damaged, and is not built on; see: lumid verify {root}")
        remove(self.folder)
        laying = _Laying(self, finished, lock, taken, Origins(finished.lock, lost))
        for shard, rows in shard_rows(finished.layout, finished.manifest):
            laying.shard_part(shard, rows)
        laying.rejects_part()
        if read_manifest(root) != finished.manifest:
            raise DatasetError(f"{root}: has become another data set meanwhile; run the same command again")
        write_table(self.lock, lock.replace_schema_metadata({IDENTITY: finished.identity.encode()}))


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


class _Laying:
    """A base while it is laid: what of it is taken, and what has been found of every series."""

    def __init__(
        self, base: Base, finished: Finished, lock: pa.Table, taken: Mapping[int, int], origins: Origins
    ) -> None:
        self._folder = base.folder
        self._finished = finished
        self._lock = lock
        self._taken = taken
        self._origins = origins
        self._seen = _Seen(lock)
        before, now = (table.select(STATED).to_pylist() for table in (finished.lock, lock))
        self._restated = {row: now[row] for was, row in taken.items() if before[was] != now[row]}

    def shard_part(self, shard: Shard, rows: pa.Table) -> None:
        """The part that a shard is: the file itself, or a new one where a sample's JSON has to say something else."""
        files = PartFiles(self._folder, shard.name.removesuffix(".tar"))
        path = self._finished.layout.shards / shard.name
        lock_rows = self._rows(rows)
        stated = _restate(rows, lock_rows, self._restated)
        if all(row == NOT_TAKEN for row in lock_rows):
            return
        if stated["license"].equals(rows["license"]):
            link_or_copy(path, files.samples)
            size = shard.bytes - len(END_OF_TAR)
        else:
            which = [number for number, row in enumerate(lock_rows) if row != NOT_TAKEN]
            stated, lock_rows = stated.take(pa.array(which, pa.int64())), [lock_rows[number] for number in which]
            stated, size = _rewritten(path, files.samples, stated)
        kept = Counter(row for row in lock_rows if row != NOT_TAKEN)
        self._seen.add(lock_rows, stated)
        series = tuple(SeriesAccount(row, 0, count, 0) for row, count in sorted(kept.items()))
        write_rejects_of(files, REJECTS.empty_table(), [])
        write_rows(files, stated, lock_rows, PartAccount(series, 0, size, 0.0))

    def rejects_part(self) -> None:
        """The part that the rejects are. It also accounts for every series' objects, which no shard's part does."""
        found = self._rows(self._finished.rejects)
        which = [number for number, row in enumerate(found) if row != NOT_TAKEN]
        rejects, lock_rows = self._finished.rejects.take(pa.array(which, pa.int64())), [found[one] for one in which]
        self._seen.add(lock_rows, rejects)
        rejected: Counter[int] = Counter()
        missing: Counter[int] = Counter()
        for row, frames, code in zip(
            lock_rows, rejects["frames"].to_pylist(), rejects["code"].to_pylist(), strict=True
        ):
            rejected[row] += frames
            missing[row] += frames if code == UNFETCHED else 0
        unknown = unknown_by_series(self._finished.layout.rejects)
        series = tuple(
            SeriesAccount(row, self._seen.objects(row), 0, rejected[row], missing[row], 0, (unknown or {}).get(was, ()))
            for was, row in sorted(self._taken.items(), key=lambda pair: pair[1])
        )
        earlier = tuple(self._finished.manifest.unknown.items()) if unknown is None else ()
        files = PartFiles(self._folder, REJECTS_PART)
        write_rejects_of(files, rejects, lock_rows)
        write_rows(files, CATALOG.empty_table(), [], PartAccount(series, 0, 0, 0.0, earlier))

    def _rows(self, table: pa.Table) -> list[int]:
        """The row of the new lock of each; of what can come from several, only where all of them are taken."""
        return [
            self._taken[rows[0]] if all(row in self._taken for row in rows) else NOT_TAKEN
            for rows in self._origins.candidates(table)
        ]


class _Seen:
    """The objects of every series that samples and rejects name, where the lock does not count them."""

    def __init__(self, lock: pa.Table) -> None:
        self._counted: list[int | None] = lock["objects"].to_pylist()
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
            if row == NOT_TAKEN or self._counted[row] is not None:
                continue
            if code == UNFETCHED and alone:  # stands for as many objects as frames
                self._unnamed[row] += count
            else:
                self._named[row].add(name)

    def objects(self, row: int) -> int:
        """How many objects the series has."""
        counted = self._counted[row]
        return len(self._named[row]) + self._unnamed[row] if counted is None else counted


def _restate(rows: pa.Table, lock_rows: list[int], restated: Mapping[int, Mapping[str, str | None]]) -> pa.Table:
    """Rows with what the lock says now of their series."""
    if not restated.keys() & set(lock_rows):
        return rows
    for name in STATED:
        values = [
            restated[row][name] if row in restated else value
            for row, value in zip(lock_rows, rows[name].to_pylist(), strict=True)
        ]
        rows = rows.set_column(rows.schema.get_field_index(name), CATALOG.field(name), pa.array(values, pa.string()))
    return rows


def _rewritten(shard: AnyPath, path: AnyPath, rows: pa.Table) -> tuple[pa.Table, int]:
    """Write some samples of a shard, by key, with the JSON that their rows make; the rows where they are now, and all bytes."""
    offsets = []
    position = 0
    with _at_hand(shard) as local, local.open("rb") as source, atomic_file(path) as file:
        for batch in rows.to_batches(max_chunksize=REWRITE_ROWS):
            for values in batch.to_pylist():
                labels = values.pop("labels")
                row = CatalogRow(**values, labels=None if labels is None else tuple(labels))
                members = sample_members(row, read_range(source, row.offset, row.length))
                offsets.append(image_offset(position))
                position += len(members)
                file.write(members)
        file.write(END_OF_TAR)
    at = rows.schema.get_field_index("offset")
    return rows.set_column(at, CATALOG.field("offset"), pa.array(offsets, pa.int64())), position


@contextmanager
def _at_hand(shard: AnyPath) -> Iterator[Path]:
    """A shard as a file of this machine."""
    if not isinstance(shard, StorePath):
        yield shard
        return
    with tempfile.TemporaryDirectory(prefix="lumid-") as folder:
        local = Path(folder) / shard.name
        download(shard, local)
        yield local
