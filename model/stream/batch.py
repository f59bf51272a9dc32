"""What leaves the stream: batches on the host, in memory that is used again when nobody holds it any more."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

KEPT_FREE = 16
"""Buffers that are kept for the next batches, at most."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """The place of the next sample: its epoch, and its index in that epoch's order.

    ``order`` says which order: another selection, seed, mixture or way of shuffling has another. Empty: any.
    """

    epoch: int = 0
    index: int = 0
    order: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it leaves the stream, on the host.

    ``pixels``: ``int16 [batch, channels, canvas, canvas]``, the bits of unsigned 16-bit values (``& 0xFFFF`` gives
    them), image at the top left; ``size``: ``int64 [batch, 2]`` its rows and columns; ``low``, ``high``: stored values
    of the 1st and 99th percentile, ``float32 [batch]``; ``white``: greatest stored value; ``slope``, ``intercept``:
    stored value → unit; ``hounsfield``, ``suv``: whether that is HU, SUVbw, ``bool [batch]``; ``modality``: index into ``MODALITIES``; ``draws``:
    ``float32 [batch, 8]``; ``valid``: false where an image could not be read and the pixels are black; ``place``:
    ``int64 [batch, 2]``, epoch and index of each sample; ``state``: the place of the sample after the *global* batch.
    """

    pixels: Tensor
    size: Tensor
    low: Tensor
    high: Tensor
    white: Tensor
    slope: Tensor
    intercept: Tensor
    hounsfield: Tensor
    suv: Tensor
    modality: Tensor
    draws: Tensor
    valid: Tensor
    place: Tensor
    keys: tuple[str, ...]
    state: StreamState

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, copied while the host goes on where its memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory: what ``DataLoader(pin_memory=True)`` calls."""
        return self._each(Tensor.pin_memory)

    def kept(self) -> Batch:
        """The batch without the images that could not be read; itself where there are none."""
        if bool(self.valid.all()):
            return self
        keys = tuple(key for key, valid in zip(self.keys, self.valid.tolist(), strict=True) if valid)
        return replace(self._each(lambda tensor: tensor[self.valid]), keys=keys)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Say that a stream of the GPU uses the batch: its memory is not used again before that is done."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, Tensor]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **changed)


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device; on a GPU each is copied while the one before it is worked on.

    It takes one batch more from the stream than it has given: the place to go on at is ``batch.state``, not the stream's.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            moved = batch.to(device)
        if waiting is not None:
            yield waiting
        torch.cuda.current_stream(device).wait_stream(copying)
        moved.record_stream(torch.cuda.current_stream(device))
        waiting = moved
    if waiting is not None:
        yield waiting


@dataclass(frozen=True, slots=True)
class Buffers:
    """What threads write a batch into; its tensors are views of it. ``pixels``: ``int16 [batch, channels, canvas, canvas]``,
    whose content is whatever was there before; ``size``: ``int64 [batch, 2]``; ``valid``: ``bool [batch]``."""

    pixels: npt.NDArray[np.int16]
    size: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Memory:
    """Buffers of one shape: pinned where a GPU will read them, shared where another process will, else used again."""

    batch: int
    channels: int
    canvas: int
    pinned: bool
    _free: list[npt.NDArray[np.int16]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> Buffers:
        """A buffer that nobody else holds."""
        return Buffers(self._pixels(), np.zeros((self.batch, 2), np.int64), np.ones(self.batch, np.bool_))

    def _pixels(self) -> npt.NDArray[np.int16]:
        shape = (self.batch, self.channels, self.canvas, self.canvas)
        if get_worker_info() is not None:
            # what a DataLoader's own collation does: written where the other process will find it, not copied there
            storage = torch.UntypedStorage._new_shared(2 * math.prod(shape))  # type: ignore[no-untyped-call]
            return torch.empty(0, dtype=torch.int16).set_(storage, 0, shape).numpy()  # type: ignore[call-overload, no-any-return]
        if self.pinned:  # torch keeps such memory for the next batch, and knows when the GPU has read it
            return torch.empty(shape, dtype=torch.int16, pin_memory=True).numpy()
        with self._lock:
            whole = self._free.pop() if self._free else np.empty(shape, np.int16)
        # Fresh memory costs a page fault every 4 kB. A tensor on this view keeps it; a further view of NumPy's would keep
        # the array only, so none outlives the making of the batch.
        lent = whole.view()
        weakref.finalize(lent, self._give_back, whole).atexit = False
        return lent

    def _give_back(self, whole: npt.NDArray[np.int16]) -> None:
        if len(self._free) < KEPT_FREE:  # no lock: this may run in the middle of anything, even of take()
            self._free.append(whole)
