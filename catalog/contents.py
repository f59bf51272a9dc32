"""Searching what files hold, by their kind: in windows, member by member, column by column, never a whole file at once."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid.catalog.matching import Match, Matcher, Passed

WINDOW = 4 << 20
LEAD = 64
"""Bytes before a window that belong to the last one: what adjoins a match tells what it is."""
SMALL = 1 << 20
HEAD = 4096
MAX_DEPTH = 3
PARQUET_ROWS = 65_536
COUNTED = frozenset({"offset", "length"})
"""Columns of numbers that lumid itself counts in: equal to a number among the terms by chance."""
MAGIC = (
    (b"PAR1", "parquet"), (b"PK\3\4", "zip"), (b"PK\5\6", "zip"), (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"), (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\0\0\0\x0cjP  ", "jpeg2000"),
)  # fmt: skip
PICTURES = frozenset({"png", "jpeg", "jpeg2000"})


@dataclass(frozen=True, slots=True)
class Found:
    """A term: the part of the file that holds it, the first place there, the term's line, its form, how often."""

    part: str
    place: str
    line: int
    form: str
    count: int = 1


class Searcher:
    """Searches names and files with one :class:`~lumid.catalog.matching.Matcher`; threads may share it."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        whole = {one.data: one.line for one in matcher.patterns if one.data.isdigit() and len(one.data) >= 5}
        self._numbers = {int(data): line for data, line in whole.items() if int(data) < 1 << 53}

    def showable(self, name: str, otherwise: str) -> str:
        """A name, where it holds no term and can be printed; else what stands for it."""
        return otherwise if not name.isprintable() or self.name(name, Passed()) else name

    def name(self, text: str, passed: Passed, place: str = "its name") -> list[Found]:
        """What the name of a file or member holds."""
        found = self._matcher.in_text(text.encode("utf-8", "surrogateescape"), passed)
        return [_found(place, place, match) for match in found]

    def kind(self, file: IO[bytes]) -> str:
        """What a file is, by its first bytes; its position is at the beginning afterwards."""
        head = file.read(HEAD)
        file.seek(0)
        return _kind(head)

    def file(
        self, path: Path, file: IO[bytes], kind: str, parts: Counter[str], passed: Passed, depth: int = 0
    ) -> Iterator[Found]:
        """What a file of this kind holds. Raises what reading a damaged one raises."""
        if kind == "parquet":
            yield from self._compressed(file, "its bytes")
            file.seek(0)
            yield from self._parquet(file, parts, passed)
        elif kind == "tar":
            yield from self._tar(path, file, parts, passed, depth)
        elif kind == "zip":
            yield from self._zip(path, file, parts, passed, depth)
        elif kind in ("gzip", "bzip2", "xz"):
            yield from self._compressed(file, "its bytes")
            file.seek(0)
            with _unpacked(file, kind) as inner:
                yield from self._inside(path, inner, parts, passed, depth)
        elif kind in PICTURES:
            yield from self._compressed(file, "its bytes")
            file.seek(0)
            yield from self._comments(file, kind, parts, passed)
        else:
            encoded = kind == "text"
            yield from self._windows(
                file,
                "its text" if encoded else "its bytes",
                lambda data: self._matcher.in_text(data, passed, encoded=encoded),
            )

    def _inside(
        self, path: Path, file: IO[bytes], parts: Counter[str], passed: Passed, depth: int, place: str = "unpacked"
    ) -> Iterator[Found]:
        """What is in a file that is in another one."""
        head = file.read(SMALL)
        kind = _kind(head[:HEAD])
        if len(head) < SMALL and kind in (*PICTURES, "text"):
            parts[f"packed {kind}"] += 1
            matches = self._matcher.in_pixels(head) if kind in PICTURES else self._matcher.in_text(head, passed)
            part = "bytes" if kind in PICTURES else "text"
            yield from (_found(f"its {part}", f"{place}: byte {match.start:,}", match) for match in matches)
            for found in self._comments(io.BytesIO(head), kind, parts, passed) if kind in PICTURES else ():
                yield replace(found, place=f"{place}: {found.place}")
            return
        file.seek(0)
        if depth >= MAX_DEPTH:
            raise ValueError("packed too deep")
        parts[f"packed {kind}"] += 1
        for found in self.file(path, file, kind, parts, passed, depth + 1):
            yield replace(found, place=f"{place}: {found.place}")

    # ---- bytes

    def _compressed(self, file: IO[bytes], part: str) -> Iterator[Found]:
        return self._windows(file, part, self._matcher.in_pixels)

    def _windows(self, file: IO[bytes], part: str, search: Callable[[bytes], Iterator[Match]]) -> Iterator[Found]:
        """A stream in windows that overlap by the longest pattern, so that none is cut, and none found twice."""
        buffer, lead, begin = b"", 0, 0
        while True:
            chunk = file.read(WINDOW)
            buffer += chunk
            limit = len(buffer) - self._matcher.reach if chunk else len(buffer)
            if limit > lead or not chunk:
                for match in search(buffer):
                    if lead <= match.start < limit:
                        yield _found(part, f"byte {begin + match.start:,}", match)
                keep = max(limit - LEAD, 0)
                buffer, lead, begin = buffer[keep:], limit - keep, begin + keep
            if not chunk:
                return

    # ---- archives

    def _tar(self, path: Path, file: IO[bytes], parts: Counter[str], passed: Passed, depth: int) -> Iterator[Found]:
        end = 0
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, info in enumerate(archive):
                header = [info.name, info.linkname, info.uname, info.gname, *map(str, info.pax_headers.values())]
                found_in_header = self.name("\n".join(header), passed)
                member = f"member {number:,} ({info.name if info.name.isprintable() and not found_in_header else 'name not shown'})"
                yield from (
                    replace(one, part="members' names", place=f"{member}, its header") for one in found_in_header
                )
                end = info.offset_data + -(-info.size // 512) * 512
                inner = archive.extractfile(info) if info.isfile() else None
                if inner is not None:
                    with inner:
                        for found in self._inside(path, inner, parts, passed, depth, member):
                            yield replace(found, part=f"members, {found.part}")
                cast("Any", archive).members = []  # it would remember all of them
        file.seek(end)
        for found in self._windows(file, "after its members", lambda data: self._matcher.in_text(data, passed)):
            yield replace(found, place="after its members")

    def _told(self, texts: dict[str, str], part: str, place: str, passed: Passed) -> Iterator[Found]:
        for name, text in texts.items():
            if text.strip():
                yield from (replace(one, part=part, place=f"{place}, {name}") for one in self.name(text, passed))

    def _zip(self, path: Path, file: IO[bytes], parts: Counter[str], passed: Passed, depth: int) -> Iterator[Found]:
        with zipfile.ZipFile(file) as archive:
            yield from self._told(
                {"its comment": archive.comment.decode("latin-1")}, "its comment", "the archive", passed
            )
            for number, info in enumerate(archive.infolist()):
                member = f"member {number:,} ({self.showable(info.filename, 'not shown')})"
                told = {"its name": info.filename, "its comment": info.comment.decode("latin-1"),
                        "its extra field": info.extra.decode("latin-1")}  # fmt: skip
                yield from self._told(told, "members' names", member, passed)
                if not info.is_dir():
                    with archive.open(info) as inner:
                        for found in self._inside(path, inner, parts, passed, depth, member):
                            yield replace(found, part=f"members, {found.part}")

    # ---- pictures

    def _comments(self, file: IO[bytes], kind: str, parts: Counter[str], passed: Passed) -> Iterator[Found]:
        """Texts that a picture carries beside its pixels, where short terms can be looked for too."""
        read = {"png": _png_chunks, "jpeg": _jpeg_segments, "jpeg2000": _jpeg_segments}[kind]
        for name, data in read(file):
            parts["texts in pictures"] += 1
            for match in self._matcher.in_text(data, passed):
                yield _found("its metadata", f"{name}, byte {match.start:,}", match)

    # ---- Parquet

    def _parquet(self, file: IO[bytes], parts: Counter[str], passed: Passed) -> Iterator[Found]:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            yield from self._metadata(schema.metadata, "the schema's metadata", passed)
            yield from self._metadata(table.metadata.metadata, "the file's metadata", passed)
            yield from self._told({"its writer": table.metadata.created_by or ""}, "metadata", "the file", passed)
            for number, field in enumerate(schema):
                shown = self.showable(field.name, f"column {number}")
                yield from self._told(
                    {"its name": field.name, "its type": str(field.type)}, "columns' names", shown, passed
                )
                yield from self._metadata(field.metadata, f"the metadata of {shown}", passed)
            begin = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for number, (name, column) in enumerate(zip(schema.names, batch.columns, strict=True)):
                    shown = self.showable(name, f"column {number}")
                    yield from self._column(name, shown, column, begin, parts, passed)
                begin += batch.num_rows

    def _metadata(self, metadata: dict[bytes, bytes] | None, place: str, passed: Passed) -> Iterator[Found]:
        for key, value in (metadata or {}).items():
            for match in self._matcher.in_text(key + b"\n" + value, passed):
                yield _found("metadata", place, match)

    def _column(
        self, name: str, shown: str, column: pa.Array, begin: int, parts: Counter[str], passed: Passed
    ) -> Iterator[Found]:
        """A column's values, each different one once; nested ones by their leaves."""
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.dictionary_decode(), kind.value_type
        if pa.types.is_struct(kind):
            for number in range(kind.num_fields):
                yield from self._column(name, shown, column.field(number), begin, parts, passed)
        elif pa.types.is_nested(kind):
            leaves = column.flatten() if not pa.types.is_map(kind) else column.items
            for one in [leaves, *([column.keys] if pa.types.is_map(kind) else [])]:
                for found in self._column(name, shown, one, begin, parts, passed):
                    yield replace(found, place=f"{shown}, rows {begin:,} and on")
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            parts["numbers"] += len(column)
            if name not in COUNTED:
                yield from self._equal(shown, column, begin)
        else:
            unique = pc.unique(column).drop_null()
            texts = unique if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else unique.cast(pa.string())
            parts["texts"] += len(texts)
            yield from self._texts(shown, column, unique, texts, begin, passed)

    def _texts(
        self, shown: str, column: pa.Array, unique: pa.Array, texts: pa.Array, begin: int, passed: Passed
    ) -> Iterator[Found]:
        values = [one.encode() if isinstance(one, str) else bytes(one) for one in texts.to_pylist()]
        joined = b"\n".join(values)
        starts, at = [], 0
        for value in values:
            starts.append(at)
            at += len(value) + 1
        lines: dict[tuple[int, int], Match] = {}
        for match in self._matcher.in_text(joined, passed):
            which = int(pc.sum(pc.less_equal(pa.array(starts), match.start)).as_py()) - 1
            lines.setdefault((which, match.pattern.line), match)
        for (which, _), match in lines.items():
            rows = pc.indices_nonzero(pc.fill_null(pc.equal(column, unique[which]), False))
            place = f"{shown}, row {begin + rows[0].as_py():,}"
            yield replace(_found(f"column {shown}", place, match), count=len(rows))

    def _equal(self, shown: str, column: pa.Array, begin: int) -> Iterator[Found]:
        """Numbers that are those of terms: whole ones of five digits and more."""
        if not self._numbers:
            return
        wanted = pa.array(sorted(self._numbers), pa.float64())
        numbers = column.cast(pa.float64(), safe=False)
        for row in pc.indices_nonzero(pc.is_in(numbers, value_set=wanted)).to_pylist():
            line = self._numbers[int(numbers[row].as_py())]
            yield Found(f"column {shown}", f"{shown}, row {begin + row:,}", line, "a number")


def _unpacked(file: IO[bytes], kind: str) -> IO[bytes]:
    if kind == "gzip":
        return cast("IO[bytes]", gzip.open(file))
    return cast("IO[bytes]", bz2.open(file) if kind == "bzip2" else lzma.open(file))


def _kind(head: bytes) -> str:
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    if not head:
        return "empty"
    return "text" if b"\0" not in head or head[:2] in (b"\xff\xfe", b"\xfe\xff") else "binary"


def _found(part: str, place: str, match: Match) -> Found:
    return Found(part, place, match.pattern.line, match.pattern.form)


def _png_chunks(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Every chunk but the pixels', and what follows the last; texts unpacked (PNG 11.3.3)."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"PLTE"):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        data = file.read(length)
        file.read(4)
        name = kind.decode("latin-1") if kind.isalpha() else "a chunk"
        yield name, data
        if kind in (b"zTXt", b"iTXt", b"iCCP") and (packed := data.rfind(b"\x78", data.find(b"\0"))) > 0:
            yield f"{name}, unpacked", _inflated(data[packed:])
        if kind == b"IEND":
            yield "after the last chunk", file.read()


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 1 << 24)
    except zlib.error:
        return b""


def _jpeg_segments(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Segments of a JPEG or JPEG 2000 codestream before its data, of those that hold texts (ITU-T T.81 B.1, T.800 A.9)."""
    head = file.read(1 << 20)
    at = max(head.find(b"\xff\x4f\xff\x51"), 0) + 2
    if at > 2:
        yield "boxes", head[: at - 2]
    while at + 4 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker in (0xDA, 0x90):  # the data begin
            return
        if 0xE0 <= marker <= 0xEF or marker in (0xFE, 0x64):
            yield f"segment {marker:02X}", head[at + 4 : at + 2 + length]
        at += 2 + length
