"""Siemens mosaics: the slices of an MR volume side by side in one image, and where each of them lies.

The number of slices and the direction in which they follow one another are in private elements (the manufacturer's DICOM
conformance statement); the position that such a header states is that of an image as large as the whole sheet around the
center of the slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from pydicom import Dataset

from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.reject import Reject

PARALLEL = 0.99
"""Cosine between the stated direction of slices and the image's normal, at least."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Slices of ``rows`` × ``columns`` pixels, ``across`` to a side of the sheet, ``slices`` of them from the top left.

    ``ascending``: they follow one another along the normal of ImageOrientationPatient, or against it; None where the
    header does not say.
    """

    rows: int
    columns: int
    across: int
    slices: int
    ascending: bool | None

    def cut(self, pixels: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """One slice, ``[rows, columns]``, of the sheet's pixels: a view."""
        row, column = divmod(index, self.across)
        top, left = row * self.rows, column * self.columns
        return pixels[top : top + self.rows, left : left + self.columns]


def sheet_of(dataset: Dataset, rows: int, columns: int) -> Sheet | Reject | None:
    """How a mosaic of ``rows`` × ``columns`` pixels is divided; None for any other image.

    Reason: ``missing_tag`` where nothing says how many slices it holds, or their number contradicts its size.
    """
    header = FrameHeader(dataset, 0)
    if "MOSAIC" not in header.terms("ImageType") or header.term("Modality") != "MR":
        return None
    csa = _csa(dataset)
    slices = _stated_slices(dataset) or _scalar(csa, "NumberOfImagesInMosaic")
    if not slices:
        return Reject("decode", "missing_tag", "NumberOfImagesInMosaic")
    across = math.isqrt(slices - 1) + 1
    if rows % across or columns % across:
        return Reject("decode", "missing_tag", "NumberOfImagesInMosaic contradicts Rows, Columns")
    return Sheet(rows // across, columns // across, across, slices, _is_ascending(header, csa))


def slice_position(header: FrameHeader, sheet: Sheet) -> list[float]:
    """ImagePositionPatient of the slice ``header.frame`` of a sheet, mm; empty where the header does not tell it."""
    orientation = header.numbers("ImageOrientationPatient")
    position, spacing = header.numbers("ImagePositionPatient"), header.numbers("PixelSpacing")
    between = header.number("SpacingBetweenSlices")
    if (len(orientation), len(position), len(spacing)) != (6, 3, 2) or not between or sheet.ascending is None:
        return []
    along_row, along_column = orientation[:3], orientation[3:]
    right = (sheet.across - 1) * sheet.columns / 2 * spacing[1]
    down = (sheet.across - 1) * sheet.rows / 2 * spacing[0]
    up = header.frame * abs(between) * (1 if sheet.ascending else -1)
    normal = _cross(along_row, along_column)
    return [
        at + right * x + down * y + up * z
        for at, x, y, z in zip(position, along_row, along_column, normal, strict=True)
    ]


def _stated_slices(dataset: Dataset) -> int | None:
    try:
        return max(0, int(dataset.get_private_item(0x0019, 0x0A, "SIEMENS MR HEADER").value)) or None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _csa(dataset: Dataset) -> dict[str, Any]:
    """The elements of Siemens' own header of an image; empty where there is none, or one that does not parse."""
    try:
        data = dataset.get_private_item(0x0029, 0x10, "SIEMENS CSA HEADER").value
    except (KeyError, ValueError, AttributeError):
        return {}
    from nibabel.nicom import csareader

    try:
        tags: dict[str, Any] = csareader.read(data)["tags"]
    except Exception:  # whatever a hostile header makes the reader raise, and its message may quote it
        return {}
    return tags


def _items(csa: dict[str, Any], name: str) -> list[float]:
    try:
        values = [float(one) for one in csa[name]["items"] if one is not None]
    except (KeyError, TypeError, ValueError):
        return []
    return values if all(map(math.isfinite, values)) else []


def _scalar(csa: dict[str, Any], name: str) -> int | None:
    values = _items(csa, name)
    return int(values[0]) if values and 0 < values[0] < 1 << 16 else None


def _is_ascending(header: FrameHeader, csa: dict[str, Any]) -> bool | None:
    direction, orientation = _items(csa, "SliceNormalVector"), header.numbers("ImageOrientationPatient")
    if len(direction) != 3 or len(orientation) != 6:
        return None
    along = sum(a * b for a, b in zip(direction, _cross(orientation[:3], orientation[3:]), strict=True))
    return along > 0 if abs(along) > PARALLEL else None


def _cross(one: list[float], other: list[float]) -> tuple[float, float, float]:
    a, b, c = one
    d, e, f = other
    return b * f - c * e, c * d - a * f, a * e - b * d
