"""The tables of ChestX-ray14: what its CSV file says of every image, and which images its official lists name."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lumid.catalog.errors import RecipeError

HOME = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""The names that the table had, the newer first."""
TRAINING_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
NAME = re.compile(r"(\d{8})_(\d{3,4})\.png")

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
"""The 14 findings as the table writes them (Wang et al., CVPR 2017)."""
NO_FINDING = "No Finding"

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class ChestXray:
    """What the tables say of an image. ``age``: as DICOM writes it (PS3.5 AS), absent where it is impossible.

    ``original_size`` is [columns, rows], ``original_spacing`` the mm between columns and between rows of that.
    """

    name: str
    patient: str = field(repr=False)
    follow_up: str
    findings: tuple[str, ...]
    age: str | None
    sex: str | None
    view: str | None
    original_size: tuple[int, int] | None
    original_spacing: tuple[float, float] | None
    test: bool


def missing_tables(folder: Path) -> str | None:
    """What has to be fetched by hand into the folder, and from where; None when everything is there."""
    wanted = [] if _entries(folder) else [ENTRIES[0]]
    wanted += [name for name in (TRAINING_LIST, TEST_LIST) if not (folder / name).is_file()]
    if not wanted:
        return None
    return f"fetch {', '.join(wanted)} by hand from {HOME} into the folder {folder}: they have no lasting address"


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
        findings = tuple(sorted(set(cells["findings"].split("|")) - {NO_FINDING, ""}))
        match = NAME.fullmatch(cells["name"])
        if not match or not cells["patient"].isdigit() or not set(findings) <= set(FINDINGS):
            raise RecipeError(f"{path}, line {number}: not a row of ChestX-ray14's table; fetch it again from {HOME}")
        yield ChestXray(
            name=cells["name"],
            patient=str(int(cells["patient"])),
            follow_up=match[2],
            findings=findings,
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
