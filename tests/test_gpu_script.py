"""`benchmarks/gpu.sh`: all that it would measure on a GPU, in small and on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=environment, timeout=500)


@pytest.mark.parametrize("arguments", [(), ("pack",), ("run", "--devise", "cpu"), ("run", "--device")])
def test_wrong_use_is_answered_with_what_is_right(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "gpu.sh run --device cpu" in done.stderr


@pytest.mark.slow
def test_everything_is_measured_on_the_cpu_too(tmp_path: Path) -> None:
    done = run("run", "--device", "cpu", "--threads", "2", "--out", tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0, text
    for row in ("plain timm, eager", "lumid pretrain", "plain loop, float32", "the bare codec", "webdataset"):
        (number,) = {float(found.replace(",", "")) > 0 for found in re.findall(rf"\| {row} \| ([\d.,]+) \|", text)}
        assert number, row


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_fails_the_whole(tmp_path: Path) -> None:
    """Of an empty folder no image can be made: the parts that need one say so, the others are measured."""
    (tmp_path / "empty").mkdir()
    done = run("run", "--device", "cpu", "--out", tmp_path / "gpu.md", "--source", tmp_path / "empty")
    text = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 1
    assert text.count("no square CT") == text.count("ended with exit code 1**") == 2
    assert "plain timm, eager" in text
