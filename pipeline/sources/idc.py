"""The Imaging Data Commons: public buckets, one object an instance, at Amazon and with the same names at Google.

A series' version is a prefix that never changes. Its listing gives every object's size and ETag, which for an object
uploaded in one piece is the MD5 of its content: what arrives is held against both.

There are two ways to an object. The quick one is a single attempt through obstore at the mirror that listed the series;
it counts as the first of ``attempts``. What fails there, and what is large, goes the careful way, by plain HTTP through
:class:`~lumid.pipeline.download.Downloader`: what came is kept, the server's Retry-After too, and mirrors are tried.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from lumid.pipeline.download import Downloader, Patience, Wanted
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Series
from lumid.pipeline.sources.ahead import ReadAhead
from lumid.pipeline.sources.buckets import PAGE_KEYS, Buckets, Listed, Missed, Prefix

QUICK_BYTES = 8 << 20
"""Objects up to this size are asked for whole; larger ones may take longer than a request, and are resumed."""
MOST_KEYS = 100_000
"""Objects of a series of which nobody says how many it has."""
COUNT_ATTEMPTS = 2
"""How often a mirror may list another number of objects than was planned: once something on the way may have cut it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A series as it was listed: its objects by name, and its mirrors, the one that listed it first."""

    mirrors: tuple[Prefix, ...]
    objects: tuple[Listed, ...]


class IdcSource:
    """Series by their prefix. Mirrors are tried in the lock's order, for the listing and for every object."""

    def __init__(self, fetch: FetchSettings, patience: Patience = Patience()) -> None:
        self._fetch, self._patience = fetch, patience
        self._reading = _Reading(fetch, patience)

    def prefetch(self, series: Sequence[Series]) -> None:
        """Begin to list and read these series, in their order, as far ahead as the bounds allow. Returns at once."""
        reading = self._reading
        for one in series:
            reading.ahead.expect_series(one.location, partial(reading.refs, one))

    def close(self) -> None:
        """Forget what was read ahead. Requests under way are ended or left to end by themselves: nothing is waited for."""
        reading, self._reading = self._reading, _Reading(self._fetch, self._patience)
        reading.close()

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The objects of a series, by name. A series that cannot be listed whole is one blob that stands for all."""
        reading = self._reading
        found = reading.find(series)
        if isinstance(found, Reject):
            yield Blob(ObjectRef(series.location, series.bytes, location=series.location), found, series.objects or 1)
            return
        refs = reading.refs(series)
        wanted = [ref for ref in refs if only is None or ref.source_id in only]
        if only is not None:
            reading.ahead.forget([ref for ref in refs if ref.source_id not in only])
        reading.ahead.expect(wanted, first=True, name=series.location)
        for ref in wanted:
            yield Blob(ref, reading.ahead.take(ref))

    def known_objects(self, series: Series) -> list[ObjectRef] | None:
        """The objects of a series as it is listed, by name; None where it cannot be listed whole."""
        return self._reading.refs(series) or None


class _Reading:
    """What a source has under way between two calls of its ``close``; its methods are called from many threads."""

    def __init__(self, fetch: FetchSettings, patience: Patience) -> None:
        self._fetch, self._patience = fetch, patience
        self._stop = threading.Event()
        self._buckets = Buckets(fetch, self._stop)
        self._downloader = Downloader(fetch, patience, self._stop)
        self._lock = threading.Lock()
        self._finds: dict[str, Future[Found | Reject]] = {}
        self._objects: dict[str, tuple[Found, Listed]] = {}
        self._busy_until: dict[str, float] = {}
        self.ahead = ReadAhead(self._read, fetch.requests, int(fetch.ahead_mb * 1e6))

    def close(self) -> None:
        self._stop.set()
        self.ahead.close(wait=False)
        self._buckets.close()

    def find(self, series: Series) -> Found | Reject:
        """The series as a mirror lists it; whoever comes second waits for whom came first."""
        with self._lock:
            future = self._finds.get(series.location)
            mine = future is None
            if future is None:
                future = self._finds[series.location] = Future()
        if mine:
            try:
                future.set_result(self._find(series))
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()

    def refs(self, series: Series) -> list[ObjectRef]:
        """What can be read of a series."""
        found = self.find(series)
        if isinstance(found, Reject):
            return []
        refs = []
        for item in found.objects:
            source_id = f"{series.location}/{item.name}"
            self._objects[source_id] = found, item
            refs.append(ObjectRef(source_id, item.size, location=source_id))
        return refs

    def _find(self, series: Series) -> Found | Reject:
        if self._fetch.offline:
            return _failed("offline")
        last = _failed("the lock names no address")
        mirrors = tuple(Prefix.of(url, self._fetch) for url in series.urls)
        for mirror in mirrors:
            objects = self._list(mirror, series.objects)
            if not isinstance(objects, Reject):
                others = tuple(other for other in mirrors if other != mirror)
                return Found((mirror, *others), objects)
            last = objects
            if self._stop.is_set():
                return _failed("stopped")
        return last

    def _list(self, mirror: Prefix, planned: int | None) -> tuple[Listed, ...] | Reject:
        """The objects that a mirror lists, by name, as many as planned; waits between attempts as a download does."""
        most = MOST_KEYS if planned is None else planned + PAGE_KEYS
        failures = miscounts = 0
        while True:
            found = self._buckets.list(mirror, most)
            if isinstance(found, Missed):
                why = _failed(_why_not_listed(found))
                final = found.final
            elif len(found) > most:
                why = _failed(f"more than {most} objects listed" + ("" if planned is None else f", {planned} planned"))
                final = True
            elif not found or len(found) != (planned or len(found)):
                why = _failed(f"{len(found)} objects listed, {planned} planned" if found else "no objects listed")
                miscounts += 1
                final = miscounts == COUNT_ATTEMPTS
            else:
                return tuple(sorted(found.values(), key=lambda item: item.name))
            failures += 1
            if final or failures >= self._fetch.attempts or self._stop.is_set():
                return why
            self._stop.wait(self._patience.pause_s(failures, None))

    def _read(self, ref: ObjectRef) -> bytes | Reject:
        """An object's bytes, of the listed size and MD5."""
        found, item = self._objects[ref.location]
        mirrors, failures = found.mirrors, 0
        if item.size <= QUICK_BYTES and time.monotonic() >= self._busy_until.get(mirrors[0].endpoint, 0.0):
            data = self._read_quickly(mirrors[0], item)
            if not isinstance(data, Missed):
                return data
            if data.final or self._fetch.attempts == 1:
                mirrors = mirrors[1:]
            else:
                failures = 1
            if self._stop.is_set() or not mirrors:
                return _failed("stopped" if self._stop.is_set() else data.detail)
        urls = tuple(mirror.address(item.name) for mirror in mirrors)
        return self._downloader.bytes(Wanted(urls, bytes=item.size, md5=item.md5), failures)

    def _read_quickly(self, mirror: Prefix, item: Listed) -> bytes | Missed:
        data = self._buckets.read(mirror, item.name, item.size)
        if isinstance(data, Missed):
            if data.busy:  # only the careful way can see how long it wants to be left alone
                self._busy_until[mirror.endpoint] = time.monotonic() + self._patience.longest_wait_s
        elif item.md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != item.md5:
            return Missed("MD5 does not match")
        return data


def _why_not_listed(missed: Missed) -> str:
    if missed.status == 404:
        return "listing: no such bucket"
    return "listing: access denied" if missed.status in (401, 403) else f"listing: {missed.detail}"


def _failed(detail: str) -> Reject:
    return Reject("fetch", "fetch_failed", detail)
