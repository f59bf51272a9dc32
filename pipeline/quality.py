"""Numbers that say how much is in an image, computed from the stored pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from lumid.catalog.codecs import Pixels

BACKGROUND_SHARE = 0.05
PERCENTILES = (1.0, 50.0, 99.0, 99.9)
HISTOGRAM_VALUES = 1 << 13
"""Up to as many values, as CT has, OpenCV counts faster than numpy."""
EXACT_COUNTS = 1 << 24
"""OpenCV's counts are single-precision numbers, which are exact up to here."""
SIGMAS_OF_A_MEDIAN = 1.482602
"""A normal distribution's standard deviation over its median absolute deviation."""
NOISE_GAIN = 6.0
"""What the diagonal differences make of uncorrelated noise: the square root of the sum of their squared weights."""
NOISE_SAMPLES = 8_192
HASH_SIDE, HASH_BITS = 32, 8


@dataclass(frozen=True, slots=True)
class Quality:
    """Percentiles and noise in stored values, and the other quality columns of the catalog."""

    p01: float
    p50: float
    p99: float
    foreground_fraction: float
    sharpness: float
    noise: float
    constant: bool


def measure(pixels: Pixels, floor: float = 0.0) -> Quality:
    """The quality of a stored image, ``uint8 | uint16 [rows, columns]`` or ``uint8 [rows, columns, 3]``.

    Foreground is what lies more than 5 % of the way from the darkest value to the 99.9th percentile, and above
    ``floor``, the stored value that nothing but background is below. Sharpness is the variance of the 4-neighbour
    Laplacian over the image's own, so that it does not depend on brightness or contrast. ``noise``: see :func:`noise_of`.
    """
    grey = _grey(pixels)
    darkest, brightest, _, _ = cv2.minMaxLoc(grey)
    p01, p50, p99, top = _percentiles(grey, int(brightest))
    if darkest == brightest:
        return Quality(p01, p50, p99, 0.0, 0.0, 0.0, constant=True)
    threshold = max(darkest + BACKGROUND_SHARE * (top - darkest), floor)
    foreground = _count_from(grey, math.floor(threshold) + 1)
    values = grey.astype(np.float32)
    return Quality(
        p01=p01,
        p50=p50,
        p99=p99,
        foreground_fraction=round(foreground / grey.size, 6),
        sharpness=round(_variance(cv2.Laplacian(values, cv2.CV_32F)) / _variance(values), 6),
        noise=round(noise_of(values, threshold if foreground else -1.0), 4),
        constant=False,
    )


def _variance(values: npt.NDArray[Any]) -> float:
    """The variance of whole numbers. OpenCV's own takes five times as long; sums of both kinds are in double precision."""
    mean = cv2.sumElems(values)[0] / values.size
    return float(cv2.norm(values, cv2.NORM_L2SQR)) / values.size - mean * mean


def _grey(pixels: Pixels) -> Pixels:
    return cast(Pixels, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)) if pixels.ndim == 3 else pixels


def _percentiles(grey: Pixels, brightest: int) -> list[float]:
    """The values at :data:`PERCENTILES`, each one that occurs: the lower where a percentile lies between two."""
    ranks = [int(percent / 100 * (grey.size - 1)) for percent in PERCENTILES]
    if brightest < HISTOGRAM_VALUES and grey.size <= EXACT_COUNTS:
        counts = cv2.calcHist([grey], [0], None, [brightest + 1], [0, brightest + 1]).ravel()
    else:
        counts = np.bincount(grey.ravel())
    return [float(value) for value in np.searchsorted(np.cumsum(counts, dtype=np.int64), ranks, side="right")]


def _count_from(pixels: Pixels, value: int) -> int:
    """How many pixels are of ``value`` or brighter; compared as they are, for as floats it takes four times as long."""
    if value > np.iinfo(pixels.dtype).max:
        return 0
    return int(np.count_nonzero(pixels >= pixels.dtype.type(max(value, 0))))


def noise_of(values: npt.NDArray[np.float32], threshold: float) -> float:
    """Standard deviation of uncorrelated noise in an image ``[rows, columns]``, where it is brighter than ``threshold``.

    The image is filtered with the difference of two Laplacians (Immerkær, Fast Noise Variance Estimation, 1996), to
    which planes, and edges along rows and columns, are nothing; of what is left, the median counts, so that other edges
    do not: the median absolute deviation, 1.48 of which are a normal distribution's standard deviation.
    """
    rows, columns = values.shape
    if rows < 3 or columns < 3:
        return 0.0
    second = np.array([1, -2, 1], np.float32)
    # a regular sample of the image, closer along rows, where it costs nothing
    down = 1 + values.size // NOISE_SAMPLES // 4
    along = max(values.size // NOISE_SAMPLES // down, 1)
    differences = cv2.sepFilter2D(values, cv2.CV_32F, second, second)[1:-1:down, 1:-1:along]
    told = np.abs(differences[values[1:-1:down, 1:-1:along] > threshold])
    if told.size == 0:
        return 0.0
    middle = told.size // 2
    return float(np.partition(told, middle)[middle]) * SIGMAS_OF_A_MEDIAN / NOISE_GAIN


def clipped_fraction(pixels: Pixels, top: float) -> float:
    """Share of an image's pixels at ``top`` or above it, the stored value of the brightest intensity there can be.

    Measured before resizing, which would mix them with their neighbours. The dark end is not counted: there lies the
    background of nearly every image, clipped or not.
    """
    if pixels.size and pixels.max() < top:
        return 0.0
    return round(_count_from(pixels, math.ceil(top)) / pixels.size, 6)


def perceptual_hash(pixels: Pixels) -> int:
    """64 bits that hardly change when an image does: which of its slow cosines are larger than their median.

    The image is shrunk to 32 × 32, and of its discrete cosine transform the 8 × 8 lowest frequencies are taken but the
    constant ones (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010).
    """
    small = cv2.resize(_grey(pixels), (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    slow = cv2.dct(small)[1 : HASH_BITS + 1, 1 : HASH_BITS + 1]
    ordered = np.sort(slow, axis=None)
    bits = np.packbits(slow > (ordered[31] + ordered[32]) / 2)  # their median, as numpy has it
    return int.from_bytes(bits.tobytes(), "big")
