"""A sample in a shard by its key alone: samples lie in the order of keys, and keys are uniform, so its place can be guessed.

Each guess is a read of a few kilobytes, and the square root of the distance is left after it: a shard of thousands of
samples takes three or four. The catalog is not needed for it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lumid.catalog.errors import DatasetError
from lumid.catalog.shards import BLOCK

Read = Callable[[int, int], bytes]
"""Gives ``length`` bytes at an offset of the shard."""
IMAGE_NAME = re.compile(rb"([0-9a-f]{24})\.(?!json\0)([a-z0-9]+)\0")
WINDOW = 64 << 10
FOLLOWED = 8
"""Samples that are passed one by one after a guess, before the next guess."""
JSON_ROOM = 4 << 10


@dataclass(frozen=True, slots=True)
class Member:
    """The header of an image in a shard: where the sample begins, and what it says."""

    start: int
    key: str
    codec: str
    length: int

    @property
    def json_header(self) -> int:
        """Where the header of the image's JSON begins."""
        return self.start + BLOCK + _padded(self.length)


def find_sample(read: Read, size: int, key: str, first: str, last: str, window: int = WINDOW) -> Member | None:
    """The sample of that key in a shard of ``size`` bytes whose keys go from ``first`` to ``last``; None if there is none.

    Raises :class:`DatasetError` where the shard is not one.
    """
    low, high = 0, size
    low_key, high_key, target = int(first, 16), int(last, 16) + 1, int(key, 16)
    if not low_key <= target < high_key:
        return None
    for turn in range(256):
        share = 0.5 if turn % 3 == 2 else (target - low_key) / max(1, high_key - low_key)
        # a little early: what lies behind a guess is found by following it
        guess = low if high - low <= window else max(low, int(low + (high - low) * share) - window // 2)
        begin, from_low, passed = guess // BLOCK * BLOCK, guess // BLOCK * BLOCK <= low, False
        member = _next_member(read, begin, high, window)
        for _ in range(FOLLOWED):
            if member is None or member.key >= key:
                break
            low, low_key, passed = member.start, int(member.key, 16), True
            member = _following(read, member, size)
        else:
            continue
        if member is not None and member.key == key:
            return member
        if passed or from_low:  # every sample from a smaller key on has been looked at
            return None
        high = begin
        high_key = high_key if member is None else min(high_key, int(member.key, 16))
    raise DatasetError("a shard's samples are not in the order of their keys: run `lumid verify`")


def read_found(read: Read, size: int, member: Member) -> tuple[bytes, dict[str, Any]]:
    """The encoded image and the JSON of a sample, in one read where the JSON is no longer than usual."""
    begin, json_header = member.start + BLOCK, member.json_header
    data = read(begin, min(size, json_header + BLOCK + JSON_ROOM) - begin)
    head = data[json_header - begin :]
    try:
        info = tarfile.TarInfo.frombuf(head[:BLOCK], "ascii", "strict")
        text = head[BLOCK : BLOCK + info.size]
        if len(text) < info.size:
            text = read(json_header + BLOCK, info.size)
        values: dict[str, Any] = json.loads(text)
    except (tarfile.HeaderError, ValueError, RecursionError):
        raise DatasetError("a sample has no readable JSON beside its image: run `lumid verify`") from None
    return data[: member.length], values


def _next_member(read: Read, begin: int, end: int, window: int) -> Member | None:
    """The first image whose header lies at or after ``begin`` and before ``end``."""
    while begin < end:
        data = read(begin, min(window, end - begin))
        at = data.find(b"ustar")
        while at >= 0:
            block = at - 257
            if block >= 0 and block % BLOCK == 0:
                member = _member(data[block : block + BLOCK], begin + block)
                if member is not None:
                    return member
            at = data.find(b"ustar", at + 1)
        begin += len(data)
    return None


def _following(read: Read, member: Member, size: int) -> Member | None:
    """The sample after this one; None after the last."""
    head = read(member.json_header, BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(head, "ascii", "strict")
    except tarfile.HeaderError:
        raise DatasetError("a shard ends within a sample: run `lumid verify`") from None
    start = member.json_header + BLOCK + _padded(info.size)
    return _member(read(start, BLOCK), start) if start + BLOCK <= size else None


def _member(block: bytes, start: int) -> Member | None:
    match = IMAGE_NAME.match(block)
    if match is None:
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")  # raises where the checksum is wrong
    except tarfile.HeaderError:
        return None
    return Member(start, match[1].decode(), match[2].decode(), info.size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
