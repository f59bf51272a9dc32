"""A local folder of files: every regular file is an object, whatever its name, and so is every file in an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, Listing, ObjectRef, Provenance, Series
from lumid.pipeline.sources.archived import Archives, archive_kind, expand, in_order, place_of
from lumid.pipeline.traffic import count

HEAD_BYTES = 4096


def pydicom_files() -> Path:
    """The folder of test files inside the installed pydicom wheel."""
    import pydicom

    return Path(pydicom.__file__).parent / "data" / "test_files"


def source_id_of(name: str, provenance: Provenance, keyer: Keyer, plain: bool) -> str:
    """The name of an object that may be shown: its path where names are ``plain``, else a pseudonym of it."""
    if plain:
        return name.encode("utf-8", "backslashreplace").decode()
    return keyer.pseudonym("object", provenance.collection, name)


def _head(path: Path) -> bytes:
    """What tells an archive; nothing of a file that cannot be read: reading it will say why."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """All files under ``root``, and the members of zip and tar archives among them, which are told by their content.

    Symbolic links to files and folders are followed, each folder once. A member's name is that of its archive, ``!``, and
    its own. Archives in archives are not opened. ``scratch``: where packed tars are unpacked, once; processes on the same
    machine share it. ``timeless``: the files are those of a package's version, and when they were installed says nothing.
    Data sets and builds of lumid's own below the root are not looked into: ``--out`` can be there.
    """

    root: Path = field(repr=False)
    provenance: Provenance
    keyer: Keyer
    plain_names: bool = False
    scratch: Path | None = field(default=None, repr=False)
    timeless: bool = False
    _archives: Archives = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.root.is_file():
            raise RecipeError(f"{self.root}: is a file; give the folder that it is in")
        if not self.root.is_dir():
            raise RecipeError(f"{self.root}: no such folder to read images from")
        object.__setattr__(self, "_archives", Archives(self.scratch))

    def objects(self) -> Listing:
        """Every file below the root and in its archives, by ``source_id``; what is not readable comes with its reason.

        Raises :class:`~lumid.catalog.errors.StorageError` when the scratch folder is full.
        """
        found: Listing = []
        for path in sorted(set(_walk(self.root))):
            item = self._object(path)
            kind = None if isinstance(item, tuple) else archive_kind(_head(path))
            if isinstance(item, tuple) or kind is None:
                found.append(item)
            else:
                found += expand(self._archives, item, path, kind, lambda name, path=path: self._source_id(path, name))  # type: ignore[misc]
        return in_order(found)

    def prefetch(self, series: Sequence[Series]) -> None:
        """Nothing: a disk reads ahead by itself."""

    def close(self) -> None:
        """Close the archives that are open."""
        self._archives.close()

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The files and members of a series."""
        for member in series.members:
            if only is None or member.ref.source_id in only:
                yield Blob(member.ref, self.read(member.ref) if member.reject is None else member.reject)

    def read(self, ref: ObjectRef, max_bytes: int | None = None) -> bytes | Reject:
        """The file's or member's bytes. Reasons: ``unreadable``; for members also those of the archive."""
        place = place_of(ref.location)
        try:
            if place is None:
                with Path(ref.location).open("rb") as file:
                    data = file.read(-1 if max_bytes is None else max_bytes)
                    about = os.fstat(file.fileno())
                # what is finished under a listing holds what the listing says, and nothing newer
                if (about.st_size, about.st_mtime_ns) != (ref.size_bytes, ref.changed_ns or about.st_mtime_ns):
                    return Reject("read", "unreadable", "the file has changed")
                count("folder", "get", "ok", len(data))
                return data
            path = Path(place.archive)
            if path.stat().st_mtime_ns != ref.changed_ns:
                return Reject("read", "unreadable", "the archive has changed")
        except OSError as error:
            return Reject("read", "unreadable", os.strerror(error.errno) if error.errno else "")
        return self._archives.read(path, place, ref.size_bytes, max_bytes)

    def paths(self) -> dict[str, Path]:
        """Every file and member (``archive.zip!member``) by its ``source_id``, as the rejects and the catalog name it.

        For the folder's owner.
        """
        named = {self._source_id(path): path for path in _walk(self.root)}
        for item in self.objects():
            ref = item[0] if isinstance(item, tuple) else item
            if (place := place_of(ref.location)) is not None:
                named[ref.source_id] = Path(f"{place.archive}!{place.name}")
        return named

    def _source_id(self, path: Path, member: str | None = None) -> str:
        relative = path.relative_to(self.root).as_posix() + ("" if member is None else f"!{member}")
        return source_id_of(relative, self.provenance, self.keyer, self.plain_names)

    def _object(self, path: Path) -> ObjectRef | tuple[ObjectRef, Reject]:
        source_id = self._source_id(path)
        try:
            status = path.stat()
        except OSError as error:
            code = "symlink_loop" if path.is_symlink() else "unreadable"
            detail = os.strerror(error.errno) if error.errno else ""
            return ObjectRef(source_id, 0, 0, str(path)), Reject("read", code, detail)
        changed_ns = 0 if self.timeless else status.st_mtime_ns
        ref = ObjectRef(source_id, status.st_size, changed_ns, str(path))
        if stat.S_ISDIR(status.st_mode):  # listed by the walk only when it cannot be entered, or was entered before
            code = "unreadable" if not os.access(path, os.R_OK | os.X_OK) else "symlink_loop"
            return ref, Reject("read", code, "a folder")
        if not stat.S_ISREG(status.st_mode):
            return ref, Reject("read", "not_a_file")
        if status.st_size == 0:
            return ref, Reject("read", "empty_file")
        return ref


def _is_own(folder: Path, names: set[str]) -> bool:
    """Whether lumid writes this folder, or has: a data set, or a build under way."""
    return {"dataset.json", "shards"} <= names or (".build" in names and (folder / ".build" / "build.json").is_file())


def _walk(root: Path) -> Iterator[Path]:
    """Every file below ``root``, and every folder that cannot be entered or would be entered again."""
    pending = [root]
    entered: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in entered:
            yield folder
            continue
        entered.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(folder) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield folder
            continue
        if folder != root and _is_own(folder, {entry.name for entry in children}):
            continue
        # real folders before links to them, so that which of the two is "again" does not depend on names
        links = []
        for entry in children:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if not is_folder:
                yield Path(entry.path)
            elif entry.is_symlink():
                links.append(Path(entry.path))
            else:
                pending.append(Path(entry.path))
        pending[:0] = links
