"""Numbers that say how much is in an image, computed from the stored pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lumid.catalog.codecs import Pixels

BACKGROUND_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Quality:
    """Percentiles in stored values, and the quality columns of the catalog."""

    p01: float
    p50: float
    p99: float
    foreground_fraction: float
    sharpness: float
    constant: bool


def measure(pixels: Pixels) -> Quality:
    """The quality of a stored image, ``uint8 | uint16 [rows, columns]`` or ``uint8 [rows, columns, 3]``.

    Foreground is what lies more than 5 % of the way from the darkest value to the 99.9th percentile. Sharpness is the
    variance of the 4-neighbour Laplacian over the image's own, so that it does not depend on brightness or contrast.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    low = float(grey.min())
    p01, p50, p99, top = (float(value) for value in np.percentile(grey, [1, 50, 99, 99.9], method="lower"))
    constant = low == float(grey.max())
    threshold = low + BACKGROUND_SHARE * (top - low)
    foreground = float(np.count_nonzero(grey > threshold)) / grey.size if not constant else 0.0
    values = grey.astype(np.float32)
    variance = float(values.var(dtype=np.float64))
    laplacian = float(cv2.Laplacian(values, cv2.CV_32F).var(dtype=np.float64))
    sharpness = laplacian / variance if variance > 0 else 0.0
    return Quality(p01, p50, p99, round(foreground, 6), round(sharpness, 6), constant)
