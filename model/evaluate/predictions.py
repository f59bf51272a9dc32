"""Predictions of a test as files: Parquet, with what they are of in the metadata. All that tables and pages are made from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import storage_errors, write_table
from lumid.model.evaluate.tasks.base import Kind, Reported

FACTS = b"lumid.evaluation"
FOLDER = "predictions"


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
    reported: Reported | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Those of a test: ids, patients, ``labels`` and ``scores`` as :func:`~.metrics.measure` takes them, or, of masks,
    ``bool`` and ``uint8 [n, side, side]``, a probability times 255."""

    about: About
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: npt.NDArray[Any] = field(repr=False)
    scores: npt.NDArray[Any] = field(repr=False)


def prediction_path(out: Path, task: str, model: str, protocol: str, shots: int, seed: int) -> Path:
    """Where the predictions of a model are."""
    few = f"-{shots}-shot" if shots else ""
    return out / FOLDER / _slug(task) / _slug(model) / f"{protocol}{few}-seed{seed}.parquet"


def read_predictions(out: Path) -> list[Predictions]:
    """All that are in a folder, by path. Raises :class:`DatasetError` for one that is damaged."""
    return [read_prediction(path) for path in prediction_paths(out)]


def prediction_paths(out: Path) -> list[Path]:
    """The files of all that are in a folder."""
    return sorted(path for path in (out / FOLDER).rglob("*.parquet") if re.search(r"-seed\d+\.parquet$", path.name))


def read_prediction(path: Path) -> Predictions:
    """Those of a file."""
    try:
        table = pq.read_table(path, partitioning=None)
        about = _about((table.schema.metadata or {})[FACTS])
        labels, scores = table["label"].to_pylist(), table["scores"].to_pylist()
        if about.kind == "masks":
            truth, said = _images(labels) > 127, _images(scores)
        else:
            truth = np.array(labels, np.int64 if about.kind == "multiclass" else bool)
            said = np.array(scores, np.float64)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, RecursionError):
        raise DatasetError(f"{path}: damaged; delete it and run the same command again") from None
    return Predictions(about, tuple(table["id"].to_pylist()), tuple(table["patient"].to_pylist()), truth, said)


def is_done(path: Path, identity: str) -> bool:
    """Whether a file holds the predictions that are meant."""
    try:
        return _about((pq.read_schema(path).metadata or {})[FACTS]).identity == identity
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, RecursionError):
        return False


def write_prediction(path: Path, made: Predictions) -> None:
    """Write a file, whole or not at all."""
    masks = made.about.kind == "masks"
    columns = {
        "id": made.ids,
        "patient": made.patients,
        "label": _pngs(made.labels.astype(np.uint8) * 255) if masks else made.labels.tolist(),
        "scores": _pngs(made.scores) if masks else made.scores.tolist(),
    }
    table = pa.table(columns).replace_schema_metadata({FACTS: json.dumps(asdict(made.about)).encode()})
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """An image, ``uint8 [rows, columns]`` or ``[rows, columns, 3]`` in RGB, as PNG."""
    ok, data = cv2.imencode(".png", image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1]))
    assert ok, "8 bits and one or three channels can be written"
    return data.tobytes()


def _about(raw: bytes) -> About:
    facts = json.loads(raw)
    reported = facts.pop("reported", None)
    facts |= {name: tuple(facts[name]) for name in ("classes", "thresholds")}
    return About(**facts, reported=None if reported is None else Reported(**reported))


def _images(pngs: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    found = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_GRAYSCALE) for one in pngs]
    whole = [one for one in found if one is not None]
    if len(whole) < len(found):
        raise ValueError("no picture")
    return np.stack(whole).astype(np.uint8)


def _pngs(images: npt.NDArray[np.uint8]) -> list[bytes]:
    return [png(image) for image in images]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"
