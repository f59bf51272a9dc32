"""Where a build writes: a folder of this machine, or a prefix of an object store, whose names have what it needs of pathlib's.

A :class:`StorePath` holds an address and no credentials: each process that it is sent to finds its own in its environment.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from lumid.catalog.errors import DatasetError, StorageError
from lumid.catalog.shards import read_range
from lumid.catalog.stores import (
    CREDENTIALS,
    GONE,
    NOT_MET,
    STORE_ERRORS,
    open_store,
    put_new,
    status_of,
    tried,
    why_not,
    why_not_written,
)

REQUESTS = 16
"""Requests that one process has under way at once."""
FOOTER_BYTES = 1 << 16
"""So much of a Parquet file's end is asked for at first: what it says of itself is mostly in it."""
REMOVED_AT_ONCE = 1000
PIECE_BYTES = 8 << 20
"""What is larger is put in pieces of this size."""
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True, order=True)
class StorePath:
    """An object, or all whose names begin with ``key/``, in the bucket ``url`` (``s3://…``, ``gs://…``, ``az://…``).

    Methods raise :class:`~lumid.catalog.errors.StorageError` when the store refuses.
    """

    url: str
    key: str = ""

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.url, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"{self.url}/{self.key}" if self.key else self.url

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, with it."""
        return Path(self.name).suffix

    @property
    def parent(self) -> StorePath:
        """What it lies in."""
        return StorePath(self.url, self.key.rpartition("/")[0])

    def is_file(self) -> bool:
        """Whether there is such an object."""
        try:
            _answer(self, lambda store: obstore.head(store, self.key))
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether objects lie in it."""
        with _in_words(self, why_not):
            pages = obstore.list(_store(self.url), prefix=_prefix(self))
            return bool(_asked(self.url, "list", lambda: next(iter(pages), [])))

    def exists(self) -> bool:
        """Whether there is such an object, or objects lie in it."""
        return self.is_dir() or (bool(self.key) and self.is_file())

    def read_bytes(self) -> bytes:
        """The object. Raises ``FileNotFoundError`` when there is none."""
        return _answer(self, lambda store: bytes(obstore.get(store, self.key).bytes()))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Write the object, whole or not at all."""
        _put(self, lambda: data, len(data))

    def create(self, data: bytes) -> bool:
        """Write the object if there is none; whether it holds this now: an answer that was lost finds its own."""
        with _in_words(self, why_not_written):
            _asked(self.url, "put", lambda: put_new(_store(self.url), self.key, data))
        return self.read_bytes() == data

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; one that is not there is no error, as stores have it: ``missing_ok`` is pathlib's."""
        remove_below(self.parent, [self.name])


AnyPath = Path | StorePath
"""A path of this machine or of an object store."""


def data_path(where: str | Path) -> AnyPath:
    """What a user typed: an address of a store, or a folder.

    >>> data_path("s3://bucket/lumid/"), data_path("data").name
    (StorePath(url='s3://bucket', key='lumid'), 'data')
    """
    scheme, found, rest = str(where).partition("://")
    if isinstance(where, str) and found and scheme in CREDENTIALS:
        bucket, _, key = rest.strip("/").partition("/")
        return StorePath(f"{scheme}://{bucket}", key)
    return Path(where)


@lru_cache(maxsize=64)
def _store(url: str) -> ObjectStore:
    return open_store(url, attempts=1)


@contextmanager
def _in_words(path: StorePath, why: Callable[[Exception], str]) -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise StorageError(f"{path}: {why(error)}") from None


Listener = Callable[[str, str, int | None, int, int], None]
"""Is told of the scheme of a store's address, the operation (``get``, ``list`` or ``put``, whose prices differ), the HTTP
status, bytes that came, and how many requests it were."""
_listeners: list[Listener] = []


def tell_requests(listener: Listener) -> None:
    """Have every request of this process to stores that data sets lie in told to ``listener``, tries that failed as well."""
    _listeners.append(listener)


def _asked(url: str, operation: str, attempt: Callable[[], A], requests: int = 1) -> A:
    """What ``attempt`` gives, tried again when the store fails."""

    def tell(status: int | None, size: int) -> None:
        for listener in _listeners:
            listener(url.partition("://")[0], operation, status, size, requests)

    def told() -> A:
        try:
            found = attempt()
        except STORE_ERRORS as error:
            tell(status_of(error), 0)
            raise
        tell(200, len(found) if isinstance(found, bytes) else 0)
        return found

    return tried(told)


def _answer(path: StorePath, ask: Callable[[ObjectStore], A]) -> A:
    """What a store answers about an object that may not be there."""
    try:
        return _asked(path.url, "get", lambda: ask(_store(path.url)))
    except GONE:
        raise FileNotFoundError(str(path)) from None
    except STORE_ERRORS as error:
        if "404 Not Found" in str(error):
            raise FileNotFoundError(str(path)) from None
        raise StorageError(f"{path}: {why_not(error)}") from None


def _put(path: StorePath, data: Callable[[], Any], size: int) -> None:
    requests = 1 if size <= PIECE_BYTES else -(-size // PIECE_BYTES) + 2  # one begins, one completes
    with _in_words(path, why_not_written):
        _asked(
            path.url, "put", lambda: obstore.put(_store(path.url), path.key, data(), chunk_size=PIECE_BYTES), requests
        )


def _prefix(folder: StorePath) -> str | None:
    return f"{folder.key}/" if folder.key else None


def _listed(folder: StorePath) -> Iterator[tuple[str, int]]:
    """Names and sizes of all that lies in it, from the store's listing."""
    prefix = _prefix(folder)

    def ask() -> list[tuple[str, int]]:
        return [(one["path"], one["size"]) for page in obstore.list(_store(folder.url), prefix=prefix) for one in page]

    with _in_words(folder, why_not):
        for name, size in _asked(folder.url, "list", ask):
            yield name.removeprefix(prefix or ""), size


# ---- writes on a condition


def entity_tag(path: StorePath) -> dict[str, Any] | None:
    """What tells an object from every other that this name had; None where there is none."""
    try:
        about = _answer(path, lambda store: obstore.head(store, path.key))
    except FileNotFoundError:
        return None
    return _tag(about)


def changed_at(path: AnyPath) -> float | None:
    """When a file or an object was written, in seconds since 1970; None where there is none."""
    try:
        if not isinstance(path, StorePath):
            return path.stat().st_mtime
        return _answer(path, lambda store: obstore.head(store, path.key))["last_modified"].timestamp()
    except FileNotFoundError:
        return None


def conditional_put(path: StorePath, data: bytes, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """Write an object if it is as it was ``before``, or if there is none; its tag, or None when that was not so."""
    try:
        done = _asked(
            path.url,
            "put",
            lambda: obstore.put(
                _store(path.url), path.key, data, mode=cast("Any", "create" if before is None else before)
            ),
        )
    except (*NOT_MET, *GONE):
        return None
    except STORE_ERRORS as error:
        raise StorageError(f"{path}: {why_not_written(error)}") from None
    return _tag(done)


def _tag(about: Any) -> dict[str, Any]:
    return {name: about[name] for name in ("e_tag", "version") if about.get(name)}


# ---- what both kinds of paths can do


def sizes(folder: AnyPath) -> dict[str, int]:
    """Every file below ``folder`` by its name from there, with ``/``, and its size; none where there is no such folder."""
    if isinstance(folder, StorePath):
        return dict(_listed(folder))
    found: dict[str, int] = {}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}{entry.name}/")
                    else:
                        found[below + entry.name] = entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return found


def link_or_copy(source: AnyPath, target: AnyPath) -> None:
    """The same bytes under another name: a link where the file system has them, a copy that the store makes, or a copy."""
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    elif isinstance(source, StorePath) and isinstance(target, StorePath) and source.url == target.url:
        with _in_words(target, why_not_written):
            _asked(target.url, "put", lambda: obstore.copy(_store(source.url), source.key, target.key))
    elif isinstance(source, StorePath) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        download(source, target)
    elif isinstance(target, StorePath):
        if isinstance(source, Path):
            _put(target, lambda: source, source.stat().st_size)
        else:
            data = source.read_bytes()
            _put(target, lambda: data, len(data))


def download(source: StorePath, target: Path) -> None:
    """An object into a file of this machine, piece by piece. Raises ``FileNotFoundError`` when there is none."""

    def attempt(store: ObjectStore) -> None:
        found = obstore.get(store, source.key)
        with target.open("wb") as file:
            for piece in found.stream():
                file.write(piece)

    _answer(source, attempt)


def remove(folder: AnyPath) -> None:
    """Remove a folder and all that lies in it, if it is there."""
    if isinstance(folder, StorePath):
        remove_below(folder, sizes(folder))
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_below(folder: StorePath, names: Iterable[str]) -> None:
    """Remove these objects of a prefix."""
    keys = [(folder / name).key for name in names]
    with _in_words(folder, why_not_written):
        for begin in range(0, len(keys), REMOVED_AT_ONCE):
            with suppress(*GONE):  # Google's says so of what is not there, the others do not
                tried(partial(obstore.delete, _store(folder.url), keys[begin : begin + REMOVED_AT_ONCE]))


@contextmanager
def put_when_whole(path: StorePath) -> Iterator[BinaryIO]:
    """A binary file that becomes the object at ``path`` when it is whole."""
    with tempfile.TemporaryFile(prefix="lumid-") as file:
        yield file
        file.flush()
        size = file.tell()

        def from_its_start() -> Any:
            file.seek(0)
            return file

        _put(path, from_its_start, size)


def read_parquet(path: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file; of one in a store, all of it is fetched.

    Raises ``FileNotFoundError`` when there is none, and pyarrow's errors when it is damaged.
    """
    source = io.BytesIO(path.read_bytes()) if isinstance(path, StorePath) else path
    with pq.ParquetFile(source) as file:  # read_table takes twice as long for a small one
        return file.read(columns)


def read_arrow(path: AnyPath) -> pa.Table:
    """A file in Arrow's IPC format, all of it."""
    return pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()


def parquet_metadata(path: AnyPath) -> pq.FileMetaData:
    """What a Parquet file says of itself; of one in a store, no more than that is fetched."""
    if not isinstance(path, StorePath):
        return pq.read_metadata(path)
    tail = _answer(path, lambda store: _last_bytes(store, path.key))
    length = int.from_bytes(tail[-8:-4], "little")
    whole = tail if length + 8 <= len(tail) else path.read_bytes()
    return pq.read_metadata(io.BytesIO(whole))


def _last_bytes(store: ObjectStore, key: str) -> bytes:
    try:
        return bytes(obstore.get(store, key, options={"range": {"suffix": FOOTER_BYTES}}).bytes())
    except GONE:
        raise
    except STORE_ERRORS:  # one that is shorter, on servers that then answer with 200 or 416
        return bytes(obstore.get(store, key).bytes())


def read_span(path: AnyPath, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``. Raises :class:`~lumid.catalog.errors.DatasetError` when there are fewer."""
    if not isinstance(path, StorePath):
        with path.open("rb") as file:
            return read_range(file, offset, length)
    end = offset + length
    data = _answer(path, lambda store: bytes(obstore.get_range(store, path.key, start=offset, end=end)))
    if len(data) != length:
        raise DatasetError(f"{path}: ends at byte {offset + len(data)}, before what it should hold; build it again")
    return data


def over(paths: Sequence[A], read: Callable[[A], B], *, remote: bool) -> Iterator[B]:
    """``read`` of each, in their order; of a store's, some at once, because each is mostly waited for."""
    if not remote or len(paths) < 2:
        yield from map(read, paths)
        return
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="lumid-store") as pool:
        yield from pool.map(read, paths)
