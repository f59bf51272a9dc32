"""Which decoder reads which codestream: the fastest that is correct, by measurement (``benchmarks/decode.py``).

One decoder a syntax, always the same, so that a frame's values do not depend on what else is installed. They are called
without pydicom's decoders between, which cost more than some of the codecs do and hold what they think of a frame in
warnings. Chosen are those that broken input did not crash, once the codestream's header has been held against the data
set's (absurd sizes keep some codecs busy for long), and of them those that refuse more of what is damaged.
"""

from __future__ import annotations

import itertools
import struct
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from lumid.pipeline.codestream import Codestream

JPEG_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
HTJ2K_SYNTAXES = (HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
JPEG_2000_SYNTAXES = (JPEG2000, JPEG2000Lossless, *HTJ2K_SYNTAXES)
ENCAPSULATED: tuple[UID, ...] = (RLELossless, *JPEG_SYNTAXES, *JPEG_2000_SYNTAXES)
"""The compressed transfer syntaxes that are read."""

LOSSY_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
"""Syntaxes whose every frame may differ from what was encoded; those of JPEG 2000 say so themselves."""

END_OF_IMAGE = b"\xff\xd9"
Array = npt.NDArray[Any]


def decode_jpeg(data: bytes, stream: Codestream, model: Literal["RGB", "YBR"]) -> Array:
    """A JPEG or JPEG-LS frame: ``[rows, columns]`` or ``[rows, columns, 3]``, unsigned, of 8 or 16 bits.

    ``model``: of a lossy JPEG's components, which are converted to RGB; components of the others come as they are.
    Raises what the codec raises, and ``ValueError`` for a lossy stream that libjpeg has to make up for.
    """
    if stream.family == "jpeg_ls":
        pixels: Array = imagecodecs.jpegls_decode(data)
        return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 and pixels.shape[0] == 3 != pixels.shape[-1] else pixels
    if stream.family == "dct" and stream.precision == 8:
        return _decode_8_bits(data, stream, model)
    if stream.samples == 1:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    space = "YCbCr" if stream.family == "dct" and model == "YBR" else "RGB"
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace="RGB"))


def _decode_8_bits(data: bytes, stream: Codestream, model: Literal["RGB", "YBR"]) -> Array:
    """Baseline JPEG through a libjpeg that tells what it had to make up: a cut or damaged stream is refused."""
    if stream.samples == 1:
        return _strictly(data, "GRAY")[..., 0]
    return _strictly(data if stream.model == model == "YBR" else _marked(data, model), "RGB")


def _strictly(data: bytes, space: str) -> Array:
    """Decoded without a warning. Zeros between the image's data and its end, which some devices write, are left out.

    Other bytes there are what is left of data whose codes went astray: nearly always a wrong picture.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=space))
    except ValueError:
        end = data.rfind(END_OF_IMAGE)
        image = data[:end].rstrip(b"\0")
        if end < 0 or len(image) == end:
            raise
    return np.asarray(simplejpeg.decode_jpeg(image + END_OF_IMAGE, colorspace=space))


def _marked(data: bytes, model: Literal["RGB", "YBR"]) -> bytes:
    """The JPEG with an Adobe marker that names its colour model, and no JFIF or other Adobe marker to say otherwise.

    libjpeg has only such markers to go by, and takes what has none for YCbCr (libjpeg, jdapimin.c).
    """
    out = [b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00", b"\x01" if model == "YBR" else b"\x00"]
    at = 2
    while data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] not in (0xE0, 0xEE):
            out.append(data[at:end])
        at = end
    return b"".join([*out, data[at:]])


def decode_jpeg_2000(data: bytes) -> Array:
    """A JPEG 2000 frame: ``[rows, columns]`` or ``[rows, columns, 3]``, of its own sign, of 8, 16 or 32 bits.

    High-throughput frames too: OpenJPH takes half the time of OpenJPEG, but gives a wrong frame for more than twice as
    many damaged ones.
    """
    if END_OF_IMAGE not in data[-64:]:
        data += END_OF_IMAGE  # the decoder insists on the marker; the tiles are whole, which has been checked
    return np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))


def decode_rle(data: bytes, rows: int, columns: int, samples: int, itemsize: int) -> Array:
    """An RLE frame, ``[rows, columns]`` or ``[rows, columns, samples]``, unsigned (PS3.5 annex G).

    A frame is a segment for each byte of each sample, the most significant first. Raises ``ValueError`` when the
    segments are not those of such a frame, or do not hold it to its end.
    """
    count, *offsets = struct.unpack_from("<16I", data)
    segments = samples * itemsize
    offsets = [*offsets[:count], len(data)]
    if count != segments or offsets[0] < 64 or any(b <= a for a, b in itertools.pairwise(offsets)):
        raise ValueError("RLE segments")
    size = rows * columns
    planes = np.empty((samples, size, itemsize), np.uint8)
    buffer = bytearray(size + 128)  # padding decodes to a few bytes more
    for number in range(segments):
        segment = data[offsets[number] : offsets[number + 1]]
        try:
            done = len(imagecodecs.packbits_decode(segment, out=buffer))
        except RuntimeError:  # a byte of padding that is not zero begins a run that is not there
            done = len(imagecodecs.packbits_decode(segment[:-1], out=buffer))
        if done < size:
            raise ValueError("RLE segment ends early")
        planes[number // itemsize, :, itemsize - 1 - number % itemsize] = np.frombuffer(buffer, np.uint8, size)
    values = planes.view(f"<u{itemsize}")[..., 0].reshape(samples, rows, columns)
    return values[0] if samples == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))
