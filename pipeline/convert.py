"""Images in other formats than DICOM → DICOM objects, so that everything after reads one kind of object only.

There is one path for pixels: decoding, normalisation, geometry and de-identification are written for DICOM and tested on
it, and a PNG or a NIfTI takes the same path as an object with the elements that its own header has an answer for, and no
others. What such a file does not state (patient, study, date, window) is absent, as it can be in DICOM: each file is then
a patient of its own, told apart by its name in the source.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from lumid.pipeline.decode import Limits, Stored, looks_like_dicom
from lumid.pipeline.reject import Reject
from lumid.pipeline.volumes import Volume, VolumeKind, is_volume, read_header, read_volume

Kind = Literal["dicom", "png", "nifti", "nrrd", "mha"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}
"""Values a pixel has once decoded, by the colour type of a PNG's header: the most that transparency can make of it."""

LABEL_NAME = re.compile(r"(?:^|[^a-z])(?:labels?(?:t[rs])?|seg(?:s|mentations?)?|masks?)(?:[^a-z]|$)", re.IGNORECASE)
MAX_LABELS, MAX_UNNAMED_LABELS = 256, 32
MAX_LABEL_RANGE = 1 << 15
MIN_CONSTANT_SHARE = 0.5
HU_EVIDENCE = -50.0
"""A CT in Hounsfield units reaches below this wherever there is air (-1000) or fat (-100)."""


def sniff(head: bytes) -> Kind | None:
    """What a file is, by its first some hundred bytes; None for what is not read here."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(PNG_SIGNATURE):
        return "png"
    if kind := is_volume(head):
        return kind
    return "dicom" if looks_like_dicom(head[:132]) else None


def claimed_frames(head: bytes, kind: Kind) -> int:
    """How many frames :func:`to_dataset` will find, by the first 16 KiB; 1 where the header does not tell."""
    if kind in ("dicom", "png"):
        return 1
    header = read_header(head, _volume_kind(kind))
    return 1 if isinstance(header, Reject) else max(1, min(header.frames, 1_000_000))


def to_dataset(
    data: bytes,
    kind: Kind,
    *,
    modality: str | None,
    name: str = "",
    limits: Limits | None = None,
    scratch: Path | None = None,
) -> FileDataset | Reject:
    """The DICOM object that stands for an image in another format; it is never written to a file.

    A PNG becomes a secondary capture of one frame without a window, grey wherever red, green and blue are equal;
    transparent pixels lie on black. A volume becomes an object of axial frames with positions in functional groups
    (PS3.3 C.7.6.16), stored values as they are; of a 4-D file every slice of every time point is a frame, as it would be
    in DICOM. ``modality``: the format has no place for one, so the recipe gives it. ``name``: the file's, a hint that it
    holds labels; it is for nothing else. ``scratch``: where a temporary file may lie.

    Reasons: ``unsupported_modality``, ``not_an_image`` (a label map), ``absurd_size``, ``truncated``, ``broken_header``,
    ``decode_failed``, ``unsupported_format``.
    """
    assert kind != "dicom", "DICOM is parsed, not converted"
    if modality is None:
        hint = "this format states none: give `modality` in the recipe's source"
        return Reject("select", "unsupported_modality", hint)
    limits = limits or Limits()
    hinted = LABEL_NAME.search(name) is not None
    if kind == "png":
        pixels = _decode_png(data, limits)
        if isinstance(pixels, Reject):
            return pixels
        return _label_map(pixels[None], hinted) or _picture(pixels, modality)
    volume = read_volume(data, _volume_kind(kind), limits, scratch)
    if isinstance(volume, Reject):
        return volume
    stored = _whole_numbers(volume.pixels)
    return _label_map(stored, hinted) or _enhanced(volume, stored, modality)


def _volume_kind(kind: Kind) -> VolumeKind:
    assert kind in ("nifti", "nrrd", "mha")
    return kind


def is_label_map(pixels: Stored, hinted: bool) -> bool:
    """Whether grey images hold labels: whole numbers, few of them, and mostly the same as their neighbours.

    ``pixels``: ``[frames, rows, columns]``. ``hinted``: the name says so, which never suffices, but then more labels
    are believed: 256 against 32. Pairs of neighbours that are both background (the commonest value) tell nothing and
    are not counted. Of the rest, label maps of organs have 0.6 and more equal, scans of as few values 0.25 and less.
    """
    if pixels.dtype.kind not in "iu":
        return False
    low, high = int(pixels.min()), int(pixels.max())
    if high - low > (MAX_LABEL_RANGE if hinted else 255) or low < -256:
        return False
    counts = np.zeros(high - low + 1, np.int64)
    for frame in pixels:
        counts += np.bincount((frame.astype(np.int64) - low).ravel(), minlength=counts.size)
    distinct = int(np.count_nonzero(counts))
    if distinct == 1:
        return hinted
    if distinct > (MAX_LABELS if hinted else MAX_UNNAMED_LABELS):
        return False
    background = int(counts.argmax()) + low
    equal = told = 0
    for frame in pixels:
        left, right = frame[:, :-1], frame[:, 1:]
        foreground = (left != background) | (right != background)
        told += int(np.count_nonzero(foreground))
        equal += int(np.count_nonzero((left == right) & foreground))
    return told > 0 and equal / told >= MIN_CONSTANT_SHARE


def _label_map(pixels: Stored, hinted: bool) -> Reject | None:
    if pixels.ndim == 3 and is_label_map(pixels, hinted):
        return Reject("select", "not_an_image", "a label map")
    return None


def _whole_numbers(pixels: Stored) -> Stored:
    """The same values in the smallest type for whole numbers of at least 16 bits; floats that are none stay."""
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2:
        return pixels.astype(np.int16) if pixels.dtype == np.int8 else pixels
    if pixels.dtype.kind == "f" and not all(_is_whole(frame) for frame in pixels):
        return pixels
    low, high = pixels.min(), pixels.max()
    for kind in (np.int16, np.uint16, np.int32, np.uint32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return pixels.astype(kind)
    return pixels.astype(np.float64)  # the largest whole numbers that DICOM has a place for are of 32 bits


def _is_whole(frame: Stored) -> bool:
    return bool(np.isfinite(frame).all() and (np.rint(frame) == frame).all())


def _decode_png(data: bytes, limits: Limits) -> Stored | Reject:
    """The pixels of a PNG: ``[rows, columns]``, or RGB ``[rows, columns, 3]``, of 8 or 16 bits."""
    size = _check_png(data)
    if isinstance(size, Reject):
        return size
    rows, columns = size
    if rows * columns > limits.max_pixels:
        return Reject("decode", "absurd_size", f"{rows} × {columns} × 1")
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is None or decoded.shape[:2] != (rows, columns):
        return Reject("decode", "decode_failed", "PNG")
    pixels: Stored = np.asarray(decoded)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        pixels = _on_black(pixels)
    blue, green, red = (pixels[..., channel] for channel in range(3))
    # grey in three channels takes the same path as grey in one: archives hold both side by side
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return np.ascontiguousarray(red)
    return np.ascontiguousarray(pixels[..., ::-1])


def _check_png(data: bytes) -> tuple[int, int] | Reject:
    """Rows and columns, once the file is known to be whole: all chunks to the last, their checksums right (PNG 5.3).

    The decoder is content with what there is of a damaged file, and fills the rest.
    """
    at, size = len(PNG_SIGNATURE), None
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return Reject("decode", "decode_failed", "a checksum in the PNG is wrong")
        if size is None:
            if kind != b"IHDR" or length != 13 or data[at + 17] not in PNG_CHANNELS:
                return Reject("read", "broken_header", "PNG")
            columns, rows = (int.from_bytes(data[at + 8 + k : at + 12 + k], "big") for k in (0, 4))
            size = rows, columns
        if kind == b"IEND":
            return size
        at = end + 4
    return Reject("read", "truncated")


def _on_black(pixels: Stored) -> Stored:
    """Colours with transparency over black: what is under a transparent pixel is arbitrary and may be anything."""
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    white = np.iinfo(pixels.dtype).max
    if bool((alpha == white).all()):
        return colours
    blended: Stored = (colours.astype(np.uint32) * alpha + white // 2) // white
    return blended.astype(pixels.dtype)


def _picture(pixels: Stored, modality: str) -> FileDataset:
    """A PNG as a secondary capture that is the primary image (PS3.3 C.7.6.1.1.2), so that it keeps its modality.

    Of that class because that is what it is: whoever made the file may have drawn into it, and the policy should know.
    """
    dataset = _dataset(pixels[None], modality)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    del dataset.NumberOfFrames
    return dataset


def _enhanced(volume: Volume, stored: Stored, modality: str) -> FileDataset:
    """A volume's slices with their place and scale in functional groups (PS3.3 C.7.6.16.2)."""
    header, grid = volume.header, volume.header.grid
    dataset = _dataset(stored, modality)
    shared = Dataset()
    measures = Dataset()
    measures.PixelSpacing = [_decimal(grid.spacing[1]), _decimal(grid.spacing[0])]
    if header.dimensions > 2:
        # such files know the distance of slices only; without another word they are taken to touch
        measures.SliceThickness = measures.SpacingBetweenSlices = _decimal(grid.spacing[2])
    shared.PixelMeasuresSequence = [measures]
    lowest = float(np.nanmin(stored)) if stored.ndim == 3 else 0.0
    hounsfield = modality == "CT" and lowest * header.slope + header.intercept < HU_EVIDENCE
    if hounsfield or (header.slope, header.intercept) != (1.0, 0.0):
        scale = Dataset()
        scale.RescaleSlope, scale.RescaleIntercept = _decimal(header.slope), _decimal(header.intercept)
        scale.RescaleType = "HU" if hounsfield else "US"
        shared.PixelValueTransformationSequence = [scale]
    if grid.directions is not None:
        plane = Dataset()
        plane.ImageOrientationPatient = [_decimal(value) for value in grid.directions[:2].ravel()]
        shared.PlaneOrientationSequence = [plane]
        dataset.PerFrameFunctionalGroupsSequence = [_place(volume.position(frame)) for frame in range(header.frames)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    return dataset


def _place(position: list[float]) -> Dataset:
    place, group = Dataset(), Dataset()
    place.ImagePositionPatient = [_decimal(value) for value in position]
    group.PlanePositionSequence = [place]
    return group


def _decimal(value: float) -> DSfloat:
    """A decimal string whose number is exact, though its 16 characters may not be."""
    return DSfloat(value, auto_format=True)


def _dataset(pixels: Stored, modality: str) -> FileDataset:
    """An object around pixels ``[frames, rows, columns]`` or RGB ``[frames, rows, columns, 3]``, in their own type."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, is_implicit_VR=False, is_little_endian=True)
    colour = pixels.ndim == 4
    bits = pixels.dtype.itemsize * 8
    dataset.Modality = modality
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = bits
    values = _little_endian(pixels).tobytes()
    if pixels.dtype.kind == "f":
        setattr(dataset, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", values)
        return dataset
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = values + b"\0" * (len(values) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def _little_endian(pixels: Stored) -> npt.NDArray[Any]:
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
