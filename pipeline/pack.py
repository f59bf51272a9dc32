"""Parts → shards: every part is sorted by key, so a shard is a merge of one short range of each."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lumid.catalog.catalog_files import CATALOG_CHUNK_ROWS, CatalogFile, write_catalog_rows
from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import Shard, atomic_file, write_table
from lumid.catalog.paths import AnyPath, StorePath, over, read_parquet, read_span
from lumid.catalog.schema import CATALOG, REJECTS, RejectRow, to_table
from lumid.catalog.shards import END_OF_TAR, image_offset
from lumid.pipeline.parts import LOCK_ROW, PartFiles, read_account, read_rejects
from lumid.pipeline.reject import Reject

ELSEWHERE = Reject("select", "duplicate_instance", "in another series or source")
"""Why a sample is left out whose key another series' sample has."""
SAME_PIXELS = Reject("select", "exact_duplicate")
ExactDuplicates = Literal["keep", "flag", "drop"]
WINDOW_BYTES = 8 << 20
"""So much of a shard is put together at a time: it is hashed and written while the processor's cache still has it."""
WINDOW_BYTES_OF_A_PART = 64 << 10
"""More, where there are many parts: each is opened once for every window."""
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


def build_index(parts: Sequence[PartFiles], exact: ExactDuplicates = "keep") -> tuple[Index, list[RejectRow]]:
    """All samples by key. Two with one key are one instance that two series have: that of the first row of the lock stays.

    ``exact``: what is done about samples with the same pixels, of which the first by key is the one that counts.
    The index is the same however the series are spread over parts.
    """
    pieces = []
    hashes = []
    columns = ["key", "offset", LOCK_ROW.name] + (["pixel_hash"] if exact != "keep" else [])
    tables = over(parts, lambda files: read_parquet(files.rows, columns), remote=_in_store(parts))
    for number, (files, table) in enumerate(zip(parts, tables, strict=True)):
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
    if not pieces:
        empty = np.array([], np.int64)
        names = np.array([], "S24")
        return Index(names, empty.astype(np.int32), empty.astype(np.int32), empty, empty, empty, names), []
    index = Index(
        np.concatenate([piece.keys for piece in pieces]),
        np.concatenate([piece.part for piece in pieces]),
        np.concatenate([piece.row for piece in pieces]),
        np.concatenate([piece.start for piece in pieces]),
        np.concatenate([piece.size for piece in pieces]),
        np.concatenate([piece.lock_row for piece in pieces]),
        np.concatenate([piece.twin for piece in pieces]),
    )
    order = np.lexsort((index.row, index.lock_row, index.keys))
    index = index.take(order)
    again = np.zeros(len(index), bool)
    again[1:] = index.keys[1:] == index.keys[:-1]
    rejects = _rejected(index.take(np.flatnonzero(again)), ELSEWHERE, parts)
    index = index.take(np.flatnonzero(~again))
    if exact == "keep":
        return index, rejects
    index.twin[:] = _twins(index.keys, np.concatenate(hashes)[order][~again])
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


def pack_shard(plan: ShardPlan, parts: Sequence[PartFiles], folder: AnyPath, receipts: AnyPath) -> Shard:
    """Write one shard: the samples' bytes, copied from the parts in the order of keys.

    ``<name>.json`` in ``receipts`` has its size and hash; where that is, the shard is whole and not written again.
    """
    receipt = receipts / f"{plan.name}.json"
    if receipt.is_file():
        return Shard(**json.loads(receipt.read_text("utf-8")))
    digest = hashlib.sha256()
    total = 0
    with atomic_file(folder / plan.name) as file:
        for chunk in _merged(plan, parts):
            file.write(chunk)
            digest.update(chunk)
            total += len(chunk)
    keys = plan.samples.keys
    shard = Shard(plan.name, len(keys), total, digest.hexdigest(), keys[0].decode(), keys[-1].decode())
    with atomic_file(receipt) as file:
        file.write(json.dumps(asdict(shard)).encode())
    return shard


def _merged(plan: ShardPlan, parts: Sequence[PartFiles]) -> Iterator[bytes | memoryview]:
    """The shard's bytes, piece by piece; a piece is good until the next is asked for."""
    samples = plan.samples
    if _in_store(parts):
        yield from _merged_from_store(samples, parts)
    else:
        yield from _merged_from_files(samples, cast("list[Path]", [files.samples for files in parts]))
    yield END_OF_TAR


def _merged_from_store(samples: Index, parts: Sequence[PartFiles]) -> Iterator[bytes]:
    """All of every part's range is held: a request for each window of it would cost more than the memory."""
    numbers = np.unique(samples.part).tolist()

    def read(part: int) -> tuple[int, bytes]:
        mine = samples.part == part
        start = int(samples.start[mine].min())
        stop = int((samples.start[mine] + samples.size[mine]).max())
        return start, read_span(parts[part].samples, start, stop - start)

    ranges = dict(zip(numbers, over(numbers, read, remote=True), strict=True))
    for part, start, size in zip(samples.part.tolist(), samples.start.tolist(), samples.size.tolist(), strict=True):
        base, data = ranges[part]
        yield data[start - base : start - base + size]


def _merged_from_files(samples: Index, parts: Sequence[Path]) -> Iterator[memoryview]:
    """A window of the shard at a time. Each takes the place of the one before, so only one is ever held."""
    size = max(WINDOW_BYTES, WINDOW_BYTES_OF_A_PART * len(np.unique(samples.part)))
    windows = np.cumsum(samples.size) // size
    begins = np.concatenate([[0], np.flatnonzero(np.diff(windows)) + 1, [len(samples)]])
    room = memoryview(bytearray(int(np.add.reduceat(samples.size, begins[:-1]).max())))
    for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        window = samples.take(slice(begin, end))
        _fill(room, window, parts)
        yield room[: int(window.size.sum())]


def _fill(room: memoryview, samples: Index, parts: Sequence[Path]) -> None:
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
        with parts[number].open("rb", buffering=0) as file:
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


@dataclass(frozen=True, slots=True)
class CatalogChunk:
    """The catalog's rows of some consecutive shards."""

    number: int
    shards: tuple[ShardPlan, ...]


def plan_catalog(shards: Sequence[ShardPlan]) -> list[CatalogChunk]:
    """Consecutive shards, as many to a chunk as hold half a million rows."""
    chunks: list[CatalogChunk] = []
    group: list[ShardPlan] = []
    rows = 0
    for shard in shards:
        if group and rows + len(shard.samples) > CATALOG_CHUNK_ROWS:
            chunks.append(CatalogChunk(len(chunks), tuple(group)))
            group, rows = [], 0
        group.append(shard)
        rows += len(shard.samples)
    return [*chunks, CatalogChunk(len(chunks), tuple(group))] if group else chunks


def write_catalog_chunk(chunk: CatalogChunk, parts: Sequence[PartFiles], folder: AnyPath) -> CatalogFile:
    """Write a chunk's rows as one Parquet file a modality, sorted so that queries can skip most of them."""
    return write_catalog_rows(_chunk_rows(chunk, parts), chunk.number, folder)


def _chunk_rows(chunk: CatalogChunk, parts: Sequence[PartFiles]) -> pa.Table:
    """The chunk's rows out of all parts, with shard, offset and what they are duplicates of as they will be."""
    samples = [plan.samples for plan in chunk.shards]
    part = np.concatenate([item.part for item in samples])
    row = np.concatenate([item.row for item in samples])
    starts = np.concatenate([plan.starts for plan in chunk.shards])
    names = pa.array(
        np.repeat([plan.name for plan in chunk.shards], [len(plan.samples) for plan in chunk.shards]), pa.string()
    )
    order = np.lexsort((row, part))

    def read(number: int) -> pa.Table:
        return read_parquet(parts[number].rows).take(pa.array(row[order][part[order] == number]))

    tables = over(np.unique(part).tolist(), read, remote=_in_store(parts))
    table = pa.concat_tables([one.drop_columns([LOCK_ROW.name]).replace_schema_metadata(None) for one in tables])
    twins = [twin.decode() or None for twin in np.concatenate([item.twin for item in samples])[order].tolist()]
    values = {
        "shard": names.take(pa.array(order)),
        "offset": pa.array(image_offset(0) + starts[order], pa.int64()),
        "duplicate_of": pa.array(twins, pa.string()),
    }
    for name, column in values.items():
        table = table.set_column(table.schema.get_field_index(name), CATALOG.field(name), column)
    return table.cast(CATALOG)


def write_rejects(path: AnyPath, parts: Sequence[PartFiles], more: list[RejectRow]) -> pa.Table:
    """All rejects of a build in one table, sorted; written and returned."""
    tables = [*over(parts, read_rejects, remote=_in_store(parts)), to_table(more, REJECTS)]
    order = ("collection", "source_id", "frame", "source", "series", "stage", "code", "message")
    table = pa.concat_tables(tables).sort_by([(name, "ascending") for name in order])
    write_table(path, table)
    return table


def _in_store(parts: Sequence[PartFiles]) -> bool:
    return any(isinstance(files.folder, StorePath) for files in parts)
