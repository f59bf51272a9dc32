"""The pre-training loop. Reads top to bottom; everything random is a function of (seed, step), so a resumed run is the
run that was not interrupted, bit for bit on a CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import write_text
from lumid.catalog.places import Anywhere, identity
from lumid.catalog.schema import MODALITIES
from lumid.model.checkpoint import RunState, save_checkpoint
from lumid.model.feed import Feed, Piece
from lumid.model.flops import peak_flops, training_flops
from lumid.model.guard import Guard, Verdict, judge
from lumid.model.journal import Journal, Progress, Speed, digest
from lumid.model.mae import MaskedAutoencoder
from lumid.model.optimizer import build_optimizer, learning_rate, limit_gradient, set_learning_rate
from lumid.model.parallel import Parallel, autocast, micro_batches, prepare, synchronised
from lumid.model.recipe import TrainRecipe
from lumid.model.runs import CHECKPOINTS, SUMMARY, begin, build_model, restore
from lumid.model.stream import StreamState, select
from lumid.model.validation import Validation, validate


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended. ``stopped``: before its last step, because it was asked to; ``skipped``: steps that the guard
    left out."""

    step: int
    first_loss: float
    last_loss: float
    validation_loss: float | None
    images_per_s: float
    skipped: int
    stopped: bool
    already_finished: bool


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what happens: of steps, and in words."""

    step: Callable[[Progress], None]
    note: Callable[[str], None]


def pretrain(
    data: Anywhere,
    run: Path,
    recipe: TrainRecipe,
    parallel: Parallel,
    listener: Listener,
    should_stop: Callable[[], bool],
    *,
    fresh: bool = False,
    weights: Path | None = None,
) -> Trained:
    """Pre-train into the folder ``run``, or go on with what is there.

    ``should_stop`` is asked after every step: a run that stops saves a checkpoint first. ``fresh`` refuses to go on;
    ``weights`` is a folder of converted weights to begin from. Raises :class:`LumidError` when ``run`` holds another
    recipe's or data set's run, or the loss is no number, or leaps, for too many steps.
    """
    catalog_hash = identity(data)  # of a subset, other samples are another run
    recipe = recipe.resolved(len(select(data, recipe.data.where)))
    begin(run, data, recipe, catalog_hash, parallel, fresh=fresh, weights=weights)
    torch.manual_seed(recipe.data.seed + parallel.rank)
    torch.set_float32_matmul_precision("high")  # products that stay float32 use a GPU's TF32
    model = build_model(recipe, weights).to(parallel.device)
    batch, _ = micro_batches(recipe.optimizer.batch_size, parallel.world, recipe.compute.micro_batch)
    wrapped = prepare(model, recipe.compute, parallel, batch, listener.note)
    optimizer = build_optimizer(model, recipe)
    state = restore(run, model, optimizer, parallel) or RunState(
        0, StreamState(), recipe.canonical(), catalog_hash, math.nan, math.nan
    )
    if state.step >= recipe.steps:
        return _trained(state, None, 0.0, stopped=False, already=True)

    state, rate = _train(data, run, recipe, parallel, model, wrapped, optimizer, state, listener, should_stop)
    finished = state.step >= recipe.steps
    validation = validate(wrapped, model, data, recipe, parallel) if finished else None
    done = _trained(state, validation, rate, stopped=not finished)
    if parallel.leads:
        by_modality = validation.loss_by_modality if validation else {}
        summary = asdict(done) | {"validation_loss_by_modality": by_modality}
        write_text(run / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return done


def _train(
    data: Anywhere,
    run: Path,
    recipe: TrainRecipe,
    parallel: Parallel,
    model: MaskedAutoencoder,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> tuple[RunState, float]:
    """Step after step, until the last or until asked to stop; the state then, and images a second."""
    meter = Meter(recipe, parallel, model)
    stopped = False
    with (
        Feed(data, recipe, parallel, state.stream, state.step) as feed,
        _journal(run, recipe, parallel, state) as journal,
    ):
        while state.step < recipe.steps and not stopped:
            rate = learning_rate(state.step, recipe)
            set_learning_rate(optimizer, rate)
            sums, stream = accumulate(wrapped, feed, recipe, parallel, asked_to_stop=should_stop())
            norm = limit_gradient(model, recipe.optimizer.clip_grad_norm)
            if state.step + 1 < recipe.steps:
                feed.prepare()
            totals = meter.read(sums, norm)  # the one place where the host waits for the device
            guard, verdict = judge(state.guard, totals.loss, totals.grad_norm, recipe.optimizer.spike_factor)
            if verdict is Verdict.GOOD:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state = replace(
                state,
                step=state.step + 1,
                stream=stream,
                first_loss=totals.loss if math.isnan(state.first_loss) else state.first_loss,
                last_loss=totals.loss if verdict is Verdict.GOOD else state.last_loss,
                guard=guard,
            )
            progress = meter.progress(state, totals, rate, verdict, feed.waited_s)
            if journal is not None:
                journal.write(progress)
            if state.step % recipe.run.log_every == 0 or state.step == recipe.steps or verdict is not Verdict.GOOD:
                listener.step(progress)
            if guard.skipped_in_a_row >= recipe.optimizer.max_skipped:
                raise LumidError(_lost(run, state.step, guard, verdict))
            stopped = totals.asked_to_stop
            if state.step % recipe.run.checkpoint_every == 0 or state.step == recipe.steps or stopped:
                if journal is not None:
                    journal.flush()
                save_checkpoint(run / CHECKPOINTS, model, optimizer, state, parallel, keep=recipe.run.keep)
    return state, meter.images_per_s


def accumulate(
    wrapped: nn.Module, feed: Feed, recipe: TrainRecipe, parallel: Parallel, *, asked_to_stop: bool = False
) -> tuple[Sums, StreamState]:
    """Forward and backward over the pieces of a step; gradients are those of the mean over the whole batch.

    An image that could not be read counts as one whose loss is 0. Nothing here waits for the device.
    """
    sums = Sums.zeros(parallel.device, asked_to_stop)
    stream = StreamState()
    share = recipe.optimizer.batch_size / parallel.world  # gradients are averaged over devices
    for number, piece in enumerate(feed.next_step(), 1):
        with synchronised(wrapped, last=number == feed.pieces):
            with autocast(recipe.compute, parallel.device):
                losses: Tensor = wrapped(piece.images, piece.noise).loss_by_image
            counted = torch.where(piece.valid, losses, 0.0)
            (counted.sum() / share).backward()  # type: ignore[no-untyped-call]
        sums.add(piece, counted.detach())
        stream = piece.state
    return sums, stream


@dataclass(frozen=True, slots=True)
class Sums:
    """What a step adds up on the device, over its pieces and then over all devices.

    ``losses``: ``float64 [modalities, 2]``, sum of the losses and number of images; ``counts``: ``int64 [3]``, digest of
    the keys, images that could not be read, processes that were asked to stop.
    """

    losses: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, device: torch.device, asked_to_stop: bool) -> Sums:
        """Nothing yet. A process is asked to stop by a signal, which others may get a step later: they hear of it here."""
        counts = torch.tensor([0, 0, int(asked_to_stop)])
        return cls(torch.zeros(len(MODALITIES), 2, dtype=torch.float64, device=device), counts.to(device))

    def add(self, piece: Piece, losses: Tensor) -> None:
        """The losses of a piece's images, ``[batch]``, 0 for those that could not be read."""
        place = piece.modality.to(losses.device, non_blocking=True)
        self.losses.index_add_(0, place, torch.stack([losses.double(), piece.valid.double()], dim=1))
        self.counts[0] += digest(piece.keys, piece.places)
        self.counts[1] += (~piece.valid).sum()


@dataclass(frozen=True, slots=True)
class Totals:
    """A step's sums as numbers, over all devices."""

    loss: float
    loss_by_modality: dict[str, float]
    grad_norm: float
    samples: int
    bad: int
    asked_to_stop: bool


class Meter:
    """From what the device summed up to what is known of a step."""

    def __init__(self, recipe: TrainRecipe, parallel: Parallel, model: MaskedAutoencoder) -> None:
        self._recipe, self._parallel, self._speed = recipe, parallel, Speed()
        self._flops, self._images = training_flops(model), 0
        peak = recipe.compute.peak_tflops
        device = parallel.device
        known = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = peak * 1e12 if peak is not None else known
        self._speed.mark(0.0, 0)
        self.images_per_s = 0.0

    def read(self, sums: Sums, norm: Tensor) -> Totals:
        """The numbers, over all devices."""
        losses = self._parallel.sum(sums.losses).cpu()
        digest_sum, bad, asked = self._parallel.sum(sums.counts).tolist()
        total, images = losses.sum(0).tolist()
        found = {
            name: loss / count for name, (loss, count) in zip(MODALITIES, losses.tolist(), strict=True) if count > 0
        }
        loss = total / images if images else math.nan
        return Totals(loss, found, float(norm), digest_sum % (1 << 56), bad, asked > 0)

    def progress(self, state: RunState, totals: Totals, rate: float, verdict: Verdict, waited_s: float) -> Progress:
        """The step that ``state`` is after."""
        self._images += self._recipe.optimizer.batch_size
        self._speed.mark(waited_s, self._images)
        self.images_per_s, stalled = self._speed.rates()
        mfu = self.images_per_s * self._flops / (self._peak * self._parallel.world) if self._peak else None
        return Progress(
            step=state.step,
            steps=self._recipe.steps,
            epoch=state.stream.epoch,
            loss=totals.loss,
            loss_by_modality={name: round(loss, 6) for name, loss in totals.loss_by_modality.items()},
            learning_rate=rate,
            grad_norm=totals.grad_norm,
            images_per_s=self.images_per_s,
            stall_fraction=stalled,
            mfu=mfu,
            samples=f"{totals.samples:014x}",
            bad=totals.bad,
            verdict=verdict.value,
        )


@contextmanager
def _journal(run: Path, recipe: TrainRecipe, parallel: Parallel, state: RunState) -> Iterator[Journal | None]:
    """One process writes for all."""
    if not parallel.leads:
        yield None
        return
    with Journal(run, state.step, tensorboard=recipe.run.tensorboard) as journal:
        yield journal


def _trained(
    state: RunState, validation: Validation | None, rate: float, *, stopped: bool, already: bool = False
) -> Trained:
    loss = validation.loss if validation is not None else None
    skipped = state.guard.skipped
    return Trained(state.step, state.first_loss, state.last_loss, loss, rate, skipped, stopped, already)


def _lost(run: Path, step: int, guard: Guard, verdict: Verdict) -> str:
    what = "no number" if verdict is Verdict.NOT_FINITE else f"far above its mean of {guard.mean:.4g}"
    return (
        f"{run}: the loss or its gradient was {what} for {guard.skipped_in_a_row} steps in a row, up to step {step}; "
        "lower base_lr or set clip_grad_norm in the recipe and start a new run; the last checkpoint here is whole"
    )
