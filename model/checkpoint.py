"""Checkpoints: a folder a step, whole or not there. Weights are safetensors and the rest JSON: loading never unpickles.

A run's randomness is a function of its seed and step (see ``model.pretrain``), so there is no generator state to keep.
"""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import write_text
from lumid.model.stream import StreamState

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run is: optimiser steps done, the next sample, and what it was started with."""

    step: int
    stream: StreamState
    recipe: dict[str, Any]
    catalog_hash: str
    first_loss: float
    last_loss: float


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, *, keep: int
) -> Path:
    """Write ``folder/step-00000042`` by one rename, then remove all but the newest ``keep``."""
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(parents=True)
    try:
        save_file(_contiguous(model.state_dict()), temporary / MODEL)
        save_file(_optimizer_tensors(model, optimizer), temporary / OPTIMIZER)
        write_text(temporary / STATE, json.dumps(asdict(state), indent=1) + "\n")
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, if there is one. What a killed process left half-written is removed."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = checkpoints(folder)
    return found[-1] if found else None


def read_state(checkpoint: Path) -> RunState:
    """The state of a checkpoint. Raises :class:`DatasetError` when it is damaged."""
    try:
        raw = json.loads((checkpoint / STATE).read_text("utf-8"))
        return RunState(**(raw | {"stream": StreamState(**raw["stream"])}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{checkpoint}: damaged checkpoint; remove it, the one before it is used then") from error


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model; every one of them must fit."""
    model.load_state_dict(load_file(checkpoint / MODEL), strict=True)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's optimiser state back, parameter by parameter, by name."""
    tensors = load_file(checkpoint / OPTIMIZER)
    for name, parameter in model.named_parameters():
        mine = {key.removeprefix(f"{name}|"): value for key, value in tensors.items() if key.startswith(f"{name}|")}
        if mine:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in mine.items()
            }


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return _contiguous(
        {
            f"{names[parameter]}|{key}": value
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
    )


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
