"""Parts → shards. Every part is sorted by key, so a shard is a merge of one short range of each.

Parts are read in groups (:class:`Group`) for the index of all samples; what the catalog is made of goes another way
(:mod:`lumid.pipeline.pack_catalog`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import Shard, atomic_file, write_table
from lumid.catalog.paths import AnyPath, StorePath, over, read_parquet, read_span
from lumid.catalog.schema import REJECTS, RejectRow, to_table
from lumid.catalog.shards import END_OF_TAR, image_offset
from lumid.pipeline.parts import LOCK_ROW, PartFiles, read_account, read_accounts, read_rejects
from lumid.pipeline.reject import Reject
from lumid.pipeline.unknown import unknown_metadata

ELSEWHERE = Reject("select", "duplicate_instance", "in another series or source")
"""Why a sample is left out whose key another series' sample has."""
SAME_PIXELS = Reject("select", "exact_duplicate")
ExactDuplicates = Literal["keep", "flag", "drop"]
WINDOW_BYTES = 8 << 20
"""So much of a shard is put together at a time: it is hashed and written while the processor's cache still has it."""
WINDOW_BYTES_OF_A_PART = 64 << 10
"""More, where there are many parts: each is opened once for every window."""
GROUP_ROWS = 1 << 16
"""Rows of a group of parts: some 80 MB in memory."""
GROUP_PARTS = 256
"""Fewer rows where parts are that small, so that no task takes more than seconds."""
VIEWS_AT_ONCE = 1024
"""POSIX's IOV_MAX is that on Linux and macOS."""


@dataclass(frozen=True, slots=True)
class Index:
    """Every sample of all parts, in the order of keys: arrays of equal length.

    ``twin``: key of the first sample with the same pixels where that is another one and duplicates are looked for, else
    empty.
    """

    keys: npt.NDArray[np.bytes_]
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    lock_row: npt.NDArray[np.int64]
    twin: npt.NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, which: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Index:
        """The samples at these places."""
        return Index(
            self.keys[which],
            self.part[which],
            self.row[which],
            self.start[which],
            self.size[which],
            self.lock_row[which],
            self.twin[which],
        )


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to be: its name, its samples in order, and where each will begin in it."""

    name: str
    samples: Index
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive parts that are read by one task, and the number of the first of them."""

    number: int
    first: int
    parts: tuple[PartFiles, ...]


def group_parts(parts: Sequence[PartFiles], wanted: int = 1) -> list[Group]:
    """All parts, in groups of so many rows as are read by one task; ``wanted`` groups or more, if there are the parts."""
    accounts = read_accounts(parts)
    most_rows = min(GROUP_ROWS, -(-sum(account.kept for account in accounts) // wanted))
    most_parts = min(GROUP_PARTS, -(-len(parts) // wanted))
    groups: list[Group] = []
    first, rows = 0, 0
    for number, account in enumerate(accounts):
        if number > first and (rows + account.kept > most_rows or number - first >= most_parts):
            groups.append(Group(len(groups), first, tuple(parts[first:number])))
            first, rows = number, 0
        rows += account.kept
    return [*groups, Group(len(groups), first, tuple(parts[first:]))] if parts else groups


@dataclass(frozen=True, slots=True)
class IndexPiece:
    """What a group of parts says of its samples, in the order of parts and rows, and its rejects.

    ``hashes``: ``uint64 [samples, 2]`` of their pixels, empty where no duplicates are looked for.
    """

    index: Index
    hashes: npt.NDArray[np.uint64]
    rejects: pa.Table


def read_index(group: Group, exact: ExactDuplicates = "keep") -> IndexPiece:
    """The samples and the rejects of a group of parts."""
    pieces, hashes = [], [np.empty((0, 2), np.uint64)]
    columns = ["key", "offset", LOCK_ROW.name] + (["pixel_hash"] if exact != "keep" else [])
    tables = over(group.parts, lambda files: read_parquet(files.rows, columns), remote=in_store(group.parts))
    for number, (files, table) in enumerate(zip(group.parts, tables, strict=True), group.first):
        begin = table["offset"].to_numpy() - image_offset(0)
        end = np.append(begin[1:], read_account(files).sample_bytes)[: len(begin)]
        keys = np.array(table["key"].to_pylist(), dtype="S24")
        count = len(keys)
        lock_rows = table[LOCK_ROW.name].to_numpy()
        piece = Index(
            keys, np.full(count, number, np.int32), np.arange(count, dtype=np.int32), begin, end - begin, lock_rows,
            np.full(count, b"", "S24"),
        )  # fmt: skip
        mine = ~np.isin(lock_rows, list(files.without)) if files.without else slice(None)
        pieces.append(piece.take(mine))
        if exact != "keep":
            hashes.append(_pixel_hashes(table)[mine])
    rejects = over(group.parts, read_rejects, remote=in_store(group.parts))
    return IndexPiece(joined(pieces), np.concatenate(hashes), pa.concat_tables(rejects))


def joined(pieces: Sequence[Index]) -> Index:
    """All of their samples, one piece after the other."""
    if not pieces:
        none, names = np.array([], np.int64), np.array([], "S24")
        return Index(names, none.astype(np.int32), none.astype(np.int32), none, none, none, names)
    return Index(
        np.concatenate([piece.keys for piece in pieces]),
        np.concatenate([piece.part for piece in pieces]),
        np.concatenate([piece.row for piece in pieces]),
        np.concatenate([piece.start for piece in pieces]),
        np.concatenate([piece.size for piece in pieces]),
        np.concatenate([piece.lock_row for piece in pieces]),
        np.concatenate([piece.twin for piece in pieces]),
    )


def build_index(
    pieces: Sequence[IndexPiece], parts: Sequence[PartFiles], exact: ExactDuplicates = "keep"
) -> tuple[Index, list[RejectRow]]:
    """All samples by key. Two with one key are one instance that two series have: that of the first row of the lock stays.

    ``pieces``: of all groups of parts. ``exact``: what is done about samples with the same pixels, of which the first by
    key is the one that counts. The index is the same however the series are spread over parts.
    """
    index = joined([piece.index for piece in pieces])
    order = np.lexsort((index.row, index.lock_row, index.keys))
    index = index.take(order)
    again = np.zeros(len(index), bool)
    again[1:] = index.keys[1:] == index.keys[:-1]
    rejects = _rejected(index.take(np.flatnonzero(again)), ELSEWHERE, parts)
    index = index.take(np.flatnonzero(~again))
    if exact == "keep" or len(index) == 0:
        return index, rejects
    index.twin[:] = _twins(index.keys, np.concatenate([piece.hashes for piece in pieces])[order][~again])
    if exact == "flag":
        return index, rejects
    same = index.twin != b""
    return index.take(~same), rejects + _rejected(index.take(same), SAME_PIXELS, parts)


def _pixel_hashes(table: pa.Table) -> npt.NDArray[np.uint64]:
    """``uint64 [samples, 2]``: the first half of each hash, which tells apart as many images as there are."""
    digits = "".join(value[:32] for value in table["pixel_hash"].to_pylist())
    return np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, 2)


def _twins(keys: npt.NDArray[np.bytes_], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bytes_]:
    """For each sample the key of the first one with its hash; empty for that one. ``keys`` ascend."""
    order = np.lexsort((np.arange(len(keys)), hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    twins = np.full(len(keys), b"", "S24")
    twins[order] = np.where(new, b"", keys[firsts])
    return twins


def _rejected(samples: Index, reason: Reject, parts: Sequence[PartFiles]) -> list[RejectRow]:
    """Samples of parts as rejects."""
    rejects = []
    for part in np.unique(samples.part):
        table = read_parquet(parts[part].rows, ["collection", "source", "source_id", "series", "frame", "modality"])
        for row in table.take(pa.array(np.sort(samples.row[samples.part == part]))).to_pylist():
            rejects.append(RejectRow(**row, frames=1, stage=reason.stage, code=reason.code, message=reason.message))
    return rejects


def plan_shards(index: Index, size_mb: float) -> list[ShardPlan]:
    """The shards: equal numbers of samples, so many shards that they are about ``size_mb`` each."""
    if len(index) == 0:
        return []
    count = min(max(1, round(int(index.size.sum()) / (size_mb * 1e6))), len(index))
    plans = []
    for number in range(count):
        samples = index.take(slice(number * len(index) // count, (number + 1) * len(index) // count))
        starts = np.concatenate([[0], np.cumsum(samples.size)[:-1]]).astype(np.int64)
        plans.append(ShardPlan(f"lumid-{number:06d}.tar", samples, starts))
    return plans


def pack_shard(plan: ShardPlan, tars: Sequence[AnyPath], folder: AnyPath, receipts: AnyPath) -> Shard:
    """Write one shard: the samples' bytes, copied from the parts' ``tars`` in the order of keys.

    ``<name>.json`` in ``receipts`` has its size and hash; where that is, the shard is whole and not written again.
    """
    receipt = receipts / f"{plan.name}.json"
    if receipt.is_file():
        return Shard(**json.loads(receipt.read_text("utf-8")))
    digest = hashlib.sha256()
    total = 0
    with atomic_file(folder / plan.name) as file, _flushing(file, isinstance(folder, Path)) as flush:
        for chunk in _merged(plan, tars):
            file.write(chunk)
            flush()
            digest.update(chunk)
            total += len(chunk)
    keys = plan.samples.keys
    shard = Shard(plan.name, len(keys), total, digest.hexdigest(), keys[0].decode(), keys[-1].decode())
    with atomic_file(receipt) as file:
        file.write(json.dumps(asdict(shard)).encode())
    return shard


@contextmanager
def _flushing(file: BinaryIO, on_disk: bool) -> Iterator[Callable[[], None]]:
    """What is written goes to the disk while the next is put together, when it is asked for and none is under way.

    All of it at the end would be a sixth of a shard's time more, in which the processor waits.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="lumid-flush") as pool:
        under_way: Future[None] | None = None

        def flush() -> None:
            nonlocal under_way
            if on_disk and (under_way is None or under_way.done()):
                if under_way is not None:
                    under_way.result()
                file.flush()
                under_way = pool.submit(os.fsync, file.fileno())

        yield flush
        if under_way is not None:
            under_way.result()  # an error of the disk is told to one who asks, once: not to the next fsync


def _merged(plan: ShardPlan, tars: Sequence[AnyPath]) -> Iterator[bytes | memoryview]:
    """The shard's bytes, piece by piece; a piece is good until the next is asked for."""
    samples = plan.samples
    if any(isinstance(tar, StorePath) for tar in tars):
        yield from _merged_from_store(samples, tars)
    else:
        yield from _merged_from_files(samples, cast("Sequence[Path]", tars))
    yield END_OF_TAR


def _merged_from_store(samples: Index, tars: Sequence[AnyPath]) -> Iterator[bytes]:
    """All of every part's range is held: a request for each window of it would cost more than the memory."""
    numbers = np.unique(samples.part).tolist()

    def read(part: int) -> tuple[int, bytes]:
        mine = samples.part == part
        start = int(samples.start[mine].min())
        stop = int((samples.start[mine] + samples.size[mine]).max())
        return start, read_span(tars[part], start, stop - start)

    ranges = dict(zip(numbers, over(numbers, read, remote=True), strict=True))
    for part, start, size in zip(samples.part.tolist(), samples.start.tolist(), samples.size.tolist(), strict=True):
        base, data = ranges[part]
        yield data[start - base : start - base + size]


def _merged_from_files(samples: Index, tars: Sequence[Path]) -> Iterator[memoryview]:
    """A window of the shard at a time. Each takes the place of the one before, so only one is ever held."""
    size = max(WINDOW_BYTES, WINDOW_BYTES_OF_A_PART * len(np.unique(samples.part)))
    windows = np.cumsum(samples.size) // size
    begins = np.concatenate([[0], np.flatnonzero(np.diff(windows)) + 1, [len(samples)]])
    room = memoryview(bytearray(int(np.add.reduceat(samples.size, begins[:-1]).max())))
    for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        window = samples.take(slice(begin, end))
        _fill(room, window, tars)
        yield room[: int(window.size.sum())]


def _fill(room: memoryview, samples: Index, tars: Sequence[Path]) -> None:
    """Read samples, one after the other, into ``room``: what of them lies together in a part is read at once.

    Raises :class:`DatasetError` when a part is shorter than its rows say.
    """
    places = np.cumsum(samples.size) - samples.size
    order = np.argsort(samples.part, kind="stable")
    part, start, size = samples.part[order], samples.start[order], samples.size[order]
    breaks = (np.diff(part) != 0) | (start[1:] != start[:-1] + size[:-1])
    begins = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    runs = zip(begins.tolist(), [*begins[1:].tolist(), len(order)], strict=True)
    bounds = list(zip(places[order].tolist(), (places[order] + size).tolist(), strict=True))
    for number, together in itertools.groupby(runs, key=lambda run: int(part[run[0]])):
        with tars[number].open("rb", buffering=0) as file:
            for begin, end in together:
                _scatter(file.fileno(), int(start[begin]), [room[one:other] for one, other in bounds[begin:end]])


def _scatter(descriptor: int, offset: int, views: list[memoryview]) -> None:
    """Fill the views, one after the other, with a file's bytes from ``offset`` on."""
    while views:
        found = os.preadv(descriptor, views[:VIEWS_AT_ONCE], offset)
        if found == 0:
            raise DatasetError(
                "a finished part is shorter than its rows say; remove the build's folder and build again"
            )
        offset += found
        filled = 0
        while filled < len(views) and found >= len(views[filled]):
            found -= len(views[filled])
            filled += 1
        views = views[filled:]
        if found:  # a network's file system may give less than it has
            views[0] = views[0][found:]


def write_rejects(
    path: AnyPath, pieces: Sequence[IndexPiece], more: list[RejectRow], parts: Sequence[PartFiles]
) -> pa.Table:
    """All rejects of a build in one table, sorted; written and returned."""
    tables = [*(piece.rejects for piece in pieces), to_table(more, REJECTS)]
    order = ("collection", "source_id", "frame", "source", "series", "stage", "code", "message")
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in order])
    write_table(path, table.replace_schema_metadata(unknown_metadata(read_accounts(parts))))
    return table


def in_store(parts: Sequence[PartFiles]) -> bool:
    """Whether any of them lies in an object store."""
    return any(isinstance(files.folder, StorePath) for files in parts)
