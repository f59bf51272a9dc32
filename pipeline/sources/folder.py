"""A local folder of files: every regular file is an object, whatever its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ObjectRef, Provenance


def pydicom_files() -> Path:
    """The folder of test files inside the installed pydicom wheel."""
    import pydicom

    return Path(pydicom.__file__).parent / "data" / "test_files"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """All files under ``root``. Symbolic links to files and folders are followed, each folder once."""

    root: Path = field(repr=False)
    provenance: Provenance
    keyer: Keyer
    plain_names: bool = False

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise RecipeError(f"{self.root}: no such folder to read images from")

    def objects(self) -> list[ObjectRef | tuple[ObjectRef, Reject]]:
        """Every file below the root, by ``source_id``; what is not readable comes with its reason."""
        found = [self._object(path) for path in sorted(set(_walk(self.root)))]
        return sorted(found, key=lambda item: (item[0] if isinstance(item, tuple) else item).source_id)

    def read(self, ref: ObjectRef, max_bytes: int | None = None) -> bytes | Reject:
        """The file's bytes, or the reason ``unreadable``."""
        try:
            with Path(ref.location).open("rb") as file:
                return file.read(-1 if max_bytes is None else max_bytes)
        except OSError as error:
            return Reject("read", "unreadable", os.strerror(error.errno) if error.errno else "")

    def paths(self) -> dict[str, Path]:
        """Every file by its ``source_id``, as the rejects and the catalog name it; for the folder's owner."""
        return {self._source_id(path): path for path in _walk(self.root)}

    def _source_id(self, path: Path) -> str:
        relative = path.relative_to(self.root).as_posix()
        if self.plain_names:
            return relative.encode("utf-8", "backslashreplace").decode()
        return self.keyer.pseudonym("object", self.provenance.collection, relative)

    def _object(self, path: Path) -> ObjectRef | tuple[ObjectRef, Reject]:
        source_id = self._source_id(path)
        try:
            status = path.stat()
        except OSError as error:
            code = "symlink_loop" if path.is_symlink() else "unreadable"
            detail = os.strerror(error.errno) if error.errno else ""
            return ObjectRef(source_id, 0, 0, str(path)), Reject("read", code, detail)
        ref = ObjectRef(source_id, status.st_size, status.st_mtime_ns, str(path))
        if stat.S_ISDIR(status.st_mode):  # listed by the walk only when it cannot be entered, or was entered before
            code = "unreadable" if not os.access(path, os.R_OK | os.X_OK) else "symlink_loop"
            return ref, Reject("read", code, "a folder")
        if not stat.S_ISREG(status.st_mode):
            return ref, Reject("read", "not_a_file")
        if status.st_size == 0:
            return ref, Reject("read", "empty_file")
        return ref


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
