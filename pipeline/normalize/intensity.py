"""What all modalities share: stored values → values in their unit → stored again, affinely, in 8 or 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.pixels.processing import apply_modality_lut

from lumid.catalog.codecs import Pixels
from lumid.pipeline.decode import FrameHeader, Stored

Values = npt.NDArray[np.float32]
LOW_PERCENTILE, HIGH_PERCENTILE = 0.1, 99.9
MAX_FLOAT_VALUES = 1 << 16


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
class Histogram:
    """Distinct values and how often each occurs: ``float64 [n]`` and ``int64 [n]``."""

    values: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


def quantize(values: npt.NDArray[np.floating], span: Range, bits: int, unit: str) -> Intensities:
    """Values in a unit → ``bits``-bit pixels that are linear over ``span``, clipped at its ends."""
    white = (1 << bits) - 1
    slope = (span.high - span.low) / white
    scaled = np.clip((values - np.float32(span.low)) * np.float32(1 / slope), 0, white)
    # a value that is not a number has no place on the scale: it is stored as the darkest
    np.nan_to_num(scaled, copy=False, nan=0.0)
    pixels = np.rint(scaled).astype(np.uint16 if bits == 16 else np.uint8)
    return Intensities(pixels, slope, span.low, unit)


def rescale(stored: Stored, header: FrameHeader) -> Values:
    """The modality LUT: stored values → modality units, ``float32 [rows, columns]`` (PS3.3 C.11.1).

    A LUT sequence where there is one, else slope and intercept, of the frame where it has its own.
    """
    if header.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, header.dataset), dtype=np.float32)
    slope, intercept = rescale_parameters(header)
    values = stored.astype(np.float32)
    if slope != 1.0:
        values *= np.float32(slope)
    if intercept != 0.0:
        values += np.float32(intercept)
    return values


def rescale_parameters(header: FrameHeader) -> tuple[float, float]:
    """Rescale slope and intercept of a frame; 1 and 0 where it states none (PS3.3 C.11.1.1.2)."""
    macro = "PixelValueTransformationSequence"
    slope, intercept = header.number("RescaleSlope", macro), header.number("RescaleIntercept", macro)
    return (slope if slope else 1.0), (intercept if intercept is not None else 0.0)


def padding_mask(stored: Stored, header: FrameHeader) -> npt.NDArray[np.bool_] | None:
    """Where pixels are padding, not image: PixelPaddingValue, or its range (PS3.3 C.7.5.1.1.2); None for nowhere."""
    first = header.number("PixelPaddingValue")
    if first is None or stored.dtype.kind not in "iu":
        return None
    last = header.number("PixelPaddingRangeLimit")
    info = np.iinfo(stored.dtype)
    # written with the wrong sign by some: the bits are what counts
    low, high = sorted(_wrap(value, info) for value in (first, first if last is None else last))
    if low == high == 0 and info.min == 0:
        return None  # "padding 0" on unsigned data is as often plain black; both end as the darkest value
    mask: npt.NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _wrap(value: float, info: np.iinfo[Any]) -> int:
    number = int(value)
    if info.min <= number <= info.max:
        return number
    span = 1 << info.bits
    number %= span
    return number - span if number > info.max else number


def histogram(values: npt.NDArray[np.generic]) -> Histogram:
    """The histogram of one frame's values; of floating-point images with many, a regular sample of them."""
    flat = values.reshape(-1)
    distinct, counts = np.unique(flat, return_counts=True)
    if distinct.size > MAX_FLOAT_VALUES:
        distinct, counts = np.unique(flat[:: -(-flat.size // MAX_FLOAT_VALUES)], return_counts=True)
    finite = np.isfinite(distinct)
    return Histogram(distinct[finite].astype(np.float64), counts[finite].astype(np.int64))


def robust_range(histograms: list[Histogram]) -> Range | None:
    """The 0.1 and 99.9 percentiles over a series; None when all its values are equal. Order does not matter."""
    if not histograms:
        return None
    values = np.concatenate([item.values for item in histograms])
    counts = np.concatenate([item.counts for item in histograms])
    if values.size == 0 or values.min() == values.max():
        return None
    order = np.argsort(values, kind="stable")
    values, cumulative = values[order], np.cumsum(counts[order])
    total = int(cumulative[-1])
    low = float(values[np.searchsorted(cumulative, total * LOW_PERCENTILE / 100, side="right")])
    last = min(int(np.searchsorted(cumulative, total * HIGH_PERCENTILE / 100, side="left")), values.size - 1)
    high = float(values[last])
    if low >= high:  # nearly all values are one: the extremes are then what there is to see
        low, high = float(values[0]), float(values[-1])
    return Range(low, high)
