"""Tasks from a data set's own labels: which modality, which plane, which body part. They need nothing but the data set.

The splits are the catalog's where a class has patients in all of them; else patients are dealt anew, by their pseudonym,
and an encoder that was trained on any of them is told so.
"""

from __future__ import annotations

import hashlib

import numpy as np

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.places import Anywhere
from lumid.model.evaluate.images import CatalogImages
from lumid.model.evaluate.tasks.base import SPLITS, Task
from lumid.model.stream import Selection, select

LEAST_PATIENTS = 3
"""Of a class: fewer cannot be in train, validation and test."""


def modality(data: Anywhere | None) -> Task:
    """Which modality an image is of."""
    return of_column("modality", data, "modality")


def plane(data: Anywhere | None) -> Task:
    """Axial, coronal or sagittal: of slices that lie in one."""
    return of_column("plane", data, "plane", "plane IN ('axial', 'coronal', 'sagittal')")


def body_part(data: Anywhere | None) -> Task:
    """Which part of the body, as far as the header states one."""
    return of_column("body-part", data, "body_part", "body_part IS NOT NULL")


def of_column(name: str, data: Anywhere | None, column: str, where: str | None = None) -> Task:
    """A task whose classes are the values of a column of the catalog.

    Classes of fewer than three patients are left out. Raises :class:`UsageError` without a data set,
    :class:`DatasetError` when fewer than two classes are left.
    """
    selection = chosen(name, data, where, column)
    table = selection.table
    values, patients = table[column].to_pylist(), table["patient"].to_pylist()
    of_class: dict[str, set[str]] = {}
    for value, patient in zip(values, patients, strict=True):
        of_class.setdefault(value, set()).add(patient)
    classes = tuple(sorted(value for value, who in of_class.items() if len(who) >= LEAST_PATIENTS))
    if len(classes) < 2:
        raise DatasetError(
            f"{name}: needs two values of {column} with {LEAST_PATIENTS} patients each, and {data} has {len(classes)}"
        )
    rows = [row for row, value in enumerate(values) if value in classes]
    kept = Selection(selection.place, table.take(rows).combine_chunks(), selection.version)
    values, patients = [values[row] for row in rows], [patients[row] for row in rows]
    splits, dealt = splits_of(kept.table["split"].to_pylist(), patients, values)
    left_out = len(of_class) - len(classes)
    notes = [f"{left_out} classes of fewer than {LEAST_PATIENTS} patients left out"] * bool(left_out)
    notes += ["patients dealt anew: the catalog's splits lack a class"] * dealt
    return Task(
        name=name,
        kind="multiclass",
        classes=classes,
        images=CatalogImages(kept),
        labels=np.array([classes.index(value) for value in values], np.int64),
        patients=patients,
        splits=splits,
        ids=kept.table["key"].to_pylist(),
        data=data,
        version=kept.version,
        note="; ".join(notes),
    )


def chosen(name: str, data: Anywhere | None, where: str | None, *also: str) -> Selection:
    """The samples of a data set that a task is made of, with patient and split."""
    if data is None:
        raise UsageError(f"{name}: is made of a data set; name one with --data")
    return select(data, where, also=("patient", "split", *also))


def splits_of(stated: list[str], patients: list[str], values: list[str]) -> tuple[list[str], bool]:
    """The splits that are stated, or others; whether they are others."""
    of_classes = {(split, value) for split, value in zip(stated, values, strict=True)}
    if all((split, value) in of_classes for split in SPLITS for value in set(values)) and set(stated) <= set(SPLITS):
        return stated, False
    dealt = deal(patients, values)
    return [dealt[patient] for patient in patients], True


def deal(patients: list[str], values: list[str]) -> dict[str, str]:
    """A split for every patient: class by class, the rarest first, in the order of a hash: of every ten, one to each of
    val and test at least, so that each class is in each."""
    of_class: dict[str, set[str]] = {}
    for patient, value in zip(patients, values, strict=True):
        of_class.setdefault(value, set()).add(patient)
    dealt: dict[str, str] = {}
    for value in sorted(of_class, key=lambda one: (len(of_class[one]), one)):
        order = sorted(of_class[value], key=lambda one: hashlib.sha256(f"lumid task {one}".encode()).digest())
        share = max(1, round(0.2 * len(order)))
        wanted = {"test": share, "val": max(1, round(0.1 * len(order))), "train": 1}
        for patient in order:
            if patient in dealt:
                wanted[dealt[patient]] -= 1
        free = iter([patient for patient in order if patient not in dealt])
        for split, count in wanted.items():
            for _ in range(max(0, count)):
                if (one := next(free, None)) is not None:
                    dealt[one] = split
        for patient in free:
            dealt[patient] = "train"
    return dealt
