"""CT: Hounsfield units, clipped to [-1024, 3071] and stored as HU + 1024."""

from __future__ import annotations

import numpy as np

from lumid.catalog.codecs import Pixels
from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import (
    VALUE_TRANSFORM,
    Intensities,
    ModalityLut,
    Range,
    Values,
    by_value,
    modality_lut,
    padded,
    padding_range,
    quantized,
    step_of,
)

AIR_HU = -1024
MAX_HU = 3071
LUMID_RANGE = Range(AIR_HU, AIR_HU + 65535)
PAPER_RANGE = Range(-1024.0, 3072.0)  # (HU + 1024) / 4096 × 255
EXTENDED_MAX_HU = 31743.0
"""Nothing is above it, extended scales for metal included: what seems to be has lost its sign."""


def has_hounsfield_units(header: FrameHeader) -> bool:
    """Whether the header says how stored values become HU: rescaled, and not to another unit.

    Original images are in HU even where the type says US, "unspecified" (PS3.3 C.8.2.1.1.2, C.11.1.1.2).
    """
    if modality_lut(header).table is not None:
        return FrameHeader(header.get("ModalityLUTSequence")[0], 0).term("ModalityLUTType") == "HU"
    if header.number("RescaleIntercept", VALUE_TRANSFORM) is None:
        return False
    if header.number("RescaleSlope", VALUE_TRANSFORM) is None:
        return False
    kind = header.term("RescaleType", VALUE_TRANSFORM)
    return kind in ("", "HU") or (kind == "US" and header.terms("ImageType")[:1] == ["ORIGINAL"])


def normalize_ct(stored: Stored, header: FrameHeader, bits: int) -> Intensities:
    """A CT frame in HU. Padding and whatever lies below -1024 HU become air.

    ``stored``: ``[rows, columns]``. 16 bits: ``uint16``, HU + 1024; 8 bits: ``uint8``, (HU + 1024) / 4096 × 255.
    """
    units = modality_lut(header)
    padding = padding_range(stored, header)
    if (
        padding is not None
        and units.table is None
        and max(units.slope * end + units.intercept for end in padding) <= AIR_HU
    ):
        padding = None  # as most of it is: it becomes air by itself
    lost_sign = stored.dtype == np.uint16 and int(stored.max()) >= 1 << 15
    span = LUMID_RANGE if bits == 16 else PAPER_RANGE
    if bits == 16 and padding is None and not lost_sign and (shifted := _shifted(stored, units)) is not None:
        return Intensities(shifted, 1.0, float(AIR_HU), "HU")

    def store(values: Values) -> Pixels:
        hounsfield = units(values)
        if lost_sign:
            negative = (values >= 1 << 15) & (hounsfield > EXTENDED_MAX_HU)
            hounsfield = np.where(negative, units(values - (1 << 16)), hounsfield)
        return quantized(np.clip(hounsfield, AIR_HU, MAX_HU), span, bits)

    return Intensities(by_value(stored, padded(store, padding)), step_of(span, bits), float(AIR_HU), "HU")


def _shifted(stored: Stored, units: ModalityLut) -> Pixels | None:
    """The commonest kind of CT in two passes over 16-bit values: slope 1, and nothing to do but shift and clip."""
    if stored.dtype not in (np.int16, np.uint16) or units.table is not None or units.slope != 1.0:
        return None
    low = AIR_HU - units.intercept
    info = np.iinfo(stored.dtype)
    if not low.is_integer() or not info.min <= low <= info.max - (MAX_HU - AIR_HU):
        return None
    clipped = np.clip(stored, stored.dtype.type(low), stored.dtype.type(low + MAX_HU - AIR_HU))
    # differences are right modulo 2^16, whatever the sign of what is subtracted
    pixels: Pixels = clipped.view(np.uint16) - np.uint16(int(low) % (1 << 16))
    return pixels
