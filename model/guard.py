"""Whether a step may change the weights: not when its loss or gradient is no number, nor when the loss leaps.

A step that is left out costs one batch; one that is not may cost the run. The judgement is a pure function of the losses
so far, so a resumed run judges as an uninterrupted one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

SETTLING_STEPS = 100
"""Steps before a loss counts as a leap: at the beginning it falls by itself, and the mean lags behind."""
MEMORY = 0.98
"""Weight of the past in the running mean: some fifty steps."""


class Verdict(StrEnum):
    """What a step is."""

    GOOD = "good"
    NOT_FINITE = "not finite"
    SPIKE = "spike"


@dataclass(frozen=True, slots=True)
class Guard:
    """What is known of the losses so far: their running mean, how many steps were good, how many in a row were not."""

    mean: float = 0.0
    good: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0


def judge(guard: Guard, loss: float, grad_norm: float, spike_factor: float) -> tuple[Guard, Verdict]:
    """A step's verdict, and the guard after it.

    A leap is a loss above ``spike_factor`` times the running mean of good steps, after a hundred of those.

    >>> judge(Guard(mean=0.5, good=200), 3.0, 1.0, spike_factor=4.0)[1]
    <Verdict.SPIKE: 'spike'>
    """
    verdict = Verdict.GOOD
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        verdict = Verdict.NOT_FINITE
    elif guard.good >= SETTLING_STEPS and loss > spike_factor * guard.mean:
        verdict = Verdict.SPIKE
    if verdict is not Verdict.GOOD:
        return Guard(guard.mean, guard.good, guard.skipped_in_a_row + 1, guard.skipped + 1), verdict
    mean = loss if guard.good == 0 else MEMORY * guard.mean + (1 - MEMORY) * loss
    return Guard(mean, guard.good + 1, 0, guard.skipped), verdict
