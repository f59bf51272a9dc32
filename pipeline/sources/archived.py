"""Members of zip and tar archives, read in any order and by name or place, as a folder's files are.

A zip and a plain tar are read where they lie. A packed tar has no places that one could go to, so it is unpacked once,
into a scratch folder that worker processes on one machine share, under a name made of the archive's own identity.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import tarfile
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, cast

from lumid.catalog.errors import StorageError
from lumid.pipeline.archives import UNREADABLE, ArchiveMember, list_zip, tar_members, unpack, zip_members
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Listing, ObjectRef
from lumid.pipeline.volumes import GZIP, inflated

ArchiveKind = Literal["zip", "tar", "packed"]
TAR_BLOCK = 512
OPEN_ZIPS = 8
MAX_UNPACKED_BYTES = 1 << 40
XZ_MEMORY_BYTES = 256 << 20
SEPARATOR = "\0"  # in no path of a file


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is: the archive, how it is packed, where its bytes begin (in a tar), and its name."""

    archive: str = field(repr=False)
    kind: ArchiveKind
    offset: int
    name: str = field(repr=False)

    def location(self) -> str:
        """The place as one string: what an :class:`~lumid.pipeline.sources.ObjectRef` keeps."""
        return SEPARATOR.join((self.archive, self.kind, str(self.offset), self.name))


def place_of(location: str) -> Place | None:
    """The place in an archive that a location stands for; None for that of a file."""
    parts = location.split(SEPARATOR, 3)
    return Place(parts[0], cast("ArchiveKind", parts[1]), int(parts[2]), parts[3]) if len(parts) == 4 else None


def expand(archives: Archives, ref: ObjectRef, path: Path, kind: ArchiveKind, named: Callable[[str], str]) -> Listing:
    """The members of the archive ``ref`` that lies at ``path`` as objects; the archive itself where it has a reason.

    ``named`` gives the source id of a member by its name.
    """
    try:
        members = archives.members(ref.location, path, kind)
    except OSError as error:
        return [(ref, Reject("read", "unreadable", os.strerror(error.errno) if error.errno else ""))]
    if not members:
        return [(ref, Reject("read", "empty_file", "an archive without members"))]
    found: Listing = []
    for member, location in members:
        one = ObjectRef(named(member.name), member.size_bytes, ref.changed_ns, location) if member.name else ref
        reason = member.reject or (None if member.size_bytes else Reject("read", "empty_file"))
        found.append(one if reason is None else (one, reason))
    return found


def in_order(found: Listing) -> Listing:
    """Objects by source id, each id once as an object: of several with one name all but the first have a reason."""
    ordered = sorted(found, key=lambda item: (_ref(item).source_id, isinstance(item, tuple), _ref(item).location))
    listing: Listing = []
    for item in ordered:
        if not isinstance(item, tuple) and listing and _ref(listing[-1]).source_id == item.source_id:
            listing.append((item, Reject("read", "unreadable", "two objects of one name")))
        else:
            listing.append(item)
    return listing


def _ref(item: ObjectRef | tuple[ObjectRef, Reject]) -> ObjectRef:
    return item[0] if isinstance(item, tuple) else item


def archive_kind(head: bytes) -> ArchiveKind | None:
    """Whether the first bytes of a file (512 at least) begin an archive, by content.

    A gzip or xz file is one where a tar is in it; a bzip2 file, whose first block can be as large as 900 kB, always.
    """
    if head[128:132] == b"DICM":
        return None
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return "zip"
    if _is_tar(head[:TAR_BLOCK]):
        return "tar"
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "packed"
    if head[:2] == GZIP:
        return "packed" if _is_tar(inflated(head, TAR_BLOCK)) else None
    if head[:6] == b"\xfd7zXZ\0":
        try:
            return (
                "packed"
                if _is_tar(lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES).decompress(head, TAR_BLOCK))
                else None
            )
        except lzma.LZMAError:
            return None
    return None


def _is_tar(block: bytes) -> bool:
    """Whether a block is the header of a tar's first member: its checksum is right."""
    if len(block) < TAR_BLOCK or not block[:1].strip(b"\0"):
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


class Archives:
    """Archives of a source, opened as they are asked for. One at a time: threads may share it.

    ``scratch``: where packed tars are unpacked and archives of an object store lie; a temporary folder by default, which
    goes with :meth:`close`.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._zips: OrderedDict[tuple[Path, int, int], _OpenZip] = OrderedDict()
        self._lock = threading.RLock()

    def members(self, archive: str, path: Path, kind: ArchiveKind) -> list[tuple[ArchiveMember, str]]:
        """The members of an archive that lies at ``path``, each with the location to read it by.

        A nameless one at the end says by its reason why there may be more. Raises ``OSError`` when the file cannot be
        read and :class:`StorageError` when the scratch folder cannot hold what is unpacked.
        """
        with self._lock:
            stopped = None
            if kind == "packed":
                path, stopped = self._unpacked(path)
            with path.open("rb") as file:
                found = list(zip_members(file) if kind == "zip" else tar_members(file))
        if stopped is not None:
            found = [member for member in found if member.name] + [ArchiveMember("", 0, stopped)]
        return [(member, Place(archive, kind, member.offset or 0, member.name).location()) for member in found]

    def read(self, path: Path, place: Place, size_bytes: int, max_bytes: int | None = None) -> bytes | Reject:
        """A member's bytes, or the first ``max_bytes`` of them. Reasons: ``unreadable``, ``broken_archive``."""
        with self._lock:
            try:
                if place.kind == "zip":
                    return self._zip(path).read(place.name, max_bytes)
                if place.kind == "packed":
                    path, _ = self._unpacked(path)
                wanted = size_bytes if max_bytes is None else min(size_bytes, max_bytes)
                with path.open("rb") as file:
                    file.seek(place.offset)
                    data = file.read(wanted)
            except OSError as error:
                return Reject("read", "unreadable", os.strerror(error.errno) if error.errno else "")
        return data if len(data) == wanted else Reject("read", "broken_archive", "ends early")

    def kept(self, identity: str, write: Callable[[IO[bytes]], None]) -> Path:
        """A file in the scratch folder that ``write`` fills if it is not there yet; it appears whole or not at all."""
        with self._lock:
            path = self._folder() / (_digest(identity) + ".archive")
            if not path.exists():

                def fill(file: IO[bytes]) -> Path:
                    write(file)
                    return path

                self._appear(fill)
            return path

    def close(self) -> None:
        """Close what is open and remove what is temporary."""
        with self._lock:
            for opened in self._zips.values():
                opened.close()
            self._zips.clear()
            if self._own is not None:
                self._own.cleanup()
                self._own = None

    def _folder(self) -> Path:
        if self._scratch is not None:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what the source holds
            return self._scratch
        if self._own is None:
            self._own = tempfile.TemporaryDirectory(prefix="lumid-archives-")
        return Path(self._own.name)

    def _unpacked(self, path: Path) -> tuple[Path, Reject | None]:
        """The tar of a packed one, and what stopped its unpacking: its code is part of the name, for other processes."""
        status = path.stat()
        name = _digest(f"{path}\t{status.st_size}\t{status.st_mtime_ns}")
        for code in ("", ".broken_archive", ".unsafe_member"):
            if (there := self._folder() / f"{name}{code}.tar").exists():
                return there, Reject("read", code[1:], "stopped before its end") if code else None

        def write(file: IO[bytes]) -> Path:
            with path.open("rb") as packed:
                stopped = unpack(packed, file, MAX_UNPACKED_BYTES)
            return self._folder() / (f"{name}.{stopped.code}.tar" if stopped else f"{name}.tar")

        there = self._appear(write)
        code = there.suffixes[0] if len(there.suffixes) > 1 else ""
        return there, Reject("read", code[1:], "stopped before its end") if code else None

    def _appear(self, write: Callable[[IO[bytes]], Path]) -> Path:
        """A file by one atomic rename to the path that ``write`` returns: another process may be making the same one."""
        handle, part = tempfile.mkstemp(dir=self._folder(), prefix="part-")
        try:
            with os.fdopen(handle, "wb") as file:
                path = write(file)
            Path(part).replace(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageError(
                    f"{self._folder()}: the disk is full; archives are unpacked there: make room, or unpack them yourself"
                ) from None
            raise
        finally:
            Path(part).unlink(missing_ok=True)
        return path

    def _zip(self, path: Path) -> _OpenZip:
        status = path.stat()
        key = path, status.st_size, status.st_mtime_ns
        if key not in self._zips:
            self._zips[key] = _OpenZip(path)
            if len(self._zips) > OPEN_ZIPS:
                self._zips.popitem(last=False)[1].close()
        self._zips.move_to_end(key)
        return self._zips[key]


class _OpenZip:
    """A zip kept open, because finding its directory again for every member costs more than the member."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive: zipfile.ZipFile | None = zipfile.ZipFile(path)
        except UNREADABLE as error:
            if isinstance(error, OSError):
                raise
            self._archive = None
        members = list_zip(self._archive) if self._archive else iter(())
        self._members = {member.name: member for member in members if member.reject is None}

    def read(self, name: str, max_bytes: int | None) -> bytes | Reject:
        member = self._members.get(name)
        if member is None:
            return Reject("read", "unreadable", "the archive has changed")
        # a member keeps what it has read: a new one each time, so that memory is the reader's
        return ArchiveMember(name, member.size_bytes, None, member.opener).read(max_bytes)

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:24]
