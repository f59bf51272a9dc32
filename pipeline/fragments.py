"""Encapsulated pixel data: which bytes belong to which frame (PS3.5 A.4), found in one pass and without copying."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from lumid.pipeline.reject import Reject

ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
CODESTREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
"""How a frame begins: JPEG and JPEG-LS, JPEG 2000, JPEG 2000 in its file format."""

RLE_START = re.compile(rb"[\x01-\x0f]\0\0\0\x40\0\0\0")
"""How a frame of RLE begins: the number of its segments, and that the first follows the header (PS3.5 G.5)."""

MAX_FRAGMENTS = 1 << 20
"""More items than any real object has: those of zero length would fill the memory."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One item's value: ``data[start : start + length]``; its own header is the 8 bytes before."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """The fragments of each frame in order; ``cut``: the data end before the sequence does."""

    data: memoryview
    frames: tuple[tuple[Fragment, ...], ...]
    cut: bool

    def frame(self, index: int) -> bytes:
        """One encoded frame."""
        return b"".join(self.data[one.start : one.start + one.length] for one in self.frames[index])


def encoded_frames(
    data: memoryview, frames: int, *, one_fragment: bool, extended: tuple[bytes, bytes] | None = None
) -> EncodedFrames | Reject:
    """The frames of encapsulated pixel data; as many as there are, at most ``frames``.

    ``one_fragment``: the syntax gives every frame exactly one fragment (RLE, PS3.5 A.4.2); some writers split them all
    the same, and their headers tell where a frame begins. ``extended``: values of the Extended Offset Table and its
    Lengths (PS3.3 C.7.6.3.1.8). An offset table whose offsets are not those of fragments is not believed. Reasons:
    ``truncated``, ``decode_failed``, ``no_pixel_data``, ``absurd_size``.
    """
    table, fragments, cut = _items(data)
    if table is None:
        return Reject("decode", "truncated" if cut else "decode_failed", "no offset table item")
    if not fragments:
        return Reject("decode", "truncated" if cut else "no_pixel_data", "no fragments")
    if len(fragments) >= MAX_FRAGMENTS:
        return Reject("decode", "absurd_size", f"{MAX_FRAGMENTS} fragments and more")
    first = fragments[0].start - 8
    places = {one.start - 8 - first: number for number, one in enumerate(fragments)}
    if extended is not None:
        found = _by_extended(extended, places, fragments, frames)
        if found:
            return EncodedFrames(data, found, cut)
    if table and len(table) % 4 == 0 and len(table) <= 4 * MAX_FRAGMENTS:
        starts = _starts(struct.unpack(f"<{len(table) // 4}I", table), places, frames)
        # a table of one entry says nothing about where the frames of several begin
        if starts:
            return EncodedFrames(data, _runs(starts, fragments, frames), cut)
    if one_fragment and len(fragments) > frames:
        begins = [number for number, one in enumerate(fragments) if RLE_START.match(data, one.start)]
        if begins[:1] == [0]:
            return EncodedFrames(data, _runs(begins, fragments, frames), cut)
    if one_fragment or len(fragments) == frames:
        return EncodedFrames(data, tuple((one,) for one in fragments[:frames]), cut)
    if frames == 1:
        return EncodedFrames(data, (_first_image(data, fragments),), cut)
    begins = [number for number, one in enumerate(fragments) if _begins(data, one)]
    if not begins or begins[0] != 0:
        return Reject("decode", "decode_failed", "frames cannot be told apart")
    return EncodedFrames(data, _runs(begins, fragments, frames), cut)


def is_encapsulated(data: memoryview) -> bool:
    """Whether pixel data are items from their first byte to their last, which no pixels are by chance."""
    if bytes(data[:4]) != ITEM:
        return False
    _, fragments, cut = _items(data)
    return bool(fragments) and not cut


def _items(data: memoryview) -> tuple[bytes | None, list[Fragment], bool]:
    """The offset table's bytes, the fragments, and whether the data end inside them.

    A fragment that is cut is none: what is left of it is no frame.
    """
    fragments: list[Fragment] = []
    table: bytes | None = None
    at, end = 0, len(data)
    while at + 8 <= end and len(fragments) < MAX_FRAGMENTS:
        tag = bytes(data[at : at + 4])
        if tag == SEQUENCE_END:
            return table, fragments, False
        (length,) = struct.unpack_from("<I", data, at + 4)
        if tag != ITEM or at + 8 + length > end:
            return table, fragments, True
        if table is None:
            table = bytes(data[at + 8 : at + 8 + length])
        else:
            fragments.append(Fragment(at + 8, length))
        at += 8 + length
    # a defined length, against the standard, needs no delimiter
    return table, fragments, at != end


def _by_extended(
    extended: tuple[bytes, bytes], places: dict[int, int], fragments: list[Fragment], frames: int
) -> tuple[tuple[Fragment, ...], ...] | None:
    """Frames by the extended table: one fragment each, of which the stated length is the frame's without padding."""
    offsets, lengths = extended
    if not offsets or len(offsets) % 8 or len(offsets) != len(lengths) or len(offsets) > 8 * MAX_FRAGMENTS:
        return None
    starts = _starts(struct.unpack(f"<{len(offsets) // 8}Q", offsets), places, frames)
    if not starts:
        return None
    found = []
    for start, length in zip(starts, struct.unpack(f"<{len(lengths) // 8}Q", lengths), strict=False):
        fragment = fragments[start]
        if not fragment.length - 1 <= length <= fragment.length:
            return None
        found.append((Fragment(fragment.start, length),))
    return tuple(found[:frames])


def _starts(offsets: Sequence[int], places: dict[int, int], frames: int) -> list[int] | None:
    """The fragment that each frame begins with; None where an offset leads elsewhere.

    A table may reach beyond the end of a file that was cut, and may hold more frames than are claimed.
    """
    if len(offsets) < frames or offsets[0] != 0 or any(b <= a for a, b in itertools.pairwise(offsets)):
        return None
    found = [places[offset] for offset in offsets if offset in places]
    last = max(places)
    if any(offset not in places for offset in offsets if offset <= last):
        return None
    return found


def _runs(starts: list[int], fragments: list[Fragment], frames: int) -> tuple[tuple[Fragment, ...], ...]:
    ends = [*starts[1:], len(fragments)]
    return tuple(tuple(fragments[a:b]) for a, b in zip(starts, ends, strict=True))[:frames]


def _first_image(data: memoryview, fragments: list[Fragment]) -> tuple[Fragment, ...]:
    """The fragments of the first image: some writers append further images that the header does not count."""
    second = next((number for number, one in enumerate(fragments) if number and _begins(data, one)), len(fragments))
    return tuple(fragments[:second])


def _begins(data: memoryview, fragment: Fragment) -> bool:
    return bytes(data[fragment.start : fragment.start + min(12, fragment.length)]).startswith(CODESTREAM_STARTS)
