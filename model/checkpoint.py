"""Checkpoints: a folder a step, whole or not there, in pieces where the model is. Weights and the optimiser's moments are
safetensors and the rest JSON: loading never unpickles.

A file holds rows of tensors, and says which; so what was written by any number of processes, sharded or not, is read by
any other number. The schedule is a function of the step; order, crops and masks are functions of seed and step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lumid.catalog.errors import DatasetError, LumidError, StorageError
from lumid.catalog.layout import storage_errors, write_text
from lumid.model.guard import Guard
from lumid.model.parallel import Parallel
from lumid.model.stream import StreamState

MODEL, OPTIMIZER, RANDOM, STATE = "model", "optimizer", "random", "state.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run is: optimiser steps done, the next sample, and what it was started with."""

    step: int
    stream: StreamState
    recipe: dict[str, Any]
    catalog_hash: str
    first_loss: float
    last_loss: float
    guard: Guard = field(default_factory=Guard)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What this process holds of a tensor: rows ``start`` to ``stop`` of ``total``; all of a scalar is one row."""

    local: Tensor
    start: int
    stop: int
    total: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Rows:
        """FSDP2 cuts along the first dimension as ``torch.chunk`` does; the last processes may hold nothing."""
        if not isinstance(tensor, DTensor):
            rows = tensor.shape[0] if tensor.ndim else 1
            return cls(tensor.detach(), 0, rows, rows)
        local, total = tensor.to_local().detach(), tensor.shape[0]
        size = -(-total // tensor.device_mesh.size())
        start = min(tensor.device_mesh.get_local_rank() * size, total)
        stop = min(start + size, total)
        assert local.shape[0] == stop - start, "sharded along the first dimension"
        return cls(local, start, stop, total)

    @property
    def sharded(self) -> bool:
        return self.stop - self.start < self.total


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, parallel: Parallel, *, keep: int
) -> Path:
    """Write ``folder/step-00000042`` by one rename, then remove all but the newest ``keep``. Called by every process.

    Raises :class:`StorageError` when the disk refuses; what was there before is as it was.
    """
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f".{target.name}.tmp"
    tensors = {name: _Rows.of(tensor) for name, tensor in model.state_dict().items()}
    moments = _optimizer_rows(model, optimizer)
    random = {name: _Rows.of(tensor) for name, tensor in _random_state(parallel).items()}

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def write() -> None:
        for kind, rows in ((MODEL, tensors), (OPTIMIZER, moments)):
            if parallel.leads or any(piece.sharded for piece in rows.values()):
                whole = not any(piece.sharded for piece in rows.values())
                _write(temporary / _name(kind, None if whole else parallel), rows)
        _write(temporary / _name(RANDOM, parallel), random)

    def finish() -> None:
        write_text(temporary / STATE, json.dumps(asdict(state), indent=1) + "\n")
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
        _sync(folder)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)

    try:
        for act, everyone in ((begin, False), (write, True), (finish, False)):
            parallel.agree(_attempt(act, folder) if everyone or parallel.leads else None)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, if there is one."""
    found = checkpoints(folder)
    return found[-1] if found else None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def read_state(checkpoint: Path) -> RunState:
    """The state of a checkpoint. Raises :class:`DatasetError` when it is damaged."""
    try:
        raw = json.loads((checkpoint / STATE).read_text("utf-8"))
        return RunState(**(raw | {"stream": StreamState(**raw["stream"]), "guard": Guard(**raw["guard"])}))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(checkpoint) from error


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model, sharded or not; every one of them must fit.

    Raises :class:`DatasetError` when the checkpoint is damaged.
    """
    with _Reader(checkpoint, MODEL) as reader:
        named = model.state_dict()
        if reader.names != set(named):
            raise _damaged(checkpoint)
        for name, tensor in named.items():
            reader.fill(name, tensor)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's optimiser state back, parameter by parameter, by name."""
    with _Reader(checkpoint, OPTIMIZER) as reader:
        for name, parameter in model.named_parameters():
            kinds = [key.rpartition("|")[2] for key in reader.names if key.startswith(f"{name}|")]
            state = {}
            for kind in kinds:
                scalar = kind == "step"
                # the fused optimiser keeps its count of steps on the parameter's device
                state[kind] = torch.zeros((), device=parameter.device) if scalar else torch.zeros_like(parameter)
                reader.fill(f"{name}|{kind}", state[kind])
            if state:
                optimizer.state[parameter] = state


def load_random(checkpoint: Path, parallel: Parallel) -> None:
    """Put PyTorch's generators of this process where they were; another number of processes has none to find."""
    path = checkpoint / _name(RANDOM, parallel)
    if not path.is_file():
        return
    with _Reader(checkpoint, path.stem) as reader:
        for name, values in _random_state(parallel).items():
            if name in reader.names:
                reader.fill(name, values)
                if name == "cpu":
                    torch.set_rng_state(values)
                else:
                    torch.cuda.set_rng_state(values, parallel.device)


class _Reader:
    """The tensors of a checkpoint, from all files of a kind, in the rows that are asked for."""

    def __init__(self, checkpoint: Path, kind: str) -> None:
        self._checkpoint, self._stack = checkpoint, ExitStack()
        paths = sorted({*checkpoint.glob(f"{kind}.safetensors"), *checkpoint.glob(f"{kind}-*-of-*.safetensors")})
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        try:
            for path in paths:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                rows = json.loads((file.metadata() or {}).get("rows", "{}"))
                for name in file.keys():  # noqa: SIM118  not a dict
                    start, stop = rows.get(name, (0, None))
                    self._pieces.setdefault(name, []).append((start, stop, file))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            self._stack.close()
            raise _damaged(checkpoint) from error
        if not paths:
            raise _damaged(checkpoint)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        return set(self._pieces)

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor's rows that this process holds from the files into it."""
        rows = _Rows.of(tensor)
        missing = rows.stop - rows.start
        try:
            for start, stop, file in self._pieces[name]:
                if rows.local.ndim == 0:
                    rows.local.copy_(file.get_tensor(name))
                    missing = 0
                    continue
                piece = file.get_slice(name)
                stop = start + piece.get_shape()[0] if stop is None else stop
                begin, end = max(start, rows.start), min(stop, rows.stop)
                if begin < end:
                    rows.local[begin - rows.start : end - rows.start].copy_(piece[begin - start : end - start])
                    missing -= end - begin
        except (OSError, KeyError, RuntimeError, TypeError, IndexError, SafetensorError) as error:
            raise _damaged(self._checkpoint) from error
        if missing:
            raise _damaged(self._checkpoint)


def _damaged(checkpoint: Path) -> DatasetError:
    return DatasetError(
        f"{checkpoint}: damaged checkpoint, or of another model; remove it, the one before is used then"
    )


def _name(kind: str, parallel: Parallel | None) -> str:
    part = "" if parallel is None or parallel.world == 1 else f"-{parallel.rank:04d}-of-{parallel.world:04d}"
    return f"{kind}{part}.safetensors"


def _write(path: Path, rows: dict[str, _Rows]) -> None:
    held = {name: piece for name, piece in rows.items() if piece.stop > piece.start}
    spans = {name: (piece.start, piece.stop) for name, piece in held.items() if piece.local.ndim}
    tensors = {name: piece.local.contiguous().clone() for name, piece in held.items()}
    save_file(tensors, path, metadata={"format": "pt", "rows": json.dumps(spans)})
    _sync(path)


def _sync(path: Path) -> None:
    """Have the disk keep what was written, also when the machine fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _attempt(act: Callable[[], None], folder: Path) -> LumidError | None:
    """Do it; what the disk refuses is returned, so that the other processes hear of it."""
    try:
        with storage_errors(folder):
            act()
    except LumidError as error:
        return error
    except (OSError, SafetensorError) as error:  # safetensors words an error of the disk in its own way
        return StorageError(
            f"{folder}: the checkpoint could not be written ({type(error).__name__}); free some space and run the same "
            "command again, it goes on from the checkpoint before"
        )
    return None


def _optimizer_rows(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, _Rows]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{kind}": _Rows.of(value)
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def _random_state(parallel: Parallel) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if parallel.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(parallel.device)
    return states
