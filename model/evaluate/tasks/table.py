"""A task from a table: any folder of pictures with labels."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from lumid.catalog.errors import UsageError
from lumid.model.evaluate.images import FileImages
from lumid.model.evaluate.tasks.base import SPLITS, Task, files_version
from lumid.model.evaluate.tasks.catalog import deal


def from_table(path: Path) -> Task:
    """A CSV file with columns ``file`` (relative to it), ``label``, ``patient``, and ``split`` if it is given.

    More than one label: separated by ``|``; where any row has several the task is multilabel, and an empty one is none. Without ``split``,
    patients are dealt. Names of files and patients go into the results as hashes only. Raises :class:`UsageError`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UsageError(f"{path}: cannot be read as a CSV file in UTF-8") from None
    needed = ("file", "label", "patient")
    if not rows or any(rows[0].get(name) is None for name in needed):
        raise UsageError(f"{path}: needs the columns {', '.join(needed)}, and split if there is one; and a row")
    files = [path.parent / row["file"] for row in rows]
    absent = sum(not file.is_file() for file in files)
    if absent:
        raise UsageError(
            f"{path}: {absent:,} of {len(files):,} files are not there, the first in row {_first(files) + 2}"
        )
    for number, row in enumerate(rows):
        if not (row["patient"] or "").strip():
            raise UsageError(f"{path}: no patient in row {number + 2}; who it is decides on splits and intervals")
    patients = [_hash(row["patient"]) for row in rows]
    labels = [[_printable(one) for one in (row["label"] or "").split("|") if one] for row in rows]
    classes = tuple(sorted({one for of_row in labels for one in of_row}))
    multilabel = any(len(of_row) > 1 for of_row in labels)
    for number, of_row in enumerate(labels):
        if not of_row and not multilabel:
            raise UsageError(
                f"{path}: no label in row {number + 2}; only where some rows have several may a row have none"
            )
    stated = [row.get("split") or "" for row in rows]
    if any(stated):
        if set(stated) - set(SPLITS):
            raise UsageError(f"{path}: split must be train, val or test, or empty throughout")
        splits = stated
    else:
        dealt = deal(patients, ["|".join(of_row) for of_row in labels])
        splits = [dealt[patient] for patient in patients]
    found = np.array([[name in of_row for name in classes] for of_row in labels])
    return Task(
        name=f"csv:{path.resolve().parent.name}/{path.stem}",
        kind="multilabel" if multilabel else "multiclass",
        classes=classes,
        images=FileImages(files),
        labels=found if multilabel else found.argmax(1).astype(np.int64),
        patients=patients,
        splits=splits,
        ids=[_hash(row["file"]) for row in rows],
        version=files_version(files),
        note="" if any(stated) else "patients dealt by lumid",
    )


def _printable(text: str) -> str:
    return "".join(one for one in text if one.isprintable()).strip()


def _first(files: list[Path]) -> int:
    return next(number for number, file in enumerate(files) if not file.is_file())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
