"""CR, DX, MG, XA, RF: as the maker meant them to be seen: modality LUT, VOI LUT or window, inversion."""

from __future__ import annotations

import numpy as np
from pydicom.pixels.processing import apply_voi

from lumid.pipeline.decode import FrameHeader, Stored
from lumid.pipeline.normalize.intensity import (
    Intensities,
    Range,
    Values,
    histogram,
    padding_mask,
    quantize,
    rescale,
    robust_range,
)

VOI = "FrameVOILUTSequence"


def normalize_projection(stored: Stored, header: FrameHeader, bits: int) -> Intensities | None:
    """A frame as displayed, over the full range: 0 is black and 1 is white. None when all its values are equal.

    ``stored``: ``[rows, columns]``; returns ``uint16`` or ``uint8`` of the same shape.
    """
    values = rescale(stored, header)
    padding = padding_mask(stored, header)
    shown = _voi(values, header)
    if shown is None:
        span = robust_range([histogram(values if padding is None else values[~padding])])
        if span is None:
            return None
        shown = np.clip((values - np.float32(span.low)) / np.float32(span.high - span.low), 0, 1)
    if is_inverted(header):
        shown = 1 - shown
    if padding is not None:
        shown[padding] = 0
    unit = "P-value" if header.term("PresentationLUTShape") else "display"
    return quantize(shown, Range(0.0, 1.0), bits, unit)


def is_inverted(header: FrameHeader) -> bool:
    """Whether the lowest value is white: MONOCHROME1, unless the presentation LUT has inverted already.

    PS3.3 C.7.6.3.1.2 and C.11.6: with PresentationLUTShape IDENTITY, values after the VOI are P-values as they are,
    which goes with MONOCHROME2; INVERSE goes with MONOCHROME1.
    """
    return header.term("PhotometricInterpretation") == "MONOCHROME1" or header.term("PresentationLUTShape") == "INVERSE"


def _voi(values: Values, header: FrameHeader) -> Values | None:
    """The first VOI LUT, else the first window, as 0 to 1 (PS3.3 C.11.2.1); None when there is neither."""
    luts = header.get("VOILUTSequence", VOI)
    if luts:
        try:
            bits = int(luts[0].LUTDescriptor[2])
            looked_up = np.asarray(apply_voi(np.rint(values).astype(np.int32), header.dataset), np.float32)
            looked_up /= np.float32((1 << bits) - 1)
            return looked_up
        except (AttributeError, TypeError, ValueError, IndexError, NotImplementedError):
            pass  # a LUT that cannot be read: fall back to the window
    centers, widths = header.numbers("WindowCenter", VOI), header.numbers("WindowWidth", VOI)
    if not centers or not widths:
        return None
    return window(values, centers[0], widths[0], header.term("VOILUTFunction", VOI) or "LINEAR")


def window(values: Values, center: float, width: float, function: str = "LINEAR") -> Values | None:
    """A window as 0 to 1: LINEAR (C.11.2.1.2.1), LINEAR_EXACT (C.11.2.1.3.2) or SIGMOID (C.11.2.1.3.1) of PS3.3.

    None for a width that the function does not allow.
    """
    if function == "SIGMOID" and width > 0:
        exponent: Values = np.clip(np.float32(-4) * (values - np.float32(center)) / np.float32(width), -80, 80)
        shown: Values = (1 / (1 + np.exp(exponent))).astype(np.float32)
        return shown
    if function == "LINEAR_EXACT" and width > 0:
        return _clip(values, center, width)
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return (values > np.float32(center - 0.5)).astype(np.float32)
        return _clip(values, center - 0.5, width - 1)
    return None


def _clip(values: Values, center: float, width: float) -> Values:
    shown: Values = np.clip((values - np.float32(center)) / np.float32(width) + np.float32(0.5), 0, 1)
    return shown
