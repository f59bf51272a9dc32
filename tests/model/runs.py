"""Runs that tests start, and what is in their folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lumid.catalog.errors import LumidError
from lumid.dags.cli import train as commands
from lumid.dags.cli.app import app
from lumid.model.checkpoint import checkpoints

RECIPE = """
name = "test"
[model]
size = "tiny"
image_size = 32
patch_size = 8
[optimizer]
steps = 40
batch_size = 8
base_lr = 2e-2
warmup_steps = 4
clip_grad_norm = 1.0
[data]
canvas = 128
[run]
checkpoint_every = 5
"""
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]


def lumid(*arguments: str | Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the command, under torchrun where there are several processes."""
    return subprocess.run(command(*arguments, processes=processes), capture_output=True, text=True, timeout=240)


def here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which has PyTorch loaded already; errors are told as the command line tells them."""
    assert commands.app is app, "the commands are registered"
    done = CliRunner().invoke(app, [*map(str, arguments)])
    code, error = done.exit_code, done.stderr
    if isinstance(done.exception, LumidError):
        code, error = done.exception.exit_code, f"{error}error: {done.exception}\n"
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess([*map(str, arguments)], code, done.stdout, error)


def command(*arguments: str | Path, processes: int = 1) -> list[str]:
    many = [*TORCHRUN, "--nproc-per-node", str(processes)] if processes > 1 else []
    return [sys.executable, *many, "-m", "lumid", *map(str, arguments)]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors")
