"""The stream itself: batches in order, read and decoded ahead in threads, straight into the batch's memory."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from lumid.catalog.codecs import Pixels, decode
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.layout import Layout
from lumid.model.stream.batch import Batch, Buffers, Memory, StreamState
from lumid.model.stream.bucket import Bucket
from lumid.model.stream.cache import BlockCache
from lumid.model.stream.order import BlockShuffle, Mixture
from lumid.model.stream.planning import Access, Places, Plan, Share, access_of
from lumid.model.stream.reading import BlockReader, Disk, OneByOne, Reader, Remote, Shards
from lumid.model.stream.selection import Columns, Selection

log = logging.getLogger(__name__)
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How samples become batches. ``batch_size`` is that of one rank; the global batch is ``batch_size × world``.

    ``threads``: how many decode; 0 decodes in the caller's own. ``prefetch``: batches that are made ahead.
    ``max_bad``: images that may turn out unreadable before the stream stops. ``mixture``: how often what is drawn.
    ``pinned``: memory that a GPU copies from while the host goes on; by default where there is a GPU.

    ``access``: ``random`` reads each image by itself, in the order of a full permutation; ``sequential`` reads blocks of
    ``block_mb`` ahead, and shuffles them as ``lanes`` and ``window_mb`` say (:func:`~.order.block_order`); ``auto``
    does the first on a disk and the second in an object store. ``lanes``: a multiple of the ranks there will ever be.
    ``window_mb``: over all ranks; a rank holds up to twice its part of it. ``requests``: how many blocks are fetched at
    once. ``cache``: a local folder for blocks of an object store, up to ``cache_mb``.
    """

    batch_size: int
    channels: int = 1
    canvas: int = 256
    seed: int = 0
    threads: int = 2
    prefetch: int = 4
    max_bad: int = 100
    rank: int = 0
    world: int = 1
    mixture: Mixture | None = None
    pinned: bool | None = None
    access: str = "auto"
    lanes: int = 16
    block_mb: float = 2.0
    window_mb: float = 256.0
    requests: int = 16
    cache: Path | None = None
    cache_mb: float = 10_000.0

    @property
    def share(self) -> Share:
        """Which part of each global batch is this rank's."""
        return Share(self.rank, self.world, self.batch_size)

    @property
    def block_bytes(self) -> int:
        """Size of a block."""
        return max(1, round(self.block_mb * MB))

    @property
    def shuffle(self) -> BlockShuffle:
        """How blocks are shuffled."""
        return BlockShuffle(self.lanes, max(1, round(self.window_mb / self.lanes / self.block_mb)))

    @property
    def ahead_bytes(self) -> int:
        """What a rank may hold of blocks: its lanes' windows, and the ones after them."""
        lanes = self.lanes // self.world if self.lanes % self.world == 0 else self.lanes
        return 2 * max(1, lanes) * self.shuffle.window * self.block_bytes


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A batch that is being made."""

    buffers: Buffers
    places: Places
    jobs: list[Future[None]]


class ImageStream(IterableDataset[Batch]):
    """Endless batches of a selection: epochs follow each other without a gap.

    The global sequence of samples is the same for any number of threads, workers and ranks; of each global batch, rank
    ``r`` gets every ``world``-th sample from the ``r``-th on. ``state_dict()`` after a batch is the place of the next;
    loading it repeats and skips nothing, also with another number of ranks as long as the global batch is the same.

    It reads ahead in threads of its own: use it as it is, or in a ``DataLoader`` with ``batch_size=None``. With
    ``num_workers=n`` each worker makes every ``n``-th batch; the place to go on at is then ``batch.state``.
    """

    def __init__(self, selection: Selection, settings: StreamSettings, state: StreamState | None = None) -> None:
        super().__init__()
        if not 0 <= settings.rank < settings.world or settings.batch_size < 1 or settings.lanes < 1:
            raise UsageError("a stream needs 0 <= rank < world, and a batch_size and lanes of at least 1")
        self.selection = selection
        self.settings = settings
        self._state = state or StreamState()
        self._columns = Columns.of(selection.table)
        self.bad: list[str] = []
        """Keys of the images that could not be read, each once."""

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        access = access_of(self.selection.place.root, self.settings.access, self._state)
        if access == "sequential" and worker is not None:
            raise UsageError("sequential access reads ahead in threads of its own: use num_workers=0 in the DataLoader")
        plan = self._plan(access)
        if self._state.order not in ("", plan.order):
            plan.close()
            raise UsageError(
                "the stream's state is of another selection, seed, mixture or way of shuffling; go on with the same, or begin anew"
            )
        reader = self._reader(plan, self._state)
        work = _Filling(self.selection, self._columns, self.settings, reader, self.bad)
        try:
            yield from self._batches(plan, work, number, workers)
        finally:
            plan.close()
            reader.stop()
            work.close()
            reader.close()

    def state_dict(self) -> dict[str, int | str]:
        """The place of the next sample, as plain values."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at that place; takes effect at the next ``iter()``."""
        self._state = StreamState(**state)

    def close(self) -> None:
        """Nothing is open between iterations; an iterator that is not used to its end is closed by its own ``close()``."""

    def _plan(self, access: Access) -> Plan:
        settings = self.settings
        return Plan(
            self.selection,
            self._columns,
            seed=settings.seed,
            access=access,
            shuffle=settings.shuffle,
            block_bytes=settings.block_bytes,
            mixture=settings.mixture,
        )

    def _reader(self, plan: Plan, state: StreamState) -> Reader:
        settings, root = self.settings, self.selection.place.root
        shards: Shards = Remote(Bucket(root)) if isinstance(root, str) else Disk(Layout(root).shards)
        if plan.blocks is None:
            return OneByOne(self._columns, shards)
        cache = BlockCache(settings.cache, round(settings.cache_mb * MB)) if settings.cache else None
        return BlockReader(
            self._columns,
            plan.blocks,
            shards,
            plan.needs(state, settings.share),
            ahead_bytes=settings.ahead_bytes,
            requests=settings.requests,
            cache=cache if isinstance(root, str) else None,
            version=f"{root} {self.selection.version}",
        )

    def _batches(self, plan: Plan, work: _Filling, number: int, workers: int) -> Iterator[Batch]:
        ahead: deque[_Ahead] = deque()
        state, share = self._state, self.settings.share
        for _ in range(number):
            state = _skip(state, share.global_batch, plan)
        while True:
            while len(ahead) < max(1, self.settings.prefetch if self.settings.threads else 1):
                places = plan.places(state, share)
                ahead.append(work.begin(places))
                state = places.after
                for _ in range(workers - 1):
                    state = _skip(state, share.global_batch, plan)
            done = ahead.popleft()
            work.finish(done)
            batch = self._batch(done.buffers, done.places)
            self._state = done.places.after
            del done  # the buffers are free again when the batch is
            yield batch
            del batch

    def _batch(self, buffers: Buffers, places: Places) -> Batch:
        columns, rows = self._columns, places.rows
        return Batch(
            pixels=torch.from_numpy(buffers.pixels),
            size=torch.from_numpy(buffers.size),
            low=torch.from_numpy(columns.low[rows]),
            high=torch.from_numpy(columns.high[rows]),
            white=torch.from_numpy(columns.white[rows]),
            slope=torch.from_numpy(columns.slope[rows]),
            intercept=torch.from_numpy(columns.intercept[rows]),
            hounsfield=torch.from_numpy(columns.hounsfield[rows]),
            suv=torch.from_numpy(columns.suv[rows]),
            modality=torch.from_numpy(columns.modality[rows]),
            draws=torch.from_numpy(places.draws),
            valid=torch.from_numpy(buffers.valid),
            place=torch.from_numpy(np.stack([places.epochs, places.indices], axis=1)),
            keys=tuple(columns.key.take(rows).to_pylist()),
            state=places.after,
        )


class _Filling:
    """Reads and decodes the samples of batches into their memory, in threads."""

    def __init__(
        self, selection: Selection, columns: Columns, settings: StreamSettings, reader: Reader, bad: list[str]
    ) -> None:
        self._root, self._columns, self._settings, self._reader = selection.place, columns, settings, reader
        pinned = torch.cuda.is_available() if settings.pinned is None else settings.pinned
        self._memory = Memory(settings.batch_size, settings.channels, settings.canvas, pinned and not get_worker_info())
        self._pool = ThreadPoolExecutor(settings.threads, "lumid-decode") if settings.threads else None
        self._own = threading.local()
        self._bad, self._why = bad, ""
        self._lock = threading.Lock()

    def begin(self, places: Places) -> _Ahead:
        """Begin to make a batch; without threads, make it."""
        buffers = self._memory.take()
        if self._pool is None:
            self._fill(buffers, places, 0, 1)
            return _Ahead(buffers, places, [])
        threads = min(self._settings.threads, len(places))
        jobs = [self._pool.submit(self._fill, buffers, places, first, threads) for first in range(threads)]
        return _Ahead(buffers, places, jobs)

    def finish(self, ahead: _Ahead) -> None:
        """Wait for a batch. Raises :class:`DatasetError` when too many images cannot be read, or what the store says."""
        for job in ahead.jobs:
            job.result()
        if len(self._bad) > self._settings.max_bad:
            raise DatasetError(
                f"{self._root}: {len(self._bad)} images could not be read, more than max_bad = {self._settings.max_bad}; "
                f"the last is {self._bad[-1]} ({self._why}). Look with `lumid verify --deep`, or build the data set again"
            )

    def close(self) -> None:
        """Wait for what is under way, begin no more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, buffers: Buffers, places: Places, first: int, step: int) -> None:
        """Every ``step``-th sample of a batch; run in a thread."""
        rows, epochs, units = places.rows.tolist(), places.epochs.tolist(), places.units.tolist()
        for slot in range(first, len(rows), step):
            image = buffers.pixels[slot].view(np.uint16)
            try:
                buffers.size[slot] = self._put(image, rows[slot], (epochs[slot], units[slot]))
            except CancelledError:
                return
            except (DatasetError, ValueError, OSError) as error:
                self._count(rows[slot], error)
                image[:] = 0
                buffers.valid[slot] = False
                buffers.size[slot] = (1, 1)

    def _put(self, image: npt.NDArray[np.uint16], row: int, need: tuple[int, int]) -> tuple[int, int]:
        """One sample into ``uint16 [channels, canvas, canvas]``; its rows and columns there."""
        try:
            return self._decoded(image, row, self._reader.read(row, need))
        except ValueError:  # perhaps it was damaged on its way here
            return self._decoded(image, row, self._reader.again(row))

    def _decoded(self, image: npt.NDArray[np.uint16], row: int, data: bytes | memoryview) -> tuple[int, int]:
        columns = self._columns
        codec = columns.codec[columns.codec_of[row]]
        height, width, canvas = int(columns.height[row]), int(columns.width[row]), self._settings.canvas
        grey16 = columns.bits[row] == 16 and columns.channels[row] == 1
        if codec == "jhc" and grey16 and width == canvas and height <= canvas:  # as it lies in the batch
            decode(data, codec, out=image[0, :height])
            image[1:, :height] = image[0, :height]
            image[:, height:] = 0
            return height, width
        out = self._scratch(height, width, int(columns.channels[row]), grey16) if codec == "jhc" else None
        fitted = fit(decode(data, codec, out=out), self._settings.channels, canvas)
        height, width = fitted.shape[1:]
        image[:, :height, :width] = fitted
        image[:, height:] = 0
        image[:, :height, width:] = 0
        return height, width

    def _scratch(self, height: int, width: int, channels: int, grey16: bool) -> Pixels:
        """This thread's memory as an image of that shape: fresh memory would cost a page fault every 4 kB."""
        size = height * width * channels * (2 if grey16 else 1)
        memory: npt.NDArray[np.uint8] | None = getattr(self._own, "memory", None)
        if memory is None or len(memory) < size:
            memory = self._own.memory = np.empty(size, np.uint8)
        if grey16:
            return memory[:size].view(np.uint16).reshape(height, width)
        return memory[:size].reshape((height, width) if channels == 1 else (height, width, channels))

    def _count(self, row: int, error: Exception) -> None:
        columns = self._columns
        key, shard = columns.key[row].as_py(), columns.shards[columns.shard[row]]
        why = str(error) if isinstance(error, DatasetError) else "not a readable image"
        if isinstance(error, OSError):
            why = f"read error {error.errno}"
        with self._lock:
            if key not in self._bad:
                log.warning("image %s of %s could not be read: %s", key, shard, why)
                self._bad.append(key)
                self._why = f"{shard}: {why}"


def fit(pixels: npt.NDArray[Any], channels: int, canvas: int) -> npt.NDArray[Any]:
    """An image as ``[channels, rows, columns]``: colour ↔ grey as asked, shrunk if larger than the canvas."""
    if channels == 1 and pixels.ndim == 3:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    if max(pixels.shape[:2]) > canvas:
        scale = canvas / max(pixels.shape[:2])
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    return np.broadcast_to(planes, (channels, *planes.shape[1:]))


def _skip(state: StreamState, count: int, plan: Plan) -> StreamState:
    """The place ``count`` samples further on."""
    epoch, index = state.epoch, state.index
    while count > plan.samples - index:
        epoch, index, count = epoch + 1, 0, count - (plan.samples - index)
    return StreamState(epoch, index + count, plan.order)
