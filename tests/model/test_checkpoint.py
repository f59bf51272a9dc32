"""Checkpoints: whole or not there, read by any number of processes, and never a pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lumid.catalog.errors import DatasetError
from lumid.model.checkpoint import (
    RunState,
    checkpoints,
    latest_checkpoint,
    load_optimizer,
    load_random,
    load_weights,
    read_state,
    remove_leftovers,
    save_checkpoint,
)
from lumid.model.guard import Guard, Verdict, judge
from lumid.model.parallel import Parallel
from lumid.model.stream import StreamState

STATE = RunState(7, StreamState(1, 6), {"name": "x"}, "hash", 1.5, 0.1 + 0.2, Guard(0.3, 5, 1, 2))


def a_model(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two layers after three steps of AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(4, 5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 5)).square().sum().backward()
    optimizer.step()


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    model, optimizer = a_model()
    before = torch.rand(3)
    path = save_checkpoint(tmp_path, model, optimizer, STATE, Parallel(), keep=2)
    expected = torch.rand(3)
    other, its_optimizer = a_model(seed=1)
    load_weights(path, other)
    load_optimizer(path, other, its_optimizer)
    load_random(path, Parallel())
    assert read_state(path) == STATE
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(before, expected)
    step(model, optimizer)
    step(other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_pieces_of_any_number_of_processes_are_read_as_a_whole(tmp_path: Path, parts: int) -> None:
    """Files as FSDP's ranks write them: rows cut as torch.chunk cuts, none for the last where there are too few."""
    model, optimizer = a_model()
    path = save_checkpoint(tmp_path, model, optimizer, STATE, Parallel(), keep=2)
    for kind in ("model", "optimizer"):
        whole = load_file(path / f"{kind}.safetensors")
        (path / f"{kind}.safetensors").unlink()
        for rank in range(parts):
            rows, tensors = {}, {}
            for name, tensor in whole.items():
                if tensor.ndim == 0:
                    tensors[name] = tensor
                    continue
                cut = tensor.chunk(parts)
                if rank < len(cut):
                    start = sum(len(piece) for piece in cut[:rank])
                    rows[name], tensors[name] = (start, start + len(cut[rank])), cut[rank].contiguous().clone()
            target = path / f"{kind}-{rank:04d}-of-{parts:04d}.safetensors"
            save_file(tensors, target, metadata={"rows": json.dumps(rows)})
    other, its_optimizer = a_model(seed=1)
    load_weights(path, other)
    load_optimizer(path, other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    step(model, optimizer)
    step(other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    (path / f"model-{parts - 2:04d}-of-{parts:04d}.safetensors").unlink()
    with pytest.raises(DatasetError, match="damaged"):
        load_weights(path, other)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    model, optimizer = a_model()
    for number in (3, 10, 200):
        state = RunState(number, StreamState(), {}, "", 1.0, 1.0)
        save_checkpoint(tmp_path, model, optimizer, state, Parallel(), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-00000200"]


def test_what_is_half_written_is_not_a_checkpoint(tmp_path: Path) -> None:
    model, optimizer = a_model()
    whole = save_checkpoint(tmp_path, model, optimizer, STATE, Parallel(), keep=2)
    (tmp_path / ".step-00000009.tmp").mkdir()
    (tmp_path / ".step-00000009.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000008").mkdir()
    assert latest_checkpoint(tmp_path) == whole
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".step*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    model, optimizer = a_model()
    path = save_checkpoint(tmp_path, model, optimizer, STATE, Parallel(), keep=2)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    read = {
        "model.safetensors": lambda: load_weights(path, model),
        "optimizer.safetensors": lambda: load_optimizer(path, model, optimizer),
        "state.json": lambda: read_state(path),
    }
    with pytest.raises(DatasetError, match="damaged checkpoint") as caught:
        read[name]()
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model, optimizer = a_model()
    path = save_checkpoint(tmp_path, model, optimizer, STATE, Parallel(), keep=2)
    for other in (nn.Sequential(nn.Linear(5, 7)), nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))):
        with pytest.raises(DatasetError, match="of another model"):
            load_weights(path, other)


def test_a_disk_that_is_full_costs_nothing_but_the_new_one(tmp_path: Path) -> None:
    """The kernel refuses files beyond 512 bytes, as it would on a full disk."""
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from dataclasses import replace
from pathlib import Path
from tests.model.test_checkpoint import STATE, a_model
from lumid.catalog.errors import StorageError
from lumid.model.checkpoint import checkpoints, save_checkpoint
from lumid.model.parallel import Parallel
folder = Path({str(tmp_path)!r})
model, optimizer = a_model()
save_checkpoint(folder, model, optimizer, STATE, Parallel(), keep=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
try:
    save_checkpoint(folder, model, optimizer, replace(STATE, step=8), Parallel(), keep=2)
except StorageError as error:
    print(error)
print([path.name for path in folder.iterdir()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert "could not be written" in message or "cannot write" in message
    assert left == "['step-00000007']"


def test_a_spike_is_judged_by_the_mean_of_good_steps() -> None:
    guard = Guard()
    for _ in range(100):
        guard, verdict = judge(guard, 1.0, 1.0, 4.0)
        assert verdict is Verdict.GOOD
    assert guard == Guard(pytest.approx(1.0), 100, 0, 0)  # type: ignore[arg-type]
    assert judge(guard, 4.1, 1.0, 4.0)[1] is Verdict.SPIKE
    assert judge(guard, 3.9, 1.0, 4.0)[1] is Verdict.GOOD
    assert judge(guard, 1.0, float("inf"), 4.0)[1] is Verdict.NOT_FINITE
    assert judge(Guard(1.0, 99), 50.0, 1.0, 4.0)[1] is Verdict.GOOD, "it is still settling"
    after, _ = judge(guard, float("nan"), 1.0, 4.0)
    assert (after.mean, after.skipped_in_a_row, after.skipped) == (guard.mean, 1, 1)
    assert judge(after, 1.0, 1.0, 4.0)[0].skipped_in_a_row == 0
