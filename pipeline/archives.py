"""Zip and tar archives read as streams: members are looked at one by one and never extracted by their own path.

An archive is somebody else's file. A member whose path leads out of the archive, that is a link or a device, that is
encrypted or that unpacks to an absurd size is given with the reason ``unsafe_member`` and is never opened. What ends
early or is damaged ends with one nameless member whose reason is ``broken_archive``.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO, cast

from lumid.pipeline.reject import Reject

CHUNK_BYTES = 1 << 20
MAX_TAR_HEADER_BYTES = 1 << 20
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)
"""What the readers of the standard library raise on an archive that is damaged."""
UNREADABLE = (*DAMAGED, NotImplementedError)
"""Those, and what zipfile raises for a version or compression of the format that it does not know."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How large a member may be, and how far an archive may unpack.

    What is unpacked may be ``max_ratio`` times what is packed, and ``free_bytes`` more. The format's own bound for
    deflate is 1032; a file of zeros comes close to it, and images do not.
    """

    max_member_bytes: int = 4 << 30
    max_ratio: float = 500.0
    free_bytes: int = 64 << 20
    max_members: int = 1_000_000

    def absurd(self, packed: int, unpacked: int) -> bool:
        """Whether so many packed bytes cannot honestly hold so many unpacked ones."""
        return unpacked > self.free_bytes + self.max_ratio * packed


DEFAULT_LIMITS = ArchiveLimits()


@dataclass(slots=True)
class ArchiveMember:
    """A regular file in an archive: its name there (which can hold identifiers), its size, and why it is not taken.

    A member of a tar can be read only until the next one is asked for; one of a zip until the iteration ends.
    ``offset``: where the bytes of a tar's member begin in the unpacked tar.
    """

    name: str = field(repr=False)
    size_bytes: int
    reject: Reject | None = None
    opener: Callable[[], IO[bytes]] | None = field(default=None, repr=False)
    offset: int | None = None
    _file: IO[bytes] | None = field(default=None, repr=False)
    _data: bytearray = field(default_factory=bytearray, repr=False)

    def read(self, max_bytes: int | None = None) -> bytes | Reject:
        """The member's bytes, or the first ``max_bytes`` of them; they are kept, so a head can be read before the rest.

        Never more than the size that the archive declares; a member that ends before it, or whose checksum does not
        match, is the reason ``broken_archive``.
        """
        if self.reject is not None:
            return self.reject
        wanted = self.size_bytes if max_bytes is None else min(max_bytes, self.size_bytes)
        try:
            self._fill(wanted)
        except (RuntimeError, NotImplementedError):
            self.reject = _unsafe("a compression or encryption that is not read")
            return self.reject
        except MemoryError:
            self.reject = _unsafe("asks for more memory than there is, to be unpacked")
            return self.reject
        except _AbsurdError:
            self.reject = _unsafe("unpacks to many times its size")
            return self.reject
        except DAMAGED as error:
            self.reject = Reject("read", "broken_archive", _why(error))
            return self.reject
        return bytes(self._data[:wanted])

    def _fill(self, wanted: int) -> None:
        if self._file is None:
            assert self.opener is not None
            self._file = self.opener()
        while len(self._data) < wanted:
            chunk = self._file.read(min(CHUNK_BYTES, wanted - len(self._data)))
            if not chunk:
                raise EOFError
            self._data += chunk
        # a zip's checksum is compared when its end is reached, and a byte that should not be there is too many
        if wanted == self.size_bytes and self._file.read(1):
            raise ValueError


def zip_members(file: BinaryIO, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[ArchiveMember]:
    """The files of a zip, in the order of its directory. ``file`` must be seekable and stays open."""
    try:
        archive = zipfile.ZipFile(file)
    except UNREADABLE as error:
        yield _broken(error)
        return
    with archive:
        yield from list_zip(archive, limits)


def list_zip(archive: zipfile.ZipFile, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[ArchiveMember]:
    """The files of a zip that is open already; they can be read for as long as it is."""
    infos = archive.infolist()
    overlapping = _overlapping(infos, archive.start_dir)
    seen: set[str] = set()
    packed = unpacked = 0
    for number, info in enumerate(infos):
        if info.filename.endswith("/") and info.file_size == 0:  # is_dir() wants a name
            continue
        if number >= limits.max_members:
            yield ArchiveMember("", 0, _unsafe("more members than are read"))
            return
        why = _zip_danger(info) or _danger(info.orig_filename, info.file_size, seen, limits)
        if not why and info.header_offset in overlapping:
            why = "its bytes are another member's too"
        if not why and limits.absurd(packed + info.compress_size, unpacked + info.file_size):
            why = "unpacks to many times its size"
        if not why:
            packed, unpacked = packed + info.compress_size, unpacked + info.file_size
            yield ArchiveMember(info.filename, info.file_size, None, _zip_opener(archive, info))
        else:
            yield ArchiveMember(info.filename, info.file_size, _unsafe(why))


def tar_members(stream: IO[bytes], limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[ArchiveMember]:
    """The files of a tar in their order, plain or packed by gzip, bzip2 or xz. ``stream`` need only be readable.

    Read a member, if at all, before asking for the next.
    """
    unpacked = _Unpacked(stream, limits)
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_StrictInfo) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember every member of a stream that cannot be gone back in
                if info.isdir():
                    continue
                if len(seen) >= limits.max_members:
                    yield ArchiveMember("", 0, _unsafe("more members than are read"))
                    return
                why = _tar_danger(info) or _danger(info.name, info.size, seen, limits)
                if why:
                    yield ArchiveMember(info.name, max(info.size, 0), _unsafe(why))
                else:
                    yield ArchiveMember(info.name, info.size, None, _tar_opener(archive, info), info.offset_data)
        while unpacked.read(CHUNK_BYTES):  # a packed stream's checksum is compared at its end
            pass
    except _AbsurdError:
        yield ArchiveMember("", 0, _unsafe("unpacks to many times its size"))
    except DAMAGED as error:
        yield _broken(error)


def unpack(
    stream: IO[bytes], target: IO[bytes], max_bytes: int, limits: ArchiveLimits = DEFAULT_LIMITS
) -> Reject | None:
    """Write what is in a stream packed by gzip, bzip2 or xz to ``target``; returns what stopped it before its end.

    Reasons: ``unsafe_member`` (unpacks to many times its size, or to more than ``max_bytes``), ``broken_archive``.
    """
    unpacked = _Unpacked(stream, limits)
    left = max_bytes
    while True:
        try:
            chunk = unpacked.read(CHUNK_BYTES >> 4)
        except _AbsurdError:
            return _unsafe("unpacks to many times its size")
        except DAMAGED as error:
            return Reject("read", "broken_archive", _why(error))
        if not chunk:
            return None
        left -= len(chunk)
        if left < 0:
            return _unsafe("unpacks to more than the limit")
        target.write(chunk)


def base_name(name: str) -> str:
    """The last part of a member's path, whichever way it is separated."""
    return re.split(r"[/\\]", name)[-1]


def _unsafe(why: str) -> Reject:
    return Reject("read", "unsafe_member", why)


def _broken(error: BaseException) -> ArchiveMember:
    return ArchiveMember("", 0, Reject("read", "broken_archive", _why(error)))


def _why(error: BaseException) -> str:
    """What was wrong, in our own words: the readers' can hold names."""
    if isinstance(error, EOFError) or "unexpected end" in str(error) or "not a zip file" in str(error):
        return "ends early"
    return "a checksum does not match" if "CRC" in str(error) else "damaged"


def _danger(name: str, size: int, seen: set[str], limits: ArchiveLimits) -> str:
    """Why a member is not taken by its name and size; empty when it may be. Remembers the name."""
    parts = re.split(r"[/\\]", name)
    twice = name in seen
    seen.add(name)
    if not name or "\0" in name:
        return "no proper name"
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        return "absolute path"
    if ".." in parts:
        return "path with '..'"
    if twice:
        return "two members of one name"
    return "larger than the limit" if not 0 <= size <= limits.max_member_bytes else ""


def _zip_danger(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, masked headers: APPNOTE 4.4.4
        return "encrypted"
    kind = stat.S_IFMT(info.external_attr >> 16)
    return "a link or device" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else ""


def _tar_danger(info: tarfile.TarInfo) -> str:
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return "a sparse file" if info.type == tarfile.GNUTYPE_SPARSE else "a link or device"
    return "a sparse file" if info.sparse is not None else ""


def _overlapping(infos: list[zipfile.ZipInfo], directory: int) -> set[int]:
    """Offsets of members that reach into the next one or into the directory: one kernel, quoted many times."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), directory][: len(ordered)]
    pairs = zip(ordered, ends, strict=True)
    return {info.header_offset for info, end in pairs if info.header_offset + 30 + info.compress_size > end}


def _zip_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    # a regular file: extractfile follows links and gives None for the rest, and both were sorted out
    return lambda: cast("IO[bytes]", archive.extractfile(info))


class _AbsurdError(Exception):
    """More came out of an archive than it can honestly hold."""


class _StrictInfo(tarfile.TarInfo):
    """A header that is damaged, missing or endless is an error: tarfile takes the first two for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            cut = isinstance(error, (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError))  # type: ignore[attr-defined]
            raise tarfile.ReadError("unexpected end" if cut else "damaged header") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:  # type: ignore[override]
        info = super().frombuf(buf, encoding, errors)
        # long names and attributes are read into memory whole
        if info.type in (b"x", b"g", b"X", b"L", b"K") and info.size > MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError("a header of absurd size")
        return info


class _Unpacked(io.RawIOBase):
    """A stream unpacked by what its first bytes say it is, counting what goes in and what comes out."""

    def __init__(self, stream: IO[bytes], limits: ArchiveLimits) -> None:
        self._counted = _Counted(stream)
        self._limits = limits
        self.unpacked = 0
        raw = io.BufferedReader(self._counted, CHUNK_BYTES)
        magic = raw.peek(6)[:6]
        self._reader: IO[bytes] = raw
        if magic.startswith(b"\x1f\x8b"):
            self._reader = cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
        elif magic.startswith(b"BZh"):
            self._reader = bz2.BZ2File(raw)
        elif magic.startswith(b"\xfd7zXZ"):
            self._reader = cast("IO[bytes]", lzma.LZMAFile(raw))  # noqa: SIM115 (the caller's stream, not ours to close)

    def readable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next unpacked bytes; raises ``_AbsurdError`` when they become too many."""
        data = self._reader.read(size)
        self.unpacked += len(data)
        self.check()
        return data

    def check(self) -> None:
        """Raise ``_AbsurdError`` when more came out than what went in can hold."""
        if self._limits.absurd(self._counted.bytes, self.unpacked):
            raise _AbsurdError


class _Counted(io.RawIOBase):
    """A stream that counts the bytes read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.bytes = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """The next bytes of the stream."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.bytes += len(data)
        return len(data)
