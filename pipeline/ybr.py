"""Luminance and colour differences → RGB, by the equations of PS3.3 C.7.6.3.1.2."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
HALF = 1 << 15


def ybr_to_rgb(pixels: Array, *, partial: bool) -> Array:
    """YCbCr ``[rows, columns, 3]``, unsigned of 8 or 16 bits, as RGB of the same type.

    ``partial``: of CCIR 601's studio range, 16 to 235 and 240, which YBR_PARTIAL means. Raises ``ValueError`` for other
    types.
    """
    if pixels.dtype == np.uint8:
        return _by_tables(pixels, partial)
    if pixels.dtype != np.uint16:
        raise ValueError("colour differences of other than 8 or 16 bits")
    scale = 257.0
    luma, (red, green_cb, green_cr, blue) = _factors(partial)
    y = (pixels[..., 0].astype(np.float32) - (16 * scale if partial else 0)) * np.float32(luma)
    cb = pixels[..., 1].astype(np.float32) - np.float32(32768)
    cr = pixels[..., 2].astype(np.float32) - np.float32(32768)
    channels = (y + red * cr, y - green_cb * cb - green_cr * cr, y + blue * cb)
    return np.stack([np.clip(np.rint(one), 0, 65535).astype(np.uint16) for one in channels], axis=-1)


def _factors(partial: bool) -> tuple[float, tuple[float, float, float, float]]:
    """Of luma, and of the differences in red, green (twice) and blue (ITU-R BT.601)."""
    full = (1.402, 0.344136286, 0.714136286, 1.772)
    if not partial:
        return 1.0, full
    red, green_cb, green_cr, blue = (one * 255 / 224 for one in full)
    return 255 / 219, (red, green_cb, green_cr, blue)


@cache
def _tables(partial: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Each term for each of 256 values, in 16 fractional bits; rounding is in that of luma."""
    luma, (red, green_cb, green_cr, blue) = _factors(partial)
    values = np.arange(256, dtype=np.float64)
    terms = (
        (values - (16 if partial else 0)) * luma + 0.5,
        (values - 128) * red,
        (values - 128) * -green_cb,
        (values - 128) * -green_cr,
        (values - 128) * blue,
    )
    y, cr_red, cb_green, cr_green, cb_blue = (np.rint(one * 2 * HALF).astype(np.int32) for one in terms)
    return y, cr_red, cb_green, cr_green, cb_blue


def _by_tables(pixels: Array, partial: bool) -> Array:
    y_table, cr_red, cb_green, cr_green, cb_blue = _tables(partial)
    y, cb, cr = y_table[pixels[..., 0]], pixels[..., 1], pixels[..., 2]
    rgb = np.empty(pixels.shape, np.uint8)
    for channel, value in enumerate((y + cr_red[cr], y + cb_green[cb] + cr_green[cr], y + cb_blue[cb])):
        rgb[..., channel] = np.clip(value >> 16, 0, 255)
    return rgb
