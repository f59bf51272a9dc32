"""NIfTI-2 headers as NIfTI-1 headers, which is what ITK reads: the same fields, in smaller types (nifti1.h, nifti2.h)."""

from __future__ import annotations

import struct

LARGEST_DIMENSION = (1 << 15) - 1
FIRST_OFFSET = 352
"""Where the voxels of a NIfTI-1 file begin that has no extensions."""


def is_second_version(head: bytes) -> bool:
    """Whether a file's beginning is that of a NIfTI-2 file with its voxels in it."""
    return head[4:8] == b"n+2\0"


def first_version(head: bytes) -> bytes | None:
    """The 352 bytes before the voxels of a NIfTI-1 file for the header of a NIfTI-2 file, in the same byte order.

    ``head``: at least 540 bytes. The scale is left out, and so are extensions and what is for display only. None where a
    dimension is beyond what NIfTI-1 has a place for.
    """
    order = "<" if head[:4] == b"\x1c\x02\0\0" else ">"
    kind, bits = struct.unpack_from(order + "hh", head, 12)
    dimensions = struct.unpack_from(order + "8q", head, 16)
    if not all(-LARGEST_DIMENSION <= one <= LARGEST_DIMENSION for one in dimensions):
        return None
    spacing = struct.unpack_from(order + "8d", head, 104)
    forms = struct.unpack_from(order + "ii", head, 344)
    places = struct.unpack_from(order + "18d", head, 352)  # quaternion, its offset, and the three rows of the affine
    (units,) = struct.unpack_from(order + "i", head, 500)
    first = bytearray(FIRST_OFFSET)
    try:
        struct.pack_into(order + "i", first, 0, 348)
        struct.pack_into(order + "8h", first, 40, *dimensions)
        struct.pack_into(order + "hh", first, 70, kind, bits)
        struct.pack_into(order + "8f", first, 76, *spacing)
        struct.pack_into(order + "f", first, 108, float(FIRST_OFFSET))
        struct.pack_into(order + "B", first, 123, units & 0xFF)
        struct.pack_into(order + "hh18f", first, 252, *(max(-1, min(form, 99)) for form in forms), *places)
    except OverflowError:  # a length that is no number of single precision
        return None
    first[39] = head[524]  # which axes are frequency, phase and slice
    first[344:348] = b"n+1\0"
    return bytes(first)
