"""Stored pixels → intensities in a known unit, one module a family of modalities."""

from __future__ import annotations

from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.colour import is_colour, normalize_colour, normalize_grey_8
from lumid.pipeline.normalize.ct import has_hounsfield_units, normalize_ct
from lumid.pipeline.normalize.intensity import Intensities, Range
from lumid.pipeline.normalize.mr import normalize_relative
from lumid.pipeline.normalize.pet import normalize_suv, suv_scale
from lumid.pipeline.normalize.projection import normalize_projection, voi_of
from lumid.pipeline.reject import Reject

PROFILE_BITS = {"lumid": 16, "paper": 8}


def uses_series_range(header: FrameHeader, modality: str) -> bool:
    """Whether an image's scale is that of its whole series: MR and NM, CT without HU, PET without SUV."""
    if is_colour(header):
        return False
    if modality == "CT":
        return not has_hounsfield_units(header)
    if modality == "PT":
        # an object has one scale: frames without SUV among those with it would not compare
        frames = max(1, len(header.items("PerFrameFunctionalGroupsSequence")))
        return any(suv_scale(FrameHeader(header.dataset, frame)) is None for frame in range(frames))
    return modality in ("MR", "NM")


def normalize(
    stored: Stored, header: FrameHeader, modality: str, series_range: Range | None, profile: str
) -> Intensities | Reject:
    """A decoded frame as it is stored under a profile (``lumid``: 16 bits, ``paper``: 8).

    ``stored``: ``[rows, columns]`` or RGB ``[rows, columns, 3]``; ``series_range``: of the whole series, where
    :func:`uses_series_range` says so. Reasons: ``constant``, ``missing_tag``.
    """
    bits = PROFILE_BITS[profile]
    if is_colour(header):
        try:
            return normalize_colour(stored, header, grey=profile == "paper")
        except (AttributeError, ValueError, TypeError, IndexError):
            return Reject("normalize", "missing_tag", "palette")
    if modality == "CT" and has_hounsfield_units(header):
        return normalize_ct(stored, header, bits)
    if modality == "PT" and series_range is None and (scale := suv_scale(header)) is not None:
        return normalize_suv(stored, header, scale, bits)
    if modality in ("CT", "MR", "NM", "PT"):
        return normalize_relative(stored, header, series_range, bits) if series_range else Reject("select", "constant")
    if stored.dtype.itemsize == 1:
        if voi_of(header) is None and not header.get("ModalityLUTSequence"):
            return normalize_grey_8(stored, header)
        bits = 8  # 16 would hold nothing more
    shown = normalize_projection(stored, header, bits, modality)
    return shown if shown is not None else Reject("select", "constant")
