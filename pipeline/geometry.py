"""Where a slice lies: plane, position along its normal, and spacing from the tag that its modality means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lumid.pipeline.decode import FrameHeader

PROJECTIONS = frozenset({"CR", "DX", "MG", "XA", "RF"})
MAX_SPACING_MM = 100.0
OBLIQUE_DEGREES = 20.0


@dataclass(frozen=True, slots=True)
class Geometry:
    """Plane, position along the normal (mm), spacing of the original pixels (mm) and slice thickness (mm)."""

    plane: str | None
    slice_position: float | None
    spacing_row: float | None
    spacing_column: float | None
    slice_thickness: float | None


def geometry(header: FrameHeader, modality: str) -> Geometry:
    """The geometry that a frame's header states; None for what it does not, or states impossibly.

    Sources: PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (functional groups), 10.7.1.3 (projection spacing).
    """
    orientation = header.numbers("ImageOrientationPatient", "PlaneOrientationSequence")
    position = header.numbers("ImagePositionPatient", "PlanePositionSequence")
    plane = "projection" if modality in PROJECTIONS else plane_of(orientation)
    row, column = _spacing(header, modality)
    thickness = header.number("SliceThickness", "PixelMeasuresSequence")
    return Geometry(
        plane=plane,
        slice_position=_along_normal(orientation, position) if plane != "projection" else None,
        spacing_row=row,
        spacing_column=column,
        slice_thickness=_plausible(thickness),
    )


def plane_of(orientation: list[float]) -> str | None:
    """axial, coronal or sagittal when the slice normal is within 20° of that axis, else oblique.

    ``orientation``: the six direction cosines of ImageOrientationPatient (PS3.3 C.7.6.2.1.1), patient LPS axes.

    >>> plane_of([1, 0, 0, 0, 1, 0])
    'axial'
    >>> plane_of([1, 0, 0, 0, 0, -1])
    'coronal'
    """
    normal = _normal(orientation)
    if normal is None:
        return None
    axis = int(np.argmax(np.abs(normal)))
    if abs(normal[axis]) < np.cos(np.radians(OBLIQUE_DEGREES)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[axis]


def _normal(orientation: list[float]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if len(orientation) != 6:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    # cosines of unit length at right angles give 1; anything far from it is no orientation
    return normal / length if 0.5 < length < 1.5 else None


def _along_normal(orientation: list[float], position: list[float]) -> float | None:
    normal = _normal(orientation)
    if normal is None or len(position) != 3:
        return None
    return round(float(np.dot(normal, position)), 4)


def _spacing(header: FrameHeader, modality: str) -> tuple[float | None, float | None]:
    values = header.numbers("PixelSpacing", "PixelMeasuresSequence")
    if len(values) != 2 and modality in PROJECTIONS:
        values = header.numbers("ImagerPixelSpacing") or header.numbers("NominalScannedPixelSpacing")
    if len(values) != 2 and modality == "US":
        values = _ultrasound_spacing(header)
    if len(values) != 2:
        return None, None
    return _plausible(values[0]), _plausible(values[1])


def _ultrasound_spacing(header: FrameHeader) -> list[float]:
    """Spacing of a single 2-D region calibrated in cm (PS3.3 C.8.5.5); with several regions there is no one spacing."""
    regions = header.get("SequenceOfUltrasoundRegions")
    if regions is None or len(regions) != 1:
        return []
    region = FrameHeader(regions[0], 0)
    if region.number("PhysicalUnitsXDirection") != 3 or region.number("PhysicalUnitsYDirection") != 3:
        return []
    x, y = region.number("PhysicalDeltaX"), region.number("PhysicalDeltaY")
    return [abs(y) * 10, abs(x) * 10] if x and y else []


def _plausible(value: float | None) -> float | None:
    return value if value is not None and 0 < value <= MAX_SPACING_MM else None
