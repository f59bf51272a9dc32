"""CR, DX, MG, XA, RF: as the maker meant them to be seen: modality LUT, VOI LUT or window, inversion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lumid.catalog.codecs import Pixels
from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import (
    Intensities,
    Range,
    Values,
    by_value,
    frame_histogram,
    modality_lut,
    padded,
    padding_range,
    quantized,
    robust_range,
    step_of,
)
from lumid.pipeline.normalize.luts import first_table

VOI = "FrameVOILUTSequence"
FULL = Range(0.0, 1.0)


def normalize_projection(stored: Stored, header: FrameHeader, bits: int, modality: str = "") -> Intensities | None:
    """A frame as displayed, over the full range: 0 is black and 1 is white. None when all its values are equal.

    Through the first VOI LUT, else the first window, else (or where that leaves nothing to be seen) linear between the
    frame's own percentiles. ``stored``: ``[rows, columns]``; returns ``uint16`` or ``uint8`` of the same shape.
    """
    units = modality_lut(header, modality)
    padding = padding_range(stored, header)
    inverted = is_inverted(header)
    if padding == (0, 0) and stored.dtype.kind == "u" and not inverted:
        padding = None  # it is black by itself

    def show(voi: Callable[[Values], Values]) -> Pixels:
        def store(values: Values) -> Pixels:
            shown = voi(units(values))
            return quantized(1 - shown if inverted else shown, FULL, bits)

        return by_value(stored, padded(store, padding))

    voi = voi_of(header, real=stored.dtype.kind == "f")
    pixels = show(voi) if voi is not None else None
    if pixels is None or pixels.min() == pixels.max():
        span = robust_range([frame_histogram(stored, header, modality)])
        if span is None:
            return None
        pixels = show(lambda values: _clip((values - span.low) / (span.high - span.low)))
    return Intensities(pixels, step_of(FULL, bits), 0.0, display_unit(header))


def display_unit(header: FrameHeader) -> str:
    """P-value, perceptually linear, where the header says that its values lead to them; else just display."""
    return "P-value" if header.term("PresentationLUTShape") else "display"


def is_inverted(header: FrameHeader) -> bool:
    """Whether the lowest value is white: MONOCHROME1, or a presentation LUT that says INVERSE; once where both do.

    PS3.3 C.7.6.3.1.2 and C.11.6: INVERSE goes with MONOCHROME1 and IDENTITY with MONOCHROME2. Where IDENTITY stands
    beside MONOCHROME1, the photometric interpretation counts.
    """
    return header.term("PhotometricInterpretation") == "MONOCHROME1" or header.term("PresentationLUTShape") == "INVERSE"


def voi_of(header: FrameHeader, *, real: bool = False) -> Callable[[Values], Values] | None:
    """The first VOI LUT, else the first window, from modality units to 0 to 1; None when there is neither.

    Where an image has both they are alternatives (PS3.3 C.11.2), and the LUT is what a maker cannot say by a window.
    ``real``: the stored values are real numbers, and a window LINEAR, which is for whole ones, is taken as LINEAR_EXACT.
    """
    if header.get("VOILUTSequence", VOI):
        units = modality_lut(header)
        signed = header.number("PixelRepresentation") == 1 or units.intercept < 0
        table = first_table(header, "VOILUTSequence", macro=VOI, signed=signed and units.table is None)
        if table is not None:
            white = float((1 << table.bits) - 1)
            return lambda values: table(values) / white
    centers, widths = header.numbers("WindowCenter", VOI), header.numbers("WindowWidth", VOI)
    if not centers or not widths:
        return None
    function = header.term("VOILUTFunction", VOI) or "LINEAR"
    if real and function == "LINEAR":
        function = "LINEAR_EXACT"
    if window(np.zeros(1), centers[0], widths[0], function) is None:
        return None
    return lambda values: _checked(window(values, centers[0], widths[0], function))


def window(values: Values, center: float, width: float, function: str = "LINEAR") -> Values | None:
    """A window as 0 to 1: LINEAR (C.11.2.1.2.1), LINEAR_EXACT (C.11.2.1.3.2) or SIGMOID (C.11.2.1.3.1) of PS3.3.

    None for a width that the function does not allow.
    """
    if function == "SIGMOID" and width > 0:
        exponent = np.clip(-4 * ((values - center) / width), -80, 80)
        shown: Values = 1 / (1 + np.exp(exponent))
        return shown
    if function == "LINEAR_EXACT" and width > 0:
        return _clip((values - center) / width + 0.5)
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return (values > center - 0.5).astype(np.float64)
        return _clip((values - (center - 0.5)) / (width - 1) + 0.5)
    return None


def _checked(shown: Values | None) -> Values:
    assert shown is not None, "the width was allowed a moment ago"
    return shown


def _clip(values: Values) -> Values:
    shown: Values = np.clip(values, 0, 1)
    return shown
