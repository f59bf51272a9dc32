"""How stored values lie in the pixel data: the Image Pixel module's elements, inferred where only one value is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset
from pydicom.uid import UID, RLELossless

from lumid.pipeline.decoders import ENCAPSULATED, LOSSY_SYNTAXES
from lumid.pipeline.parse import integer, pixel_element, term
from lumid.pipeline.reject import Reject

GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")
COLOUR = ("RGB", "YBR_FULL", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", *SUBSAMPLED)
RETIRED = ("HSV", "ARGB", "CMYK")
"""Colour models that were retired in 2001 and are in no IOD (PS3.3 C.7.6.3.1.2)."""

FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
NATIVE_BITS = (1, 8, 12, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The Image Pixel module of a data set (PS3.3 C.7.6.3).

    ``stored`` and ``signed`` are None where the codestream is what tells; ``stored`` is ``allocated`` for floats.
    ``planar``: colour by plane. ``overlay_bits``: those that overlays of old lie in (PS3.5 8.1.2), where values are not
    in the lowest bits.
    """

    kind: Literal["integer", "float"]
    photometric: str
    samples: int
    allocated: int
    stored: int | None
    high: int | None
    signed: bool | None
    planar: bool
    overlay_bits: frozenset[int] = frozenset()


def pixel_format(dataset: Dataset, syntax: UID) -> PixelFormat | Reject:
    """The format that a header states. Reasons: ``missing_tag``, ``unsupported_format``.

    What is missing is inferred only where the standard leaves one possibility: SamplesPerPixel follows from the
    photometric interpretation, HighBit from BitsStored and the other way round (PS3.5 8.1.1), colour is unsigned, and a
    codestream states its own depth and the order of its samples.
    """
    photometric = term(dataset, "PhotometricInterpretation")
    if photometric in RETIRED:
        return Reject("decode", "unsupported_format", photometric)
    if photometric not in GREY + COLOUR:
        return Reject("decode", "missing_tag", "PhotometricInterpretation")
    samples = integer(dataset, "SamplesPerPixel")
    if samples is None:
        samples = 1 if photometric in GREY else 3
    if samples != (1 if photometric in GREY else 3):
        return Reject("decode", "missing_tag", "SamplesPerPixel and PhotometricInterpretation contradict each other")
    encapsulated = syntax in ENCAPSULATED
    if photometric == "PALETTE COLOR" and syntax in LOSSY_SYNTAXES:
        return Reject("decode", "unsupported_format", "a palette's indices, compressed with loss")
    keyword = pixel_element(dataset)
    if keyword in FLOAT_BITS:
        return _float_format(dataset, photometric, samples, FLOAT_BITS[keyword], encapsulated)
    allocated = integer(dataset, "BitsAllocated")
    if allocated is None or allocated not in NATIVE_BITS or (encapsulated and allocated in (12, 64)):
        return Reject("decode", "missing_tag", "BitsAllocated")
    if allocated == 1 and syntax == RLELossless:
        return Reject("decode", "unsupported_format", "single bits in RLE")
    depth = _depth(dataset, allocated, own=encapsulated and syntax != RLELossless)
    if isinstance(depth, Reject):
        return depth
    stored, high = depth
    representation = integer(dataset, "PixelRepresentation")
    if representation is None and (photometric not in GREY[:2] or stored == 1 or syntax in LOSSY_SYNTAXES[:2]):
        representation = 0  # colours, palette indices, single bits and baseline JPEG have no sign
    if representation not in (0, 1) and not (representation is None and encapsulated and stored is None):
        return Reject("decode", "missing_tag", "PixelRepresentation")
    planar = integer(dataset, "PlanarConfiguration")
    if samples == 3 and not encapsulated and photometric not in SUBSAMPLED and planar not in (0, 1):
        return Reject("decode", "missing_tag", "PlanarConfiguration")
    signed = None if representation is None else representation == 1
    overlays = frozenset() if stored is None or high == stored - 1 else _overlay_bits(dataset)
    return PixelFormat("integer", photometric, samples, allocated, stored, high, signed, planar == 1, overlays)


def _float_format(
    dataset: Dataset, photometric: str, samples: int, bits: int, encapsulated: bool
) -> PixelFormat | Reject:
    if samples != 1 or photometric == "PALETTE COLOR" or encapsulated:
        return Reject("decode", "unsupported_format", "floating-point pixels that are not grey, or compressed")
    if integer(dataset, "BitsAllocated") not in (None, bits):
        return Reject("decode", "missing_tag", "BitsAllocated")
    return PixelFormat("float", photometric, 1, bits, bits, bits - 1, True, False)


def _depth(dataset: Dataset, allocated: int, *, own: bool) -> tuple[int | None, int | None] | Reject:
    """BitsStored and HighBit; both None where the codestream has its ``own`` depth and the header states none."""
    stored, high = integer(dataset, "BitsStored"), integer(dataset, "HighBit")
    if stored is None and high is None and allocated == 1:
        return 1, 0
    if stored is None and high is None and own:
        return None, None
    if stored is None and high is not None:
        stored = high + 1
    if stored is None or not 1 <= stored <= allocated:
        return Reject("decode", "missing_tag", "BitsStored")
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        return Reject("decode", "missing_tag", "HighBit")
    return stored, high


def _overlay_bits(dataset: Dataset) -> frozenset[int]:
    """The bits of a pixel that hold overlays: OverlayBitPosition of the repeating group 60xx (PS3.3 C.9.2)."""
    found = set()
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0102) in dataset and (group, 0x3000) not in dataset:
            try:
                found.add(int(dataset[group, 0x0102].value))
            except Exception:  # an element that does not parse names no bit
                continue
    return frozenset(found)
