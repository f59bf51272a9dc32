"""Parts: what a batch has given, in files of its own, until everything is packed.

A part is three files: ``<name>.tar`` (samples as they will stand in the shards, sorted by key),
``<name>.rejects.parquet``, and ``<name>.parquet`` (rows, with the part's account in its metadata). The last one appears
last, by one rename: where it is, the part is whole. Every row says which row of the lock it comes from, so that a
series that is built again can take the place of what an earlier part holds of it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import astuple, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.layout import atomic_file, write_table
from lumid.catalog.paths import AnyPath, StorePath, over, parquet_metadata, read_parquet
from lumid.catalog.schema import CATALOG, REJECTS, to_table
from lumid.catalog.shards import END_OF_TAR, image_offset, sample_members
from lumid.pipeline.connections import NO_ANSWER, NO_CONNECTION
from lumid.pipeline.ingest import BatchResult, SeriesResult

ACCOUNT = b"lumid.account"
LOCK_ROW = pa.field("lock_row", pa.int64(), nullable=False)
UNFETCHED = "fetch_failed"
Stamp = tuple[int, int, int]
"""Which file it is of those that have had its name: its inode, the time it was written in nanoseconds, and its size."""


@dataclass(frozen=True, slots=True)
class SeriesAccount:
    """What a part holds of one series.

    ``unfetched``: frames that the archive did not give; ``unreached``: those of them for which nobody answered at all.
    ``unknown``: by column, samples whose header states something there that the column's vocabulary does not know.
    """

    lock_row: int
    objects: int
    kept: int
    rejected: int
    unfetched: int = 0
    unreached: int = 0
    unknown: tuple[tuple[str, int], ...] = ()

    @property
    def planned(self) -> int:
        """Frames that are accounted for."""
        return self.kept + self.rejected


@dataclass(frozen=True, slots=True)
class PartAccount:
    """What a part says of itself: enough to count a whole build without opening the parts' rows.

    ``earlier``: :attr:`unknown` of a finished data set that was laid out as parts, which does not tell it by series.
    """

    series: tuple[SeriesAccount, ...]
    source_bytes: int
    sample_bytes: int
    seconds: float
    earlier: tuple[tuple[str, int], ...] = ()

    @property
    def objects(self) -> int:
        """Objects that are accounted for."""
        return sum(one.objects for one in self.series)

    @property
    def planned(self) -> int:
        """Frames that are accounted for."""
        return sum(one.planned for one in self.series)

    @property
    def kept(self) -> int:
        """Frames that became samples."""
        return sum(one.kept for one in self.series)

    @property
    def rejected(self) -> int:
        """Frames that did not."""
        return sum(one.rejected for one in self.series)

    @property
    def unfetched(self) -> frozenset[int]:
        """Series, by their rows of the lock, that the archive did not give whole."""
        return frozenset(one.lock_row for one in self.series if one.unfetched)

    @property
    def unreached(self) -> bool:
        """Whether nobody answered for any of it."""
        return bool(self.series) and all(one.unreached and one.unreached == one.planned for one in self.series)

    @property
    def unknown(self) -> Counter[str]:
        """Samples by column whose header states what the column's vocabulary does not know."""
        return sum((Counter(dict(one.unknown)) for one in self.series), Counter(dict(self.earlier)))

    def without(self, lock_rows: frozenset[int]) -> PartAccount:
        """The account without these series."""
        return replace(self, series=tuple(one for one in self.series if one.lock_row not in lock_rows))


@dataclass(frozen=True, slots=True)
class PartFiles:
    """Where the three files of a part are, and the series (rows of the lock) that are not taken from it."""

    folder: AnyPath
    name: str
    without: frozenset[int] = frozenset()

    @property
    def rows(self) -> AnyPath:
        """The rows; its presence means that the part is whole."""
        return self.folder / f"{self.name}.parquet"

    @property
    def samples(self) -> AnyPath:
        """The samples, a tar."""
        return self.folder / f"{self.name}.tar"

    @property
    def rejects(self) -> AnyPath:
        """The rejects."""
        return self.folder / f"{self.name}.rejects.parquet"


def write_part(files: PartFiles, result: BatchResult, seconds: float) -> PartAccount:
    """Write a batch's result; the rows last."""
    samples = sorted(
        ((sample, series.lock_row) for series in result.series for sample in series.samples),
        key=lambda item: item[0].row.key,
    )
    rejects = sorted(
        ((row, series.lock_row) for series in result.series for row in series.rejects),
        key=lambda item: (item[0].source_id, -1 if item[0].frame is None else item[0].frame),
    )
    offsets = []
    position = 0
    with atomic_file(files.samples) as file:
        for sample, _ in samples:
            members = sample_members(sample.row, sample.image)
            offsets.append(image_offset(position))
            file.write(members)
            position += len(members)
        file.write(END_OF_TAR)
    table = to_table([sample.row for sample, _ in samples], CATALOG)
    at = table.schema.get_field_index("offset")
    table = table.set_column(at, CATALOG.field("offset"), pa.array(offsets, pa.int64()))
    account = PartAccount(
        tuple(series_account(series) for series in result.series), result.source_bytes, position, round(seconds, 3)
    )
    write_rejects_of(files, to_table([row for row, _ in rejects], REJECTS), [number for _, number in rejects])
    write_rows(files, table, [number for _, number in samples], account)
    return account


def series_account(series: SeriesResult) -> SeriesAccount:
    """The account of a series that was ingested."""
    rejected = sum(row.frames for row in series.rejects)
    lost = [row for row in series.rejects if row.code == UNFETCHED]
    unreached = sum(row.frames for row in lost if NO_CONNECTION in row.message or NO_ANSWER in row.message)
    unfetched = sum(row.frames for row in lost)
    unknown = tuple(sorted(Counter(column for sample in series.samples for column in sample.unknown).items()))
    return SeriesAccount(series.lock_row, series.objects, len(series.samples), rejected, unfetched, unreached, unknown)


def write_rejects_of(files: PartFiles, rejects: pa.Table, lock_rows: Sequence[int]) -> None:
    """Write a part's rejects (under :data:`REJECTS`) with the row of the lock that each comes from."""
    write_table(files.rejects, rejects.append_column(LOCK_ROW, pa.array(lock_rows, LOCK_ROW.type)))


def write_rows(files: PartFiles, rows: pa.Table, lock_rows: Sequence[int], account: PartAccount) -> None:
    """Write a part's rows (under :data:`CATALOG`, by key) with the row of the lock of each, and the account: the part is whole."""
    table = rows.append_column(LOCK_ROW, pa.array(lock_rows, LOCK_ROW.type))
    write_table(files.rows, table.replace_schema_metadata({ACCOUNT: account_json(account)}))


def account_json(account: PartAccount) -> str:
    """An account as it is written."""
    facts = {"series": [astuple(one) for one in account.series], "source_bytes": account.source_bytes, "sample_bytes": account.sample_bytes,
             "seconds": account.seconds, "earlier": account.earlier}  # fmt: skip
    return json.dumps(facts)


def parse_account(written: str | bytes) -> PartAccount:
    """The account that :func:`account_json` has written."""
    facts = json.loads(written)
    series = tuple(SeriesAccount(*values) for values in facts.pop("series"))
    return PartAccount(series, **facts)


_known: dict[tuple[AnyPath, str], tuple[Stamp, PartAccount]] = {}
"""Accounts by folder and name: a build asks for each half a dozen times, and to open the file takes 0.7 ms."""


def read_account(files: PartFiles) -> PartAccount:
    """The account of a finished part, without the series that are not taken from it."""
    stamp, name = stamp_of(files), (files.folder, files.name)
    known = _known.get(name)
    if known is None or known[0] != stamp:
        known = stamp, parse_account(parquet_metadata(files.rows).metadata[ACCOUNT])
        _known[name] = known
    account = known[1]
    return account.without(files.without) if files.without else account


def stamp_of(files: PartFiles) -> Stamp:
    """What tells a part's rows from others that are written under their name later."""
    if isinstance(files.folder, StorePath):
        return 0, 0, 0  # a name is written once as long as a build lasts
    about = os.stat(f"{files.folder}/{files.name}.parquet")  # noqa: PTH116  a Path takes as long to make as this
    return about.st_ino, about.st_mtime_ns, about.st_size


def remember_account(files: PartFiles, stamp: Stamp, account: PartAccount) -> None:
    """Take this for the account of a part, as long as its rows have this stamp."""
    _known[files.folder, files.name] = stamp, account


def forget_accounts() -> None:
    """To be called when a build begins: an earlier one of this process may have had parts of the same names."""
    _known.clear()


def read_accounts(parts: Sequence[PartFiles]) -> list[PartAccount]:
    """The account of each: from a store, some at once."""
    return list(over(parts, read_account, remote=any(isinstance(files.folder, StorePath) for files in parts)))


def read_rejects(files: PartFiles) -> pa.Table:
    """A part's rejects under :data:`REJECTS`, of the series that are taken from it."""
    table = read_parquet(files.rejects)
    if files.without:
        left_out = pa.array(sorted(files.without), LOCK_ROW.type)
        table = table.filter(pc.invert(pc.is_in(table[LOCK_ROW.name], value_set=left_out)))
    return table.drop_columns([LOCK_ROW.name])


def finished_parts(folder: AnyPath, batch: str, there: Container[str]) -> list[PartFiles]:
    """What there is of a batch: its own part, then those of series that were tried again, in their order.

    ``there``: the names of the files in the folder.
    """
    found: list[PartFiles] = []
    files = PartFiles(folder, batch)
    while f"{files.name}.parquet" in there:
        found.append(files)
        files = PartFiles(folder, f"{batch}-{len(found)}")
    return found


def choose(generations: Sequence[Sequence[PartFiles]], redone: frozenset[int] = frozenset()) -> list[PartFiles]:
    """All parts, each without those series that another generation of parts has with less missing.

    Of equals the first is taken; but what the first generation holds of ``redone`` only where no other has them whole.
    """
    best: dict[int, tuple[float, int]] = {}
    accounts = [read_accounts(parts) for parts in generations]
    for number, generation in enumerate(accounts):
        missing: Counter[int] = Counter()
        for account in generation:
            missing.update({one.lock_row: one.unfetched for one in account.series})
        for row, frames in missing.items():
            score = (frames + (0.5 if number == 0 and row in redone else 0.0), number)
            best[row] = min(best.get(row, score), score)
    return [
        replace(
            files,
            without=files.without | {one.lock_row for one in account.series if best[one.lock_row][1] != number},
        )
        for number, (parts, generation) in enumerate(zip(generations, accounts, strict=True))
        for files, account in zip(parts, generation, strict=True)
    ]
