"""Stored pixels → intensities in a known unit, one module a family of modalities."""

from __future__ import annotations

from lumid.pipeline.decode import FrameHeader, Stored
from lumid.pipeline.normalize.colour import is_colour, normalize_colour, normalize_grey_8
from lumid.pipeline.normalize.ct import has_hounsfield_units, normalize_ct
from lumid.pipeline.normalize.intensity import Histogram, Intensities, Range
from lumid.pipeline.normalize.mr import frame_histogram, normalize_relative
from lumid.pipeline.normalize.pet import normalize_suv, suv_factor
from lumid.pipeline.normalize.projection import normalize_projection
from lumid.pipeline.reject import Reject

PROFILE_BITS = {"lumid": 16, "paper": 8}


def series_histogram(stored: Stored, header: FrameHeader, modality: str) -> Histogram | None:
    """What a frame adds to its series' range, for the kinds of images whose scale is the whole series'; else None."""
    if is_colour(stored, header):
        return None
    if modality in ("MR", "NM"):
        return frame_histogram(stored, header)
    if modality == "CT" and not has_hounsfield_units(header):
        return frame_histogram(stored, header)
    if modality == "PT" and suv_factor(header) is None:
        return frame_histogram(stored, header)
    return None


def normalize(stored: Stored, header: FrameHeader, modality: str, series_range: Range | None, profile: str) -> Intensities | Reject:
    """A decoded frame as it is stored under a profile (``lumid``: 16 bits, ``paper``: 8).

    ``stored``: ``[rows, columns]`` or RGB ``[rows, columns, 3]``; ``series_range``: of the whole series, where
    :func:`series_histogram` gave something. Reasons: ``constant``, ``missing_tag``.
    """
    bits = PROFILE_BITS[profile]
    if is_colour(stored, header):
        try:
            return normalize_colour(stored, header, grey=profile == "paper")
        except (AttributeError, ValueError, TypeError, IndexError):
            return Reject("normalize", "missing_tag", "palette")
    if modality == "CT" and has_hounsfield_units(header):
        return normalize_ct(stored, header, bits)
    if modality == "PT" and (factor := suv_factor(header)) is not None:
        return normalize_suv(stored, header, factor, bits)
    if modality in ("CT", "MR", "NM", "PT"):
        return normalize_relative(stored, header, series_range, bits) if series_range else Reject("select", "constant")
    if modality in ("US", "SC", "OT") and stored.dtype.itemsize == 1:
        return normalize_grey_8(stored, header)
    shown = normalize_projection(stored, header, bits)
    return shown if shown is not None else Reject("select", "constant")
