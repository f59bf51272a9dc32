"""A data set on disk: where everything lies, and writing so that a file is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, cast

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypeVar

from lumid.catalog.errors import DatasetError, StorageError, UsageError
from lumid.catalog.json_files import typed
from lumid.catalog.paths import AnyPath, StorePath, put_when_whole
from lumid.catalog.schema import FORMAT_VERSION

P = TypeVar("P", bound=AnyPath, covariant=True, default=Path)


@dataclass(frozen=True, slots=True)
class Layout(Generic[P]):
    """The paths of a data set under ``root``: a folder or, as ``Layout[AnyPath]``, a prefix of an object store.

    What is under ``work`` belongs to a build that has not finished.
    ``scratch``: a folder of this machine for what nobody else needs; by default that is under ``work``, too.
    """

    root: P
    scratch: Path | None = None

    @property
    def manifest(self) -> P:
        """``dataset.json``: written last; its presence means that the data set is whole."""
        return cast("P", self.root / "dataset.json")

    @property
    def catalog(self) -> P:
        """Folder of the Hive-partitioned catalog."""
        return cast("P", self.root / "catalog")

    @property
    def shards(self) -> P:
        """Folder of the tar shards."""
        return cast("P", self.root / "shards")

    @property
    def rejects(self) -> P:
        """Folder of the rejects' Parquet file."""
        return cast("P", self.root / "rejects")

    @property
    def lock(self) -> P:
        """What the data set is made from: one row a series, pinned."""
        return cast("P", self.root / "lock.parquet")

    @property
    def report(self) -> P:
        """The HTML report."""
        return cast("P", self.root / "report.html")

    @property
    def work(self) -> P:
        """State of a build under way; removed when it finishes."""
        return cast("P", self.root / ".build")

    @property
    def parts(self) -> P:
        """Finished batches of a build under way."""
        return cast("P", self.work / "parts")

    @property
    def pieces(self) -> P:
        """Pieces of batches of a build under way that several workers share."""
        return cast("P", self.work / "pieces")

    @property
    def unpacked(self) -> Path:
        """What had to be unpacked to be read."""
        return self.local / "unpacked"

    @property
    def local(self) -> Path:
        """A folder of this machine. Raises :class:`UsageError` where there is none."""
        place = self.scratch or self.work
        if isinstance(place, StorePath):
            raise UsageError(f"{self.root}: this needs a data set on a local disk; copy it here first")
        return place

    @property
    def state(self) -> P:
        """Identity and progress of a build under way."""
        return cast("P", self.work / "build.json")

    @property
    def log(self) -> P:
        """What has happened in a build under way, as lines of JSON."""
        return cast("P", self.work / "log.jsonl")

    @property
    def own_log(self) -> Path:
        """Where lines are appended to it: on this machine, as nothing can be appended in a store."""
        return self.local / "log.jsonl"


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the manifest lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str
    first_key: str
    last_key: str


@dataclass(frozen=True, slots=True)
class Counts:
    """The accounting of a build: ``planned == kept + rejected``, in frames."""

    objects: int
    planned: int
    kept: int
    rejected: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """``dataset.json``: what the data set is and what it was made from.

    ``unknown``: by column of the catalog, samples whose header states something there that the column's vocabulary does
    not know: the row has null, and the text is kept nowhere.
    """

    name: str
    format_version: int
    lumid_version: str
    recipe: dict[str, Any]
    recipe_hash: str
    lock_hash: str
    catalog_hash: str
    libraries: dict[str, str]
    counts: Counts
    modalities: dict[str, int]
    rejects: dict[str, int]
    shards: tuple[Shard, ...]
    build: dict[str, Any]
    unknown: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as it is written."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def read_manifest(root: AnyPath, *, oldest: int = FORMAT_VERSION) -> Manifest:
    """The manifest of a finished data set.

    Raises :class:`DatasetError` when the folder holds none, an unfinished one, or one of a newer format or of one before
    ``oldest``.
    """
    layout = Layout(root)
    if not layout.manifest.is_file():
        if layout.state.is_file():
            raise DatasetError(
                f"{root}: the build of this data set has not finished; run the same `lumid build` again to go on"
            )
        if (root / ".migrate" / "ready").is_file():
            raise DatasetError(f"{root}: its migration was interrupted; go on with it: lumid migrate {root}")
        raise DatasetError(f"{root}: not a data set (no dataset.json); make one with `lumid build` or `lumid demo`")
    return parse_manifest(layout.manifest.read_bytes(), root, oldest=oldest)


def parse_manifest(data: bytes, root: AnyPath | str, *, oldest: int = FORMAT_VERSION) -> Manifest:
    """The manifest in the bytes of ``dataset.json``; ``root`` says in errors where it is.

    Raises :class:`DatasetError` when it is damaged, or of a newer format, or of one before ``oldest``: its columns and
    what its pixels mean are not those that readers go by.
    """
    try:
        raw = json.loads(data)
        version = raw["format_version"]
        if version < 1:
            raise ValueError("no format")
        if version > FORMAT_VERSION:
            raise DatasetError(
                f"{root}: written in format {version}, this lumid reads up to {FORMAT_VERSION}: update lumid"
            )
        if version < oldest:
            raise DatasetError(
                f"{root}: written in format {version}, this lumid reads format {FORMAT_VERSION}; run: "
                f"lumid migrate {root if isinstance(root, Path) else 'FOLDER, on a copy of it in a folder'}"
            )
        shards = tuple(Shard(**item) for item in raw.pop("shards"))
        return typed(Manifest(**(raw | {"counts": Counts(**raw["counts"])}), shards=shards))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{root}/dataset.json: damaged (not a lumid manifest); build the data set again") from error


@contextmanager
def storage_errors(path: AnyPath) -> Iterator[None]:
    """Turn what the disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left while writing under {path}; free some and run the same command again, it goes on where it stopped"
            ) from None
        if error.errno == errno.EFBIG:
            raise StorageError(
                f"cannot write under {path}: a file is larger than is allowed (ulimit -f, or the file system); allow larger ones "
                "and run the same command again, it goes on where it stopped"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise StorageError(
                f"cannot write under {path}: {os.strerror(error.errno)}; choose another --out or change its permissions"
            ) from None
        raise


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` whole, synced and by one rename, or not at all; in a store, by one put."""
    if isinstance(path, StorePath):
        with put_when_whole(path) as file:
            yield file
        return
    if path.exists() and not path.is_file():  # a device would be gone, and who reads a pipe would wait for ever
        raise UsageError(f"{path}: is not a regular file; only such can be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_half_written(folder: Path) -> None:
    """Remove what :func:`atomic_file` had begun to write in a process that was killed; to be called where nobody writes."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def write_table(path: AnyPath, table: pa.Table, *, row_group_size: int = 65_536) -> None:
    """Write an Arrow table as a zstd Parquet file, atomically."""
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=row_group_size)
