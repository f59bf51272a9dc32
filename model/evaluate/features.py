"""Features of a task's images by an encoder, computed once and kept on disk, memory-mapped: they may exceed memory."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lumid.catalog.layout import storage_errors
from lumid.model.evaluate.encoders import Encoder, describe
from lumid.model.evaluate.tasks.base import Task

BATCH = 64
Features = npt.NDArray[np.float32]


def features_path(cache: Path, encoder: Encoder, task: Task) -> Path:
    """Where they are kept: named by weights, input and images."""
    key = hashlib.sha256(f"{describe(encoder)}\n{task.data_hash}".encode()).hexdigest()
    return cache / f"{key[:32]}.npy"


def features(
    encoder: Encoder,
    task: Task,
    cache: Path,
    *,
    device: torch.device,
    report: Callable[[int, int], None] | None = None,
) -> Features:
    """``float32 [n, features]``, a read-only map of a file in ``cache``; what is there is not computed again.

    ``report``: images done, of how many. A file appears whole, or not at all.
    """
    path = features_path(cache, encoder, task)
    if not path.is_file():
        with storage_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            _compute(path, encoder, task, device, report)
    found: Features = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _compute(
    path: Path, encoder: Encoder, task: Task, device: torch.device, report: Callable[[int, int], None] | None
) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    encoder.model.to(device)
    done = 0
    try:
        shape = (len(task), encoder.features)
        values = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        wanted = encoder.preprocessing
        for indices, images in task.images.batches(wanted.size, wanted.cubic, BATCH):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                values[indices] = encoder.embed(images.to(device)).float().cpu().numpy()
            done += len(indices)
            if report is not None:
                report(done, len(task))
        values.flush()
        del values
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
