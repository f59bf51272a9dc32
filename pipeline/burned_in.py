"""Text burned into pixels: which images are searched, and what is done about what is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from lumid.catalog.codecs import Pixels
from lumid.pipeline.decode import FrameHeader
from lumid.pipeline.normalize.intensity import Intensities
from lumid.pipeline.reject import Reject
from lumid.pipeline.text import mask, search_text

Risk = Literal["none", "unknown", "search", "stated"]
"""What a header lets expect: ``none`` and ``unknown`` are not searched, ``search`` is; ``stated``: it says that there is
text, so that finding none is no good news.
"""
MOST_TEXT = 0.25
"""An image of which more is text is a page, not an image of a patient."""

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
    try:
        found = search_text(image.pixels)
    except ImportError:
        return Reject("deidentify", "text_in_pixels", "not searched: pip install onnxruntime")
    kept = ultrasound_regions(header, image.pixels.shape[:2])
    inside = found if kept is None else found & kept
    room = found.size if kept is None else int(np.count_nonzero(kept))
    if np.count_nonzero(inside) > MOST_TEXT * room:
        return Reject("deidentify", "report_page", "text covers most of it")
    if found.any() and how == "reject":
        return Reject("deidentify", "text_in_pixels", "found in the pixels")
    if risk == "stated" and not found.any():
        return Reject("deidentify", "text_in_pixels", "BurnedInAnnotation = YES, and none was found")
    fill = found if kept is None else found | ~kept
    if not fill.any():
        return image, "checked"
    return replace(image, pixels=mask(image.pixels, fill)), "removed"


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
