"""One shard against its rows of the catalog: is it the file that was built, and if not, which of its samples are not."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from lumid.catalog.codecs import decode, pixel_hash
from lumid.catalog.findings import FINDINGS, DamagedShard, Finding, Framing, damage
from lumid.catalog.layout import Shard
from lumid.catalog.schema import CATALOG, SAMPLE_FIELDS
from lumid.catalog.shards import BLOCK, END_OF_TAR, member

EXAMINED = tuple(
    name
    for name in CATALOG.names
    if name in {*SAMPLE_FIELDS, "shard", "offset", "length", "codec", "sha256", "pixel_hash"}
)
"""The columns of the catalog that a shard is examined with."""
READ_BYTES = 1 << 20
ROWS_AT_ONCE = 1024
NAMED_KEYS = 3

Advance = Callable[[int], None]
"""Told how many more bytes have been looked at: those of the shard, then, when ``deep``, those of its images."""
Fault = Literal["image", "JSON", "tar member", "pixels"]


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of one shard."""

    findings: tuple[Finding, ...]
    damaged: DamagedShard | None
    bytes: int
    samples: int
    images_decoded: int


def examine_shard(path: Path, shard: Shard, rows: pa.Table, *, deep: bool, advance: Advance) -> Examined:
    """Examine one shard.

    ``rows``: the columns :data:`EXAMINED` of its samples, by offset. A shard whose bytes are those that were built is
    not looked into unless ``deep``; one whose bytes are not is, sample by sample, to say which are to blame.
    """
    where = f"shards/{shard.name}"
    keys = rows["key"].to_pylist()
    findings = [*_count(where, shard, rows), *_order(where, shard, keys), *_ranges(where, shard, rows)]
    try:
        # anything but a file (a pipe, say) could be waited for without end
        file = os.open(path, os.O_RDONLY) if path.is_file() else None
    except OSError:
        file = None
    if file is None:
        advance(shard.bytes)
        code = "shard_unreadable" if path.exists() else "shard_missing"
        finding = damage(code, where, f"{FINDINGS[code]}; it held {len(keys):,} samples")
        return Examined((finding, *findings), DamagedShard(shard.name, tuple(keys), "missing"), 0, len(keys), 0)
    faults: dict[str, Fault] = {}
    damaged = None
    try:
        size = os.fstat(file).st_size
        wrong = _wrong_bytes(file, size, shard, where, advance)
        if wrong:
            faults = _faults(file, rows, deep=deep)
            more, damaged = _blame(where, shard, keys, faults, framing(file, size, shard.samples))
            findings = [*wrong, *more, *findings]
        elif not any(finding.code == "catalog_range" for finding in findings):
            findings += _headers(file, where, rows)
            faults = _faults(file, rows, deep=True, advance=advance) if deep else {}
            if faults:
                what = f"{_kinds(faults.values())} of {_named(faults)}: not what the catalog says"
                findings.append(damage("row_mismatch", where, what))
    finally:
        os.close(file)
    decoded = len(keys) - sum(fault != "pixels" for fault in faults.values()) if deep else 0
    return Examined(tuple(findings), damaged, size, len(keys), decoded)


# ---- the shard as a whole


def _wrong_bytes(file: int, size: int, shard: Shard, where: str, advance: Advance) -> list[Finding]:
    """Why the file is not the one that dataset.json lists; nothing when it is."""
    digest = hashlib.sha256()
    position = 0
    while position < size:
        try:
            block = os.pread(file, READ_BYTES, position)
        except OSError as error:
            advance(max(0, shard.bytes - position))
            return [
                damage(
                    "shard_unreadable", where, f"cannot be read from byte {position:,}: {os.strerror(error.errno or 0)}"
                )
            ]
        if not block:
            break
        digest.update(block)
        position += len(block)
        advance(len(block))
    if size != shard.bytes:
        advance(max(0, shard.bytes - size))
        return [damage("shard_size", where, f"{size:,} bytes instead of {shard.bytes:,}")]
    if digest.hexdigest() != shard.sha256:
        return [damage("shard_hash", where, f"SHA-256 is {digest.hexdigest()[:12]}… instead of {shard.sha256[:12]}…")]
    return []


def framing(file: int, size: int, samples: int) -> Framing:
    """Whether a file of ``size`` bytes is a tar of so many samples, readable to its end."""
    position = members = 0
    while (info := _tar_header(file, position)) is not None:
        position += BLOCK + _padded(info.size)
        members += 1
    whole = members == 2 * samples and position + len(END_OF_TAR) == size
    return "intact" if whole and _read(file, position, len(END_OF_TAR)) == END_OF_TAR else "broken"


def _blame(
    where: str, shard: Shard, keys: Sequence[str], faults: dict[str, Fault], state: Framing
) -> tuple[list[Finding], DamagedShard | None]:
    """Which samples of a shard with other bytes are damaged; no shard when every sample and the framing are right."""
    findings = []
    if faults:
        what = f"{len(faults):,} of {len(keys):,} samples are damaged ({_kinds(faults.values())}): {_named(faults)}"
        findings.append(damage("sample_damaged", where, what))
    if state == "broken":
        findings.append(damage("framing_broken", where))
    if not faults and state == "intact" and len(keys) == shard.samples:
        what = f"what it says of {where} is not what lies there, though every sample in it is as the catalog says"
        return [*findings, damage("manifest_damaged", "dataset.json", what)], None
    return findings, DamagedShard(shard.name, tuple(key for key in keys if key in faults), state)


# ---- the rows


def _count(where: str, shard: Shard, rows: pa.Table) -> Iterator[Finding]:
    if rows.num_rows != shard.samples:
        yield damage(
            "catalog_count", where, f"the catalog has {rows.num_rows:,} samples of it instead of {shard.samples:,}"
        )


def _order(where: str, shard: Shard, keys: list[str]) -> Iterator[Finding]:
    if any(left >= right for left, right in pairwise(keys)):
        yield damage("catalog_order", where, "keys are not sorted, or not unique")
    if len(keys) == shard.samples and keys and (keys[0], keys[-1]) != (shard.first_key, shard.last_key):
        yield damage("catalog_order", where, "the first or the last key is another than dataset.json says")
    elif keys and (min(keys) < shard.first_key or max(keys) > shard.last_key):
        yield damage("catalog_order", where, "keys outside of the range that dataset.json says")


def _ranges(where: str, shard: Shard, rows: pa.Table) -> Iterator[Finding]:
    offset, length = rows["offset"].to_numpy(), rows["length"].to_numpy()
    begin = offset - BLOCK
    # an image is followed by its JSON: a header, and at least one block
    end = offset + _padded(length) + 2 * BLOCK
    bad = (begin < 0) | (begin % BLOCK != 0) | (end > shard.bytes - len(END_OF_TAR))
    bad |= (offset > shard.bytes) | (length > shard.bytes) | (length < 1)
    if bad.any():
        yield damage("catalog_range", where, f"{int(bad.sum()):,} samples lie outside of it, or between its blocks")
    overlap = int((begin[1:] < end[:-1]).sum())
    if overlap:
        yield damage("catalog_range", where, f"{overlap:,} samples overlap the one before")


def _headers(file: int, where: str, rows: pa.Table) -> Iterator[Finding]:
    """Whether the tar header before every image names the row's key and codec, and the row's length."""
    wrong = []
    columns = (rows[name].to_pylist() for name in ("key", "codec", "offset", "length"))
    for key, codec, offset, length in zip(*columns, strict=True):
        head = _read(file, offset - BLOCK, BLOCK)
        name = f"{key}.{codec}".encode()
        if head[:100].rstrip(b"\0") != name or head[124:136].rstrip(b"\0 ") != b"%011o" % length:
            wrong.append(key)
    if wrong:
        yield damage("catalog_header", where, f"{len(wrong):,} samples are not where the catalog says: {_named(wrong)}")


# ---- the samples


def _faults(file: int, rows: pa.Table, *, deep: bool, advance: Advance = lambda _: None) -> dict[str, Fault]:
    """The samples that are not what their rows say, and what of each."""
    faults: dict[str, Fault] = {}
    waiting = 0
    for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            fault = sample_fault(file, row, deep=deep)
            if fault is not None:
                faults[row["key"]] = fault
            waiting += row["length"]
            if waiting > READ_BYTES:
                advance(waiting)
                waiting = 0
    advance(waiting)
    return faults


def sample_fault(file: int, row: dict[str, Any], *, deep: bool) -> Fault | None:
    """What of a sample in an open shard is not as its row and lumid's way of writing have it; None when all is.

    Every byte of the sample is looked at. ``deep``: the image is decoded, its size, depth and pixels compared.
    """
    start, length = row["offset"] - BLOCK, row["length"]
    if start < 0 or length < 0:
        return "tar member"
    whole = _read(file, start, BLOCK + _padded(length))
    image = whole[BLOCK : BLOCK + length]
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        return "image"
    if whole != member(f"{row['key']}.{row['codec']}", image):
        return "tar member"
    info = _tar_header(file, start + len(whole))
    if info is None:
        return "tar member"
    rest = _read(file, start + len(whole), BLOCK + _padded(info.size))
    text = rest[BLOCK : BLOCK + info.size]
    if not _says(text, row):
        return "JSON"
    if rest != member(f"{row['key']}.json", text):
        return "tar member"
    return "pixels" if deep and not _shows(image, row) else None


def _says(text: bytes, row: dict[str, Any]) -> bool:
    """Whether a sample's JSON is exactly what is written for these values."""
    try:
        values = json.loads(text)
        same = values == {name: row[name] for name in SAMPLE_FIELDS}
        return same and json.dumps(values, separators=(",", ":"), allow_nan=False).encode() == text
    except (ValueError, RecursionError):
        return False


def _shows(image: bytes, row: dict[str, Any]) -> bool:
    try:
        pixels = decode(image, row["codec"])
    except ValueError:
        return False
    found = (*pixels.shape[:2], 8 * pixels.dtype.itemsize, pixels.shape[2] if pixels.ndim == 3 else 1)
    return (
        found == (row["height"], row["width"], row["bits"], row["channels"]) and pixel_hash(pixels) == row["pixel_hash"]
    )


# ---- bytes and words


def _read(file: int, position: int, length: int) -> bytes:
    """The bytes there, as far as the file and the disk give them."""
    try:
        # a damaged row or header can claim any length: no more is asked for than there is
        return os.pread(file, max(0, min(length, os.fstat(file).st_size - position)), position)
    except OSError:
        return b""


def _tar_header(file: int, position: int) -> tarfile.TarInfo | None:
    """The header of a regular member; None where there is none, or one whose checksum is wrong."""
    try:
        info = tarfile.TarInfo.frombuf(_read(file, position, BLOCK), "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        return None
    return info if info.isreg() and info.size >= 0 else None


def _padded(size: Any) -> Any:
    """A size, or an array of them, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _kinds(faults: Iterable[Fault]) -> str:
    return ", ".join(f"{count:,} × {fault}" for fault, count in sorted(Counter(faults).items()))


def _named(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(listed[:NAMED_KEYS]) + (" …" if len(listed) > NAMED_KEYS else "")
