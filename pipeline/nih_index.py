"""The tables of ChestX-ray14: what its CSV file says of every image, and which images its official lists name."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lumid.catalog.collections import collections
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.catalog.schema import LABELS
from lumid.pipeline.recipe import NihSettings, SampleSettings
from lumid.pipeline.sample import kept_patients

HOME = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The names that the table had, the newer first."""
TRAINING_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
NAME = re.compile(r"(\d{8})_(\d{3,4})\.png")

NO_FINDING = "No Finding"
FINDINGS = tuple(label for label in LABELS if label != NO_FINDING)
"""The 14 findings as the table writes them (Wang et al., CVPR 2017)."""

ARCHIVE_COUNT = 12
"""Of all archives together it is known how many images they hold."""

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class ChestXray:
    """What the tables say of an image. ``age``: as DICOM writes it (PS3.5 AS), absent where it is impossible.

    ``labels``: the findings, or :data:`NO_FINDING`; None where the table says neither. ``original_size`` is
    [columns, rows], ``original_spacing`` the mm between columns and between rows of that.
    """

    name: str
    patient: str = field(repr=False)
    follow_up: str
    labels: tuple[str, ...] | None
    age: str | None
    sex: str | None
    view: str | None
    original_size: tuple[int, int] | None
    original_spacing: tuple[float, float] | None
    test: bool


def patient_of(name: str) -> str:
    """The patient's number in an image's name, as the table writes it: for an image that the table lacks.

    >>> patient_of("00000012_003.png")
    '12'
    """
    return str(int(name.partition("_")[0]))


def missing_tables(folder: Path) -> str | None:
    """What has to be fetched by hand into the folder, and from where; None when everything is there."""
    wanted = [] if _entries(folder) else [ENTRIES[0]]
    wanted += [name for name in (TRAINING_LIST, TEST_LIST) if not (folder / name).is_file()]
    if not wanted:
        return None
    return f"fetch {', '.join(wanted)} by hand from {HOME} into the folder {folder}: they have no lasting address"


def tables_hash(folder: Path) -> str | None:
    """SHA-256 over the content of the tables that are read; None when one of them is not there.

    The file of bounding boxes is not among them: nothing in a data set depends on it. Raises :class:`RecipeError` when
    one cannot be read.
    """
    if missing_tables(folder) is not None:
        return None
    digest = hashlib.sha256()
    for name in (_entries(folder) or ENTRIES[0], TRAINING_LIST, TEST_LIST):
        try:
            content = (folder / name).read_bytes()
        except OSError:
            raise RecipeError(f"{folder / name}: cannot be read; fetch it again from {HOME}") from None
        digest.update(f"{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def read_tables(folder: Path) -> Mapping[str, ChestXray]:
    """Every image of the tables by its name.

    Raises :class:`RecipeError` when a file is missing, is not what its name says, or the two lists share an image.
    """
    if (missing := missing_tables(folder)) is not None:
        raise RecipeError(f"source nih: {missing}")
    training, test = _list(folder / TRAINING_LIST), _list(folder / TEST_LIST)
    if training & test:
        raise RecipeError(f"{folder}: {TRAINING_LIST} and {TEST_LIST} share images; fetch them again from {HOME}")
    path = folder / (_entries(folder) or ENTRIES[0])
    found = {one.name: one for one in _rows(path, test)}
    if test - found.keys():
        raise RecipeError(f"{folder}: {TEST_LIST} names images that {path.name} lacks; fetch both again from {HOME}")
    return found


def _entries(folder: Path) -> str | None:
    return next((name for name in ENTRIES if (folder / name).is_file()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise RecipeError(f"{path}: cannot be read as text; fetch it again from {HOME}") from None


def _list(path: Path) -> frozenset[str]:
    names = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not names or not all(NAME.fullmatch(name) for name in names):
        raise RecipeError(f"{path}: not a list of image names; fetch it again from {HOME}")
    return frozenset(names)


def _rows(path: Path, test: frozenset[str]) -> Iterator[ChestXray]:
    rows = csv.reader(_text(path).splitlines())
    columns = _columns(next(rows, []), path)
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        cells = {name: row[place].strip() if place < len(row) else "" for name, place in columns.items()}
        said = set(cells["findings"].split("|")) - {""}
        findings = tuple(sorted(said - {NO_FINDING}))
        match = NAME.fullmatch(cells["name"])
        if not match or not cells["patient"].isdigit() or not set(findings) <= set(FINDINGS):
            raise RecipeError(f"{path}, line {number}: not a row of ChestX-ray14's table; fetch it again from {HOME}")
        yield ChestXray(
            name=cells["name"],
            patient=str(int(cells["patient"])),
            follow_up=match[2],
            labels=findings or ((NO_FINDING,) if said else None),
            age=age_string(cells["age"]),
            sex=cells["sex"] if cells["sex"] in ("F", "M") else None,
            view=cells["view"] if cells["view"] in ("PA", "AP") else None,
            original_size=_pair(cells, "width", "height", lambda text: int(float(text))),
            original_spacing=_pair(cells, "x", "y", float),
            test=cells["name"] in test,
        )


COLUMNS = {
    "name": "imageindex",
    "findings": "findinglabels",
    "patient": "patientid",
    "age": "patientage",
    "sex": "patientgender",
    "view": "viewposition",
    "width": "originalimagewidth",
    "height": "height",
    "x": "originalimagepixelspacingx",
    "y": "y",
}
"""The table's columns; two of its names have a comma within and so fall into two columns each."""


def _columns(header: list[str], path: Path) -> dict[str, int]:
    plain = [re.sub(r"[^a-z]", "", name.lower()) for name in header]
    if any(title not in plain for title in COLUMNS.values()):
        raise RecipeError(f"{path}: not the table of ChestX-ray14; fetch it again from {HOME}")
    return {name: plain.index(title) for name, title in COLUMNS.items()}


def _pair(
    cells: Mapping[str, str], first: str, second: str, read: Callable[[str], _Number]
) -> tuple[_Number, _Number] | None:
    try:
        values = read(cells[first]), read(cells[second])
    except (ValueError, OverflowError):
        return None
    return values if all(0 < value < math.inf for value in values) else None


def age_string(text: str) -> str | None:
    """An age as DICOM writes it; the table has ``58``, older copies ``058Y``, and some that nobody reaches.

    >>> [age_string(text) for text in ("58", "058Y", "013M", "412", "")]
    ['058Y', '058Y', '013M', None, None]
    """
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", text)
    if not match:
        return None
    number, unit = int(match[1]), match[2] or "Y"
    return f"{number:03d}{unit}" if unit != "Y" or number <= 120 else None


# ---- what a plan says


@dataclass(frozen=True, slots=True)
class Count:
    """Patients and slices that are planned, as far as they are counted; series that are not, and the bytes of these."""

    patients: int | None
    slices: int | None
    uncounted: int
    uncounted_bytes: int


def count_xrays(
    settings: NihSettings, sample: SampleSettings, keyer: Keyer, archives: int, size_bytes: int
) -> tuple[Count, list[str]]:
    """What is planned of so many archives of so many bytes together, and what there is to say of them.

    Raises :class:`RecipeError` when the tables are there but are not the tables.
    """
    name, folder = settings.collection, Path(settings.path).expanduser()
    kept = kept_patients(sample, keyer, name)
    missing = missing_tables(folder)
    listed = [] if missing else list(read_tables(folder).values())
    notes = []
    if missing:
        notes.append(f"{name}: {missing}; a build stops without them, and a lock pins them only when they are there")
    else:
        tests = sum(image.test for image in listed)
        use = "held out as the split benchmark" if settings.benchmark == "hold_out" else "not held out"
        notes.append(
            f"{name}: its tables are pinned: they list {len(listed):,} images, {tests:,} of the official test list, {use}"
        )
    if kept:
        what = f"all {archives} archives ({size_bytes / 1e9:,.0f} GB) are" if archives > 1 else "the whole archive is"
        notes.append(f"{name}: patients are drawn as the archives are read: {what} fetched for the sample")
    if sample.max_gb is not None:
        notes.append(f"{name}: max_gb draws whole archives: {archives} of {len(set(settings.archives))}")
    if archives < ARCHIVE_COUNT or (kept and missing):
        notes.append(f"{name}: not in the number of slices: how many images an archive holds is known when it is read")
        return Count(None, None, archives, round(size_bytes * sample.fraction)), notes
    if kept:
        drawn = [image for image in listed if kept(keyer.pseudonym("patient", name, image.patient))]
        return Count(len({image.patient for image in drawn}), len(drawn), 0, 0), notes
    known = collections()["nih_chest_xray"]
    return Count(known.patients, known.images, 0, 0), notes
