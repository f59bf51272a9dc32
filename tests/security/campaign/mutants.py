"""Mutations: of bytes, of words in headers, of JSON values; and what makes a mutant look whole again."""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

MARKER = "PLANTED^MARKER"
"""Stands in mutants where a header's content would: nothing that is said of a file may hold it."""
ABSURD = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff\xff", b"\xff\x7f", b"\0\x80", b"\xff" * 8, b"\xff" * 7 + b"\x7f")  # fmt: skip
NUMBERS = ("0", "-1", "1", "3", "65535", "65536", "2147483647", "2147483648", "4294967295", "99999999999", "1e308", "-1e308", "nan", "inf", "1e-320")  # fmt: skip
LINES = (
    b"data file: ../outside/secret.raw", b"data file: /etc/passwd", b"data file: LIST", b"data file: slice%03d.raw 0 9 1",
    b"DataFile: http://127.0.0.1:9/x", b"datafile:\tskip", b"line skip: -1", b"byte skip: -1", b"byte skip: 99999999999999",
    b"encoding: gzip", b"encoding: bzip2", b"encoding: hex", b"endian: big", b"type: block", b"block size: 4000000000",
    b"ElementDataFile = ../outside/secret.raw", b"ElementDataFile = /etc/passwd", b"ElementDataFile = LIST", b"ElementDataFile = LIST 2D",
    b"ElementDataFile = slice%03d.raw 0 9 1", b"ElementDataFile = http://127.0.0.1:9/x", b"HeaderSize = -1", b"HeaderSize = 99999999999",
    b"CompressedData = True", b"CompressedDataSize = 99999999999", b"CompressedDataSize = -5", b"ElementNumberOfChannels = 1000000",
    b"DimSize = 2000000000 2000000000 2000000000", b"NDims = 10", b"NDims = -1", b"BinaryData = False", b"ElementType = MET_STRING",
    b"sizes: 2000000000 2000000000 2000000000", b"dimension: 16", b"space directions: none none none", b"kinds: RGB-color domain domain",
)  # fmt: skip
"""Lines of NRRD and MetaImage headers that lead elsewhere or ask for too much."""


def of_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four changes anywhere, more often near the beginning, where headers are."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _changed(data, rng, others)
    return data


def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(max(1, len(data) if rng.random() < 0.4 else min(len(data), 600)))


def _changed(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = _at(data, rng)
    end = min(len(data), at + rng.choice((1, 2, 4, 16, 200)))
    match rng.randrange(9):
        case 0 if data:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            value = rng.choice(ABSURD)
            return data[:at] + value + data[at + len(value) :]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:]
        case 4:
            return data[: at + 1]
        case 5:
            return data[:at] + rng.randbytes(rng.choice((1, 4, 64))) + data[at:]
        case 6:
            other = rng.choice(others)
            return data[:at] + other[_at(other, rng) :][: rng.choice((8, 100, 5000))] + data[end:]
        case 7:
            return _number(data, rng)
        case _:
            return data[:at] + bytes(end - at) + data[end:]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Another decimal number in place of one in a text header."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data[:4096]))
    if not found:
        return data
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(NUMBERS).encode() + data[one.end() :]


def of_lines(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A header of lines with one more, one fewer or one changed; else bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng, others)
    lines = data[:2000].split(b"\n")
    at = rng.randrange(1, max(2, min(len(lines), 14)))
    match rng.randrange(3):
        case 0:
            lines.insert(at, rng.choice(LINES))
        case 1:
            lines[at : at + 1] = [rng.choice(LINES)]
        case _:
            del lines[at : at + 1]
    return b"\n".join(lines) + data[2000:]


def of_gzip(inner: Callable[[bytes, random.Random, list[bytes]], bytes]) -> Callable[..., bytes]:
    """The same for a file that may be packed: what is in it changes, or the packed bytes."""

    def change(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        if data[:2] != b"\x1f\x8b" or rng.random() < 0.3:
            return inner(data, rng, others)
        return gzip.compress(inner(gzip.decompress(data), rng, others), 1)

    return change


def of_png(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes, mostly with the chunks' checksums made right again, so that the decoder sees them."""
    data = of_bytes(data, rng, others)
    if rng.random() < 0.2:
        return data
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        out += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(out) + data[at:]


def of_tar(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes, mostly with the headers' checksums made right again."""
    if data[:2] == b"\x1f\x8b":
        return of_gzip(of_tar)(data, rng, others)
    block = bytearray(of_bytes(data, rng, others))
    if rng.random() < 0.8:
        for at in range(0, len(block) - 511, 512):
            if block[at + 257 : at + 262] == b"ustar":
                block[at + 148 : at + 156] = b" " * 8
                block[at + 148 : at + 156] = b"%06o\0 " % (sum(block[at : at + 512]) & 0o777777)
    return bytes(block)


def of_json(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Another value at some place; deep nesting; numbers that are none; or bytes."""
    try:
        value = json.loads(data)
    except ValueError:
        return of_bytes(data, rng, others)
    if rng.random() < 0.25:
        return of_bytes(data, rng, others)
    for _ in range(rng.choice((1, 1, 2))):
        value = _planted(value, rng, strange(rng))
    text = json.dumps(value)
    return text.replace('"DEEP"', "[" * 100_000 if rng.random() < 0.5 else '{"a":' * 100_000).encode()


def _planted(value: Any, rng: random.Random, what: Any) -> Any:
    """The value with another one somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {key: inner for key, inner in value.items() if key != name}
        return value | {name: _planted(value[name], rng, what)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return value[:at] + [_planted(value[at], rng, what)] + value[at + 1 :]
    return what


def strange(rng: random.Random) -> Any:
    """A value that nobody expects."""
    return rng.choice(
        (None, True, 0, -1, 1 << 31, 1 << 63, 1 << 70, 10**400, 0.5, float("nan"), float("inf"), "", "x" * 5000, MARKER, "../../etc",
         "/etc/passwd", "\0", "\ud800", [], {}, [None], [[]], {"a": None}, "DEEP", [1, 2], ["a"])
    )  # fmt: skip
