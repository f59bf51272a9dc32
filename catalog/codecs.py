"""Image codecs of the shards: pixels ↔ bytes, lossless, the same bytes for the same pixels."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

Codec = Literal["png", "jxl"]
CODECS: tuple[Codec, ...] = get_args(Codec)
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""``uint8 | uint16 [rows, columns]`` grey, or ``uint8 [rows, columns, 3]`` RGB."""


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """Encode an image losslessly.

    ``pixels``: ``uint8`` or ``uint16 [rows, columns]``, or ``uint8 [rows, columns, 3]`` RGB.
    """
    if codec == "png":
        image = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
        done, buffer = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise ValueError("PNG encoder refused the image")
        return bytes(buffer)
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(pixels, level=100, effort=1, lossless=True, numthreads=1))


def decode(data: bytes | memoryview, codec: str) -> Pixels:
    """Decode an image of a shard to what :func:`encode` was given.

    Raises ``ValueError`` when the bytes are not an image of that codec.
    """
    if codec == "png":
        # OpenCV answers no bytes with an error of its own
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if len(data) else None
        if image is None:
            raise ValueError("not a readable PNG")
        pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image
        return pixels
    if codec == "jxl":
        import imagecodecs

        try:
            decoded: Pixels = imagecodecs.jpegxl_decode(bytes(data), numthreads=1)
        except Exception as error:
            raise ValueError("not a readable JPEG XL image") from error
        return decoded
    raise ValueError(f"unknown codec {codec!r}; known are {', '.join(CODECS)}")


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 of the decoded image: type, shape and little-endian values, whatever the codec."""
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    digest = hashlib.sha256(f"{pixels.dtype.name}{pixels.shape}".encode())
    digest.update(little.data)
    return digest.hexdigest()
