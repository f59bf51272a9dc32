"""Training jobs: one process on this machine, or one a GPU under torchrun or Slurm. Nothing here imports torch until it
must."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lumid.catalog.errors import UsageError
from lumid.dags.training_display import TrainingDisplay

if TYPE_CHECKING:
    from lumid.catalog.places import Anywhere
    from lumid.model.parallel import Parallel
    from lumid.model.recipe import TrainRecipe

NEEDED = ("torch", "timm", "safetensors", "skimage", "tensorboard")


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """How a run ended, and where it is. ``leads``: whether this process speaks for all of the run."""

    run: Path
    leads: bool
    steps: int
    first_loss: float
    final_loss: float
    validation_loss: float | None
    images_per_s: float
    skipped: int
    stopped: bool
    already_finished: bool


def has_torch() -> bool:
    """Whether the training extra is installed."""
    return all(find_spec(name) is not None for name in NEEDED)


def require_torch() -> None:
    """Raise :class:`UsageError` when the training extra is not installed."""
    if not has_torch():
        raise UsageError("this needs PyTorch, timm and what comes with them: pip install 'lumid[train]'")


def run_pretraining(
    data: Anywhere,
    out: Path,
    recipe: str,
    *,
    steps: int | None = None,
    where: str | None = None,
    device: str | None = None,
    fresh: bool = False,
    weights: Path | None = None,
    console: Console,
) -> PretrainResult:
    """Pre-train on a data set, or go on with the run in ``out``; Ctrl-C and SIGTERM save first."""
    require_torch()
    from lumid.model.pretrain import Listener, pretrain
    from lumid.model.recipe import load_recipe

    chosen = _adapted(load_recipe(recipe), steps, where)
    with (
        _process_group(device) as parallel,
        _stop_flag() as should_stop,
        TrainingDisplay(console, chosen.name, chosen.run.log_every, silent=not parallel.leads) as display,
    ):
        listener = Listener(display.step, display.note)
        done = pretrain(data, out, chosen, parallel, listener, should_stop, fresh=fresh, weights=weights)
    return PretrainResult(
        run=out,
        leads=parallel.leads,
        steps=done.step,
        first_loss=done.first_loss,
        final_loss=done.last_loss,
        validation_loss=done.validation_loss,
        images_per_s=done.images_per_s,
        skipped=done.skipped,
        stopped=done.stopped,
        already_finished=done.already_finished,
    )


def draw_reconstruction(run: Path, data: Anywhere, out: Path, where: str | None = None) -> Path:
    """The reconstruction figure of a run, as a PNG."""
    require_torch()
    from lumid.model.reconstruct import reconstruct

    return reconstruct(run, data, out, where).path


def _adapted(recipe: TrainRecipe, steps: int | None, where: str | None) -> TrainRecipe:
    """The recipe with what the command line says otherwise."""
    if steps is not None:
        settings = recipe.optimizer
        warmup = steps // 10 if settings.warmup_steps is None else min(settings.warmup_steps, steps // 10)
        short = {"steps": steps, "epochs": None, "warmup_steps": warmup, "warmup_epochs": None}
        recipe = recipe.model_copy(update={"optimizer": settings.model_copy(update=short)})
    if where is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"where": where})})
    return recipe


def place_of_process() -> tuple[int, int, int]:
    """Rank, world and rank on this machine: as torchrun tells them, or Slurm; alone without either.

    Under Slurm alone (``srun``), PyTorch wants MASTER_ADDR and MASTER_PORT too: see docs/training.md.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ and "MASTER_ADDR" in os.environ:
        for name, other in zip(names, ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), strict=True):
            os.environ[name] = os.environ[other]  # PyTorch looks for them too
    rank, world, local = (int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True))
    return rank, world, local


@contextmanager
def _process_group(device: str | None) -> Iterator[Parallel]:
    """This process's place among those of the run."""
    import torch
    from torch import distributed

    from lumid.model.parallel import Parallel

    rank, world, local = place_of_process()
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        if name == "cuda":
            chosen = torch.device("cuda", local)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {name}: not available here; use cpu, or leave it out") from None
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Parallel(rank, world, chosen)
    finally:
        if world > 1:
            distributed.destroy_process_group()


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM (a cluster that takes its machine back) ask the run to save and end after the step it is in."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
