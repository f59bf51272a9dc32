"""Intensities → the bytes that a shard holds: resized, then encoded losslessly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, cast

import cv2
import numpy as np

from lumid.catalog.codecs import Codec, Pixels, encode, pixel_hash


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
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return cast(Pixels, cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA))


def encode_image(pixels: Pixels, codec: Codec) -> Encoded:
    """The image as bytes, with both hashes."""
    data = encode(pixels, codec)
    return Encoded(data, codec, hashlib.sha256(data).hexdigest(), pixel_hash(pixels))
