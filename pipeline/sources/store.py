"""A prefix of an object store as a source; which stores are read, and how, is said in :mod:`lumid.catalog.stores`."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError, InvalidPathError, NotFoundError
from obstore.store import ObjectStore

from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.catalog.stores import DENIED, open_store
from lumid.pipeline.download import Patience
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, Listing, ObjectRef, Provenance, Series
from lumid.pipeline.sources.ahead import ReadAhead
from lumid.pipeline.sources.archived import Archives, archive_kind, expand, in_order, place_of
from lumid.pipeline.sources.buckets import PAGE_KEYS, missed
from lumid.pipeline.sources.folder import HEAD_BYTES, FolderSource, source_id_of
from lumid.pipeline.traffic import count, outcome_of, store_name

if TYPE_CHECKING:
    from obstore import ObjectMeta

CHUNK_BYTES = 1 << 20
PATIENCE = Patience(first_wait_s=0.2)
T = TypeVar("T")
ARCHIVE_NAMES = (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
FINAL = (FileNotFoundError, NotFoundError, InvalidPathError, *DENIED)
"""What another attempt does not change, whatever the store says."""
GONE = Reject("read", "unreadable", "no longer there, or changed since it was listed")


def status_of(error: Exception, status: int | None) -> int | None:
    """The HTTP status that a store's error stands for; ``status`` as its words say it, where its class does not."""
    if isinstance(error, DENIED):
        return 403
    return 404 if isinstance(error, FINAL) else status


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Everything below a prefix, and the members of archives that are named as such (``.zip``, ``.tar``, ``.tar.gz`` …).

    A local folder's archives are told by their content alone; here that would cost a request for every object. An archive
    is fetched whole into ``scratch`` before its members are listed. ``requests``: how many objects are asked for at once;
    ``ahead_bytes``: how much may have arrived before it is processed.
    """

    url: str
    provenance: Provenance
    keyer: Keyer
    plain_names: bool = False
    scratch: Path | None = field(default=None, repr=False)
    requests: int = 32
    ahead_bytes: int = 256 << 20
    timeout_s: float = 60.0
    attempts: int = 5
    _store: ObjectStore = field(init=False, repr=False, compare=False)
    _archives: Archives = field(init=False, repr=False, compare=False)
    _ahead: ReadAhead = field(init=False, repr=False, compare=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        store = open_store(self.url, timeout_s=self.timeout_s, attempts=1)  # it tries again here
        object.__setattr__(self, "_store", store)
        object.__setattr__(self, "_archives", Archives(self.scratch))
        object.__setattr__(self, "_ahead", ReadAhead(self.read, self.requests, self.ahead_bytes))

    def objects(self) -> Listing:
        """Everything below the prefix, by ``source_id``. Raises :class:`RecipeError` when it cannot be listed."""
        found: Listing = []
        for key, size, changed_ns in self._listed():
            ref = ObjectRef(self._source_id(key), size, changed_ns, key)
            if size == 0:
                found.append((ref, Reject("read", "empty_file")))
            elif key.lower().endswith(ARCHIVE_NAMES):
                found += self._expanded(ref, key)
            else:
                found.append(ref)
        return in_order(found)

    def prefetch(self, series: Sequence[Series]) -> None:
        """Begin to read the objects of these series, in their order, as far ahead as the bounds allow."""
        self._ahead.expect(_wanted(series, None))

    def close(self) -> None:
        """Forget what was read ahead, and what is temporary."""
        self._stop.set()
        self._ahead.close()
        self._archives.close()
        self._stop.clear()

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The objects of a series."""
        if only is not None:
            self._ahead.forget([member.ref for member in series.members if member.ref.source_id not in only])
        self._ahead.expect(_wanted([series], only), first=True)
        for member in series.members:
            if only is None or member.ref.source_id in only:
                yield Blob(member.ref, self._ahead.take(member.ref) if member.reject is None else member.reject)

    def read(self, ref: ObjectRef, max_bytes: int | None = None) -> bytes | Reject:
        """The object's bytes, whole by its listed size.

        Reasons: ``unreadable``, ``fetch_failed``; for members also those of the archive.
        """
        place = place_of(ref.location)
        if place is not None:
            try:
                path = self._kept(place.archive, ref.changed_ns)
            except _MissedError as missed:
                return missed.why
            return self._archives.read(path, place, ref.size_bytes, max_bytes)
        wanted = ref.size_bytes if max_bytes is None else min(max_bytes, ref.size_bytes)
        buffer = io.BytesIO()
        failed = self._fetch(ref.location, buffer, None if wanted == ref.size_bytes else wanted)
        if failed is not None:
            return failed
        return buffer.getvalue() if buffer.tell() == wanted else GONE

    def _fetch(self, key: str, file: IO[bytes], limit: int | None, changed_ns: int | None = None) -> Reject | None:
        """Write an object, or its first ``limit`` bytes, to ``file``; None when it is whole."""

        def attempt() -> Reject | None:
            file.seek(0)
            file.truncate()
            found = obstore.get(self._store, key, options=None if limit is None else {"range": (0, limit)})
            if changed_ns is not None and _changed_ns(found.meta) != changed_ns:
                count(store_name("folder", self.url), "get", "broken")
                return GONE
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)
            count(store_name("folder", self.url), "get", "ok", file.tell())
            return None

        try:
            return self._tried(attempt, "get")
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            return _why_not_read(error, self.timeout_s)

    def _tried(self, attempt: Callable[[], T], operation: str) -> T:
        """What an attempt gives; tried again, after a while, when the store's answer leaves hope. Raises its last error."""
        failures = 0
        while True:
            try:
                return attempt()
            except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
                failures += 1
                why = missed(error, self.timeout_s)
                count(
                    store_name("folder", self.url),
                    operation,
                    outcome_of(status_of(error, why.status)),
                )
                final = isinstance(error, FINAL) or why.final
                if final or failures >= self.attempts or self._stop.wait(PATIENCE.pause_s(failures, None)):
                    raise

    def _list(self) -> list[ObjectMeta]:
        found: list[ObjectMeta] = []
        for page in obstore.list(self._store, chunk_size=PAGE_KEYS):
            count(store_name("folder", self.url), "list", "ok")
            found += page
        return found

    def _listed(self) -> list[tuple[str, int, int]]:
        """Key below the prefix, size, and time of change (ns) of every object; markers of folders left out."""
        try:
            metas = self._tried(self._list, "list")
        except (BaseError, OSError) as error:
            raise RecipeError(f"{self.url}: {_why_not_listed(error)}") from None
        found = [(meta["path"], meta["size"], _changed_ns(meta)) for meta in metas]
        folders = {key[:at] for key, _, _ in found for at in range(len(key)) if key[at] == "/"}
        found = [item for item in found if item[0] and not (item[1] == 0 and item[0] in folders)]
        if not found:
            raise RecipeError(f"{self.url}: there is nothing below this prefix")
        return found

    def _expanded(self, ref: ObjectRef, key: str) -> Listing:
        head = self.read(ref, HEAD_BYTES)
        if isinstance(head, Reject):
            return [(ref, head)]
        kind = archive_kind(head)
        if kind is None:
            return [ref]
        try:
            path = self._kept(key, ref.changed_ns)
        except _MissedError as missed:
            return [(ref, missed.why)]
        return expand(self._archives, ref, path, kind, lambda name: self._source_id(f"{key}!{name}"))

    def _kept(self, key: str, changed_ns: int) -> Path:
        """The archive of that key on this machine's disk, as it was when it was listed."""

        def fetch(file: IO[bytes]) -> None:
            missed = self._fetch(key, file, None, changed_ns)
            if missed is not None:
                raise _MissedError(missed)

        return self._archives.kept(f"{self.url}\t{key}\t{changed_ns}", fetch)

    def _source_id(self, name: str) -> str:
        return source_id_of(name, self.provenance, self.keyer, self.plain_names)


def open_folder(
    path: str,
    provenance: Provenance,
    keyer: Keyer,
    *,
    plain_names: bool = False,
    scratch: Path | None = None,
    requests: int = 32,
    ahead_bytes: int = 256 << 20,
    timeout_s: float = 60.0,
    attempts: int = 5,
) -> FolderSource | StoreSource:
    """What a recipe's ``path`` of a folder means: a local one (also ``file://``), or a prefix of an object store.

    The numbers are those of :class:`StoreSource`. Raises :class:`RecipeError` when it is not there.
    """
    if path.startswith("file://"):
        path = url2pathname(urlsplit(path).path)
    if "://" not in path:
        return FolderSource(Path(path), provenance, keyer, plain_names, scratch)
    return StoreSource(path, provenance, keyer, plain_names, scratch, requests, ahead_bytes, timeout_s, attempts)


class _MissedError(Exception):
    """An archive that could not be fetched, and why."""

    def __init__(self, why: Reject) -> None:
        super().__init__(why.code)
        self.why = why


def _wanted(series: Sequence[Series], only: frozenset[str] | None) -> list[ObjectRef]:
    members = (member for one in series for member in one.members if member.reject is None)
    return [member.ref for member in members if only is None or member.ref.source_id in only]


def _changed_ns(meta: ObjectMeta) -> int:
    return int(meta["last_modified"].timestamp() * 1e9)


def _why_not_read(error: Exception, timeout_s: float) -> Reject:
    why = missed(error, timeout_s)
    if isinstance(error, (FileNotFoundError, NotFoundError)) or why.status == 404:
        return GONE
    denied = isinstance(error, DENIED) or why.status in (401, 403)
    return Reject("read", "fetch_failed", "access denied" if denied else why.detail)


def _why_not_listed(error: Exception) -> str:
    """What the store said, in our words: its own holds request addresses and the provider's XML."""
    text = str(error)
    if isinstance(error, (FileNotFoundError, NotFoundError)) or "404 Not Found" in text:
        return "no such bucket"
    if isinstance(error, PermissionError) or "403 Forbidden" in text or "401 Unauthorized" in text:
        return "access denied; give credentials in the environment, or check that the bucket is public"
    if type(error).__name__ == "InvalidPathError":
        return "an object's name cannot be read ('..' or an empty part in its path); rename it or choose another prefix"
    return "the store does not answer; check the address, AWS_ENDPOINT_URL and the network"
