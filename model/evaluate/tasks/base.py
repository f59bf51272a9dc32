"""What a task is: images, labels, whose they are, and which are for what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lumid.catalog.errors import DatasetError
from lumid.catalog.places import Anywhere
from lumid.model.evaluate.images import Images

SPLITS = ("train", "val", "test")
Kind = Literal["multiclass", "multilabel", "masks"]


@dataclass(frozen=True, slots=True)
class Reported:
    """What the paper reports of its own model on the task, and whether lumid's numbers may be put beside it."""

    values: str
    comparable: bool
    why: str


@dataclass(frozen=True, slots=True)
class Task:
    """Images with labels.

    ``labels``: ``int64 [n]``, indices into ``classes`` (multiclass), ``bool [n, classes]`` (multilabel), or of masks
    ``int64 [n]`` zeros; ``masks``: then, the true mask of each image, above one half is inside. ``pseudonyms``: of images that are files, whether ``patients`` are those that lumid gives the source's. ``patients``:
    who may not be in two splits, and what intervals are drawn by. ``splits``: train, val or test, of each image.
    ``ids``: names of the images, unique, free of anything that names a patient. ``data``: where the images are from,
    if from a lumid data set; then ``ids`` are its keys. ``version``: what changes
    with the images where their names do not: a catalog's hash, files' sizes and times. ``note``: what a reader of the
    table has to know.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    images: Images = field(repr=False)
    labels: npt.NDArray[np.int64] | npt.NDArray[np.bool_] = field(repr=False)
    patients: Sequence[str] = field(repr=False)
    splits: Sequence[str] = field(repr=False)
    ids: Sequence[str] = field(repr=False)
    data: Anywhere | None = None
    note: str = ""
    masks: Images | None = field(default=None, repr=False)
    reported: Reported | None = None
    pseudonyms: bool = False
    version: str = ""

    def __post_init__(self) -> None:
        check(self)

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, split: str) -> npt.NDArray[np.int64]:
        """Indices of a split's images."""
        return np.flatnonzero(np.asarray(self.splits) == split)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the images' names in their order, their version, and the task's name: what features are cached by."""
        return hashlib.sha256("\n".join((self.name, self.version, *self.ids)).encode()).hexdigest()


def files_version(paths: Iterable[Path]) -> str:
    """A hash of files' sizes and times: another when one was written anew."""
    stats = (path.stat() for path in paths)
    return hashlib.sha256(repr([(one.st_size, one.st_mtime_ns) for one in stats]).encode()).hexdigest()


def check(task: Task) -> None:
    """Raise :class:`DatasetError` for what no number could be trusted of: a patient in two splits, an empty split, a class
    that is nowhere to be learnt from or tested by."""
    count = len(task.ids)
    if not len(task.labels) == len(task.patients) == len(task.splits) == count:
        raise DatasetError(f"{task.name}: images, labels, patients and splits are not of one length")
    if len(set(task.ids)) != count:
        raise DatasetError(f"{task.name}: two images have one name")
    if wrong := set(task.splits) - set(SPLITS):
        raise DatasetError(f"{task.name}: {len(wrong)} names of splits are not train, val or test")
    where: dict[str, set[str]] = {}
    for patient, split in zip(task.patients, task.splits, strict=True):
        where.setdefault(patient, set()).add(split)
    leaking = sum(len(splits) > 1 for splits in where.values())
    if leaking:
        raise DatasetError(
            f"{task.name}: {leaking:,} patients are in more than one split; nothing measured so can be trusted"
        )
    if (task.masks is None) == (task.kind == "masks"):
        raise DatasetError(f"{task.name}: masks belong to a task of kind masks, and to no other")
    for split in SPLITS:
        chosen = task.of(split)
        if not len(chosen):
            raise DatasetError(f"{task.name}: no images for {split}; it needs more patients, or another split")
        if split != "val" and (missing := _missing(task, chosen)):
            raise DatasetError(f"{task.name}: in {split} there is nothing of {', '.join(missing[:3])}, or nothing else")


def _missing(task: Task, chosen: npt.NDArray[np.int64]) -> list[str]:
    labels = task.labels[chosen]
    if task.kind == "masks":
        return []
    if task.kind == "multiclass":
        return [name for number, name in enumerate(task.classes) if not (labels == number).any()]
    return [name for number, name in enumerate(task.classes) if labels[:, number].all() or not labels[:, number].any()]
