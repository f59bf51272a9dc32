"""ChestX-ray14 (Wang et al. 2017): 14 findings, on the official test list. Made of a data set that lumid has built of it."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow.compute as pc

from lumid.catalog.errors import DatasetError
from lumid.catalog.places import Anywhere
from lumid.catalog.schema import LABELS
from lumid.model.evaluate.images import CatalogImages
from lumid.model.evaluate.tasks.base import Task
from lumid.model.evaluate.tasks.catalog import chosen
from lumid.model.evaluate.tasks.reported import CHEST
from lumid.model.stream import Selection

COLLECTION = "nih_chest_xray"
IMAGES, TEST_IMAGES = 112_120, 25_596
FINDINGS = tuple(label for label in LABELS if label != "No Finding")
HELD_OUT = "benchmark"
"""The split that the official test list is in."""
VALIDATION_SHARE = 0.1


def chest_xray14(data: Anywhere | None) -> Task:
    """Which of the 14 findings a chest X-ray shows; several can be.

    ``data``: a data set with ChestX-ray14, built with its test list held out, as is the default. A tenth of the other
    patients are for validation, whatever split the data set has them in. Images without labels are left out, and of
    a sample of the images findings of which training or test has nothing.
    """
    selection = chosen("chestxray14", data, f"collection = '{COLLECTION}'", "labels")
    table = selection.table
    held_out = pc.sum(pc.equal(table["split"], HELD_OUT)).as_py() or 0
    if not held_out:
        raise DatasetError(
            f'{data}: holds none of ChestX-ray14\'s official test list apart; build it with benchmark = "hold_out"'
        )
    known = table.filter(pc.is_valid(table["labels"])).combine_chunks()
    kept = Selection(selection.place, known, selection.version)
    found = [set(labels) for labels in known["labels"].to_pylist()]
    patients = known["patient"].to_pylist()
    splits = [
        "test" if split == HELD_OUT else "val" if _share(patient) < VALIDATION_SHARE else "train"
        for split, patient in zip(known["split"].to_pylist(), patients, strict=True)
    ]
    labels = np.array([[finding in labels for finding in FINDINGS] for labels in found])
    here = [np.array([split == of for of in splits]) for split in ("train", "test")]
    enough = [all(0 < labels[of, one].sum() < of.sum() for of in here) for one in range(len(FINDINGS))]
    lacking = [finding for finding, kept_one in zip(FINDINGS, enough, strict=True) if not kept_one]
    notes = _notes(len(table), held_out, len(table) - len(known))
    notes += [f"too few of {', '.join(lacking)}"] * bool(lacking)
    return Task(
        name="chestxray14",
        kind="multilabel",
        classes=tuple(finding for finding in FINDINGS if finding not in lacking),
        images=CatalogImages(kept),
        labels=labels[:, enough],
        patients=patients,
        splits=splits,
        ids=known["key"].to_pylist(),
        data=data,
        version=kept.version,
        note="; ".join(notes),
        reported=CHEST,
    )


def _notes(images: int, held_out: int, unlabelled: int) -> list[str]:
    notes = ["the official test list" if held_out == TEST_IMAGES else f"{held_out:,} of the {TEST_IMAGES:,} images of the official test list"]  # fmt: skip
    if images != IMAGES:
        notes.append(f"{images:,} of {IMAGES:,} images in all")
    return notes + [f"{unlabelled:,} images without labels left out"] * bool(unlabelled)


def _share(patient: str) -> float:
    return int.from_bytes(hashlib.sha256(f"lumid chestxray14 {patient}".encode()).digest()[:8]) / 2**64
