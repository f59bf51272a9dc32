"""Where text is in an image of any depth, and the image with it filled.

The image is searched as it was acquired, before it is made smaller: what is written seven pixels high can still be read
there. It is searched once more turned by a quarter, because the network is poor at lines that run up or down. What the
network is shown are the pixels that a data set would keep, over all of their range, so that nothing can be read in what
is kept that could not be seen in the search.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from lumid.catalog.codecs import Pixels
from lumid.pipeline.text.network import Levels, Probability, text_probability

LARGEST_SCALES = (3.0, 2.0)
"""At three times the size the network reads what is 7 pixels high; at twice, most of it. Three times is for images of
:data:`SMALL` pixels at most: larger ones would take minutes."""
SMALL = 1 << 20
SMALLER_SCALES = (1.0, 0.5, 0.25)
"""At each smaller one the network reads letters twice as large as before."""
LEAST_SIDE = 500
"""Smaller than this an image is not made: its anatomy would have the size of letters."""
LIKELY = 0.3
LIKELY_LINE = 0.8
"""Mean over a line."""
THINNEST, THICKEST, THICKEST_OF_ALL = 4.0, 24.0, 28.0
"""Of what the network marks of a line, in its own pixels. It marks smooth shapes of anatomy too, which are thicker; and
a line of larger letters is found at the next smaller scale, where there is one."""
BORDER = 32
"""Pixels repeated around the image, because letters near an edge are hardly seen."""
GRID = 4
"""What is found is rounded out to cells of so many pixels, so that processors that differ in a last bit agree."""
ACROSS, ALONG, MARGIN = 0.8, 1.6, 2
"""How far a line is grown, in thicknesses of what the network marks, and in pixels besides."""
TAIL_PERCENT, TAIL_LEVELS = 1.0, 32
"""The darkest and the brightest pixels get so many of the 255 levels at most, so that the others have theirs."""

Found = npt.NDArray[np.bool_]


def search_text(pixels: Pixels) -> Found:
    """Where there is text: bool ``[rows, columns]`` of ``uint8 | uint16 [rows, columns]`` or ``uint8 [rows, columns, 3]``.

    True for whole lines with a margin. A pure function of the pixels; ``ImportError`` when ONNX Runtime is missing.
    """
    rows, columns = pixels.shape[:2]
    found = np.zeros((rows, columns), bool)
    shown = levels(pixels)
    if shown is None:
        return found
    bordered = cv2.copyMakeBorder(shown, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
    for turned in (0, 1):
        lines = np.rot90(_at_any_scale(np.ascontiguousarray(np.rot90(bordered, turned))), -turned)
        found |= lines[BORDER:-BORDER, BORDER:-BORDER]
    return _rounded_out(found)


def _at_any_scale(shown: Levels) -> Found:
    rows, columns = shown.shape[:2]
    found = np.zeros((rows, columns), bool)
    scales = scales_of(rows - 2 * BORDER, columns - 2 * BORDER)
    for scale in scales:
        thickest = THICKEST_OF_ALL if scale == scales[-1] else THICKEST
        found |= _scaled_to(_lines(text_probability(_scaled(shown, scale)), thickest), (rows, columns))
    return found


def scales_of(rows: int, columns: int) -> tuple[float, ...]:
    """The scales that an image is searched at, the largest first."""
    largest = LARGEST_SCALES[rows * columns > SMALL]
    return largest, *(scale for scale in SMALLER_SCALES if scale == 1 or scale * max(rows, columns) >= LEAST_SIDE)


def mask(pixels: Pixels, found: Found) -> Pixels:
    """The pixels with 0, which is black in everything that lumid stores, where ``found`` is true."""
    masked = pixels.copy()
    masked[found] = 0
    return masked


def levels(pixels: Pixels) -> Levels | None:
    """What the network is shown: ``uint8 [rows, columns, 3]`` over all values that occur; None where only one does.

    Linear but for the tails: few pixels that are far brighter than the rest (metal, a line of text) do not leave the
    rest without contrast, as they would from the darkest to the brightest.
    """
    flat = pixels.reshape(-1)
    counts = np.bincount(flat)
    occurring = np.flatnonzero(counts)
    low, high = int(occurring[0]), int(occurring[-1])
    if low == high:
        return None
    ranks = [TAIL_PERCENT / 100 * flat.size, (1 - TAIL_PERCENT / 100) * flat.size]
    start, end = (int(value) for value in np.searchsorted(np.cumsum(counts), ranks))
    below = min(TAIL_LEVELS, 255 * (start - low) / (high - low))
    above = min(TAIL_LEVELS, 255 * (high - end) / (high - low))
    values = np.arange(len(counts), dtype=np.float64)
    if start < end:
        table = np.interp(values, [low, start, end, high], [0, below, 255 - above, 255])
    else:
        table = np.interp(values, [low, high], [0, 255])
    shown: Levels = np.rint(table).astype(np.uint8)[pixels]
    return cast(Levels, cv2.cvtColor(shown, cv2.COLOR_GRAY2BGR if shown.ndim == 2 else cv2.COLOR_RGB2BGR))


def _scaled(shown: Levels, scale: float) -> Levels:
    if scale == 1:
        return shown
    size = tuple(max(1, round(side * scale)) for side in shown.shape[1::-1])
    return cast(Levels, cv2.resize(shown, size, interpolation=cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA))


def _scaled_to(lines: Found, shape: tuple[int, ...]) -> Found:
    """True wherever a true pixel of the other scale lies, by any part of it."""
    rows, columns = shape
    size = lines.shape
    if size == (rows, columns):
        return lines
    at_rows = _edges(rows, size[0])
    at_columns = _edges(columns, size[1])
    sums = cv2.integral(lines.view(np.uint8))
    top, bottom = at_rows
    left, right = at_columns
    inside = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    return np.asarray(inside > 0)


def _edges(length: int, other: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each pixel of a side, where it begins and ends on the side of the other scale."""
    at = np.arange(length + 1) * other / length
    return np.floor(at[:-1]).astype(np.intp), np.minimum(np.ceil(at[1:]), other).astype(np.intp)


def _lines(likely: Probability, thickest: float) -> Found:
    """What the network marks, without what is too thick or too unsure to be a line, grown to where its letters end.

    The network is taught to mark the inside of a line only: its outline moved in by a share of its thickness.
    """
    marked = (likely > LIKELY).astype(np.uint8)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
    found = np.zeros(likely.shape, np.uint8)
    for number in range(1, count):
        left, top, width, height, area = (int(value) for value in boxes[number])
        if min(width, height) < THINNEST / 2:
            continue
        inside = np.s_[top : top + height, left : left + width]
        of_it = np.equal(labels[inside], number)
        if float(likely[inside][of_it].sum(dtype=np.float64)) < LIKELY_LINE * area:
            continue
        one = np.pad(of_it.astype(np.uint8), 1)
        thickness = 2 * float(cv2.distanceTransform(one, cv2.DIST_C, 3).max())
        if THINNEST <= thickness <= thickest:
            across, along = (MARGIN + round(share * thickness) for share in (ACROSS, ALONG))
            down, right = (across, along) if width >= height else (along, across)
            _grow(found, one, top - 1, left - 1, down, right)
    return found.view(bool)


def _grow(found: Levels, one: Levels, top: int, left: int, down: int, right: int) -> None:
    """Put a shape that begins at ``top`` and ``left`` into ``found``, larger by so many pixels on either side."""
    edge = ((down, down), (right, right))
    grown = cv2.dilate(np.pad(one, edge), np.ones((2 * down + 1, 2 * right + 1), np.uint8))
    top, left = top - down, left - right
    part = found[max(0, top) : max(0, top + grown.shape[0]), max(0, left) : max(0, left + grown.shape[1])]
    grown = grown[max(0, -top) :, max(0, -left) :]
    np.maximum(part, grown[: part.shape[0], : part.shape[1]], out=part)


def _rounded_out(found: Found) -> Found:
    rows, columns = found.shape
    cells = np.pad(found, ((0, -rows % GRID), (0, -columns % GRID)))
    some = np.any(cells.reshape(cells.shape[0] // GRID, GRID, -1, GRID), axis=(1, 3))
    return np.repeat(np.repeat(np.asarray(some), GRID, 0), GRID, 1)[:rows, :columns]
