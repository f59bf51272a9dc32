"""Campaigns of hostile files: a few of each kind here, thousands with `--mutants`, and those that once did harm."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.security.campaign import seeds
from tests.security.campaign.readers import KINDS
from tests.security.campaign.run import LONGEST_S, campaign, tried

pytestmark = pytest.mark.whole

FEW = {kind: 4 if kind in ("dataset", "run") else 12 for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_mutants_of_each_kind(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "BOMB_SHARE", 0.0)
    if kind in ("run", "recipe"):
        pytest.importorskip("torch")
    make, read = KINDS[kind]
    whole = tmp_path / "whole"
    whole.mkdir()
    for number in range(FEW[kind]):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = make(random.Random(f"{kind} fast {number}"), whole)
        outcome, why = tried(read, data, folder)
        assert outcome != "DEFECT", why


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_campaign(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind in ("run", "recipe"):
        pytest.importorskip("torch")
    wanted = request.config.getoption("--mutants")
    found = campaign(kind, 7, wanted, tmp_path / "defects")
    assert found.defects == []
    assert found.mutants == wanted
    assert found.slowest_s < LONGEST_S
