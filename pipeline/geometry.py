"""Where a slice lies: plane, position along its normal, spacing from the tag that its modality means, and its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.mosaic import Sheet, slice_position

PROJECTIONS = frozenset({"CR", "DX", "MG", "XA", "RF"})
PICTURES = frozenset({"SC", "OT"})
SPACING_KINDS = ("patient", "calibrated", "detector", "nominal", "unstated")
MAX_SPACING_MM = 100.0
MAX_POSITION_MM = 10_000.0
"""No table is longer: what lies beyond is no position."""
OBLIQUE_DEGREES = 20.0
SAME_DIRECTION_DEGREES = 1.0
SAME_POSITION_MM = 0.01
GAP = 1.5
"""A neighbour beyond so many times the usual distance means that a slice is missing in between."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A slice in space: unit normal (patient coordinates, LPS) and position along it, mm."""

    normal: tuple[float, float, float]
    position: float


@dataclass(frozen=True, slots=True)
class Geometry:
    """Plane, place, spacing of the original pixels (mm) and what kind it is, and slice thickness (mm)."""

    plane: str | None
    placed: Placed | None
    spacing_row: float | None
    spacing_column: float | None
    spacing_kind: str | None
    slice_thickness: float | None

    @property
    def slice_position(self) -> float | None:
        """Position along the normal, mm."""
        return self.placed.position if self.placed else None


@dataclass(frozen=True, slots=True)
class Arranged:
    """A slice among those of its series; each as the catalog column ``slice_…`` of the same name."""

    index: int | None = None
    spacing: float | None = None
    gap: bool | None = None
    repeats: int | None = None


def geometry(header: FrameHeader, modality: str, sheet: Sheet | None = None) -> Geometry:
    """The geometry that a frame's header states; None for what it does not, or states impossibly.

    ``sheet``: of a mosaic, of whose slices the frame is one.

    Sources: PS3.3 C.7.6.2 (Image Plane), C.7.6.16.2 (functional groups), 10.7.1.3 (projection spacing).
    """
    orientation = header.numbers("ImageOrientationPatient", "PlaneOrientationSequence")
    position = header.numbers("ImagePositionPatient", "PlanePositionSequence")
    if not orientation and modality == "NM":
        orientation, position = _reconstructed_nm(header)
    if sheet is not None:
        position = slice_position(header, sheet)
    plane = "projection" if modality in PROJECTIONS else plane_of(orientation)
    spacing, kind = _spacing(header, modality)
    thickness = header.number("SliceThickness", "PixelMeasuresSequence")
    return Geometry(
        plane=plane,
        placed=_placed(orientation, position) if plane != "projection" else None,
        spacing_row=spacing[0] if spacing else None,
        spacing_column=spacing[1] if spacing else None,
        spacing_kind=kind,
        slice_thickness=thickness if thickness is not None and _is_plausible(thickness) else None,
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
    longest, name = max(zip(map(abs, normal), ("sagittal", "coronal", "axial"), strict=True), key=itemgetter(0))
    return name if longest >= math.cos(math.radians(OBLIQUE_DEGREES)) else "oblique"


def stacks(slices: Sequence[Placed | None]) -> list[tuple[list[int], npt.NDArray[np.int64]]]:
    """The order of the slices in a series: its stacks one after another, each along its normal.

    A stack is the indices of its slices, from the lowest position to the highest, and for each of them its level,
    ``int64``: the rank of its position among the different ones. Slices whose normals are within 1° are one stack, and
    positions within 0.01 mm one level. The stacks are in the order of their normals. Slices without a position are in
    none. Which slices are on which level of which stack does not depend on the order in which they are given.
    """
    placed = [(one.normal, one.position, number) for number, one in enumerate(slices) if one is not None]
    directions: list[tuple[float, float, float]] = []
    of: dict[tuple[float, float, float], int] = {}
    for normal in sorted({normal for normal, _, _ in placed}):
        near = np.array(directions).reshape(-1, 3) @ normal > math.cos(math.radians(SAME_DIRECTION_DEGREES))
        of[normal] = int(near.argmax()) if near.any() else len(directions)
        if not near.any():
            directions.append(normal)
    members: list[list[tuple[float, int]]] = [[] for _ in directions]
    for normal, position, number in placed:
        members[of[normal]].append((position, number))
    found = []
    for stack in map(sorted, members):
        steps = np.diff([position for position, _ in stack]) > SAME_POSITION_MM
        found.append(([number for _, number in stack], np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)))
    return found


def arrange(slices: Sequence[Placed | None]) -> list[Arranged]:
    """The place of every slice among all of its series; nothing for those that have no position.

    ``index`` counts the levels of :func:`stacks` from the first stack to the last. The result does not depend on the
    order in which slices are given.
    """
    places = [Arranged()] * len(slices)
    first = 0
    for members, levels in stacks(slices):
        positions = np.array([one.position for number in members if (one := slices[number]) is not None])
        count = int(levels.max()) + 1
        repeats = np.bincount(levels, minlength=count)
        centers = np.bincount(levels, positions, minlength=count) / repeats
        distances = np.diff(centers)
        spacing = float(np.median(distances)) if count > 1 else None
        wide = distances > GAP * spacing if spacing is not None else np.zeros(0, np.bool_)
        gap = np.concatenate([[False], wide]) | np.concatenate([wide, [False]])
        for number, level in zip(members, levels, strict=True):
            places[number] = Arranged(
                index=first + int(level),
                spacing=round(spacing, 4) if spacing is not None else None,
                gap=bool(gap[level]) if spacing is not None else None,
                repeats=int(repeats[level]),
            )
        first += count
    return places


def _normal(orientation: list[float]) -> tuple[float, float, float] | None:
    if len(orientation) != 6:
        return None
    a, b, c, d, e, f = orientation
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    length = math.sqrt(x * x + y * y + z * z)
    # cosines of unit length at right angles give 1; anything far from it is no orientation
    return (x / length, y / length, z / length) if 0.5 < length < 1.5 else None


def _placed(orientation: list[float], position: list[float]) -> Placed | None:
    normal = _normal(orientation)
    if normal is None or len(position) != 3:
        return None
    along = normal[0] * position[0] + normal[1] * position[1] + normal[2] * position[2]
    if abs(along) > MAX_POSITION_MM:
        return None
    x, y, z = (round(value, 6) + 0.0 for value in normal)  # no negative zeros
    return Placed((x, y, z), round(along, 4) + 0.0)


def _reconstructed_nm(header: FrameHeader) -> tuple[list[float], list[float]]:
    """Orientation and position of a slice of reconstructed NM, which states those of the first slice alone.

    The others follow along the normal, by SpacingBetweenSlices (its sign counts), in the order of SliceVector
    (PS3.3 C.8.4.9, C.8.4.15).
    """
    if header.terms("ImageType")[2:3] not in (["RECON TOMO"], ["RECON GATED TOMO"]):
        return [], []
    detectors, spacing = header.get("DetectorInformationSequence"), header.number("SpacingBetweenSlices")
    try:
        first = FrameHeader(detectors[0], 0)
    except (TypeError, IndexError, KeyError):
        return [], []
    orientation, position = first.numbers("ImageOrientationPatient"), first.numbers("ImagePositionPatient")
    order, normal = header.numbers("SliceVector"), _normal(orientation)
    if header.frame >= len(order):
        return orientation, position if header.number("NumberOfFrames") in (None, 1) else []
    if normal is None or spacing is None or len(position) != 3:
        return orientation, []
    steps = order[header.frame] - 1
    return orientation, [at + along * spacing * steps for at, along in zip(position, normal, strict=True)]


def _spacing(header: FrameHeader, modality: str) -> tuple[tuple[float, float] | None, str | None]:
    """Distances between rows and between columns, mm, and the kind: one of :data:`SPACING_KINDS`.

    In a projection, PixelSpacing is corrected for magnification if a calibration says so or it differs from
    ImagerPixelSpacing; where that is absent too, nobody can know (PS3.3 10.7.1.3).
    """
    stated = _pair(header.numbers("PixelSpacing", "PixelMeasuresSequence"))
    imager = _pair(header.numbers("ImagerPixelSpacing"))
    if modality not in PROJECTIONS | PICTURES:
        if stated is None and modality == "US":
            stated = _pair(_ultrasound_spacing(header))
        return stated, "patient" if stated else None
    if stated is not None:
        if header.term("PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL"):
            return stated, "calibrated"
        if imager is None:
            return stated, "unstated"
        return stated, "detector" if np.allclose(stated, imager, rtol=1e-3, atol=0) else "calibrated"
    if imager is not None:
        return imager, "detector"
    nominal = _pair(header.numbers("NominalScannedPixelSpacing"))
    return nominal, "nominal" if nominal else None


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


def _pair(values: list[float]) -> tuple[float, float] | None:
    return (values[0], values[1]) if len(values) == 2 and all(_is_plausible(value) for value in values) else None


def _is_plausible(value: float) -> bool:
    return 0 < value <= MAX_SPACING_MM
