"""Frames of uncompressed pixel data: a view of the bytes wherever the bytes are the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import UID, ExplicitVRBigEndian

from lumid.pipeline.pixelformat import SUBSAMPLED, PixelFormat

Array = npt.NDArray[Any]


def frame_bits(form: PixelFormat, rows: int, columns: int) -> int:
    """How many bits a frame takes. Of two pixels of a row, subsampled colour holds four values, not six."""
    values = rows * columns * form.samples
    if form.photometric in SUBSAMPLED:
        values = rows * columns * 2
    return values * form.allocated


def whole_frames(length: int, form: PixelFormat, rows: int, columns: int) -> int:
    """How many whole frames so many bytes hold."""
    return length * 8 // frame_bits(form, rows, columns)


def native_frame(
    data: memoryview, index: int, form: PixelFormat, rows: int, columns: int, syntax: UID, *, words: bool
) -> Array:
    """One frame: ``[rows, columns]`` or ``[rows, columns, 3]``, in native byte order, of the type that is allocated.

    ``words``: the element is OW, so that big-endian bytes are swapped in pairs (PS3.5 A.3, D.3). Subsampled colour has
    its chroma repeated (PS3.3 C.7.6.3.1.2). The frame must be there; it may be a read-only view of ``data``.
    """
    bits = frame_bits(form, rows, columns)
    start = index * bits
    big = syntax == ExplicitVRBigEndian
    if form.allocated in (1, 12):
        return _packed(data, start, bits, form, big and words).reshape(rows, columns)
    at, size = start // 8, bits // 8
    if form.allocated == 8:
        values = _swapped(data, at, size) if big and words else np.frombuffer(data, np.uint8, size, at)
        values = values.view(np.int8) if form.signed else values
    else:
        letter = "f" if form.kind == "float" else "i" if form.signed else "u"
        kind = np.dtype(f"{'>' if big else '<'}{letter}{form.allocated // 8}")
        values = np.frombuffer(data, kind, size // kind.itemsize, at)
        if not kind.isnative:
            values = values.astype(kind.newbyteorder("="))
    if form.samples == 1:
        return values.reshape(rows, columns)
    if form.photometric in SUBSAMPLED:
        return _upsampled(values, rows, columns)
    if form.planar:
        return np.ascontiguousarray(values.reshape(3, rows, columns).transpose(1, 2, 0))
    return values.reshape(rows, columns, 3)


def _swapped(data: memoryview, at: int, size: int) -> Array:
    """Bytes that were written as big-endian words: each pair is the wrong way round, wherever a frame begins."""
    first, last = at & ~1, (at + size + 1) & ~1
    pairs = np.frombuffer(data[first:last], np.uint8)
    if pairs.size % 2:
        pairs = np.append(pairs, np.uint8(0))
    return pairs.reshape(-1, 2)[:, ::-1].reshape(-1)[at - first : at - first + size]


def _packed(data: memoryview, start: int, bits: int, form: PixelFormat, swap: bool) -> Array:
    """Values of 1 or 12 bits without gaps between them, the first in the lowest bits (PS3.5 8.1.1, annex D)."""
    at, end = start // 8, (start + bits + 7) // 8
    part = _swapped(data, at, end - at) if swap else np.frombuffer(data, np.uint8, end - at, at)
    if form.allocated == 1:
        return np.unpackbits(part, bitorder="little")[start % 8 :][:bits]
    ones = np.unpackbits(part, bitorder="little")[start % 8 :][:bits].reshape(-1, 12)
    values = np.packbits(np.pad(ones, ((0, 0), (0, 4))), axis=1, bitorder="little").view("<u2")[:, 0]
    return values.astype(np.int16 if form.signed else np.uint16)


def _upsampled(values: Array, rows: int, columns: int) -> Array:
    """Y1 Y2 Cb Cr of every two pixels → Y Cb Cr of each."""
    quads = values.reshape(-1, 4)
    pixels = np.empty((len(quads), 2, 3), values.dtype)
    pixels[:, 0, 0], pixels[:, 1, 0] = quads[:, 0], quads[:, 1]
    pixels[:, :, 1], pixels[:, :, 2] = quads[:, 2:3], quads[:, 3:4]
    return pixels.reshape(rows, columns, 3)
