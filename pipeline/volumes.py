"""Volume files (NIfTI, NRRD, MetaImage) → stored values in canonical orientation, through SimpleITK.

ITK reads from files only, so a volume goes through a temporary one, which is removed whatever happens. What ITK does not
do is done here before it sees a byte: sizes are known to be sane before anything is inflated, nothing of a header can
name another file, a NIfTI's scale is taken off so that stored values stay as they are, and a file that ends early is
found out (ITK fills what is missing in silence).
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 (the name that everyone knows it by)

from lumid.pipeline.decode import Limits, Stored
from lumid.pipeline.nifti import first_version, is_second_version
from lumid.pipeline.reject import Reject

VolumeKind = Literal["nifti", "nrrd", "mha"]
MOST_DIMENSIONS = 10
"""MetaImage has room for so many."""
READERS: dict[str, tuple[str, str]] = {
    "nifti": ("NiftiImageIO", "volume.nii"),
    "nrrd": ("NrrdImageIO", "volume.nrrd"),
    "mha": ("MetaImageIO", "volume.mha"),
}
"""ITK's reader of each kind, and the name that it wants to see."""

HEADER_BYTES = 16 * 1024
MAX_VOLUME_BYTES = 1 << 31
CHUNK_BYTES = 1 << 20
GZIP = b"\x1f\x8b"
GZIP_WINDOW = 31  # zlib's way of saying: a gzip stream
NIFTI_MAGIC = {b"n+1\0": 344, b"n+2\0": 4}
"""Magic of single-file NIfTI (version 1 and 2) and where it stands; ``ni1`` and ``ni2`` have their voxels elsewhere."""

NIFTI_PAIRS = {b"ni1\0": 344, b"ni2\0": 4}
ITEM_BYTES = {
    sitk.sitkInt8: 1, sitk.sitkUInt8: 1, sitk.sitkInt16: 2, sitk.sitkUInt16: 2, sitk.sitkInt32: 4, sitk.sitkUInt32: 4,
    sitk.sitkInt64: 8, sitk.sitkUInt64: 8, sitk.sitkFloat32: 4, sitk.sitkFloat64: 8, sitk.sitkVectorUInt8: 3,
}  # fmt: skip
"""Bytes a voxel of what is read: numbers, and RGB of 8 bits."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """A volume's axes in the patient's order: columns to the left, rows to the back, slices to the head (DICOM's LPS).

    Each triple is in that order. ``axes``: which axis of the file it is; ``flipped``: whether it runs the other way there;
    ``directions``: unit vectors ``float64 [3, 3]``, one a row, ``None`` where the file states no orientation.
    ``origin``: centre of the first voxel, mm.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    directions: npt.NDArray[np.float64] | None
    origin: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """What a volume's header states. ``value = slope × stored + intercept``; ``times`` is 1 but for 4-D files."""

    dimensions: int
    times: int
    grid: Canonical
    item_bytes: int
    slope: float
    intercept: float
    data_offset: int

    @property
    def frames(self) -> int:
        """Slices of all time points."""
        return self.times * self.grid.size[2]

    @property
    def data_bytes(self) -> int:
        """Size of the voxels."""
        return self.times * math.prod(self.grid.size) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume's slices: ``pixels`` ``[frames, rows, columns]`` or RGB ``[frames, rows, columns, 3]``, stored values.

    Frames of a 4-D file are those of its first time point from the feet to the head, then those of the next.
    """

    header: VolumeHeader
    pixels: Stored = field(repr=False)

    def position(self, frame: int) -> list[float]:
        """Centre of a frame's first pixel: patient coordinates (LPS), mm."""
        grid = self.header.grid
        assert grid.directions is not None, "without directions there are no positions"
        position = grid.origin + grid.directions[2] * grid.spacing[2] * (frame % grid.size[2])
        return [float(value) for value in position]


def is_volume(head: bytes) -> VolumeKind | None:
    """Which kind of volume file a beginning of some hundred bytes belongs to, by content; gzip only where NIfTI is in it."""
    if head[:4] == b"NRRD" and head[4:8].isdigit():
        return "nrrd"
    if re.match(rb"\s*(ObjectType\s*[=:]\s*Image|NDims\s*[=:]\s*\d)", head[:256]):
        return "mha"
    start = inflated(head, 540)
    if len(start) >= 352 and any(start[at : at + 4] == magic for magic, at in (NIFTI_MAGIC | NIFTI_PAIRS).items()):
        return "nifti"
    return None


def read_header(data: bytes, kind: VolumeKind) -> VolumeHeader | Reject:
    """The header of a volume file, of which the first 16 KiB are enough.

    Reasons: ``broken_header``, ``unsupported_format``.
    """
    head = inflated(data, HEADER_BYTES)
    if refused := _detached(head, kind):
        return refused
    reader, name = READERS[kind]
    nifti = _nifti_fields(head) if kind == "nifti" else None
    with tempfile.TemporaryDirectory(prefix="lumid-volume-") as folder:
        path = Path(folder) / name
        written = head if nifti is None else nifti.for_itk(head)
        if written is None:
            return Reject("read", "unsupported_format", "a NIfTI-2 of more than 32,767 voxels along an axis")
        path.write_bytes(written)
        return _describe(_reader(path, reader), head, kind, nifti)


def read_volume(
    data: bytes, kind: VolumeKind, limits: Limits | None = None, scratch: Path | None = None
) -> Volume | Reject:
    """The slices of a volume file, as they are stored.

    The nearest permutation and reversal of axes makes slices axial; an oblique volume stays oblique, nothing is resampled.
    Files larger than 2 GiB once inflated are not read. ``scratch``: the folder for the temporary file.
    Reasons: ``broken_header``, ``unsupported_format``, ``absurd_size``, ``truncated``, ``decode_failed``.
    """
    limits = limits or Limits()
    header = read_header(data, kind)
    if isinstance(header, Reject):
        return header
    columns, rows, _ = header.grid.size
    too_many = header.frames > limits.max_frames or rows * columns > limits.max_pixels
    if too_many or header.data_bytes > MAX_VOLUME_BYTES:
        return Reject("decode", "absurd_size", f"{rows} × {columns} × {header.frames}")
    reader, name = READERS[kind]
    with tempfile.TemporaryDirectory(prefix="lumid-volume-", dir=scratch) as folder:
        path = Path(folder) / name
        if kind == "nifti":
            written = _write_nifti(data, path, header.data_offset + header.data_bytes)
            if isinstance(written, Reject):
                return written
        else:
            path.write_bytes(data)
        try:
            image = _reader(path, reader).Execute()
        except RuntimeError:  # its text quotes the file
            return Reject("decode", "truncated" if kind == "mha" else "decode_failed", "ITK cannot read its voxels")
    view = sitk.GetArrayViewFromImage(image)
    # a copy always: the view looks into memory that goes with the image
    return Volume(header, np.array(_canonical_pixels(view, header), order="C"))


def inflated(data: bytes, limit: int) -> bytes:
    """The first ``limit`` bytes of a file's content: inflated where it is gzip, as far as it can be."""
    if data[:2] != GZIP:
        return data[:limit]
    try:
        return b"".join(_inflate(data, limit))
    except zlib.error:
        return b""


def _inflate(data: bytes, limit: int) -> Iterator[bytes]:
    """At most ``limit`` bytes of a gzip file in pieces; of all its members, where some tool has written several."""
    pending: bytes | memoryview = memoryview(data)
    while limit > 0 and pending[:2] == GZIP:
        inflater = zlib.decompressobj(GZIP_WINDOW)
        while limit > 0 and not inflater.eof:
            fed, pending = pending[:CHUNK_BYTES], pending[CHUNK_BYTES:]
            waiting = bytes(fed)
            while limit > 0 and (piece := inflater.decompress(waiting, min(limit, CHUNK_BYTES))):
                limit -= len(piece)
                yield piece
                waiting = inflater.unconsumed_tail
            if not fed:
                return  # the file ends before its stream does
        # what the stream did not need belongs to the next member
        pending = memoryview(data)[len(data) - len(pending) - len(inflater.unused_data) :]


def _detached(head: bytes, kind: VolumeKind) -> Reject | None:
    """A reason where the voxels are in another file, or the header is longer than what is looked at."""
    if kind == "nifti":
        alone = any(head[at : at + 4] == magic for magic, at in NIFTI_MAGIC.items())
    elif kind == "nrrd":
        text, found, _ = head.replace(b"\r\n", b"\n").partition(b"\n\n")
        alone = bool(found) and re.search(rb"(?im)^\s*data\s*file\s*:", text) is None
    else:
        stated = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(\S+)", head)
        alone = stated is not None and stated[1].upper() == b"LOCAL"
        if stated is not None:
            # ITK takes the last that there is, and writes where it should not when it is negative
            told = re.findall(rb"(?im)^[ \t]*NDims[ \t]*[=:][ \t]*([^\r\n]*)", head[: stated.start()])
            if any(re.fullmatch(rb"\d{1,2}\s*", one) is None or not 1 <= int(one) <= MOST_DIMENSIONS for one in told):
                return Reject("read", "broken_header", "NDims")
    return None if alone else Reject("read", "unsupported_format", "its voxels are in another file")


def _reader(path: Path, name: str) -> Any:
    reader: Any = sitk.ImageFileReader()  # type: ignore[no-untyped-call]
    reader.SetImageIO(name)
    reader.SetFileName(str(path))
    return reader


def _describe(reader: Any, head: bytes, kind: VolumeKind, nifti: _Nifti | None) -> VolumeHeader | Reject:
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:  # its text quotes the file
        sheared = "orthonormal" in str(error)
        code, why = ("unsupported_format", "an affine with shear") if sheared else ("broken_header", "ITK")
        return Reject("read", code, why)
    size, item_bytes = reader.GetSize(), ITEM_BYTES.get(reader.GetPixelID())
    dimensions, components = len(size), reader.GetNumberOfComponents()
    if dimensions not in (2, 3, 4):
        return Reject("read", "unsupported_format", f"{dimensions} dimensions")
    if item_bytes is None or components not in (1, 3):
        return Reject("read", "unsupported_format", f"voxels of {components} values, or of a type that has no image")
    spacing, origin, direction = reader.GetSpacing(), reader.GetOrigin(), np.array(reader.GetDirection())
    if min(size) < 1 or not np.isfinite([*spacing, *origin, *direction]).all():
        return Reject("read", "broken_header", "size, spacing, origin or direction")
    grid = canonical_grid(
        size, spacing, origin, direction.reshape(dimensions, dimensions), _states_orientation(head, kind)
    )
    scale = (nifti.slope, nifti.intercept, nifti.data_offset) if nifti else (1.0, 0.0, 0)
    return VolumeHeader(dimensions, size[3] if dimensions == 4 else 1, grid, item_bytes, *scale)


def canonical_grid(
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    origin: tuple[float, ...],
    direction: npt.NDArray[np.float64],
    oriented: bool,
) -> Canonical:
    """The axes of a file in the patient's order.

    ``size``, ``spacing``, ``origin`` and ``direction`` ``[d, d]`` are ITK's: direction cosines in columns, LPS.
    """
    if len(size) == 2 or not oriented:
        depth = (size[2], spacing[2], origin[2]) if len(size) > 2 else (1, 1.0, 0.0)
        place = np.array([origin[0], origin[1], depth[2]], np.float64)
        return Canonical(
            (0, 1, 2), (False, False, False), (size[0], size[1], depth[0]), (spacing[0], spacing[1], depth[1]), None, place
        )  # fmt: skip
    cosines = direction[:3, :3]
    axes: tuple[int, int, int] = max(
        itertools.permutations((0, 1, 2)), key=lambda order: sum(abs(cosines[i, order[i]]) for i in range(3))
    )  # type: ignore[assignment]  # permutations of three are triples
    flipped = tuple(bool(cosines[i, axes[i]] < 0) for i in range(3))
    first = np.array(origin[:3], np.float64)
    for axis, reverse in zip(axes, flipped, strict=True):
        if reverse:
            first = first + cosines[:, axis] * spacing[axis] * (size[axis] - 1)
    directions = np.array([-cosines[:, a] if f else cosines[:, a] for a, f in zip(axes, flipped, strict=True)])
    a, b, c = axes
    return Canonical(
        axes,
        (flipped[0], flipped[1], flipped[2]),
        (size[a], size[b], size[c]),
        (spacing[a], spacing[b], spacing[c]),
        directions + 0.0,  # no negative zeros
        first + 0.0,
    )


def _canonical_pixels(pixels: Stored, header: VolumeHeader) -> Stored:
    """ITK's array ``[(time,) z, y, x (, rgb)]`` as a view ``[frames, rows, columns (, rgb)]`` in the patient's order."""
    colour = pixels.ndim > header.dimensions
    rest = pixels.shape[-1:] if colour else ()
    full = pixels.reshape((1,) * (4 - header.dimensions) + pixels.shape)
    columns, rows, slices = (3 - axis for axis in header.grid.axes)
    ordered = full.transpose((0, slices, rows, columns, *([4] if colour else [])))
    reverse = [slice(None, None, -1) if flipped else slice(None) for flipped in header.grid.flipped[::-1]]
    view = ordered[(slice(None), *reverse)]
    return view.reshape((header.frames, *view.shape[2:4], *rest))


def _states_orientation(head: bytes, kind: VolumeKind) -> bool:
    """Whether a file says how it lies in the patient; ITK has a default for those that do not."""
    if kind == "nifti":
        return _nifti_fields(head).oriented
    if kind == "nrrd":
        # directions in a space that is not the patient's ("space dimension", "scanner-xyz") say nothing of left and right
        text = head.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
        patient = re.search(rb"(?im)^space\s*:\s*(left|right|lps|las|ras)\b", text) is not None
        return patient and re.search(rb"(?im)^space directions\s*:", text) is not None
    header = head.partition(b"ElementDataFile")[0]
    return re.search(rb"(?im)^\s*(TransformMatrix|Rotation|Orientation)\s*[=:]", header) is not None


@dataclass(frozen=True, slots=True)
class _Nifti:
    """What is needed of a NIfTI header beside what ITK says (NIfTI-1: nifti1.h, NIfTI-2: nifti2.h)."""

    slope: float
    intercept: float
    data_offset: int
    oriented: bool
    scale_at: tuple[int, int]

    def for_itk(self, head: bytes) -> bytes | None:
        """The file's beginning with a slope of 0, which means: none; of a NIfTI-2, which ITK does not read, as NIfTI-1."""
        if is_second_version(head):
            return first_version(head)
        start, end = self.scale_at
        return head[:start] + b"\0" * (end - start) + head[end:]


def _nifti_fields(head: bytes) -> _Nifti:
    second = is_second_version(head)
    order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    if second:
        offset, slope, intercept = struct.unpack(order + "qdd", head[168:192])
        codes, scale_at = struct.unpack(order + "ii", head[344:352]), (176, 192)
    else:
        offset, slope, intercept = struct.unpack(order + "fff", head[108:120])
        codes, scale_at = struct.unpack(order + "hh", head[252:256]), (112, 120)
    scaled = math.isfinite(slope) and math.isfinite(intercept) and slope != 0
    smallest = 544 if second else 352
    start = int(offset) if math.isfinite(offset) and smallest <= offset < 1 << 30 else smallest
    return _Nifti(slope if scaled else 1.0, intercept if scaled else 0.0, start, max(codes) > 0, scale_at)


def _write_nifti(data: bytes, path: Path, expected: int) -> Reject | None:
    """The inflated file without its scale; never more than its header asks for, and not less."""
    pieces = _inflate(data, expected) if data[:2] == GZIP else iter([data[:expected]])
    head = inflated(data, HEADER_BYTES)
    nifti = _nifti_fields(head)
    start, end = nifti.scale_at
    replaced = nifti.data_offset if is_second_version(head) else 0
    read = 0
    try:
        with path.open("wb") as file:
            if replaced:
                file.write(nifti.for_itk(head) or b"")
            for piece in pieces:
                file.write(piece[max(replaced - read, 0) :])
                read += len(piece)
            if not replaced:
                file.seek(start)
                file.write(b"\0" * (end - start))
    except zlib.error:
        return Reject("decode", "decode_failed", "gzip")
    return None if read >= expected else Reject("decode", "truncated", f"{read} bytes, {expected} expected")
