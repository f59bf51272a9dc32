"""MR, NM, and whatever has no absolute unit: linear between robust percentiles of the whole series."""

from __future__ import annotations

from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import (
    Intensities,
    Range,
    by_value,
    modality_lut,
    padded,
    padding_range,
    quantized,
    step_of,
)


def normalize_relative(stored: Stored, header: FrameHeader, span: Range, bits: int) -> Intensities:
    """A frame in arbitrary units, linear over the series' range; padding becomes the darkest value.

    The values are those after the frame's own rescale, so that slices of different slopes (Philips MR, PET) compare.
    Philips' private scale slope and intercept (2005,100E and 2005,100D) are not applied: where a series shares them its
    pixels stay the same, and where it does not, magnitudes would leave no grey level to maps in Hz or ms.
    ``stored``: ``[rows, columns]``; returns ``uint16`` or ``uint8`` of the same shape.
    """
    units = modality_lut(header)
    store = padded(lambda values: quantized(units(values), span, bits), padding_range(stored, header))
    return Intensities(by_value(stored, store), step_of(span, bits), span.low, "a.u.")
