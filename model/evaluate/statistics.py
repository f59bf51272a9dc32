"""Intervals and tests: a bootstrap that draws patients, not images (Field and Welsh 2007), the same draws for all models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Measure = Callable[[Floats], dict[str, Floats]]
"""Metrics of some predictions, ``[draws]`` each, under weights ``float64 [draws, n]``."""
DRAWS, LEVEL = 1000, 0.95
BLOCK = 4_000_000
"""Weights that are held at once."""
FEWEST_PATIENTS = 10
"""Of fewer, a bootstrap's draws are too alike for a test."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A model minus another: the interval of the difference, and its two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p: float


def draws(patients: Sequence[str], count: int = DRAWS, seed: int = 0) -> Iterator[Floats]:
    """Weights of the images, ``float64 [draws, n]`` in blocks: how often their patient was drawn, with replacement."""
    _, of = np.unique(np.asarray(patients), return_inverse=True)
    clusters = int(of.max()) + 1
    random = np.random.default_rng(seed)
    at_once = max(1, BLOCK // len(of))
    for begin in range(0, count, at_once):
        size = min(at_once, count - begin)
        times = np.stack([np.bincount(random.integers(0, clusters, clusters), minlength=clusters) for _ in range(size)])
        yield times[:, of].astype(np.float64)


def sampled(measure: Measure, patients: Sequence[str], count: int = DRAWS, seed: int = 0) -> dict[str, Floats]:
    """Every metric under every draw, ``float64 [count]``; NaN where a draw has no such metric."""
    blocks = [measure(weights) for weights in draws(patients, count, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def interval(value: float, samples: Floats, level: float = LEVEL) -> Interval:
    """The percentile interval of an estimate."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def difference(value: float, samples: Floats, others: Floats, level: float = LEVEL) -> Difference:
    """Of two models under the same draws. ``p``: twice the smaller share of draws on either side of 0, plus one draw."""
    deltas = samples - others
    deltas = deltas[np.isfinite(deltas)]
    if not len(deltas):
        return Difference(value, float("nan"), float("nan"), float("nan"))
    ends = interval(value, deltas, level)
    sides = min(int((deltas <= 0).sum()), int((deltas >= 0).sum()))
    return Difference(value, ends.low, ends.high, min(1.0, 2 * (sides + 1) / (len(deltas) + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given; NaN stays."""
    order = sorted((value, place) for place, value in enumerate(values) if value == value)
    corrected, largest = [float("nan")] * len(values), 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, value * (len(order) - rank)))
        corrected[place] = largest
    return corrected
