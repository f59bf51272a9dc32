"""Encoded images from the shards: one by one, where a jump costs nothing, or in blocks that are fetched ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from lumid.catalog.errors import DatasetError
from lumid.model.stream.bucket import Bucket
from lumid.model.stream.cache import BlockCache
from lumid.model.stream.order import Ints
from lumid.model.stream.selection import Columns

JOINED_BYTES = 256 << 10
"""Images with less than that between them are fetched by one request."""
Bytes = bytes | memoryview


class Shards(Protocol):
    """The shards of a data set, wherever they are. Used from many threads."""

    def ranges(self, shard: str, starts: Sequence[int], ends: Sequence[int]) -> Sequence[Bytes] | None:
        """Ranges of a shard's bytes, cut where it ends; None when there is no such shard."""

    def stop(self) -> None:
        """Let what is under way fail soon."""

    def close(self) -> None:
        """Let go of what is open, when nothing is under way."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Shards in a local folder."""

    folder: Path
    _open: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def ranges(self, shard: str, starts: Sequence[int], ends: Sequence[int]) -> Sequence[Bytes] | None:
        """See :class:`Shards`."""
        descriptor = self._open.get(shard)
        if descriptor is None:
            with self._lock:
                if shard not in self._open:
                    try:
                        self._open[shard] = os.open(self.folder / shard, os.O_RDONLY)
                    except FileNotFoundError:
                        return None
                descriptor = self._open[shard]
        return [os.pread(descriptor, end - start, start) for start, end in zip(starts, ends, strict=True)]

    def stop(self) -> None:
        """See :class:`Shards`."""

    def close(self) -> None:
        """See :class:`Shards`."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()


@dataclass(frozen=True, slots=True)
class Remote:
    """Shards in an object store."""

    bucket: Bucket

    def ranges(self, shard: str, starts: Sequence[int], ends: Sequence[int]) -> Sequence[Bytes] | None:
        """See :class:`Shards`."""
        return self.bucket.ranges(f"shards/{shard}", starts, ends)

    def stop(self) -> None:
        """See :class:`Shards`."""
        self.bucket.close()

    def close(self) -> None:
        """See :class:`Shards`."""


class Reader(Protocol):
    """Gives the encoded image of a row. ``need`` says which of the expected readings this is, where they are expected."""

    def read(self, row: int, need: tuple[int, int]) -> Bytes:
        """The image's bytes. Raises :class:`DatasetError` when they are not there."""

    def again(self, row: int) -> Bytes:
        """The same from where it came from first, past all caches."""

    def stop(self) -> None:
        """Let what is under way fail soon, and what has not begun at once."""

    def close(self) -> None:
        """Let go of what is open, when nobody reads any more."""


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Reads each image when it is asked for."""

    columns: Columns
    shards: Shards

    def read(self, row: int, need: tuple[int, int]) -> Bytes:
        """See :class:`Reader`."""
        return self.again(row)

    def again(self, row: int) -> Bytes:
        """See :class:`Reader`."""
        columns = self.columns
        begin, length = int(columns.offset[row]), int(columns.length[row])
        found = self.shards.ranges(columns.shards[columns.shard[row]], (begin,), (begin + length,))
        if found is None:
            raise DatasetError("its shard is missing")
        if len(found[0]) != length:
            raise DatasetError("its shard ends before it")
        return found[0]

    def stop(self) -> None:
        """See :class:`Reader`."""
        self.shards.stop()

    def close(self) -> None:
        """See :class:`Reader`."""
        self.shards.close()


@dataclass(frozen=True, slots=True)
class Blocks:
    """A selection cut into pieces of about equal size, none across shards. ``of_row``: block of each row, ``int64 [rows]``;
    ``rows``: rows as they lie in the shards; block ``b`` has ``rows[starts[b]:starts[b + 1]]``."""

    of_row: Ints
    rows: Ints
    starts: Ints

    @classmethod
    def cut(cls, columns: Columns, block_bytes: int) -> Blocks:
        """Blocks of ``block_bytes`` of images, as a function of the selection alone."""
        rows = np.lexsort((columns.offset, columns.shard)).astype(np.int64)
        shard, length = columns.shard[rows], columns.length[rows]
        before = np.cumsum(length) - length
        begins = np.flatnonzero(np.diff(shard, prepend=-1))
        inside = before - np.repeat(before[begins], np.diff(np.append(begins, len(rows))))
        changes = (np.diff(shard, prepend=-1) != 0) | (np.diff(inside // block_bytes, prepend=-1) != 0)
        of_row = np.empty(len(rows), np.int64)
        of_row[rows] = np.cumsum(changes) - 1
        return cls(of_row, rows, np.append(np.flatnonzero(changes), len(rows)))

    def ranges(self, block: int, columns: Columns) -> tuple[str, Ints, Ints, Ints, Ints]:
        """Shard, rows, the range that each row is in, and begin and end of each range, in bytes."""
        rows = self.rows[self.starts[block] : self.starts[block + 1]]
        begin = columns.offset[rows]
        end = begin + columns.length[rows]
        apart = np.append(True, begin[1:] - end[:-1] > JOINED_BYTES)
        firsts = np.flatnonzero(apart)
        lasts = np.append(firsts[1:], len(rows)) - 1
        return columns.shards[columns.shard[rows[0]]], rows, np.cumsum(apart) - 1, begin[firsts], end[lasts]


@dataclass(frozen=True, slots=True)
class Need:
    """A block that will be read from, so many times. ``name``: epoch and unit, as the samples have them."""

    name: tuple[int, int]
    block: int
    uses: int


@dataclass(slots=True)
class _Held:
    images: Future[dict[int, Bytes]]
    uses: int
    size: int


class BlockReader:
    """Fetches whole blocks in the order in which they will be needed, ``requests`` at once, and keeps each until its
    last image has been read. No more than ``ahead_bytes`` are held, but for the block that is asked for."""

    def __init__(
        self,
        columns: Columns,
        blocks: Blocks,
        shards: Shards,
        needs: Iterator[Need],
        *,
        ahead_bytes: int,
        requests: int,
        cache: BlockCache | None,
        version: str,
    ) -> None:
        self._columns, self._blocks, self._shards, self._needs = columns, blocks, shards, needs
        self._ahead_bytes, self._cache, self._version = ahead_bytes, cache, version
        self._pool = ThreadPoolExecutor(requests, thread_name_prefix="lumid-fetch")
        self._held: dict[tuple[int, int], _Held] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        if cache is not None:
            cache.open()

    def read(self, row: int, need: tuple[int, int]) -> Bytes:
        """See :class:`Reader`."""
        with self._lock:
            self._fetch_ahead(need)
            held = self._held[need]
        images = held.images.result()
        with self._lock:
            held.uses -= 1
            if held.uses == 0:
                del self._held[need]
                self._bytes -= held.size
        if row not in images:
            raise DatasetError("its shard is missing, or ends before it")
        return images[row]

    def again(self, row: int) -> Bytes:
        """See :class:`Reader`."""
        if self._cache is not None:
            shard, _, _, begins, ends = self._blocks.ranges(int(self._blocks.of_row[row]), self._columns)
            self._cache.drop(self._name(shard, begins, ends))
        return OneByOne(self._columns, self._shards).again(row)

    def stop(self) -> None:
        """See :class:`Reader`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._shards.stop()

    def close(self) -> None:
        """See :class:`Reader`."""
        self._pool.shutdown(wait=True)
        self._shards.close()

    def _fetch_ahead(self, need: tuple[int, int]) -> None:
        while need not in self._held or self._bytes < self._ahead_bytes:
            coming = next(self._needs)
            _, _, _, begins, ends = self._blocks.ranges(coming.block, self._columns)
            size = int((ends - begins).sum())
            self._held[coming.name] = _Held(self._pool.submit(self._fetch, coming.block), coming.uses, size)
            self._bytes += size

    def _fetch(self, block: int) -> dict[int, Bytes]:
        """The images of a block by row, without those that are not there."""
        columns = self._columns
        shard, rows, range_of, begins, ends = self._blocks.ranges(block, columns)
        parts = self._parts(shard, begins, ends)
        if parts is None:
            return {}
        images = {}
        inside = columns.offset[rows] - begins[range_of]
        for row, part, begin, length in zip(
            rows.tolist(), range_of.tolist(), inside.tolist(), columns.length[rows].tolist(), strict=True
        ):
            image = parts[part][begin : begin + length]
            if len(image) == length:
                images[row] = image
        return images

    def _parts(self, shard: str, begins: Ints, ends: Ints) -> list[memoryview] | None:
        if self._cache is None:
            found = self._shards.ranges(shard, begins.tolist(), ends.tolist())
            return None if found is None else [memoryview(part) for part in found]
        name, sizes = self._name(shard, begins, ends), (ends - begins).tolist()
        whole = self._cache.get(name, sum(sizes))
        if whole is None:
            found = self._shards.ranges(shard, begins.tolist(), ends.tolist())
            if found is None:
                return None
            whole = b"".join(found)
            if [len(part) for part in found] != sizes:
                return [memoryview(part) for part in found]
            self._cache.put(name, whole)
        cuts = np.cumsum([0, *sizes]).tolist()
        return [memoryview(whole)[begin:end] for begin, end in pairwise(cuts)]

    def _name(self, shard: str, begins: Ints, ends: Ints) -> str:
        return f"{self._version} {shard} {begins.tolist()} {ends.tolist()}"
