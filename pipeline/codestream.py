"""What an encoded frame says of itself: size, depth, sign, colour model, and whether it is whole.

The data set's header and the codestream are written by different hands. Where they disagree about the size, the frame
is refused; about the depth and colour model, the codestream describes its own content (PS3.5 8.2).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

Family = Literal["dct", "lossless_jpeg", "jpeg_ls", "jpeg_2000"]
JPEG_FAMILIES: dict[int, Family] = {
    0xC0: "dct", 0xC1: "dct", 0xC2: "dct", 0xC3: "lossless_jpeg", 0xF7: "jpeg_ls",
}  # fmt: skip
"""Start-of-frame markers of the processes that are read (ITU-T T.81 table B.1, T.87 C.1)."""

END_OF_IMAGE = b"\xff\xd9"
"""Neither JPEG's nor JPEG 2000's entropy-coded data can hold these two bytes: where they are, the image ends."""


@dataclass(frozen=True, slots=True)
class Codestream:
    """The header of one encoded frame.

    ``signed`` is None where the codestream has no place for a sign. ``model`` is the colour model that it names, or
    None; ``subsampled``: chroma has fewer samples than luma. ``transform``: JPEG 2000's component transform is on,
    so that what comes out is RGB. ``whole``: the data reach to the codestream's end. ``lossy``: values may differ
    from those that were encoded.
    """

    family: Family
    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None
    model: Literal["RGB", "YBR"] | None = None
    subsampled: bool = False
    transform: bool = False
    lossy: bool = False
    whole: bool = True


def read_codestream(data: bytes) -> Codestream | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream; None for what is none, or is broken before its data."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _read_jpeg(data)
        if data.startswith(b"\xff\x4f\xff\x51"):
            return _read_jpeg_2000(data)
    except (struct.error, IndexError):
        pass
    return None


def unboxed(data: bytes) -> bytes:
    """The codestream of a frame in JPEG 2000's file format, which DICOM does not allow and some write; else the frame."""
    if data[4:8] != b"jP  ":
        return data
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    return data[start:] if start > 0 else data


def _read_jpeg(data: bytes) -> Codestream | None:
    at, frame, kind = 2, 0, 0
    adobe: int | None = None
    jfif = False
    near = 0
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may precede any marker
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = at + 4
        if marker in JPEG_FAMILIES:
            frame, kind = body, marker
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None  # hierarchical or arithmetic coding: no decoder here reads it
        elif marker == 0xE0 and data[body : body + 4] == b"JFIF":
            jfif = True
        elif marker == 0xEE and data[body : body + 5] == b"Adobe" and length >= 12:
            adobe = data[at + 1 + length]  # the last byte of the segment, whatever its version's length
        elif marker == 0xDA:
            near = data[body + 1 + 2 * data[body]]
            break
        at += 2 + length
    if not frame:
        return None
    family = JPEG_FAMILIES[kind]
    precision, rows, columns, samples = struct.unpack_from(">BHHB", data, frame)
    components = [data[frame + 6 + 3 * number : frame + 9 + 3 * number] for number in range(samples)]
    names = bytes(one[0] for one in components)
    factors = {one[1] for one in components}
    model: Literal["RGB", "YBR"] | None = None
    if names in (b"RGB", b"rgb"):
        model = "RGB"
    elif adobe is not None:
        model = "YBR" if adobe else "RGB"
    elif jfif:
        model = "YBR"
    return Codestream(
        family, rows, columns, samples, precision,
        model=model if samples == 3 else None,
        subsampled=len(factors) > 1,
        lossy=family == "dct" or (family == "jpeg_ls" and near > 0),
        whole=data.rfind(END_OF_IMAGE, at) > 0,
    )  # fmt: skip


def _read_jpeg_2000(data: bytes) -> Codestream | None:
    """Main header (ITU-T T.800 A.5, A.6) and the chain of tile-parts, whose lengths tell whether all are there."""
    right, bottom, left, top = struct.unpack_from(">4I", data, 8)
    tile_columns, tile_rows, tile_left, tile_top = struct.unpack_from(">4I", data, 24)
    (samples,) = struct.unpack_from(">H", data, 40)
    depths = [data[42 + 3 * number] for number in range(samples)]
    steps = {data[43 + 3 * number : 45 + 3 * number] for number in range(samples)}
    if len(set(depths)) != 1 or left or top or tile_left or tile_top or not tile_rows or not tile_columns:
        return None
    tiles = -(-bottom // tile_rows) * -(-right // tile_columns)
    transform, reversible = False, False
    at = 2
    while (marker := data[at : at + 2]) != b"\xff\x90":
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == b"\xff\x52":
            transform, reversible = data[at + 8] == 1, data[at + 13] == 1
        at += 2 + length
    return Codestream(
        "jpeg_2000", bottom, right, samples, (depths[0] & 0x7F) + 1,
        signed=bool(depths[0] & 0x80),
        subsampled=steps != {b"\1\1"},
        transform=transform,
        lossy=not reversible,
        whole=_tiles_are_whole(data, at, tiles),
    )  # fmt: skip


def _tiles_are_whole(data: bytes, at: int, tiles: int) -> bool:
    """Whether a part of every tile is there, and every part to its end (ITU-T T.800 A.4.2)."""
    seen: set[int] = set()
    while data[at : at + 2] == b"\xff\x90":
        tile, length = struct.unpack_from(">HI", data, at + 4)
        seen.add(tile)
        if length == 0:  # the last tile-part: to the end of the codestream
            return len(seen) == tiles and data.rfind(END_OF_IMAGE, at) > 0
        if length < 14:
            return False
        at += length
    # without an end marker the last tile-part may still be complete
    return len(seen) == tiles and at <= len(data)
