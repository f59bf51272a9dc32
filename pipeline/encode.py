"""Intensities → the bytes that a shard holds: resized, then encoded losslessly."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from lumid.catalog.codecs import Codec, Pixels, encode, pixel_hash

LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image and the hashes that the catalog keeps of it."""

    data: bytes
    codec: Codec
    sha256: str
    pixel_hash: str


def resize(pixels: Pixels, long_side: int | Literal["native"]) -> Pixels:
    """Shrink an image so that its long side is ``long_side`` at most, by pixel area, aspect kept; never enlarge.

    ``uint8 | uint16 [rows, columns]`` or ``uint8 [rows, columns, 3]`` in and out. A short side is one pixel at least.
    """
    rows, columns = pixels.shape[:2]
    if long_side == "native" or max(rows, columns) <= long_side:
        return pixels
    scale = long_side / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    # what is large OpenCV does fast only where every new pixel is made of whole ones
    if rows * columns < LARGE or (rows % height == 0 and columns % width == 0):
        return cast(Pixels, cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA))
    sums = _area_sums(pixels.reshape(rows, -1), height)
    across = np.ascontiguousarray(sums.reshape(height, columns, -1).transpose(1, 0, 2)).reshape(columns, -1)
    means = _area_sums(across, width).reshape(width, height, -1).transpose(1, 0, 2)
    means = means / (rows // math.gcd(rows, height) * (columns // math.gcd(columns, width)))
    return np.ascontiguousarray(np.rint(means).astype(pixels.dtype)).reshape(height, width, *pixels.shape[2:])


def _area_sums(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.float64]:
    """Rows ``[n, m]`` summed into ``[size, m]``, each by how much of it lies in the area of a new one.

    Lengths are counted in the greatest unit that both kinds of rows are whole numbers of, so that all sums are whole
    numbers that double precision holds exactly: the same on every machine, in whatever order they are added.
    """
    shares = _area_shares(len(values), size)
    sums = np.empty((size, values.shape[1]), np.float64)
    rows = np.empty((max(len(weights) for _, weights in shares), values.shape[1]), np.float64)
    for (first, weights), into in zip(shares, sums, strict=True):
        there = rows[: len(weights)]
        np.copyto(there, values[first : first + len(weights)])
        np.dot(weights, there, out=into)
    return sums


@lru_cache(maxsize=64)
def _area_shares(count: int, size: int) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """For each of ``size`` rows that take the place of ``count``: the first of those, and how much of each from there on."""
    unit = math.gcd(count, size)
    new, old = count // unit, size // unit  # the length of a new row, and of an old one
    ends = np.arange(count + 1) * old
    shares = []
    for begin in range(0, size * new, new):
        first, last = begin // old, -(-(begin + new) // old)
        shares.append((first, np.diff(np.clip(ends[first : last + 1], begin, begin + new)).astype(np.float64)))
    return shares


def encode_image(pixels: Pixels, codec: Codec) -> Encoded:
    """The image as bytes, with both hashes."""
    data = encode(pixels, codec)
    return Encoded(data, codec, hashlib.sha256(data).hexdigest(), pixel_hash(pixels))
