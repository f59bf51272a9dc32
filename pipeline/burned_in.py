"""Text burned into pixels: which images are searched, and what is done about what is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from lumid.catalog.codecs import Pixels
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import Intensities
from lumid.pipeline.reject import Reject
from lumid.pipeline.text import mask, search_text

Risk = Literal["none", "unknown", "search", "stated"]
"""What a header lets expect: ``none`` and ``unknown`` are not searched, ``search`` is; ``stated``: it says that there is
text, so that finding none is no good news.
"""
MOST_AREA, MOST_CONTENT = 0.5, 0.9
"""An image of which more is text, or of what stands out from its background, is a page, not an image of a patient."""
BACKGROUND_SHARE = 0.05
"""Background is what is as near to the commonest value, in shares of the range."""

Kept = npt.NDArray[np.bool_]


def clear_text(
    image: Intensities, header: FrameHeader, risk: str, how: Literal["mask", "reject"]
) -> tuple[Intensities, str] | Reject:
    """A normalised frame, as large as it was acquired, without its text; and the value of the column ``burned_in_text``.

    ``risk``: of :data:`Risk`. What an ultrasound header leaves out of its regions is filled too, whatever it shows.
    Reasons: ``text_in_pixels`` where text may not be masked, cannot be found though the header states it, or cannot be
    looked for; ``report_page`` where there is too much of it.
    """
    if risk not in ("search", "stated"):
        return image, risk
    kept = ultrasound_regions(header, image.pixels.shape[:2])
    try:
        # what is filled anyway need not be searched, unless the header says that there is something to be found
        found = search_text(image.pixels) if kept is None or risk == "stated" else _search_inside(image.pixels, kept)
    except ImportError:
        return Reject("deidentify", "text_in_pixels", "not searched: pip install onnxruntime")
    if _is_page(image.pixels, found, kept):
        return Reject("deidentify", "report_page", "most of it is text")
    if how == "reject" and (found if kept is None else found & kept).any():
        return Reject("deidentify", "text_in_pixels", "found in the pixels")
    if risk == "stated" and not found.any():
        return Reject("deidentify", "text_in_pixels", "BurnedInAnnotation = YES, and none was found")
    fill = found if kept is None else found | ~kept
    if not fill.any():
        return image, "checked"
    return replace(image, pixels=mask(image.pixels, fill)), "removed"


def _search_inside(pixels: Pixels, kept: Kept) -> Kept:
    """Text in the rectangle around the regions that are kept."""
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    found = np.zeros(kept.shape, bool)
    found[inside] = search_text(cast(Pixels, np.ascontiguousarray(pixels[inside])))
    return found


def _is_page(pixels: Pixels, found: Kept, kept: Kept | None) -> bool:
    """Whether text covers most of what is kept of an image, or most of what there is to see in it."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    seen = grey if kept is None else grey[kept]
    text = found.reshape(grey.shape) if kept is None else found[kept]
    if np.count_nonzero(text) > MOST_AREA * text.size:
        return True
    low, high = float(seen.min()), float(seen.max())
    commonest = float(np.bincount(seen.ravel()).argmax())
    content = np.abs(seen.astype(np.float32) - commonest) > BACKGROUND_SHARE * (high - low)
    return bool(np.count_nonzero(content & text) > MOST_CONTENT * np.count_nonzero(content)) and bool(text.any())


def ultrasound_regions(header: FrameHeader, shape: tuple[int, ...]) -> Kept | None:
    """Where an ultrasound image's declared regions are, bool ``[rows, columns]``; None where it declares none.

    PS3.3 C.8.5.5: the corners of SequenceOfUltrasoundRegions, both inclusive. A region beyond the image is cut at its
    edge; one without corners, or with an impossible pair, declares nothing.
    """
    regions = header.get("SequenceOfUltrasoundRegions")
    if not isinstance(regions, (list, tuple)) and not hasattr(regions, "__iter__"):
        return None
    kept = np.zeros(shape[:2], bool)
    for region in regions:
        try:
            left, top, right, bottom = (
                int(region[f"RegionLocation{corner}"].value) for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        if 0 <= left <= right and 0 <= top <= bottom:
            kept[top : bottom + 1, left : right + 1] = True
    return kept if kept.any() else None
