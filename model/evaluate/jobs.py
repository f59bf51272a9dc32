"""One job: an encoder on a task. Its predictions are files, from which every table can be made again without the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.places import as_place, identity, place_manifest
from lumid.catalog.query import read_catalog
from lumid.model.evaluate.encoders import Encoder, describe, load_encoder
from lumid.model.evaluate.features import Report, feature_maps, features, pixels, true_masks
from lumid.model.evaluate.metrics import probabilities, thresholds_of
from lumid.model.evaluate.predictions import About, Predictions, is_done, prediction_path, write_prediction
from lumid.model.evaluate.protocols import PROTOCOLS, Scores, Sets, few_shot, few_shot_rows
from lumid.model.evaluate.rows import Rows
from lumid.model.evaluate.settings import FineTuning, Probing
from lumid.model.evaluate.tasks import Task, load_task
from lumid.model.evaluate.tasks.base import SPLITS, Kind
from lumid.model.evaluate.training import Material, Split, fine_tune, segmentation_probe
from lumid.model.evaluate.worst import write_worst

FINE_TUNING, SEGMENTATION = "finetune", "segmentation"
BY_KIND: dict[Kind, tuple[str, ...]] = {
    "multiclass": ("linear", *(name for name in PROTOCOLS if name != "linear"), FINE_TUNING),
    "multilabel": ("linear", *(name for name in PROTOCOLS if name != "linear"), FINE_TUNING),
    "masks": (SEGMENTATION, FINE_TUNING),
}
"""What a task can be judged by; the first is what it is judged by where nothing else is said."""
ALL_PROTOCOLS = (*PROTOCOLS, SEGMENTATION, FINE_TUNING)
MASK_SIDE = 256
"""Masks are compared at so many pixels a side, whatever an encoder takes: all are judged by the same."""


@dataclass(frozen=True, slots=True)
class Job:
    """An encoder, a task, and how it is judged.

    ``protocols``: none for the task's own; ``shots``: training images a class, 0 for all; ``weights``: for a name of
    timm's; ``allow_leak``: go on where the encoder has seen patients of the test; ``seen``: data sets among which the
    one that it was pre-trained on is looked for.
    """

    model: str
    task: str
    data: str | None
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    shots: tuple[int, ...] = (0,)
    weights: str | None = None
    device: str = "cpu"
    allow_leak: bool = False
    seen: tuple[str, ...] = ()
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    probing: Probing = field(default_factory=Probing)


@dataclass(frozen=True, slots=True)
class _One:
    """One line of predictions that a job owes."""

    path: Path
    protocol: str
    shots: int
    seed: int
    identity: str


def run_job(job: Job, out: Path, report: Report | None = None) -> list[Path]:
    """The predictions of a job, in ``out``; those that are there already are not made again.

    ``report``: images embedded or epochs trained, of how many. Raises :class:`LumidError` when the task's data or the
    encoder is not to be had, or when the encoder has seen the test.
    """
    if unknown := [name for name in job.protocols if name not in ALL_PROTOCOLS]:
        raise UsageError(f"{unknown[0]}: no such protocol; there are {', '.join(ALL_PROTOCOLS)}")
    task = load_task(job.task, job.data)
    possible = BY_KIND[task.kind]
    if wrong := [name for name in job.protocols if name not in possible]:
        raise UsageError(f"{task.name}: cannot be judged by {wrong[0]}, but by {', '.join(possible)}")
    encoder = load_encoder(job.model, None if job.weights is None else Path(job.weights))
    leak = leaked(encoder, task, job.seen)
    if leak not in ("no", "unknown") and not job.allow_leak:
        raise LumidError(
            f"{encoder.name}: was pre-trained on {leak} of {task.name}'s test patients; take another encoder, or --allow-leak, "
            "which the table then says"
        )
    if task.kind == "masks" and any(job.shots):
        raise UsageError(f"{task.name}: --shots counts images of a class, and masks have none")
    wanted = [
        _One(
            prediction_path(out, task.name, encoder.name, protocol, shots, seed),
            protocol,
            shots,
            seed,
            _identity(encoder, task, job, protocol, shots, seed),
        )
        for protocol in job.protocols or possible[:1]
        for shots in job.shots
        for seed in job.seeds
    ]
    for one in wanted:
        if not is_done(one.path, one.identity):
            _make(job, task, encoder, leak, one, out, report)
    return [one.path for one in wanted]


def _make(job: Job, task: Task, encoder: Encoder, leak: str, one: _One, out: Path, report: Report | None) -> None:
    rows = {split: task.of(split) for split in SPLITS}
    scores, train = _fitted(job, task, encoder, one, out, report)
    if task.kind == "multiclass":  # as files hold them: what can be ranked as it is
        val, test = (probabilities(task.kind, of) for of in (scores.val, scores.test))
        scores = Scores(val, test, scores.chosen)
    # masks are compared with the true ones at one size, and keep their probabilities; labels keep a threshold each
    thresholds = () if task.kind == "masks" else tuple(
        thresholds_of(task.kind, task.labels[rows["val"]], scores.val).tolist()
    )  # fmt: skip
    about = About(
        task.name, encoder.name, one.protocol, one.shots, one.seed, task.kind, task.classes, thresholds,
        scores.chosen, train, len(rows["val"]), leak, task.note, one.identity, task.reported,
    )  # fmt: skip
    truth = task.labels[rows["test"]]
    if task.kind == "masks":
        truth = true_masks(task, MASK_SIDE, out / "features")[rows["test"]].astype(bool)
    made = Predictions(
        about,
        tuple(task.ids[row] for row in rows["test"]),
        tuple(task.patients[row] for row in rows["test"]),
        truth,
        scores.test,
    )
    if one.seed == min(job.seeds):
        write_worst(one.path, made, task.images.subset(rows["test"]))
    write_prediction(one.path, made)


def _fitted(job: Job, task: Task, encoder: Encoder, one: _One, out: Path, report: Report | None) -> tuple[Scores, int]:
    """What a protocol says, and how many images it was fitted on."""
    cache, device = out / "features", torch.device(job.device)
    rows = {split: task.of(split) for split in SPLITS}
    if one.protocol in PROTOCOLS:
        values = features(encoder, task, cache, device=device, report=report)
        sets = Sets(
            task.kind, len(task.classes), Rows(values, rows["train"]), task.labels[rows["train"]],
            Rows(values, rows["val"]), task.labels[rows["val"]], Rows(values, rows["test"]),
        )  # fmt: skip
        used = few_shot(sets, one.shots, one.seed) if one.shots else sets
        return PROTOCOLS[one.protocol](used, one.seed), len(used.train)
    if one.shots:
        kept = few_shot_rows(task.kind, len(task.classes), task.labels[rows["train"]], one.shots, one.seed)
        rows["train"] = rows["train"][kept]
    masks = true_masks(task, MASK_SIDE, cache) if task.kind == "masks" else None
    inputs: Any = (
        feature_maps(encoder, task, cache, device=device, report=report)
        if one.protocol == SEGMENTATION
        else pixels(encoder, task, cache, report)
    )
    splits = {
        split: Split(Rows(inputs, of), task.labels[of] if masks is None else Rows(masks, of))
        for split, of in rows.items()
    }
    scratch = out / "scratch" / f"{one.identity}.pt"
    material = Material(
        task.kind, len(task.classes), splits["train"], splits["val"], splits["test"], device, scratch, report
    )
    if one.protocol == SEGMENTATION:
        trained = segmentation_probe(material, job.probing, one.seed)
    else:
        options = {"drop_path_rate": job.fine_tuning.drop_path}
        fresh = load_encoder(job.model, None if job.weights is None else Path(job.weights), options=options)
        trained = fine_tune(fresh, material, job.fine_tuning, one.seed)
    return Scores(trained.val, trained.test, trained.chosen), len(rows["train"])


def leaked(encoder: Encoder, task: Task, seen: Sequence[str] = ()) -> str:
    """How many of the test's patients the encoder was pre-trained on: ``no``, ``unknown``, or the number in words.

    It is known where the data set that the encoder's weights name by its hash is the task's own, or among ``seen``; of a
    task of files, where its patients have the pseudonyms that lumid gives them (:attr:`Task.pseudonyms`).
    """
    if encoder.trained_on is None:
        return "no" if encoder.at_random else "unknown"
    if task.data is None and not task.pseudonyms:
        return "unknown"
    trained, tested = encoder.trained_on.catalog_hash, {task.patients[row] for row in task.of("test")}
    for place in (as_place(data) for data in (task.data, *seen) if data is not None):
        exact = identity(place) == trained
        whole = replace(place, subset=None)
        if not exact and place_manifest(whole).catalog_hash != trained.partition(":")[0]:
            continue
        rows = read_catalog(place if exact else whole, encoder.trained_on.where or None, ["patient"])
        both = len(tested & set(rows["patient"].to_pylist()))
        if not both:
            return "no"
        if exact or ":" not in trained:
            return f"{both:,} of {len(tested):,}"
    return "unknown"


def _identity(encoder: Encoder, task: Task, job: Job, protocol: str, shots: int, seed: int) -> str:
    """A hash of all that decides the predictions."""
    labels = hashlib.sha256(task.labels.tobytes() + "".join(task.splits).encode()).hexdigest()
    settings = {FINE_TUNING: job.fine_tuning, SEGMENTATION: job.probing}.get(protocol)
    facts = (describe(encoder), task.data_hash, labels, task.classes, protocol, repr(settings), shots, seed)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def jobs_of(
    models: Sequence[str],
    tasks: Sequence[str],
    data: str | None,
    protocols: Sequence[str],
    seeds: int,
    weights: Mapping[str, str],
    **more: Any,
) -> list[Job]:
    """Every model on every task; ``weights``: files of those of timm's, by model."""
    return [
        Job(model, task, data, tuple(protocols), tuple(range(seeds)), weights=weights.get(model), **more)
        for model in models
        for task in tasks
    ]


__all__ = ["ALL_PROTOCOLS", "Job", "jobs_of", "leaked", "run_job"]
