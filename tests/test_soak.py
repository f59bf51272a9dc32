"""A short soak; `python -m tests.soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.rounds import soak
from tests.soak.strikes import STRIKES

pytestmark = pytest.mark.whole


def outcomes(folder: Path, seed: int, strikes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Of one round each: the strike, and what was broken by it."""
    rounds = soak(folder / "site", seed, 3600, print, strikes=strikes, rounds=len(strikes))
    return [(name, one.broken) for one in rounds for name, _ in one.strikes]


def test_power_is_lost(tmp_path: Path) -> None:
    assert outcomes(tmp_path, 4, ("power lost",)) == [("power lost", "")]


@pytest.mark.slow
def test_every_strike(tmp_path: Path) -> None:
    assert outcomes(tmp_path, 5, tuple(STRIKES)) == [(name, "") for name in STRIKES]
