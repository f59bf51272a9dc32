"""The benchmarks of scale run, in small: what they print is not looked at, that they measure what there is today is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *given: str) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *given]
    return subprocess.run(command, check=True, timeout=1800, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_every_part_of_scale_runs_in_small(tmp_path: Path) -> None:
    printed = run("scale.py", "--small", "--json", str(tmp_path / "costs.json"))
    assert "finished parts" in printed
    assert "tasks that the scheduler holds: 4 at most" in printed, "the stream of submissions is bounded"
    measured, kept = (json.loads(path.read_text()) for path in (tmp_path / "costs.json", BENCHMARKS / "costs.json"))
    assert measured.keys() == kept.keys(), "what is measured and what the simulation is given are the same"


@pytest.mark.slow
def test_growth_runs_in_small() -> None:
    printed = run("growth.py", "--rows", "3000", "10000")
    assert "| parts cut for the catalog, s |" in printed
