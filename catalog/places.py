"""Where a data set is, and which of it is meant: a folder, a prefix of an object store, or a subset's file."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.json_files import typed
from lumid.catalog.layout import Layout, Manifest, parse_manifest, read_manifest
from lumid.catalog.paths import AnyPath, StorePath
from lumid.catalog.shards import read_range
from lumid.catalog.stores import GONE, STORE_ERRORS, StoredFile, open_store, tried, why_not

NOTE = b"lumid.subset"
"""The key in a subset's Parquet metadata under which its :class:`SubsetNote` is."""
OPEN_SHARDS = 256
"""Shards that are kept open at once: systems allow a process about 1,000 files."""


@dataclass(frozen=True, slots=True)
class Step:
    """One selection: of the samples that meet a SQL condition, those with the ``limit`` smallest keys."""

    where: str | None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class SubsetNote:
    """What a subset's file says of itself.

    ``steps``, one after the other, give these samples again from the data set whose catalog has ``catalog_hash``.
    ``data``: where that is, from the subset's own folder, or its URL.
    """

    name: str
    data: str
    dataset: str
    catalog_hash: str
    steps: tuple[Step, ...]
    samples: int
    keys_sha256: str
    modalities: dict[str, int]
    lumid_version: str

    def to_json(self) -> str:
        """The note as it is written."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Place:
    """A data set, or a subset of it. ``root``: its folder, or the URL of its prefix; ``subset``: a subset's file."""

    root: Path | str
    subset: Path | None = None

    def __str__(self) -> str:
        return str(self.subset or self.root)


Anywhere = AnyPath | str | Place
"""What names a data set: its folder, its URL, the file of a subset of it."""


def as_place(where: Anywhere, subset: Path | str | None = None) -> Place:
    """The data set, or the subset, that is meant.

    ``where``: a folder, ``s3://…``, ``gs://…``, ``az://…``, ``file://…``, or the file of a subset, which knows its data
    set; ``subset``: such a file, where the data set is named, too. Raises :class:`UsageError` when it is none.

    >>> as_place("s3://bucket/lumid/")
    Place(root='s3://bucket/lumid', subset=None)
    """
    if isinstance(where, StorePath):
        where = str(where)
    if isinstance(where, Place):
        if subset is None:
            return where
        if where.subset is not None:
            raise UsageError(f"{where.subset}: is a subset already; name the data set beside --subset")
        return Place(where.root, Path(subset))
    if isinstance(where, str):
        if where.startswith("file://"):
            where = url2pathname(urlsplit(where).path)
        elif "://" in where:
            return Place(where.rstrip("/"), None if subset is None else Path(subset))
        where = Path(where).expanduser()
    if not where.is_file():
        return Place(where, None if subset is None else Path(subset))
    if subset is not None:
        raise UsageError(f"{where}: is a file; name the data set beside --subset")
    data = read_note(where).data
    return Place(data if "://" in data else Path(os.path.normpath(where.parent / data)), where)


def read_note(path: Path) -> SubsetNote:
    """What a subset's file says of itself. Raises :class:`UsageError` when it is not the file of a subset."""
    try:
        raw = json.loads((pq.read_schema(path).metadata or {})[NOTE])
        return typed(SubsetNote(**(raw | {"steps": tuple(Step(**step) for step in raw["steps"])})))
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file; write a subset with `lumid subset DATASET WHERE --out {path}`"
        ) from None
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, RecursionError):
        raise UsageError(
            f"{path}: neither a data set nor a subset; a subset is written by `lumid subset DATASET WHERE --out NAME.parquet`"
        ) from None


def place_manifest(where: Anywhere) -> Manifest:
    """The manifest of a finished data set.

    Raises :class:`DatasetError` when there is none, when it cannot be had, or when the subset that is meant was written
    of another catalog.
    """
    place = as_place(where)
    try:
        manifest = read_manifest(place.root) if isinstance(place.root, Path) else _stored_manifest(place.root)
    except DatasetError as error:
        if place.subset is None or (isinstance(place.root, Path) and place.root.exists()):
            raise
        raise DatasetError(
            f"{place.subset}: its data set is not at {place.root}: name it where it is now, with --subset {place.subset} beside it"
        ) from error
    if place.subset is not None:
        note = read_note(place.subset)
        if note.catalog_hash != manifest.catalog_hash:
            raise DatasetError(
                f"{place.subset}: a subset of another catalog ({note.dataset} {note.catalog_hash[:12]}…, not {manifest.name} "
                f"{manifest.catalog_hash[:12]}…); write it again with `lumid subset`: `lumid subset {place.subset}` shows how it was made"
            )
    return manifest


def identity(where: Anywhere) -> str:
    """What tells this selection from every other: the catalog's hash, and the hash of a subset's keys."""
    place = as_place(where)
    catalog = place_manifest(place).catalog_hash
    return catalog if place.subset is None else f"{catalog}:{read_note(place.subset).keys_sha256}"


def local_root(where: Anywhere) -> Path:
    """The folder of a data set on this machine. Raises :class:`UsageError` for one in an object store."""
    place = as_place(where)
    if isinstance(place.root, Path):
        return place.root
    raise UsageError(f"{place.root}: this needs a data set on a local disk; copy it here first")


def fetched(place: Place, name: str, scratch: Path) -> Path:
    """A file of a data set on this machine: where it is, or a copy of the object in ``scratch``.

    Raises :class:`DatasetError` when a store does not give it.
    """
    if isinstance(place.root, Path):
        return place.root / name
    (scratch / name).write_bytes(fetched_bytes(place, name))
    return scratch / name


def fetched_bytes(place: Place, name: str) -> bytes:
    """The bytes of an object of a data set in a store. Raises :class:`DatasetError` when the store does not give them."""
    assert isinstance(place.root, str)
    store = _store(place.root)
    try:
        return tried(lambda: bytes(obstore.get(store, name).bytes()))
    except STORE_ERRORS as error:
        raise DatasetError(f"{place.root}/{name}: {why_not(error)}") from None


def _stored_manifest(url: str) -> Manifest:
    store = _store(url)
    try:
        data = tried(lambda: bytes(obstore.get(store, "dataset.json").bytes()))
    except GONE:
        raise DatasetError(f"{url}: not a finished data set (no dataset.json there)") from None
    except STORE_ERRORS as error:
        raise DatasetError(f"{url}: {why_not(error)}") from None
    return parse_manifest(data, url)


def _listing(store: ObjectStore, prefix: str) -> list[Any]:
    return [one for page in obstore.list(store, prefix=prefix) for one in page]


def _store(url: str) -> ObjectStore:
    return open_store(url, timeout_s=30.0, attempts=1)


# ---- Parquet files


@dataclass(frozen=True, slots=True)
class Tables:
    """The Parquet files of a data set by name: their paths, or, in ``store``, their sizes and times."""

    catalog: tuple[str, ...]
    rejects: tuple[str, ...]
    store: ObjectStore | None
    stored: dict[str, StoredFile]


def list_tables(place: Place) -> Tables:
    """The files of the catalog and of the rejects, in their order. Raises :class:`DatasetError` when a store refuses."""
    if isinstance(place.root, Path):
        layout = Layout(place.root.resolve())
        catalog, rejects = layout.catalog.glob("modality=*/*.parquet"), layout.rejects.glob("*.parquet")
        return Tables(tuple(map(str, sorted(catalog))), tuple(map(str, sorted(rejects))), None, {})
    store = _store(place.root)
    found: dict[str, StoredFile] = {}
    try:
        for prefix in ("catalog", "rejects"):
            listed = tried(partial(_listing, store, prefix))
            found |= {one["path"]: StoredFile(one["size"], one["last_modified"]) for one in listed}
    except STORE_ERRORS as error:
        raise DatasetError(f"{place.root}: {why_not(error)}") from None
    names = sorted(name for name in found if name.endswith(".parquet"))
    catalog_names = tuple(name for name in names if name.startswith("catalog/modality=") and name.count("/") == 2)
    rejects_names = tuple(name for name in names if name.startswith("rejects/") and name.count("/") == 1)
    return Tables(catalog_names, rejects_names, store, {name: found[name] for name in catalog_names + rejects_names})


# ---- shards


SHARD_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\.tar")


def _check_name(shard: str) -> None:
    """Names come from a catalog that anyone may have written: none leads out of ``shards/``, and none else is repeated."""
    if not SHARD_NAME.fullmatch(shard):
        raise DatasetError("the catalog names a shard that is none of its own; build the data set again")


class Shards:
    """The shards of a data set, to read ranges from: local files that stay open, or objects. Threads may share it."""

    def __init__(self, where: Anywhere) -> None:
        self.place = as_place(where)
        root = self.place.root
        self._folder = Layout(root).shards if isinstance(root, Path) else None
        self._store = None if isinstance(root, Path) else _store(root)
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset`` of a shard.

        Raises :class:`DatasetError` when it is missing, shorter than that, or cannot be had.
        """
        return next(self.read_many(shard, [(offset, length)]))

    def read_many(self, shard: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Some (offset, length) of a shard, in their order; from a store, neighbours come in one request."""
        _check_name(shard)
        if self._store is not None:
            yield from self._from_store(shard, ranges)
            return
        descriptor, kept = self._descriptor(shard)
        try:
            for offset, length in ranges:
                yield read_range(descriptor, offset, length)
        finally:
            if not kept:
                os.close(descriptor)

    def size(self, shard: str) -> int:
        """The size of a shard in bytes. Raises :class:`DatasetError` when it is missing."""
        _check_name(shard)
        try:
            if self._store is not None:
                return int(tried(partial(obstore.head, self._store, f"shards/{shard}"))["size"])
            assert self._folder is not None
            return (self._folder / shard).stat().st_size
        except STORE_ERRORS:
            raise DatasetError(f"shards/{shard}: missing or not readable; build the data set again") from None

    def _descriptor(self, shard: str) -> tuple[int, bool]:
        """An open file, and whether it stays open."""
        assert self._folder is not None
        with self._lock:
            if shard in self._open:
                return self._open[shard], True
            try:
                descriptor = os.open(self._folder / shard, os.O_RDONLY)
            except OSError:
                raise DatasetError(f"shards/{shard}: missing or not readable; build the data set again") from None
            if len(self._open) < OPEN_SHARDS:
                self._open[shard] = descriptor
                return descriptor, True
            return descriptor, False

    def _from_store(self, shard: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        assert self._store is not None
        try:
            starts, lengths = [offset for offset, _ in ranges], [length for _, length in ranges]
            ask = partial(obstore.get_ranges, self._store, f"shards/{shard}", starts=starts, lengths=lengths)
            found = tried(ask)
        except STORE_ERRORS as error:
            raise DatasetError(f"{self.place.root}/shards/{shard}: {why_not(error)}") from None
        for data, length in zip(found, lengths, strict=True):
            if len(data) != length:
                raise DatasetError(f"{self.place.root}/shards/{shard}: shorter than the catalog says; copy it again")
            yield bytes(data)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
