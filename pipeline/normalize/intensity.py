"""What all modalities share: stored values → values in their unit → stored again, affinely, in 8 or 16 bits.

Everything here is a function of one stored value, and is computed in double precision: where an image has more pixels
than different values, once for each value that can occur.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from lumid.catalog.codecs import Pixels
from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.luts import LookupTable, first_table

Values = npt.NDArray[np.float64]
LOW_PERCENTILE, HIGH_PERCENTILE = 0.1, 99.9
MAX_FLOAT_VALUES = 1 << 16
RANGE_BINS = 1 << 12
EXACT_COUNTS = 1 << 24
"""OpenCV's counts are single-precision numbers, which are exact up to here."""
VALUE_TRANSFORM = "PixelValueTransformationSequence"


@dataclass(frozen=True, slots=True)
class Intensities:
    """An image as it is stored: ``value in unit = slope × stored + intercept``."""

    pixels: Pixels
    slope: float
    intercept: float
    unit: str


@dataclass(frozen=True, slots=True)
class Range:
    """The values that the darkest and the brightest stored value stand for."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModalityLut:
    """Stored values → modality units: through a table where there is one, else by slope and intercept (PS3.3 C.11.1)."""

    slope: float = 1.0
    intercept: float = 0.0
    table: LookupTable | None = None

    def __call__(self, stored: Values) -> Values:
        """The values in modality units of stored values, any shape."""
        return stored * self.slope + self.intercept if self.table is None else self.table(stored)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Distinct stored values of a frame and how often each occurs, ``[n]``, in types that take little memory.

    A series is thousands of them. ``units`` leads to the values that are compared.
    """

    values: npt.NDArray[Any]
    counts: npt.NDArray[np.integer]
    units: ModalityLut = ModalityLut()

    def in_units(self) -> tuple[Values, npt.NDArray[np.integer]]:
        """The values in modality units, ``float64``, and their counts; only those that are finite numbers."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.units(self.values.astype(np.float64))
        kept = np.isfinite(values)
        return (values, self.counts) if bool(kept.all()) else (values[kept], self.counts[kept])


def modality_lut(header: FrameHeader, modality: str = "") -> ModalityLut:
    """The modality LUT of a frame: a LUT sequence where there is one, else slope and intercept, the frame's own first.

    Of XA and RF the sequence is left out: theirs leads to values that are linear in X-ray intensity, not to the ones that
    are displayed, and their windows are given in stored values (PS3.3 C.8.7.1.1.2).
    """
    if modality not in ("XA", "RF") and header.get("ModalityLUTSequence"):
        signed = header.number("PixelRepresentation") == 1
        if (table := first_table(header, "ModalityLUTSequence", signed=signed)) is not None:
            return ModalityLut(table=table)
    return ModalityLut(*rescale_parameters(header))


def rescale(stored: Stored, header: FrameHeader) -> Values:
    """Stored values in modality units, ``float64`` of the same shape."""
    return modality_lut(header)(stored.astype(np.float64))


def rescale_parameters(header: FrameHeader) -> tuple[float, float]:
    """Rescale slope and intercept of a frame; 1 and 0 where it states none (PS3.3 C.11.1.1.2)."""
    slope, intercept = (
        header.number("RescaleSlope", VALUE_TRANSFORM),
        header.number("RescaleIntercept", VALUE_TRANSFORM),
    )
    return (slope if slope else 1.0), (intercept if intercept is not None else 0.0)


def by_value(stored: Stored, function: Callable[[Values], Pixels]) -> Pixels:
    """``function`` of every stored value: ``uint8 | uint16`` of the shape of ``stored``.

    It must be a function of the single value. It is given ``float64`` values, of a shape of its own choosing.
    """
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        low, high = int(stored.min()), int(stored.max())
        if high - low < stored.size:
            return _looked_up(stored, low, function(np.arange(low, high + 1, dtype=np.float64)))
    return function(stored.astype(np.float64))


def _looked_up(stored: Stored, low: int, table: Pixels) -> Pixels:
    """For every stored value its entry of a table that begins at ``low``; OpenCV does it in a fifth of numpy's time."""
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    entries = 1 << 8 * unsigned.itemsize
    whole = np.zeros(entries, table.dtype)
    first = low % entries  # a negative value stands where its bits, read as unsigned, are
    wrapped = max(first + table.size - entries, 0)
    whole[first : first + table.size] = table[: table.size - wrapped]
    whole[:wrapped] = table[table.size - wrapped :]
    places = np.ascontiguousarray(stored, stored.dtype.newbyteorder("=")).view(unsigned)
    try:
        return cast(Pixels, cv2.LUT(places.reshape(len(places), -1), whole)).reshape(stored.shape)
    except cv2.error:  # before OpenCV 5 tables are for 8 bits only
        return whole.take(places)


def quantized(values: Values, span: Range, bits: int) -> Pixels:
    """Values → ``bits``-bit pixels that are linear over ``span``, clipped at its ends; no number becomes the darkest."""
    scaled = (values - span.low) / step_of(span, bits)
    scaled = np.clip(np.nan_to_num(scaled, nan=0.0), 0, (1 << bits) - 1)
    whole = np.rint(scaled)
    return whole.astype(np.uint16) if bits == 16 else whole.astype(np.uint8)


def step_of(span: Range, bits: int) -> float:
    """How much of the unit one step of a stored value is."""
    return (span.high - span.low) / ((1 << bits) - 1)


def quantize(values: npt.NDArray[np.floating], span: Range, bits: int, unit: str) -> Intensities:
    """Values in a unit → an image that is linear over ``span``, clipped at its ends."""
    return Intensities(quantized(values.astype(np.float64), span, bits), step_of(span, bits), span.low, unit)


def padding_range(stored: Stored, header: FrameHeader) -> tuple[int, int] | None:
    """The stored values that are padding, not image, both ends included; None where there are none (PS3.3 C.7.5.1.1.2).

    A padding value is believed by its bits: some write it with the wrong sign.
    """
    first = header.number("PixelPaddingValue")
    if first is None or stored.dtype.kind not in "iu":
        return None
    last = header.number("PixelPaddingRangeLimit")
    info = np.iinfo(stored.dtype)
    low, high = sorted(_wrap(value, info) for value in (first, first if last is None else last))
    return low, high


def padded(function: Callable[[Values], Pixels], padding: tuple[int, int] | None) -> Callable[[Values], Pixels]:
    """``function``, but 0 for the stored values that are padding."""
    if padding is None:
        return function
    low, high = padding

    def padding_is_dark(stored: Values) -> Pixels:
        pixels = function(stored)
        pixels[(stored >= low) & (stored <= high)] = 0
        return pixels

    return padding_is_dark


def _wrap(value: float, info: np.iinfo[Any]) -> int:
    number = int(value)
    if info.min <= number <= info.max:
        return number
    span = 1 << info.bits
    number %= span
    return number - span if number > info.max else number


def histogram(stored: npt.NDArray[np.generic], padding: tuple[int, int] | None = None) -> Histogram:
    """The histogram of one frame's stored values; of images with very many different ones, of a regular sample.

    Pixels within ``padding`` are not counted, and neither is what is not a finite number.
    """
    flat = stored.reshape(-1)
    if flat.dtype in (np.int16, np.uint16) and 0 < flat.size <= EXACT_COUNTS:
        distinct, counts = _counted(np.ascontiguousarray(stored.reshape(len(stored), -1)))
    elif flat.size and flat.dtype.kind in "iu" and flat.dtype.itemsize <= 2:
        start = int(flat.min())
        counts = np.bincount(np.subtract(flat, start, dtype=np.intp))
        distinct = np.flatnonzero(counts)
        counts, distinct = counts[distinct], distinct + start
    else:
        distinct, counts = np.unique(flat, return_counts=True)
        if distinct.size > MAX_FLOAT_VALUES:
            distinct, counts = np.unique(flat[:: -(-flat.size // MAX_FLOAT_VALUES)], return_counts=True)
    kept = np.isfinite(distinct)
    if padding is not None:
        kept &= (distinct < padding[0]) | (distinct > padding[1])
    return Histogram(distinct[kept].astype(flat.dtype), counts[kept].astype(np.uint32))


def _counted(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.integer], npt.NDArray[Any]]:
    """Distinct 16-bit values ``[rows, columns]`` in ascending order, and how often each occurs.

    OpenCV counts faster than numpy, but row by row: of a single column it would make as many rows.
    """
    shift = 1 << 15 if values.dtype.kind == "i" else 0
    places = values.view(np.uint16) ^ np.uint16(shift) if shift else values
    low, high = int(places.min()), int(places.max())
    counts = cv2.calcHist([places], [0], None, [high - low + 1], [low, high + 1]).ravel()
    distinct = np.flatnonzero(counts)
    return distinct + (low - shift), counts[distinct]


def frame_histogram(stored: Stored, header: FrameHeader, modality: str = "") -> Histogram:
    """What one frame adds to the histogram of its series: its values in modality units, padding left out."""
    padding = padding_range(stored, header)
    # in an image without negative values, 0 is as often plain black as it is padding
    found = histogram(stored, None if padding == (0, 0) and stored.dtype.kind == "u" else padding)
    return Histogram(found.values, found.counts, modality_lut(header, modality))


def robust_range(histograms: Sequence[Histogram]) -> Range | None:
    """The 0.1 and 99.9 percentiles over a series; None when all its values are equal. Order does not matter."""
    ends = [
        (float(values.min()), float(values.max()), int(counts.sum(dtype=np.int64)))
        for values, counts in (item.in_units() for item in histograms)
        if values.size
    ]
    if not ends:
        return None
    extremes = Range(min(low for low, _, _ in ends), max(high for _, high, _ in ends))
    if not _has_steps(extremes):
        return None
    total = sum(count for _, _, count in ends)
    first, last = (max(math.ceil(total * (share / 100)) - 1, 0) for share in (LOW_PERCENTILE, HIGH_PERCENTILE))
    low, high = _values_at(histograms, (first, last), extremes)
    if low >= high:  # nearly all values are one: the extremes are then what there is to see
        return extremes
    return Range(low, high) if _has_steps(Range(low, high)) else None


def _has_steps(span: Range) -> bool:
    """Whether the 65,535 parts of a range are numbers."""
    return bool(np.finfo(np.float64).tiny < (span.high - span.low) / 65535 < np.inf)


def _values_at(histograms: Sequence[Histogram], ranks: tuple[int, int], extremes: Range) -> list[float]:
    """The values of two ranks, from 0, among all: exact, in two passes that hold one frame at a time.

    The first counts in equal bins, the second sorts what is in the bin that a rank is in.
    """

    def bins(values: Values) -> npt.NDArray[np.int64]:
        place = (values - extremes.low) / (extremes.high - extremes.low) * (RANGE_BINS - 1)
        return np.clip(place, 0, RANGE_BINS - 1).astype(np.int64)

    coarse = np.zeros(RANGE_BINS, np.int64)
    for item in histograms:
        values, counts = item.in_units()
        # sums of counts in double precision are exact up to 2^53 pixels
        coarse += np.bincount(bins(values), counts, minlength=RANGE_BINS).astype(np.int64)
    cumulative = np.cumsum(coarse)
    wanted = [int(np.searchsorted(cumulative, rank, side="right")) for rank in ranks]
    inside: list[list[tuple[Values, npt.NDArray[np.integer]]]] = [[] for _ in ranks]
    for item in histograms:
        values, counts = item.in_units()
        places = bins(values)
        for found, place in zip(inside, wanted, strict=True):
            here = places == place
            found.append((values[here], counts[here]))
    at = []
    for rank, place, found in zip(ranks, wanted, inside, strict=True):
        values = np.concatenate([values for values, _ in found])
        counts = np.concatenate([counts for _, counts in found]).astype(np.int64)
        order = np.argsort(values, kind="stable")
        below = int(cumulative[place] - coarse[place])
        at.append(float(values[order][np.searchsorted(below + np.cumsum(counts[order]), rank, side="right")]))
    return at
