"""The Imaging Data Commons: public buckets, one object an instance, at Amazon and with the same names at Google.

A series' version is a prefix that never changes. Its listing gives every object's size and ETag, which for an object
uploaded in one piece is the MD5 of its content: what arrives is held against both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Series
from lumid.pipeline.sources.store import ReadAhead

if TYPE_CHECKING:
    from obstore.store import ClientConfig

MD5 = re.compile(r"[0-9a-f]{32}")


@cache
def bucket_of(bucket: str, endpoint: str, fetch: FetchSettings) -> S3Store:
    """An anonymous client of a bucket. Google's buckets are read through their S3-compatible interface."""
    client: ClientConfig = {"timeout": timedelta(seconds=fetch.timeout_s)}
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    return S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1",
        skip_signature=True,
        client_options=client,
        # connections that fail and 5xx answers: exponential back-off with jitter, in the client
        retry_config={
            "max_retries": fetch.attempts - 1,
            "retry_timeout": timedelta(seconds=fetch.timeout_s * fetch.attempts),
        },
    )


@dataclass(frozen=True, slots=True)
class Listed:
    """An object of a series as a bucket lists it; ``md5`` where the ETag is one."""

    name: str
    size: int
    md5: str | None


@dataclass(frozen=True, slots=True)
class IdcSource:
    """Series by their prefix. Mirrors are tried in the lock's order, for the listing and for every object."""

    fetch: FetchSettings
    _ahead: ReadAhead = field(init=False, repr=False, compare=False)
    _listings: dict[str, tuple[Listed, ...] | Reject] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _objects: dict[str, tuple[Series, Listed]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ahead = ReadAhead(self._read, self.fetch.requests, int(self.fetch.ahead_mb * 1e6))
        object.__setattr__(self, "_ahead", ahead)

    def prefetch(self, series: Sequence[Series]) -> None:
        """Begin to read these series, in their order, as far ahead as the bounds allow."""
        for one in series:
            listed = self._list(one)
            if not isinstance(listed, Reject):
                self._ahead.expect([self._ref(one, item) for item in listed])

    def close(self) -> None:
        """Forget what was read ahead."""
        self._ahead.close()
        self._listings.clear()
        self._objects.clear()

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The objects of a series, by name. A series that cannot be listed whole is one blob that stands for all."""
        listed = self._list(series)
        if isinstance(listed, Reject):
            yield Blob(ObjectRef(series.location, series.bytes, location=series.location), listed, series.objects or 1)
            return
        for item in listed:
            ref = self._ref(series, item)
            if only is None or ref.source_id in only:
                yield Blob(ref, self._ahead.take(ref))

    def _ref(self, series: Series, item: Listed) -> ObjectRef:
        source_id = f"{series.location}/{item.name}"
        self._objects[source_id] = series, item
        return ObjectRef(source_id, item.size, location=source_id)

    def _list(self, series: Series) -> tuple[Listed, ...] | Reject:
        if series.location not in self._listings:
            self._listings[series.location] = self._list_anywhere(series)
        return self._listings[series.location]

    def _list_anywhere(self, series: Series) -> tuple[Listed, ...] | Reject:
        last = _failed("the lock names no address")
        for url in series.urls:
            found = list_series(url, self.fetch)
            if isinstance(found, Reject):
                last = found
            elif series.objects is not None and len(found) != series.objects:
                last = _failed(f"{len(found)} objects listed, {series.objects} planned")
            elif not found:
                last = _failed("no objects listed")
            else:
                return found
        return last

    def _read(self, ref: ObjectRef) -> bytes | Reject:
        series, item = self._objects[ref.source_id]
        last = _failed("the lock names no address")
        for url in series.urls:
            for _ in range(self.fetch.attempts):
                data = read_object(url, item, self.fetch)
                if not isinstance(data, Reject):
                    return data
                last = data
        return last


def _store_of(url: str, fetch: FetchSettings) -> tuple[S3Store, str]:
    parts = urlsplit(url)
    endpoint = fetch.gs_endpoint if parts.scheme == "gs" else fetch.s3_endpoint
    # what does not change the client is left out of the cache's key
    return bucket_of(parts.netloc, endpoint, _client_settings(fetch)), parts.path.strip("/")


def _client_settings(fetch: FetchSettings) -> FetchSettings:
    """Only what a client depends on, so that equal clients are shared."""
    return FetchSettings(attempts=fetch.attempts, timeout_s=fetch.timeout_s)


def list_series(url: str, fetch: FetchSettings) -> tuple[Listed, ...] | Reject:
    """The objects below a series' address (``s3://bucket/uuid/``), by name; ``fetch_failed`` when it does not answer."""
    store, prefix = _store_of(url, fetch)
    try:
        metas = [meta for page in obstore.list(store, f"{prefix}/") for meta in page]
    except (BaseError, OSError) as error:
        return _failed(f"listing: {type(error).__name__}")
    found = []
    for meta in metas:
        name = meta["path"].rpartition("/")[2]
        etag = (meta["e_tag"] or "").strip('"').lower()
        found.append(Listed(name, meta["size"], etag if MD5.fullmatch(etag) else None))
    return tuple(sorted(found, key=lambda item: item.name))


def read_object(url: str, item: Listed, fetch: FetchSettings) -> bytes | Reject:
    """An object's bytes, of the listed size and MD5, or ``fetch_failed``."""
    store, prefix = _store_of(url, fetch)
    try:
        data = bytes(obstore.get(store, f"{prefix}/{item.name}").bytes())
    except (BaseError, OSError) as error:
        return _failed(type(error).__name__)
    if len(data) != item.size:
        return _failed(f"{len(data)} bytes, {item.size} listed")
    if item.md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != item.md5:
        return _failed("MD5 does not match")
    return data


def _failed(detail: str) -> Reject:
    return Reject("fetch", "fetch_failed", detail)
