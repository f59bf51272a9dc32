"""Samples of a data set as batches, in an order that is a function of (seed, epoch, selection) and of nothing else.

Images are read by offset from the shards (a permutation costs nothing on a local disk) and decoded in threads, straight
into the batch's buffer, 16 bits wide; what is random is done later, on the device (:mod:`lumid.model.augment`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lumid.catalog.codecs import Pixels, decode
from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.places import Anywhere, Shards
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import MODALITIES

COLUMNS = (
    "key", "shard", "offset", "length", "codec", "bits", "modality", "intensity_unit", "store_slope", "store_intercept", "p01", "p99",
)  # fmt: skip
DRAWS = 8
"""Uniform random numbers that come with every sample, for the augmentation."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How samples become batches. ``batch_size`` is that of one rank; the global batch is ``batch_size × world``."""

    batch_size: int
    channels: int = 1
    canvas: int = 256
    seed: int = 0
    threads: int = 2
    prefetch: int = 4
    max_bad: int = 100
    rank: int = 0
    world: int = 1


@dataclass(frozen=True, slots=True)
class StreamState:
    """The place of the next sample: its epoch, and its index in that epoch's order."""

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples of a selection, by key: arrays of equal length, from the catalog."""

    root: Anywhere
    table: pa.Table = field(repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)


def select(root: Anywhere, where: str | None = None) -> Selection:
    """The samples of a data set, or of a subset of it, that a SQL condition names, sorted by key.

    Raises :class:`LumidError` when there are none.
    """
    table = read_catalog(root, where, COLUMNS)
    if table.num_rows == 0:
        raise DatasetError(
            f"{root}: no samples{f' where {where}' if where else ''}; see `lumid query {root} --group-by modality,split`"
        )
    return Selection(root, table)


def epoch_order(seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    """The order of an epoch: a full permutation, a pure function of seed, epoch and number of samples.

    >>> sorted(epoch_order(0, 1, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return np.random.Generator(np.random.Philox(key=(seed << 64) + epoch)).permutation(samples).astype(np.int64)


def sample_draws(seed: int, epoch: int, index: int) -> npt.NDArray[np.float32]:
    """``float32 [8]``, uniform in [0, 1): the random numbers of one sample of one epoch, whatever batch it is in."""
    counter = np.array([0, index, 0, 0], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=(seed << 64) + epoch + (1 << 32), counter=counter))
    return generator.random(DRAWS, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it leaves the stream, on the host.

    ``pixels``: ``int16 [batch, channels, canvas, canvas]``, the bits of unsigned 16-bit values (``& 0xFFFF`` gives
    them), image at the top left; ``size``: ``int64 [batch, 2]`` its rows and columns; ``low``, ``high``: stored values
    of the 1st and 99th percentile, ``float32 [batch]``; ``white``: greatest stored value; ``slope``, ``intercept``:
    stored value → unit; ``hounsfield``: ``bool [batch]``; ``modality``: index into ``MODALITIES``; ``draws``:
    ``float32 [batch, 8]``; ``valid``: false where an image could not be read and the pixels are black.
    """

    pixels: Tensor
    size: Tensor
    low: Tensor
    high: Tensor
    white: Tensor
    slope: Tensor
    intercept: Tensor
    hounsfield: Tensor
    modality: Tensor
    draws: Tensor
    valid: Tensor
    keys: tuple[str, ...]
    state: StreamState


@dataclass(frozen=True, slots=True)
class _Place:
    """One sample to be read: its row in the selection, and its epoch and index in the order."""

    row: int
    epoch: int
    index: int


class ImageStream(IterableDataset[Batch]):
    """Endless batches of a selection: epochs follow each other without a gap.

    The global sequence of samples is the same for any number of threads and ranks; rank ``r`` gets the ``r``-th part
    of each global batch. ``state_dict()`` after a batch is the place of the next; loading it repeats and skips nothing,
    also with another number of ranks as long as the global batch is the same.

    It reads ahead in threads of its own: use it as it is, or in a ``DataLoader`` with ``batch_size=None`` and no workers.
    """

    def __init__(self, selection: Selection, settings: StreamSettings, state: StreamState | None = None) -> None:
        super().__init__()
        self.selection = selection
        self.settings = settings
        self._state = state or StreamState()
        self._columns = {name: selection.table[name].to_pylist() for name in COLUMNS}
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._shards = Shards(selection.root)
        self._lock = threading.Lock()
        self.bad: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        settings = self.settings
        ahead: deque[tuple[_Buffers, list[Future[None]], StreamState, list[_Place]]] = deque()
        state = self._state
        with ThreadPoolExecutor(settings.threads, thread_name_prefix="lumid-stream") as pool:
            try:
                while True:
                    while len(ahead) < max(1, settings.prefetch):
                        places, state = self._next_places(state)
                        buffers = _Buffers.empty(settings)
                        cuts = np.array_split(np.arange(len(places)), settings.threads)
                        jobs = [pool.submit(self._fill, buffers, places, cut) for cut in cuts if len(cut)]
                        ahead.append((buffers, jobs, state, places))
                    buffers, jobs, after, places = ahead.popleft()
                    for job in jobs:
                        job.result()
                    if len(self.bad) > settings.max_bad:
                        raise LumidError(
                            f"{self.selection.root}: {len(self.bad)} images could not be read, the last is {self.bad[-1]}; "
                            "the shards are damaged: build the data set again"
                        )
                    self._state = after
                    yield self._batch(buffers, places, after)
            finally:
                for _, jobs, _, _ in ahead:
                    for job in jobs:
                        job.cancel()

    def state_dict(self) -> dict[str, int]:
        """The place of the next sample, as plain values."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at that place; takes effect at the next ``iter()``."""
        self._state = StreamState(**state)

    def close(self) -> None:
        """Close the shards."""
        self._shards.close()

    def _next_places(self, state: StreamState) -> tuple[list[_Place], StreamState]:
        """This rank's places of the next global batch, and the state after it."""
        settings, count = self.settings, len(self.selection)
        total = settings.batch_size * settings.world
        first = settings.rank * settings.batch_size
        places = []
        epoch, index = state.epoch, state.index
        for number in range(total):
            if index >= count:
                epoch, index = epoch + 1, 0
            if first <= number < first + settings.batch_size:
                places.append(_Place(int(self._order(epoch)[index]), epoch, index))
            index += 1
        return places, StreamState(epoch, index)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old >= epoch - 1}
            self._orders[epoch] = epoch_order(self.settings.seed, epoch, len(self.selection))
        return self._orders[epoch]

    def _fill(self, buffers: _Buffers, places: list[_Place], slots: npt.NDArray[np.intp]) -> None:
        """Read some samples of a batch into its buffers; run in a thread."""
        for slot in slots.tolist():
            place = places[slot]
            buffers.draws[slot] = sample_draws(self.settings.seed, place.epoch, place.index)
            try:
                pixels = self._read(place.row)
            except (DatasetError, ValueError, OSError) as error:
                key = self._columns["key"][place.row]
                log.warning("image %s could not be read: %s", key, type(error).__name__)
                with self._lock:
                    self.bad.append(key)
                buffers.valid[slot] = False
                buffers.size[slot] = (1, 1)
                continue
            image = _fit(pixels, self.settings.channels, self.settings.canvas)
            rows, columns = image.shape[1:]
            buffers.pixels[slot, :, :rows, :columns] = image.view(np.int16)
            buffers.size[slot] = (rows, columns)

    def _read(self, row: int) -> Pixels:
        columns = self._columns
        image = self._shards.read(columns["shard"][row], columns["offset"][row], columns["length"][row])
        return decode(image, columns["codec"][row])

    def _batch(self, buffers: _Buffers, places: list[_Place], after: StreamState) -> Batch:
        rows = [place.row for place in places]
        columns = {name: [values[row] for row in rows] for name, values in self._columns.items()}
        slope = np.array(columns["store_slope"], np.float64)
        intercept = np.array(columns["store_intercept"], np.float64)
        return Batch(
            pixels=torch.from_numpy(buffers.pixels),
            size=torch.from_numpy(buffers.size),
            low=_float((np.array(columns["p01"]) - intercept) / slope),
            high=_float((np.array(columns["p99"]) - intercept) / slope),
            white=_float(2.0 ** np.array(columns["bits"]) - 1),
            slope=_float(slope),
            intercept=_float(intercept),
            hounsfield=torch.tensor([unit == "HU" for unit in columns["intensity_unit"]]),
            modality=torch.tensor([MODALITIES.index(name) for name in columns["modality"]]),
            draws=torch.from_numpy(buffers.draws),
            valid=torch.from_numpy(buffers.valid),
            keys=tuple(columns["key"]),
            state=after,
        )


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What threads write into; a batch's tensors are views of it."""

    pixels: npt.NDArray[np.int16]
    size: npt.NDArray[np.int64]
    draws: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, settings: StreamSettings) -> _Buffers:
        batch, canvas = settings.batch_size, settings.canvas
        return cls(
            np.zeros((batch, settings.channels, canvas, canvas), np.int16),
            np.zeros((batch, 2), np.int64),
            np.zeros((batch, DRAWS), np.float32),
            np.ones(batch, np.bool_),
        )


def _fit(pixels: npt.NDArray[Any], channels: int, canvas: int) -> npt.NDArray[np.uint16]:
    """An image as ``uint16 [channels, rows, columns]``: colour ↔ grey as asked, shrunk if larger than the canvas."""
    if channels == 1 and pixels.ndim == 3:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    if max(pixels.shape[:2]) > canvas:
        scale = canvas / max(pixels.shape[:2])
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    image = np.broadcast_to(planes, (channels, *planes.shape[1:]))
    return np.ascontiguousarray(image, dtype=np.uint16)


def _float(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
