"""A short soak; `python -m tests.soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.rounds import soak
from tests.soak.strikes import STRIKES


def run(folder: Path, seed: int, strikes: tuple[str, ...]) -> None:
    rounds = soak(folder / "site", seed, 3600, print, strikes=strikes, rounds=len(strikes))
    assert [one.broken for one in rounds] == [""] * len(strikes)
    assert [name for one in rounds for name, _ in one.strikes] == list(strikes)


def test_power_is_lost(tmp_path: Path) -> None:
    run(tmp_path, 4, ("power lost",))


@pytest.mark.slow
def test_every_strike(tmp_path: Path) -> None:
    run(tmp_path, 5, tuple(STRIKES))
