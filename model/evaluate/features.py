"""What an encoder, or a protocol that trains it, reads of a task: features, feature maps, images or masks. Each is computed
once and kept on disk, memory-mapped: it may exceed memory."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import storage_errors
from lumid.model.evaluate.encoders import Encoder, describe, feature_map, in_channels, normalized
from lumid.model.evaluate.tasks.base import Task

BATCH = 64
MARGIN = 1.15
"""Images that are cropped at random are kept so much larger than the encoder takes them."""
Features = npt.NDArray[np.float32]
Report = Callable[[int, int], None]
"""How many are done, and of how many."""


def features(
    encoder: Encoder, task: Task, cache: Path, *, device: torch.device, report: Report | None = None
) -> Features:
    """``float32 [n, features]``, a read-only map of a file in ``cache``; what is there is not computed again."""
    path = kept_at(cache, "features", describe(encoder), task)
    return _kept(path, task, np.float32, (encoder.features,), _embedded(encoder, task, device, encoder.embed), report)


def feature_maps(
    encoder: Encoder, task: Task, cache: Path, *, device: torch.device, report: Report | None = None
) -> npt.NDArray[np.float16]:
    """``float16 [n, channels, rows, columns]``: the encoder's last features in their places."""
    path = kept_at(cache, "maps", describe(encoder), task)
    wanted = encoder.preprocessing
    encoder.model.to(device)

    @torch.inference_mode()
    def of(images: Tensor) -> Tensor:
        return feature_map(encoder.model, normalized(images, wanted))

    shape = tuple(of(torch.zeros(1, wanted.channels, wanted.size, wanted.size, device=device)).shape[1:])
    return _kept(path, task, np.float16, shape, _embedded(encoder, task, device, of), report)


def pixels(encoder: Encoder, task: Task, cache: Path, report: Report | None = None) -> npt.NDArray[np.float16]:
    """``float16 [n, channels, side, side]`` in [0, 1]: images somewhat larger than the encoder takes them."""
    side = round(encoder.preprocessing.size * MARGIN)
    channels = min(task.images.channels, encoder.preprocessing.channels)
    path = kept_at(cache, "pixels", f"{side} {channels} {encoder.preprocessing.cubic}", task)

    def batches() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        for indices, images in task.images.batches(side, encoder.preprocessing.cubic, BATCH):
            yield indices, in_channels(images, channels).numpy()

    return _kept(path, task, np.float16, (channels, side, side), batches(), report)


def true_masks(task: Task, side: int, cache: Path) -> npt.NDArray[np.uint8]:
    """``uint8 [n, side, side]``, 1 inside."""
    masks = task.masks
    assert masks is not None, "a task of kind masks has them"

    def batches() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
        for indices, found in masks.batches(side, False, BATCH):
            yield indices, (found.mean(1) > 0.5).numpy()

    return _kept(kept_at(cache, "masks", str(side), task), task, np.uint8, (side, side), batches(), None)


def kept_at(cache: Path, kind: str, facts: str, task: Task) -> Path:
    """Where an array is kept: named by all that decides what is in it."""
    key = hashlib.sha256(f"{facts}\n{task.data_hash}".encode()).hexdigest()
    return cache / f"{kind}-{key[:32]}.npy"


def _embedded(
    encoder: Encoder, task: Task, device: torch.device, of: Callable[[Tensor], Tensor]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
    encoder.model.to(device)
    wanted = encoder.preprocessing
    for indices, images in task.images.batches(wanted.size, wanted.cubic, BATCH):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = of(images.to(device, non_blocking=True)).float().cpu()
        if not bool(torch.isfinite(found).all()):
            raise LumidError(
                f"{encoder.name}: gives features of {task.name} that are no numbers; are its weights whole?"
            )
        yield indices, found.numpy()


def _kept(
    path: Path,
    task: Task,
    dtype: type[np.generic],
    shape: tuple[int, ...],
    batches: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]],
    report: Report | None,
) -> npt.NDArray[Any]:
    """The array of a file, which appears whole or not at all; one that is damaged, or of another shape, is made again."""
    kept = _mapped(path)
    if kept is None or kept.shape != (len(task), *shape):
        with storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            try:
                values = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(len(task), *shape))
                _reserve(temporary)
                done = 0
                for indices, found in batches:
                    values[indices] = found
                    done += len(indices)
                    if report is not None:
                        report(done, len(task))
                values.flush()
                del values
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        kept = _mapped(path)
        assert kept is not None, "it was just written"
    return kept


def _mapped(path: Path) -> npt.NDArray[Any] | None:
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except (OSError, ValueError, EOFError):
        return None


def _reserve(path: Path) -> None:
    """Take the room that a file says it has: a full disk is then an error here, not a signal in the midst of a write."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
