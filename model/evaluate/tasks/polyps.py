"""CVC-ClinicDB (Bernal et al. 2015): the outline of the polyp in 612 frames of 29 colonoscopies, split by sequence."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from lumid.catalog.errors import UsageError
from lumid.model.evaluate.images import FileImages
from lumid.model.evaluate.tasks.base import Task, files_version
from lumid.model.evaluate.tasks.catalog import deal
from lumid.model.evaluate.tasks.reported import POLYPS

HOME = "https://polyp.grand-challenge.org/CVCClinicDB/"
FRAMES, SEQUENCES = 612, 29
IMAGES, MASKS, TABLE = "Original", "Ground Truth", "metadata.csv"
ENDINGS = (".png", ".tif", ".tiff")


def cvc_clinicdb(folder: Path) -> Task:
    """Where the polyp is: one mask a frame, in colour, at the whole of the frame.

    ``folder``: with ``Original/1.png`` …, ``Ground Truth/1.png`` … (or .tif), and ``metadata.csv`` with the columns
    ``frame_id`` and ``sequence_id``: frames of one sequence are nearly the same, and may not be in two splits. Raises
    :class:`UsageError` for what is missing.
    """
    sequences = _sequences(folder)
    frames = sorted(sequences)
    images, masks = ([_file(folder / part, frame) for frame in frames] for part in (IMAGES, MASKS))
    if absent := sum(one is None for one in (*images, *masks)):
        raise UsageError(
            f"{folder}: {absent:,} files of the frames in {TABLE} are not in {IMAGES} and {MASKS}; fetch them from {HOME}"
        )
    of = [f"sequence {sequences[frame]}" for frame in frames]
    dealt = deal(of, ["polyp"] * len(of))
    whole = (len(frames), len(set(of))) == (FRAMES, SEQUENCES)
    counted = "" if whole else f"; {len(frames)} of {FRAMES} frames, {len(set(of))} of {SEQUENCES} sequences"
    return Task(
        name="cvc-clinicdb",
        kind="masks",
        classes=("polyp",),
        images=FileImages([one for one in images if one], whole=True),
        labels=np.zeros(len(frames), np.int64),
        patients=of,
        splits=[dealt[one] for one in of],
        ids=[f"frame {frame}" for frame in frames],
        masks=FileImages([one for one in masks if one], colour=False, whole=True),
        note=f"split by sequence, which stands for the patient{counted}",
        reported=POLYPS,
        version=files_version([one for one in (*images, *masks) if one]),
    )


def _sequences(folder: Path) -> dict[int, int]:
    """The sequence of every frame."""
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = {int(row["frame_id"]): int(row["sequence_id"]) for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError):
        found = {}
    if not found:
        raise UsageError(
            f"{path}: needed, with the columns frame_id and sequence_id: without it frames of one sequence would be in train "
            f"and test; frames and table: {HOME}"
        )
    return found


def _file(folder: Path, frame: int) -> Path | None:
    return next((path for ending in ENDINGS if (path := folder / f"{frame}{ending}").is_file()), None)
