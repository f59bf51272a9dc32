"""Training jobs: one process on this machine, or one a GPU under torchrun. Nothing here imports torch until it must."""

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lumid.catalog.errors import UsageError

if TYPE_CHECKING:
    from lumid.catalog.places import Anywhere
    from lumid.model.pretrain import Parallel
    from lumid.model.pretrain import Progress as Step
    from lumid.model.recipe import TrainRecipe


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """How a run ended, and where it is."""

    run: Path
    steps: int
    first_loss: float
    final_loss: float
    validation_loss: float | None
    images_per_s: float
    stopped: bool
    already_finished: bool


def has_torch() -> bool:
    """Whether the training extra is installed."""
    return all(find_spec(name) is not None for name in ("torch", "timm", "safetensors"))


def require_torch() -> None:
    """Raise :class:`UsageError` when the training extra is not installed."""
    if not has_torch():
        raise UsageError("this needs PyTorch and timm: pip install 'lumid[train]'")


def run_pretraining(
    data: Anywhere,
    out: Path,
    recipe: str,
    *,
    steps: int | None = None,
    where: str | None = None,
    device: str | None = None,
    console: Console,
) -> PretrainResult:
    """Pre-train on a data set, or go on with the run in ``out``; Ctrl-C and SIGTERM save first."""
    require_torch()
    from lumid.model.pretrain import pretrain
    from lumid.model.recipe import load_recipe

    chosen = _adapted(load_recipe(recipe), steps, where)
    with _process_group(device) as parallel, _bar(console, chosen, parallel) as report, _stop_flag() as should_stop:
        done = pretrain(data, out, chosen, parallel, report, should_stop)
    return PretrainResult(
        run=out,
        steps=done.step,
        first_loss=done.first_loss,
        final_loss=done.last_loss,
        validation_loss=done.validation_loss,
        images_per_s=done.images_per_s,
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
        warmup = min(recipe.optimizer.warmup_steps, steps // 10)
        changed = recipe.optimizer.model_copy(update={"steps": steps, "warmup_steps": warmup})
        recipe = recipe.model_copy(update={"optimizer": changed})
    if where is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"where": where})})
    return recipe


@contextmanager
def _process_group(device: str | None) -> Iterator[Parallel]:
    """This process's place among those that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK); alone without them."""
    import torch
    from torch import distributed

    from lumid.model.pretrain import Parallel

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        if name == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
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
def _bar(console: Console, recipe: TrainRecipe, parallel: Parallel) -> Iterator[Callable[[Step], None]]:
    """A progress bar with loss, rate and time left; a line now and then where the output goes to a file."""
    bars = Progress(
        TextColumn("[bold]pretrain"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or parallel.rank != 0,
    )
    task = bars.add_task("pretrain", total=recipe.optimizer.steps, facts="")
    every = max(1, recipe.optimizer.steps // 10)

    def report(step: Step) -> None:
        facts = f"loss {step.loss:.4f} · {step.images_per_s:,.0f} images/s · waiting for data {step.stall_fraction:.0%}"
        bars.update(task, completed=step.step, facts=facts)
        if (
            not console.is_terminal
            and parallel.rank == 0
            and (step.step % every < recipe.run.log_every or step.step == step.steps)
        ):
            console.print(f"step {step.step:,} of {step.steps:,} · {facts}")

    with bars:
        yield report


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
