"""The pre-training loop. Reads top to bottom; everything random is a function of (seed, step), so a resumed run is the
run that was not interrupted, bit for bit on a CPU."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.layout import write_text
from lumid.catalog.places import Anywhere, identity
from lumid.catalog.schema import MODALITIES
from lumid.model.augment import evaluation_input, training_input
from lumid.model.checkpoint import (
    RunState,
    latest_checkpoint,
    load_optimizer,
    load_weights,
    read_state,
    save_checkpoint,
)
from lumid.model.mae import MaskedAutoencoder, Output
from lumid.model.recipe import TrainRecipe
from lumid.model.stream import Batch, ImageStream, Selection, StreamSettings, StreamState, select

MAX_VALIDATION = 512


@dataclass(frozen=True, slots=True)
class Parallel:
    """This process among those of a run: one a device, started by torchrun or alone."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  a device is a value


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run says of a step."""

    step: int
    steps: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    images_per_s: float
    stall_fraction: float


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended. ``stopped``: before its last step, because it was asked to."""

    step: int
    first_loss: float
    last_loss: float
    validation_loss: float | None
    images_per_s: float
    stopped: bool
    already_finished: bool


def pretrain(
    data: Anywhere,
    run: Path,
    recipe: TrainRecipe,
    parallel: Parallel,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Trained:
    """Pre-train into the folder ``run``, or go on with what is there.

    ``should_stop`` is asked after every step: a run that stops saves a checkpoint first. Raises :class:`LumidError`
    when ``run`` holds another recipe's or data set's run, or the loss is not a number.
    """
    catalog_hash = identity(data)  # of a subset, other samples are another run
    model = build_model(recipe).to(parallel.device)
    optimizer = build_optimizer(model, recipe)
    state = _begin(run, recipe, catalog_hash, model, optimizer, parallel)
    steps, batch_size = recipe.optimizer.steps, recipe.optimizer.batch_size
    if state.step >= steps:
        return Trained(state.step, state.first_loss, state.last_loss, None, 0.0, stopped=False, already_finished=True)
    wrapped = nn.parallel.DistributedDataParallel(model) if parallel.world > 1 else model
    stream = ImageStream(select(data, recipe.data.where), _stream_settings(recipe, parallel), state.stream)
    batches = iter(stream)
    step, first_loss, loss, stopped = state.step, state.first_loss, state.last_loss, False
    started, seen, waited = time.perf_counter(), 0, 0.0

    with _metrics_file(run, step, parallel) as metrics:
        while step < steps and not stopped:
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            output = _forward(wrapped, batch, recipe, parallel, step)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_grad_norm or math.inf)
            optimizer.step()
            loss = float(output.loss.detach())
            if not math.isfinite(loss):
                raise LumidError(
                    f"{run}: the loss is {loss} at step {step + 1}; lower base_lr, or look at the last batch's keys in metrics.jsonl"
                )
            step += 1
            seen += batch_size
            first_loss = loss if step == 1 else first_loss
            elapsed = time.perf_counter() - started
            progress = Progress(
                step,
                steps,
                batch.state.epoch,
                loss,
                learning_rate(step - 1, recipe),
                float(norm),
                seen / elapsed,
                waited / elapsed,
            )
            _write_metrics(metrics, progress, batch, output)
            if step % recipe.run.log_every == 0 or step == steps:
                report(progress)
            stopped = should_stop()
            if parallel.rank == 0 and (step % recipe.run.checkpoint_every == 0 or step == steps or stopped):
                metrics.flush()
                now = RunState(step, batch.state, recipe.canonical(), catalog_hash, first_loss, loss)
                save_checkpoint(run / "checkpoints", model, optimizer, now, keep=recipe.run.keep)

    rate = seen / (time.perf_counter() - started)
    stream.close()
    validation = validate(model, data, recipe, parallel.device) if step == steps and parallel.rank == 0 else None
    if parallel.rank == 0:
        summary = {
            "step": step,
            "first_loss": first_loss,
            "last_loss": loss,
            "validation_loss": validation,
            "images_per_s": rate,
        }
        write_text(run / "summary.json", json.dumps(summary, indent=1) + "\n")
    return Trained(step, first_loss, loss, validation, rate, stopped=stopped and step < steps, already_finished=False)


def build_model(recipe: TrainRecipe) -> MaskedAutoencoder:
    """The recipe's model, with weights that are a function of its seed."""
    settings = recipe.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.data.seed)
        return MaskedAutoencoder(
            settings.size,
            image_size=settings.image_size,
            patch_size=settings.patch_size,
            in_chans=settings.in_chans,
            mask_ratio=settings.mask_ratio,
            normalize_target=settings.normalize_target,
        )


def build_optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW; no weight decay on what is not a matrix (biases, norms) nor on tokens."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    spared = {name for name, parameter in named if parameter.ndim == 1 or name.endswith(("cls_token", "mask_token"))}
    groups = [
        {
            "params": [parameter for name, parameter in named if name not in spared],
            "weight_decay": recipe.optimizer.weight_decay,
        },
        {"params": [parameter for name, parameter in named if name in spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(recipe.optimizer.beta1, recipe.optimizer.beta2))


def learning_rate(step: int, recipe: TrainRecipe) -> float:
    """The rate of a step, from 0: linear warm-up to ``base_lr × batch_size / 256``, then a cosine to zero."""
    settings = recipe.optimizer
    peak = settings.base_lr * settings.batch_size / 256
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def mask_noise(seed: int, step: int, rank: int, batch: int, patches: int) -> Tensor:
    """``float32 [batch, patches]``, uniform: what is hidden in a step, a function of seed, step and rank."""
    digest = hashlib.sha256(f"mask {seed} {step} {rank}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(batch, patches, generator=generator)


@torch.no_grad()
def validate(model: MaskedAutoencoder, data: Anywhere, recipe: TrainRecipe, device: torch.device) -> float | None:
    """The loss on held-out patients, without augmentation and with fixed masks; None when none are held out."""
    try:
        selection = select(data, "split = 'val'")
    except LumidError:
        return None
    selection = Selection(selection.root, selection.table.slice(0, MAX_VALIDATION))
    settings = StreamSettings(
        min(len(selection), recipe.optimizer.batch_size),
        recipe.model.in_chans,
        recipe.data.canvas,
        threads=recipe.data.threads,
    )
    stream = ImageStream(selection, settings)
    batches = iter(stream)
    was_training = model.training
    model.eval()
    losses: list[Tensor] = []
    for number in range(-(-len(selection) // settings.batch_size)):
        batch = next(batches)
        noise = mask_noise(0, number, 0, settings.batch_size, model.patches).to(device)
        losses.append(model(evaluation_input(batch, recipe.model.image_size, device), noise).loss_by_image)
    batches.close()  # type: ignore[attr-defined]
    stream.close()
    model.train(was_training)
    return float(torch.cat(losses)[: len(selection)].mean())


def read_run(run: Path) -> tuple[MaskedAutoencoder, TrainRecipe, RunState]:
    """The model of a run's newest checkpoint, on the CPU, with its recipe and state."""
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise UsageError(f"{run}: no checkpoint here; give the folder of a `lumid pretrain` run")
    state = read_state(checkpoint)
    recipe = TrainRecipe.model_validate_json(json.dumps(state.recipe))
    model = build_model(recipe)
    load_weights(checkpoint, model)
    return model, recipe, state


def _claim(run: Path, identity: dict[str, object]) -> None:
    """Make the folder this run's. Raises :class:`UsageError` when it holds another run, or something else."""
    about = run / "run.json"
    if about.is_file():
        if json.loads(about.read_text("utf-8")) != identity:
            raise UsageError(f"{run}: holds a run of another recipe or data set; choose another --out")
    elif run.exists() and any(run.iterdir()):
        raise UsageError(f"{run}: is not empty and holds no run; choose another --out")
    else:
        write_text(about, json.dumps(identity, indent=1) + "\n")


def _begin(
    run: Path,
    recipe: TrainRecipe,
    catalog_hash: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parallel: Parallel,
) -> RunState:
    """The state to go on from: the newest checkpoint's, or a new run's."""
    if parallel.rank == 0:  # for all: the others would find what this one is just writing
        _claim(run, {"recipe": recipe.canonical(), "catalog_hash": catalog_hash})
    checkpoint = latest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        return RunState(0, StreamState(), recipe.canonical(), catalog_hash, math.nan, math.nan)
    load_weights(checkpoint, model)
    load_optimizer(checkpoint, model, optimizer)
    return read_state(checkpoint)


def _stream_settings(recipe: TrainRecipe, parallel: Parallel) -> StreamSettings:
    if recipe.optimizer.batch_size % parallel.world:
        raise UsageError(
            f"optimizer.batch_size {recipe.optimizer.batch_size} cannot be shared by {parallel.world} processes: make it a multiple"
        )
    return StreamSettings(
        batch_size=recipe.optimizer.batch_size // parallel.world,
        channels=recipe.model.in_chans,
        canvas=recipe.data.canvas,
        seed=recipe.data.seed,
        threads=recipe.data.threads,
        rank=parallel.rank,
        world=parallel.world,
    )


def model_input(batch: Batch, recipe: TrainRecipe, device: torch.device) -> Tensor:
    """What the model trains on, ``float32 [batch, channels, size, size]``: augmented images, unless the recipe says no."""
    if not recipe.data.augment:
        return evaluation_input(batch, recipe.model.image_size, device)
    return training_input(batch, recipe.model.image_size, device, scale=(recipe.data.scale_min, 1.0))


def _forward(model: nn.Module, batch: Batch, recipe: TrainRecipe, parallel: Parallel, step: int) -> Output:
    device = parallel.device
    images = model_input(batch, recipe, device)
    patches = (recipe.model.image_size // recipe.model.patch_size) ** 2
    noise = mask_noise(recipe.data.seed, step, parallel.rank, len(images), patches).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        output: Output = model(images, noise, batch.valid.to(device).float())
    return output


def _metrics_file(run: Path, step: int, parallel: Parallel) -> TextIO:
    """``metrics.jsonl``, without the lines of steps that are about to be done again."""
    path = run / ("metrics.jsonl" if parallel.rank == 0 else f"metrics-rank{parallel.rank}.jsonl")
    kept = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the last line of a killed process
                continue
    write_text(path, "".join(line + "\n" for line in kept))
    return path.open("a", encoding="utf-8")


def _write_metrics(metrics: TextIO, progress: Progress, batch: Batch, output: Output) -> None:
    by_modality = {}
    losses = output.loss_by_image.detach().float().cpu()
    for index in sorted(set(batch.modality.tolist())):
        by_modality[MODALITIES[index]] = round(float(losses[batch.modality == index].mean()), 6)
    line = {
        "step": progress.step,
        "epoch": progress.epoch,
        "loss": progress.loss,
        "loss_by_modality": by_modality,
        "lr": progress.learning_rate,
        "grad_norm": round(progress.grad_norm, 6),
        "images_per_s": round(progress.images_per_s, 2),
        "stall_fraction": round(progress.stall_fraction, 4),
        "keys_sha256": hashlib.sha256("".join(batch.keys).encode()).hexdigest(),
        "bad": int((~batch.valid).sum()),
    }
    metrics.write(json.dumps(line) + "\n")
