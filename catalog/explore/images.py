"""The pictures of the page: thumbnails as JPEG, and slices as they are stored, for the browser to window."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from lumid.catalog.show import ImageRow, read_images, thumbnail

THUMBNAIL_SIZE = 192
THUMBNAIL_QUALITY = 85


def thumbnail_jpeg(root: Path, row: ImageRow, window: str | None = None, size: int = THUMBNAIL_SIZE) -> bytes:
    """A sample as a JPEG with a long side of ``size`` pixels; ``window`` matters for HU only.

    Raises :class:`DatasetError` when its shard cannot be read, :class:`UsageError` when there is no such window.
    """
    (pixels,) = read_images(root, [row])
    image = thumbnail(row, pixels, size, window)
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    )
    if not done:
        raise ValueError("JPEG encoder refused a thumbnail")
    return data.tobytes()


def stored_bytes(root: Path, row: ImageRow) -> bytes:
    """A sample's pixels as they are stored: ``uint8`` or little-endian ``uint16 [rows, columns]``, or RGB ``uint8``.

    Raises :class:`DatasetError` when its shard cannot be read.
    """
    (pixels,) = read_images(root, [row])
    if pixels.dtype.itemsize > 1 and sys.byteorder == "big":
        pixels = pixels.byteswap()
    return np.ascontiguousarray(pixels).tobytes()
