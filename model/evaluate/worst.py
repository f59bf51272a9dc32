"""The images that a model got most wrong, as pictures beside its predictions: where a person would rather look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lumid.catalog.layout import storage_errors, write_table
from lumid.model.evaluate.images import Images
from lumid.model.evaluate.metrics import LEVELS, mask_curves
from lumid.model.evaluate.predictions import Predictions

SHOWN, SIDE, QUALITY = 12, 160, 85
TRUE_COLOUR, SAID_COLOUR = (90, 220, 120), (255, 120, 60)


@dataclass(frozen=True, slots=True)
class Worst:
    """An image, what it is and what it was taken for, and how far off that was: lower is worse."""

    id: str
    truth: str
    said: str
    margin: float
    picture: bytes = field(repr=False)


def worst_path(path: Path) -> Path:
    """Where the pictures that belong to a file of predictions are."""
    return path.with_name(f"{path.stem}.worst.parquet")


def write_worst(path: Path, made: Predictions, images: Images) -> None:
    """Write pictures of the worst of a test's images; ``images``: those of the test, in their order."""
    found = margins(made)
    chosen = np.argsort(found, kind="stable")[:SHOWN]
    pictures: dict[int, npt.NDArray[np.uint8]] = {}
    for indices, batch in images.subset(chosen).batches(SIDE, False, SHOWN):
        for index, image in zip(indices, batch.numpy(), strict=True):
            pictures[int(index)] = np.asarray(np.rint(image * 255), np.uint8).transpose(1, 2, 0).squeeze()
    rows = []
    for place, number in enumerate(chosen):
        picture = pictures[place]
        if made.about.kind == "masks":
            picture = outlined(picture, made.labels[number], made.scores[number] > LEVELS // 2 - 1)
        truth, said = words(made, int(number))
        rows.append(
            {
                "id": made.ids[number],
                "truth": truth,
                "said": said,
                "margin": float(found[number]),
                "jpeg": _jpeg(picture),
            }
        )
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(worst_path(path), pa.Table.from_pylist(rows))


def read_worst(path: Path) -> list[Worst]:
    """What :func:`write_worst` wrote beside a file of predictions; none where there is none."""
    try:
        rows = pq.read_table(worst_path(path), partitioning=None).to_pylist()
        return [Worst(row["id"], row["truth"], row["said"], row["margin"], row["jpeg"]) for row in rows]
    except (OSError, pa.ArrowException, KeyError):
        return []


def margins(made: Predictions) -> npt.NDArray[np.float64]:
    """How clearly each image was got right, ``float64 [n]``: the true class's score over the best other's; of labels the
    least score on the right side of its threshold, in that label's deviations; of masks Dice."""
    if made.about.kind == "masks":
        return np.asarray(mask_curves(made.labels, made.scores)[0][:, LEVELS // 2 - 1])
    if made.about.kind == "multiclass":
        rows = np.arange(len(made.labels))
        others = made.scores.copy()
        others[rows, made.labels] = -np.inf
        return np.asarray(made.scores[rows, made.labels] - others.max(1))
    thresholds = np.array(made.about.thresholds)
    judged = np.isfinite(thresholds)
    if not judged.any():
        return np.zeros(len(made.labels))
    signed = np.where(made.labels, 1, -1) * (made.scores - np.where(judged, thresholds, 0))
    return np.asarray((signed / np.maximum(made.scores.std(0), 1e-12))[:, judged].min(1))


def words(made: Predictions, number: int) -> tuple[str, str]:
    """What an image is, and what it was taken for."""
    classes = made.about.classes
    if made.about.kind == "masks":
        dice = mask_curves(made.labels[number : number + 1], made.scores[number : number + 1])[0][0, LEVELS // 2 - 1]
        return "true outline green", f"found orange, Dice {dice:.2f}"
    if made.about.kind == "multiclass":
        return classes[made.labels[number]], classes[int(made.scores[number].argmax())]
    said = made.scores[number] > np.array(made.about.thresholds)
    return _labels(classes, made.labels[number]), _labels(classes, said)


def outlined(
    picture: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """A picture, ``uint8 [side, side(, 3)]``, with the outlines of two masks of any size."""
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
    drawn = np.ascontiguousarray(colour)
    for mask, of in ((truth, TRUE_COLOUR), (said, SAID_COLOUR)):
        fitted = cv2.resize(mask.astype(np.uint8), drawn.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        lines, _ = cv2.findContours(fitted, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, lines, -1, of, 1)
    return np.asarray(drawn, np.uint8)


def _jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    """Small enough for a page with hundreds; what is measured is never measured on it."""
    channels = picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])
    ok, data = cv2.imencode(".jpg", channels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert ok, "8 bits and one or three channels can be written"
    return data.tobytes()


def _labels(classes: Sequence[str], which: npt.NDArray[Any]) -> str:
    return ", ".join(name for name, one in zip(classes, which, strict=True) if one) or "none"
