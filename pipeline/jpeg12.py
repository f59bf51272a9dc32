"""A pydicom decoder plug-in for 12-bit JPEG Extended, which pydicom's permissively licensed plug-ins do not read.

Decodes with libjpeg-turbo through imagecodecs. The module's names are those that pydicom asks a plug-in for
(``Decoder.add_plugin``).
"""

from __future__ import annotations

from functools import cache

import imagecodecs
import numpy as np
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

PLUGIN = "imagecodecs"
DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("imagecodecs",)}


def is_available(uid: UID) -> bool:
    """Whether the transfer syntax is the one this plug-in reads."""
    return uid in DECODER_DEPENDENCIES


def _decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """One encoded frame → its pixels, little endian, 16 bits where the stream has more than 8."""
    pixels = imagecodecs.jpeg8_decode(src)
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)).tobytes()


@cache
def register() -> None:
    """Add the plug-in to pydicom's decoder of JPEG Extended, once a process."""
    decoder = get_decoder(JPEGExtended12Bit)
    if PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(PLUGIN, (__name__, "_decode_frame"))
