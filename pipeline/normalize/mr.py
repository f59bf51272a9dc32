"""MR, NM, and whatever has no absolute unit: linear between robust percentiles of the whole series."""

from __future__ import annotations

from lumid.pipeline.decode import FrameHeader, Stored
from lumid.pipeline.normalize.intensity import Histogram, Intensities, Range, histogram, padding_mask, quantize, rescale


def frame_histogram(stored: Stored, header: FrameHeader) -> Histogram:
    """What one frame adds to the series' histogram: its rescaled values, padding left out."""
    values = rescale(stored, header)
    padding = padding_mask(stored, header)
    return histogram(values if padding is None else values[~padding])


def normalize_relative(stored: Stored, header: FrameHeader, span: Range, bits: int) -> Intensities:
    """A frame in arbitrary units, linear over the series' range; padding becomes the darkest value.

    ``stored``: ``[rows, columns]``; returns ``uint16`` or ``uint8`` of the same shape.
    """
    values = rescale(stored, header)
    padding = padding_mask(stored, header)
    if padding is not None:
        values[padding] = span.low
    return quantize(values, span, bits, "a.u.")
