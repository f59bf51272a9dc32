"""The raw cache: a folder or an object store's prefix that keeps the archives' own files, series by series.

``<kind>/<series>/<md5>`` is an object, ``<kind>/<series>.json`` the series' marker: a list of its objects, written when
all of them are there. Only a series with a marker counts. Every name in the cache is a uuid or a hash: what servers
call their files reaches no path, nor does a UID; and as an object's name is its content's MD5, no two writers can put
different bytes in one place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore

from lumid.catalog.errors import RecipeError, StorageError, UsageError
from lumid.catalog.paths import AnyPath, StorePath
from lumid.catalog.stores import DENIED, open_store
from lumid.pipeline.recipe import FetchSettings, FolderSettings, IdcSettings, Recipe, TciaSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ObjectRef, Series
from lumid.pipeline.sources.buckets import missed
from lumid.pipeline.sources.store import FINAL, PATIENCE, status_of
from lumid.pipeline.traffic import count, outcome_of, store_name

FORMAT = 1
TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# The raw cache of lumid: the archives' own files, to build again.\n"
)
"""What backup programs know a cache by (bford.info/cachedir); here also the proof that one was begun."""
KINDS = ("idc", "tcia")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MD5 = re.compile(r"[0-9a-f]{32}")
ABSENT = (FileNotFoundError, NotFoundError)
FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


# ---- a series and its marker


@dataclass(frozen=True, slots=True)
class Kept:
    """An object in the cache: how its source names it, what identifies its bytes, and what the archive says beside it."""

    source_id: str
    location: str = field(repr=False)
    size: int
    md5: str
    labels: tuple[str, ...] | None = None
    split: str | None = None


def folder_of(kind: str, series: Series) -> str:
    """Where a series lies in the cache. A uuid names a version of a series by itself; what else an archive calls a
    series is hashed, with the archive's version.

    >>> from lumid.pipeline.sources import Provenance
    >>> one = Series("0" * 16, Provenance("c", "idc", None, None, None), 1, 1, location="7a5e5f0c-39aa-4e0e-8f5b-3b3f62a1b0c4")
    >>> folder_of("idc", one)
    'idc/7a5e5f0c-39aa-4e0e-8f5b-3b3f62a1b0c4'
    """
    if UUID.fullmatch(series.location):
        return f"{kind}/{series.location}"
    version = f"{series.location}\t{series.provenance.source_version}"
    return f"{kind}/{hashlib.sha256(version.encode('utf-8', 'surrogateescape')).hexdigest()}"


def marker_of(series: Series, kept: Sequence[Kept]) -> bytes:
    """A series' marker, with its own SHA-256. Names that begin with the series' are kept without it: under another
    secret a series has another one."""
    objects = [
        {
            "source_id": _relative(one.source_id, series),
            "location": _relative(one.location, series),
            "bytes": one.size,
            "md5": one.md5,
            "labels": one.labels,
            "split": one.split,
        }
        for one in kept
    ]
    values = {"format": FORMAT, "objects": objects}
    return json.dumps({"sha256": _digest(values), **values}, indent=1).encode()


def read_marker(series: Series, data: bytes) -> tuple[Kept, ...] | None:
    """The objects of a marker; None when it is not a whole one, or not of as many objects as are planned."""
    try:
        values = json.loads(data)
        digest = values.pop("sha256")
        if values["format"] != FORMAT or digest != _digest(values):
            return None
        kept = tuple(_kept(series, **one) for one in values["objects"])
        sound = all(MD5.fullmatch(one.md5) for one in kept)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    planned = len(kept) if series.objects is None else series.objects
    return kept if sound and kept and len(kept) == planned else None


def _kept(
    series: Series, *, source_id: str, location: str, bytes: int, md5: str, labels: list[str] | None, split: str | None
) -> Kept:
    return Kept(
        _absolute(source_id, series),
        _absolute(location, series),
        bytes,
        md5,
        None if labels is None else tuple(labels),
        split,
    )


def _digest(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _relative(name: str, series: Series) -> str:
    for sign, prefix in (("location", series.location), ("series", series.id)):
        if prefix and name.startswith(prefix):
            return f"{sign}:{name[len(prefix) :]}"
    return f":{name}"


def _absolute(text: str, series: Series) -> str:
    sign, _, rest = text.partition(":")
    return {"location": series.location, "series": series.id, "": ""}[sign] + rest


# ---- the place


@dataclass(frozen=True, slots=True)
class RawCache:
    """An open cache. Writing and looking up raise :class:`StorageError` when the place refuses.

    What a store did not do is tried again until ``attempts`` are used up or ``stop`` is set.
    """

    address: str
    _store: ObjectStore = field(repr=False)
    attempts: int = 5
    timeout_s: float = 60.0
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def load(self, folder: str, series: Series) -> tuple[Kept, ...] | None:
        """A series' objects, in the order in which they came; None when the cache does not hold it complete."""
        data = self._get(f"{folder}.json")
        return None if data is None else read_marker(series, data)

    def seal(self, folder: str, series: Series, kept: Sequence[Kept]) -> None:
        """Say that all of the series' objects are in the cache."""
        self._put(f"{folder}.json", marker_of(series, kept))

    def unseal(self, folder: str) -> None:
        """Take back that the series is complete."""
        try:
            self._tried(lambda: obstore.delete(self._store, f"{folder}.json"), None)
        except ABSENT:
            pass
        except (BaseError, OSError) as error:
            raise refused(self.address, "written", error) from None

    def put(self, folder: str, data: bytes) -> str:
        """Keep an object; its MD5. It appears whole or not at all."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self._put(f"{folder}/{md5}", data)
        return md5

    def read(self, ref: ObjectRef) -> bytes | Reject:
        """The object at the ref's location, of its size and MD5, or ``fetch_failed``."""
        try:
            data = self._tried(lambda: bytes(obstore.get(self._store, ref.location).bytes()), "get")
        except ABSENT:
            return Reject("fetch", "fetch_failed", "missing in the cache")
        except (BaseError, OSError):
            return Reject("fetch", "fetch_failed", "cannot be read in the cache")
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if len(data) != ref.size_bytes or md5 != ref.location.rpartition("/")[2]:
            return Reject("fetch", "fetch_failed", "damaged in the cache")
        return data

    def begin(self) -> None:
        """Find out that the cache can be written to."""
        self._put(TAG, TAG_TEXT)

    def was_begun(self) -> bool:
        """Whether there is a cache at all."""
        return self._get(TAG) is not None

    def _get(self, key: str) -> bytes | None:
        try:
            return self._tried(lambda: bytes(obstore.get(self._store, key).bytes()), "get")
        except ABSENT:
            return None
        except (BaseError, OSError) as error:
            raise refused(self.address, "read", error) from None

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._tried(lambda: obstore.put(self._store, key, data), "put")
        except (BaseError, OSError) as error:
            raise refused(self.address, "written", error) from None

    def _tried(self, call: Callable[[], T], operation: str | None) -> T:
        """What a call gives; ``operation`` as it is counted, None for what nobody charges for."""
        failures = 0
        local = isinstance(self._store, LocalStore)
        who = None if local or operation is None else (store_name("cache", self.address), operation)
        while True:
            try:
                found = call()
                if who:
                    count(*who, "ok", len(found) if isinstance(found, bytes) else 0)
                return found
            except (BaseError, OSError) as error:
                failures += 1
                why = missed(error, self.timeout_s)
                if who:
                    count(*who, outcome_of(status_of(error, why.status)))
                if local or isinstance(error, FINAL) or why.final or failures >= self.attempts:
                    raise
                if self.stop.wait(PATIENCE.pause_s(failures, None)):
                    raise


def open_cache(fetch: FetchSettings) -> RawCache:
    """The cache of the settings; a local folder is made unless ``offline``.

    Raises :class:`RecipeError` when there is none, or its address means nothing, :class:`StorageError` when it cannot
    be opened.
    """
    address = fetch.cache
    if not address:
        raise RecipeError(
            "--offline needs --cache DIR_OR_URL (or the key fetch.cache): what an earlier build with it has kept"
        )
    path = local_path(address)
    if path is None:
        return RawCache(
            address, open_store(address, timeout_s=fetch.timeout_s, attempts=1), fetch.attempts, fetch.timeout_s
        )
    if fetch.offline and not path.is_dir():
        raise _no_cache(address)
    try:
        return RawCache(address, LocalStore(path, mkdir=not fetch.offline))
    except (BaseError, OSError) as error:
        raise refused(address, "read" if fetch.offline else "written", error) from None


def local_path(address: str) -> Path | None:
    """The folder that an address means, None for an object store's."""
    if address.startswith("file://"):
        address = url2pathname(urlsplit(address).path)
    return None if "://" in address else Path(address).expanduser().absolute()


def refused(address: str, done: str, error: Exception) -> StorageError:
    """One line for what a disk or a store refused, in our words: theirs hold addresses of requests and XML."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found and local_path(address) is not None else None
    if number in FULL:
        return StorageError(
            f"no space left in the cache {address}; free some, or give another --cache or none, and run the same "
            "command again, it goes on where it stopped"
        )
    if number is not None:
        why = f"{os.strerror(number)}; give another --cache, or mend its permissions"
    elif isinstance(error, DENIED) or missed(error, 0.0).status in (401, 403):
        why = "access denied; give credentials in the environment that may do so, or another --cache"
    elif isinstance(error, ABSENT):
        why = "no such bucket or folder; make it first, or give another --cache"
    else:
        why = "the store does not answer; check the address, AWS_ENDPOINT_URL and the network"
    return StorageError(f"{address}: the cache cannot be {done}: {why}")


# ---- what can be told before a build begins


def check_cache(recipe: Recipe, out: AnyPath, *, pinned: bool) -> None:
    """Refuse a build that its cache, or what there is offline, cannot serve; ``pinned``: it needs no plan any more.

    Raises :class:`RecipeError` and :class:`UsageError` for what was asked for, :class:`StorageError` when the cache
    cannot be used.
    """
    fetch = recipe.fetch
    if fetch.offline:
        _check_offline(recipe, pinned=pinned)
    if not any(isinstance(source, IdcSettings | TciaSettings) for source in recipe.sources):
        return
    if not fetch.cache and not fetch.offline:
        return
    if fetch.cache and (path := local_path(fetch.cache)) is not None:
        _check_places(path, recipe, out)
    cache = open_cache(fetch)
    if isinstance(out, StorePath) and f"{cache.address}/".startswith(f"{out}/"):
        raise _within(cache.address, out)
    if not fetch.offline:
        cache.begin()
    elif not cache.was_begun():
        raise _no_cache(cache.address)


def _no_cache(address: str) -> RecipeError:
    return RecipeError(
        f"{address}: there is no cache of lumid's; run the build with --cache and without --offline first"
    )


def _check_offline(recipe: Recipe, *, pinned: bool) -> None:
    for number, source in enumerate(recipe.sources):
        if isinstance(source, TciaSettings) and not pinned:
            raise RecipeError(
                f"sources.{number}: TCIA has no index on this machine, so --offline needs the lock of an earlier plan: "
                "--lock LOCK"
            )
        if isinstance(source, FolderSettings) and local_path(source.path) is None:
            raise RecipeError(
                f"sources.{number}: {source.path} is read where it is and never cached; not with --offline"
            )


def _within(cache: str, out: AnyPath) -> UsageError:
    return UsageError(f"--cache {cache}: is inside --out {out}, which holds the data set alone; choose another place")


def _check_places(cache: Path, recipe: Recipe, out: AnyPath) -> None:
    """A cache must not lie where a build writes, nor where it looks for files."""
    cache = cache.resolve()
    if isinstance(out, Path):
        out = out.expanduser().resolve()
        if cache.is_relative_to(out):
            raise _within(str(cache), out)
        if any(out.is_relative_to(cache / kind) for kind in KINDS):
            raise UsageError(f"--out {out}: is among the files of the cache {cache}; choose another place")
    for source in recipe.sources:
        folder = local_path(source.path) if isinstance(source, FolderSettings) else None
        if folder is None:
            continue
        folder = folder.resolve()
        if cache.is_relative_to(folder) or any(folder.is_relative_to(cache / kind) for kind in KINDS):
            raise UsageError(
                f"--cache {cache}: the source {folder} would be read with the cache's files in it; choose another place"
            )
