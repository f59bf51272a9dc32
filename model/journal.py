"""What is known of every step: a line of JSON each, the same for TensorBoard, and what a display shows."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lumid.catalog.layout import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WINDOW = 50
"""Steps over which rates are measured."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A step, over all devices.

    ``loss_by_modality``: of those in the batch; ``images_per_s``, ``stall_fraction`` (share of the time that the loop
    waited for data) and ``mfu`` (model FLOPs utilisation, None where the device's peak is not known): over the last
    fifty steps; ``samples``: a digest of the batch's keys in their order; ``bad``: images that could not be read;
    ``verdict``: ``good``, or why the weights were left as they were.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    loss_by_modality: dict[str, float]
    learning_rate: float
    grad_norm: float
    images_per_s: float
    stall_fraction: float
    mfu: float | None
    samples: str
    bad: int
    verdict: str

    def to_json(self) -> str:
        """A line of ``metrics.jsonl``. Numbers that are none are null: JSON has no word for them."""
        values = asdict(self)
        del values["steps"]
        values["lr"] = values.pop("learning_rate")
        for name in ("images_per_s", "stall_fraction", "mfu"):
            values[name] = None if values[name] is None else round(values[name], 5)
        return json.dumps(_finite(values), allow_nan=False)


class Speed:
    """Rates over the last steps of this process."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float, int]] = deque(maxlen=WINDOW + 1)

    def mark(self, waited_s: float, images: int) -> None:
        """The loop has waited so long and seen so many images, since it began."""
        self._marks.append((time.perf_counter(), waited_s, images))

    def rates(self) -> tuple[float, float]:
        """Images a second, and the share of the time that the loop waited for data."""
        (began, waited_before, images_before), (now, waited, images) = self._marks[0], self._marks[-1]
        elapsed = max(now - began, 1e-9)
        return (images - images_before) / elapsed, (waited - waited_before) / elapsed


class Journal:
    """Writes steps into the folder of a run, without those that are about to be done again."""

    def __init__(self, run: Path, step: int, *, tensorboard: bool) -> None:
        path = run / METRICS
        write_text(path, "".join(line + "\n" for line in lines_until(path, step)))
        self._lines = path.open("a", encoding="utf-8")
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def write(self, progress: Progress) -> None:
        """A step."""
        self._lines.write(progress.to_json() + "\n")
        if self._board is None:
            return
        scalars: list[tuple[str, float | None]] = [
            ("loss/all", progress.loss),
            *((f"loss/{name}", value) for name, value in progress.loss_by_modality.items()),
            ("optimizer/lr", progress.learning_rate),
            ("optimizer/grad_norm", progress.grad_norm),
            ("speed/images_per_s", progress.images_per_s),
            ("speed/stall_fraction", progress.stall_fraction),
            ("speed/mfu", progress.mfu),
        ]
        for name, value in scalars:
            if value is not None:
                self._board.add_scalar(name, value, progress.step)

    def flush(self) -> None:
        """What has been written is on its way to the disk: before a checkpoint, so that none is ahead of its lines."""
        self._lines.flush()
        if self._board is not None:
            self._board.flush()


def digest(keys: Sequence[str], places: range) -> int:
    """A number below 2⁵⁶ for keys at places of a batch; those of a batch's parts add up to the whole's.

    Keys are 24 hexadecimal digits of an HMAC, uniform already: each is multiplied by an odd number of its place.
    """
    return sum(int(key[:14], 16) * (2 * place + 1) for place, key in zip(places, keys, strict=True)) % (1 << 56)


def lines_until(path: Path, step: int) -> list[str]:
    """The lines of a journal up to a step; what a killed process left half-written is left out."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):  # the last line of a killed process
            continue
    return kept


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
