"""MedMNIST+ (Yang et al. 2023): twelve small 2-D sets at 224 pixels, with their own splits, from the package's files."""

from __future__ import annotations

import difflib
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lumid.catalog.errors import DatasetError, UsageError
from lumid.model.evaluate.images import ArrayImages
from lumid.model.evaluate.tasks.base import SPLITS, Reported, Task
from lumid.model.evaluate.tasks.reported import BREAST, PNEUMONIA

SIZE = 224
REPORTED: dict[str, Reported] = {"breastmnist": BREAST, "pneumoniamnist": PNEUMONIA}
"""The sets that stand in for the paper's private or unnamed tasks."""
MULTILABEL = "multi-label, binary-class"


def medmnist(spec: str) -> Task:
    """A set by its name, from the package's own folder, or by the path of its ``…_224.npz``.

    The file's MD5 is compared with the package's. Patients are not stated: each image counts as one, which makes
    intervals too narrow where there are several of a patient. Raises :class:`UsageError` with the line that fetches it.
    """
    if find_spec("medmnist") is None:
        raise UsageError("this needs the package medmnist: pip install 'lumid[eval]'")
    from medmnist import INFO
    from medmnist.info import DEFAULT_ROOT

    name = Path(spec).name.removesuffix(".npz").removesuffix(f"_{SIZE}").lower()
    sets = [one for one, facts in INFO.items() if f"MD5_{SIZE}" in facts]
    if name not in sets:
        meant = difflib.get_close_matches(name, sets, 1)
        raise UsageError(
            f"medmnist:{spec}: no such 2-D set; {f'did you mean {meant[0]}?' if meant else ', '.join(sets)}"
        )
    path = Path(spec) if spec.endswith(".npz") else Path(DEFAULT_ROOT) / f"{name}_{SIZE}.npz"
    facts = INFO[name]
    if not path.is_file():
        raise UsageError(
            f'{path}: not there; fetch it with: python -c "import medmnist; medmnist.{facts["python_class"]}'
            f"(split='test', size={SIZE}, download=True)\", or from {facts[f'url_{SIZE}']}"
        )
    return from_npz(path, name, facts, facts[f"MD5_{SIZE}"])


def from_npz(path: Path, name: str, facts: dict[str, Any], md5: str) -> Task:
    """The task of a file, whose MD5 must be the one given; ``facts``: the package's of this set."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != md5:
            raise DatasetError(
                f"{path}: not the file that the package medmnist names (MD5); delete it and fetch it again"
            )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = np.concatenate([arrays[f"{split}_images"] for split in SPLITS])
            labels = np.concatenate([arrays[f"{split}_labels"] for split in SPLITS])
            counts = [len(arrays[f"{split}_images"]) for split in SPLITS]
    except (OSError, KeyError, ValueError):
        raise DatasetError(f"{path}: damaged, or no file of MedMNIST; delete it and fetch it again") from None
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    several = facts["task"] == MULTILABEL
    ids = [f"{split} {number}" for split, count in zip(SPLITS, counts, strict=True) for number in range(count)]
    return Task(
        name=f"medmnist:{name}",
        kind="multilabel" if several else "multiclass",
        classes=tuple(facts["label"][str(number)] for number in range(len(facts["label"]))),
        images=ArrayImages(images),
        labels=labels.astype(bool) if several else labels[:, 0].astype(np.int64),
        patients=ids,
        splits=splits,
        ids=ids,
        note="; ".join(
            [f"licence {facts['license']}; patients are not stated, each image counts as one"]
            + ["its images are ChestX-ray14's, of both its lists"] * (name == "chestmnist")
        ),
        reported=REPORTED.get(name),
        version=md5,
    )
