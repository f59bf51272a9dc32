"""One job: an encoder on a task. Its predictions are files, from which every table can be made again without the encoder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.layout import storage_errors, write_table
from lumid.catalog.places import as_place, place_manifest
from lumid.catalog.query import read_catalog
from lumid.model.evaluate.encoders import Encoder, describe, load_encoder
from lumid.model.evaluate.features import features
from lumid.model.evaluate.metrics import Floats, thresholds_of
from lumid.model.evaluate.protocols import PROTOCOLS, Sets, few_shot
from lumid.model.evaluate.tasks import Task, load_task
from lumid.model.evaluate.tasks.base import Kind

FACTS = b"lumid.evaluation"


@dataclass(frozen=True, slots=True)
class Job:
    """An encoder, a task, and how it is judged. ``shots``: training images a class, 0 for all; ``weights``: for a name of
    timm's; ``allow_leak``: go on where the encoder has seen patients of the test."""

    model: str
    task: str
    data: str | None
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    shots: tuple[int, ...] = (0,)
    weights: str | None = None
    device: str = "cpu"
    allow_leak: bool = False


@dataclass(frozen=True, slots=True)
class About:
    """What predictions are of. ``leak``: whether the encoder has seen patients of the test: no, unknown, or how many."""

    task: str
    model: str
    protocol: str
    shots: int
    seed: int
    kind: Kind
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    chosen: dict[str, float]
    train: int
    val: int
    leak: str
    note: str
    identity: str


@dataclass(frozen=True, slots=True)
class Predictions:
    """Those of a test: ids, patients, ``labels`` and ``scores`` as :func:`~.metrics.measure` takes them."""

    about: About
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: npt.NDArray[Any]
    scores: Floats


def run_job(job: Job, out: Path, report: Callable[[int, int], None] | None = None) -> list[Path]:
    """The predictions of a job, in ``out``; those that are there already are not made again.

    ``report``: images embedded, of how many. Raises :class:`LumidError` when the task's data or the encoder is not to be
    had, or when the encoder has seen the test.
    """
    if unknown := [name for name in job.protocols if name not in PROTOCOLS]:
        raise UsageError(f"{unknown[0]}: no such protocol; there are {', '.join(PROTOCOLS)}")
    task = load_task(job.task, job.data)
    encoder = load_encoder(job.model, None if job.weights is None else Path(job.weights))
    leak = leaked(encoder, task)
    if leak not in ("no", "unknown") and not job.allow_leak:
        raise LumidError(
            f"{encoder.name}: was pre-trained on {leak} of {task.name}'s test patients; take another encoder, or --allow-leak, "
            "which the table then says"
        )
    wanted = [
        (prediction_path(out, task.name, encoder.name, protocol, shots, seed), protocol, shots, seed)
        for protocol in job.protocols
        for shots in job.shots
        for seed in job.seeds
    ]
    missing = [one for one in wanted if not _is_done(one[0], _identity(encoder, task, *one[1:]))]
    if missing:
        values = features(encoder, task, out / "features", device=torch.device(job.device), report=report)
        rows = {split: task.of(split) for split in ("train", "val", "test")}
        sets = Sets(
            task.kind, len(task.classes), values[rows["train"]], task.labels[rows["train"]],
            values[rows["val"]], task.labels[rows["val"]], values[rows["test"]],
        )  # fmt: skip
        for path, protocol, shots, seed in missing:
            used = few_shot(sets, shots, seed) if shots else sets
            scores = PROTOCOLS[protocol](used, seed)
            about = About(
                task.name, encoder.name, protocol, shots, seed, task.kind, task.classes,
                tuple(thresholds_of(task.kind, sets.val_labels, scores.val).tolist()), scores.chosen,
                len(used.train), len(used.val), leak, task.note, _identity(encoder, task, protocol, shots, seed),
            )  # fmt: skip
            _write(path, about, task, rows["test"], scores.test)
    return [one[0] for one in wanted]


def leaked(encoder: Encoder, task: Task) -> str:
    """How many of the test's patients the encoder was pre-trained on: ``no``, ``unknown``, or the number in words.

    It is known where the task is made of the very data set that the encoder's weights name by its hash.
    """
    if encoder.trained_on is None:
        return "no" if encoder.name.endswith("(random)") else "unknown"
    if task.data is None:
        return "unknown"
    catalog, _, part = encoder.trained_on.catalog_hash.partition(":")
    if place_manifest(as_place(task.data)).catalog_hash != catalog or part:
        return "unknown"
    whole = replace(as_place(task.data), subset=None)
    seen = set(read_catalog(whole, encoder.trained_on.where or None, ["patient"])["patient"].to_pylist())
    tested = {task.patients[row] for row in task.of("test")}
    both = len(seen & tested)
    return f"{both:,} of {len(tested):,}" if both else "no"


def prediction_path(out: Path, task: str, model: str, protocol: str, shots: int, seed: int) -> Path:
    """Where the predictions of a model are."""
    few = f"-{shots}-shot" if shots else ""
    return out / "predictions" / _slug(task) / _slug(model) / f"{protocol}{few}-seed{seed}.parquet"


def read_predictions(out: Path) -> list[Predictions]:
    """All that are in a folder, by path. Raises :class:`DatasetError` for one that is damaged."""
    return [read_prediction(path) for path in sorted((out / "predictions").rglob("*.parquet"))]


def read_prediction(path: Path) -> Predictions:
    """Those of a file."""
    try:
        table = pq.read_table(path, partitioning=None)
        raw = json.loads((table.schema.metadata or {})[FACTS])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise DatasetError(f"{path}: damaged; delete it and run the same command again") from None
    about = About(**{**raw, "classes": tuple(raw["classes"]), "thresholds": tuple(raw["thresholds"])})
    labels = table["label"].to_pylist()
    matrix = np.array(labels, np.int64 if about.kind == "multiclass" else bool)
    return Predictions(
        about,
        tuple(table["id"].to_pylist()),
        tuple(table["patient"].to_pylist()),
        matrix,
        np.array(table["scores"].to_pylist(), np.float64),
    )


def _is_done(path: Path, identity: str) -> bool:
    if not path.is_file():
        return False
    try:
        return read_prediction(path).about.identity == identity
    except DatasetError:
        return False


def _identity(encoder: Encoder, task: Task, protocol: str, shots: int, seed: int) -> str:
    """A hash of all that decides the predictions."""
    labels = hashlib.sha256(task.labels.tobytes() + "".join(task.splits).encode()).hexdigest()
    facts = (describe(encoder), task.data_hash, labels, task.classes, protocol, shots, seed)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _write(path: Path, about: About, task: Task, rows: npt.NDArray[np.int64], scores: Floats) -> None:
    columns = {
        "id": [task.ids[row] for row in rows],
        "patient": [task.patients[row] for row in rows],
        "label": task.labels[rows].tolist(),
        "scores": scores.tolist(),
    }
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(asdict(about)).encode()})
    with storage_errors(path.parent):
        write_table(path, table)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def jobs_of(
    models: Sequence[str], tasks: Sequence[str], data: str | None, protocols: Sequence[str], seeds: int, **more: Any
) -> list[Job]:
    """Every model on every task."""
    return [Job(model, task, data, tuple(protocols), tuple(range(seeds)), **more) for task in tasks for model in models]
