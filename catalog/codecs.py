"""Image codecs of the shards: pixels ↔ bytes, lossless, the same bytes for the same pixels.

``jhc`` is a codestream of High-Throughput JPEG 2000 (ISO/IEC 15444-15), reversible, named by its file name extension.
docs/benchmarks.md says why it is the default.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

Codec = Literal["jhc", "png"]
CODECS: tuple[Codec, ...] = get_args(Codec)
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""``uint8 | uint16 [rows, columns]`` grey, or ``uint8 [rows, columns, 3]`` RGB."""

PNG_LEVEL = 1
START_OF_CODESTREAM, COMMENT, START_OF_TILE = b"\xff\x4f", b"\xff\x64", b"\xff\x90"
CHECKSUM = b"\xff\x64\x00\x13\x00\x01CRC-32 "
"""A comment segment of 15 characters of text (ISO/IEC 15444-1 A.9.2) as it begins; eight hex digits follow."""
HEADER_BYTES = 512


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """Encode an image losslessly.

    ``pixels``: ``uint8`` or ``uint16 [rows, columns]``, or ``uint8 [rows, columns, 3]`` RGB.
    """
    if codec == "png":
        image = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
        done, buffer = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
        if not done:
            raise ValueError("PNG encoder refused the image")
        return bytes(buffer)
    import imagecodecs

    native = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    return _with_checksum(bytes(imagecodecs.htj2k_encode(native, reversible=True)))


def decode(data: bytes | memoryview, codec: str, out: Pixels | None = None) -> Pixels:
    """Decode an image of a shard to what :func:`encode` was given. Other threads run meanwhile.

    ``out``: a contiguous array of the image's very shape and type, in which a codec that can puts the pixels; what is
    returned is then ``out``. Raises ``ValueError`` when the bytes are not an image of that codec, or are damaged.
    """
    if codec == "png":
        # OpenCV answers no bytes with an error of its own
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if len(data) else None
        if image is None:
            raise ValueError("not a readable PNG")
        pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image
        return pixels
    if codec == "jhc":
        import imagecodecs

        # a decoder that is given a damaged codestream may answer with other pixels, or not at all
        if not _is_whole(data):
            raise ValueError("not a whole HTJ2K codestream of lumid's")
        try:
            decoded: Pixels = imagecodecs.htj2k_decode(bytes(data), out=out)
        except Exception as error:
            raise ValueError("not a readable HTJ2K codestream") from error
        return decoded
    raise ValueError(f"unknown codec {codec!r}; known are {', '.join(CODECS)}")


def _with_checksum(codestream: bytes) -> bytes:
    """The codestream with a comment that holds the CRC-32 of all else, in place of the encoder's name and version.

    A decoder skips comments. Without that version two encoders whose codes are the same give the same bytes.
    """
    header, tiles = b"", len(START_OF_CODESTREAM)
    for begin, end in _segments(codestream):
        tiles = end
        if codestream[begin : begin + 2] != COMMENT:
            header += codestream[begin:end]
    before, after = START_OF_CODESTREAM + header, memoryview(codestream)[tiles:]
    return b"".join((before, CHECKSUM, b"%08x" % zlib.crc32(after, zlib.crc32(before)), after))


def _segments(codestream: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of each marker segment of the main header, up to the first tile (ISO/IEC 15444-1 A.3)."""
    at = len(START_OF_CODESTREAM)
    while codestream[at : at + 2] != START_OF_TILE:
        end = at + 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
        yield at, end
        at = end


def _is_whole(data: bytes | memoryview) -> bool:
    at = bytes(data[:HEADER_BYTES]).find(CHECKSUM)
    if at < 0:
        return False
    view, end = memoryview(data), at + len(CHECKSUM) + 8
    return bytes(view[end - 8 : end]) == b"%08x" % zlib.crc32(view[end:], zlib.crc32(view[:at]))


def pixel_hash(pixels: Pixels) -> str:
    """SHA-256 of the decoded image: type, shape and little-endian values, whatever the codec."""
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    digest = hashlib.sha256(f"{pixels.dtype.name}{pixels.shape}".encode())
    digest.update(little.data)
    return digest.hexdigest()
