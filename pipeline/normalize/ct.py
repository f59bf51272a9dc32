"""CT: Hounsfield units, clipped to [-1024, 3071] and stored as HU + 1024."""

from __future__ import annotations

import numpy as np

from lumid.pipeline.decode import FrameHeader, Stored
from lumid.pipeline.normalize.intensity import Intensities, Range, padding_mask, quantize, rescale, rescale_parameters

AIR_HU = -1024
MAX_HU = 3071
PAPER_RANGE = Range(-1024.0, 3072.0)  # (HU + 1024) / 4096 × 255


def has_hounsfield_units(header: FrameHeader) -> bool:
    """Whether the header says how stored values become HU: rescaled, and not to another unit.

    Original images are in HU even where the type says US, "unspecified" (PS3.3 C.8.2.1.1.2, C.11.1.1.2).
    """
    macro = "PixelValueTransformationSequence"
    if header.number("RescaleIntercept", macro) is None or header.number("RescaleSlope", macro) is None:
        return False
    kind = header.term("RescaleType", macro)
    return kind in ("", "HU") or (kind == "US" and header.terms("ImageType")[:1] == ["ORIGINAL"])


def normalize_ct(stored: Stored, header: FrameHeader, bits: int) -> Intensities:
    """A CT frame in HU. Padding and whatever lies below -1024 HU become air.

    ``stored``: integers ``[rows, columns]``. 16 bits: ``uint16``, HU + 1024; 8 bits: ``uint8``, (HU + 1024) / 4096 × 255.
    """
    slope, intercept = rescale_parameters(header)
    whole = slope.is_integer() and intercept.is_integer() and abs(slope) < 1 << 14 and abs(intercept) < 1 << 30
    padding = padding_mask(stored, header)
    if bits == 16 and whole and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        hounsfield = stored.astype(np.int32)
        if slope != 1:
            hounsfield *= int(slope)
        hounsfield += int(intercept) - AIR_HU
        pixels = np.clip(hounsfield, 0, MAX_HU - AIR_HU).astype(np.uint16)
        if padding is not None:
            pixels[padding] = 0
        return Intensities(pixels, 1.0, float(AIR_HU), "HU")
    values = np.clip(rescale(stored, header), AIR_HU, MAX_HU)
    if padding is not None:
        values[padding] = AIR_HU
    span = Range(float(AIR_HU), float(AIR_HU + 65535)) if bits == 16 else PAPER_RANGE
    return quantize(values, span, bits, "HU")
