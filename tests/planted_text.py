"""Text drawn into real images, for tests and for `benchmarks/text.py`, which say how much of it is found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lumid.catalog.codecs import Pixels

Alpha = npt.NDArray[np.float64]
Ink = npt.NDArray[np.bool_]

POLARITIES = ("white", "black", "grey", "outlined", "boxed", "low")


@dataclass(frozen=True, slots=True)
class Planted:
    """An image with text in it, and which pixels are the text's."""

    pixels: Pixels
    ink: Ink


def drawn(text: str, font: str, height: int, *, smooth: bool = True, turned: int = 0) -> Alpha:
    """Coverage of the text, 0 to 1 ``[rows, columns]``, cut to its ink; capitals about ``height`` pixels high.

    ``font``: ``hershey`` (OpenCV's), ``bitmap`` and ``sans`` (Pillow's own), or a font file. ``turned``: quarter turns.
    """
    if font == "hershey":
        alpha = _hershey(text, height, smooth)
    elif font == "bitmap":
        alpha = _with_font(text, ImageFont.load_default_imagefont(), smooth=False)
        alpha = np.kron(alpha, np.ones((max(1, height // 8),) * 2))
    else:
        alpha = _with_font(text, _sized(font, height), smooth)
    rows, columns = np.nonzero(alpha > 0.3)
    return np.rot90(alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], turned)


def _hershey(text: str, height: int, smooth: bool) -> Alpha:
    thickness = 1 if height < 20 else 2
    (width, above), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, height / 21, thickness)
    canvas = np.zeros((above + below + 12, width + 12), np.uint8)
    kind = cv2.LINE_AA if smooth else cv2.LINE_8
    cv2.putText(canvas, text, (6, above + 4), cv2.FONT_HERSHEY_SIMPLEX, height / 21, 255, thickness, kind)
    return canvas / 255


def _with_font(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, smooth: bool) -> Alpha:
    right, bottom = font.getbbox(text)[2:]
    canvas = Image.new("L", (int(right) + 8, int(bottom) + 8))
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "L" if smooth else "1"
    draw.text((3, 3), text, 255, font=font)
    return np.asarray(canvas) / 255


@cache
def _sized(font: str, height: int) -> ImageFont.FreeTypeFont:
    """The smallest size whose capitals are so high, or the only one that a bitmap font has."""
    for size in range(5, 150):
        try:
            found = ImageFont.load_default(size) if font == "sans" else ImageFont.truetype(font, size)
        except OSError:  # a bitmap font without this size
            continue
        box = found.getbbox("H")
        if box[3] - box[1] >= height:
            break
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def plant(
    pixels: Pixels, alpha: Alpha, top: int, left: int, polarity: str, colour: float | tuple[int, int, int] | None = None
) -> Planted:
    """The image with the text at a place. ``low``: 15 % of the image's contrast away from what is around it."""
    out = pixels.astype(np.float64)
    rows, columns = alpha.shape
    there = np.s_[top : top + rows, left : left + columns]
    low, high = (float(value) for value in np.percentile(pixels, [1, 99]))
    darkest, brightest = float(pixels.min()), float(pixels.max())
    if high - low < (brightest - darkest) / 50:
        low, high = darkest, brightest
    value: float | tuple[int, int, int] = {"black": darkest, "grey": low + 0.6 * (high - low)}.get(polarity, brightest)
    if polarity == "low":
        around = float(np.median(out[there]))
        value = around + 0.15 * (high - low)
        value = around - 0.15 * (high - low) if value > brightest else value
    if polarity == "outlined":
        _blend(out, cv2.dilate(np.pad(alpha, 1), np.ones((3, 3))), top - 1, left - 1, darkest)
    if polarity == "boxed":
        out[max(0, top - 2) : top + rows + 2, max(0, left - 2) : left + columns + 2] = darkest
    _blend(out, alpha, top, left, value if colour is None else colour)
    ink = np.zeros(pixels.shape[:2], bool)
    ink[there] = alpha > 0.3
    limit = np.iinfo(pixels.dtype).max
    return Planted(np.clip(np.rint(out), 0, limit).astype(pixels.dtype), ink)


def _blend(
    out: npt.NDArray[np.float64], alpha: Alpha, top: int, left: int, value: float | tuple[int, int, int]
) -> None:
    alpha = alpha[max(0, -top) :, max(0, -left) :]
    part = out[max(0, top) : max(0, top) + alpha.shape[0], max(0, left) : max(0, left) + alpha.shape[1]]
    share = alpha[: part.shape[0], : part.shape[1]]
    share = share if out.ndim == 2 else share[..., None]
    part *= 1 - share
    part += share * np.asarray(value, np.float64)


def contrast(before: Pixels, planted: Planted) -> tuple[float, float]:
    """How far the text stands out: in shares of the image's range, and in standard deviations of what is around it."""
    rows, columns = np.nonzero(planted.ink)
    around = np.s_[max(0, rows.min() - 3) : rows.max() + 4, max(0, columns.min() - 3) : columns.max() + 4]
    grey = planted.pixels.astype(np.float64)
    grey = grey if grey.ndim == 2 else grey.max(axis=2)
    inside, outside = grey[around][planted.ink[around]], grey[around][~planted.ink[around]]
    low, high = np.percentile(before, [0.5, 99.5])
    apart = abs(float(np.median(inside)) - float(np.median(outside)))
    return apart / max(float(high - low), 1.0), apart / max(float(outside.std()), 1e-9)


def font_files(*names: str) -> dict[str, str]:
    """Those of the font files that Debian's packages have put on this machine, by their stem."""
    roots = [Path("/usr/share/fonts")]
    found = {path.stem: str(path) for root in roots if root.is_dir() for path in root.rglob("*.[ot]t[fcb]*")}
    return {name: found[name] for name in names if name in found}
