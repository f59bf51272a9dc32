"""An archive behind a cache: a series that the cache holds complete comes from there, any other is kept as it passes."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from lumid.pipeline.rawcache import UUID, Kept, RawCache, folder_of, open_cache
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Series, Source
from lumid.pipeline.sources.ahead import ReadAhead

WRITERS = 8


def behind_cache(kind: str, fetch: FetchSettings, open_archive: Callable[[FetchSettings], Source]) -> Source:
    """An archive as the settings want it: behind a cache, the cache alone where ``offline``, or as it is.

    ``kind``: the archive's name in the cache. Of the settings' ``ahead_mb`` the archive gets one half, what is read
    from the cache and what is on its way into it a quarter each. Raises :class:`~lumid.catalog.errors.LumidError` when
    the cache cannot be opened.
    """
    if fetch.offline:
        return CachedSource(kind, open_cache(fetch), None, fetch)
    if not fetch.cache:
        return open_archive(fetch)
    half = fetch.model_copy(update={"ahead_mb": fetch.ahead_mb / 2})
    return CachedSource(kind, open_cache(fetch), open_archive(half), fetch)


class WriteBehind:
    """Puts objects into a cache while others are fetched; no more than ``pending_bytes`` wait for it (one always may).

    For one producer: all but the puts themselves happens in its thread. Every method raises
    :class:`~lumid.catalog.errors.StorageError` when an earlier put has failed.
    """

    def __init__(self, cache: RawCache, pending_bytes: int) -> None:
        self._cache = cache
        self._free = pending_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[int, Future[Any]]] = deque()

    def put(self, folder: str, data: bytes) -> Future[str]:
        """Begin to keep an object; the future is its MD5."""
        while self._pending and (self._free < len(data) or self._pending[0][1].done()):
            self._wait()
        future = self._workers().submit(self._cache.put, folder, data)
        self._free -= len(data)
        self._pending.append((len(data), future))
        return future

    def seal(self, folder: str, series: Series, stored: Sequence[tuple[Kept, Future[str]]]) -> Future[tuple[Kept, ...]]:
        """Mark the series as complete once all of its puts are done; the future is its objects, with their MD5s."""

        def work() -> tuple[Kept, ...]:
            # these puts were begun before this: with every thread waiting here, they are still running somewhere
            kept = tuple(replace(one, md5=md5.result()) for one, md5 in stored)
            self._cache.seal(folder, series, kept)
            return kept

        future = self._workers().submit(work)
        self._pending.append((0, future))
        return future

    def drain(self) -> None:
        """Wait for everything."""
        while self._pending:
            self._wait()

    def close(self) -> None:
        """Wait for everything, and end the threads. After a failure what has not begun is dropped."""
        try:
            self.drain()
        except BaseException:
            self._cache.stop.set()  # what fails now need not be tried again
            raise
        finally:
            self._pending.clear()
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
            self._cache.stop.clear()

    def _wait(self) -> None:
        size, future = self._pending.popleft()
        self._free += size
        future.result()

    def _workers(self) -> ThreadPoolExecutor:
        self._pool = self._pool or ThreadPoolExecutor(WRITERS, thread_name_prefix="lumid-keep")
        return self._pool


@dataclass(slots=True)
class CachedSource:
    """A pinned source behind a cache; without an ``archive`` the cache is all there is (offline).

    A series counts as cached only when every object of it came, verified, and as many as were planned. What is damaged
    in the cache is fetched again and mended; offline it is a reject. For one consumer: one thread.
    """

    kind: str
    cache: RawCache
    archive: Source | None
    fetch: FetchSettings
    _ahead: ReadAhead = field(init=False, repr=False)
    _writer: WriteBehind = field(init=False, repr=False)
    _known: dict[str, tuple[Kept, ...] | None] = field(default_factory=dict, init=False, repr=False)
    _sealing: dict[str, Future[tuple[Kept, ...]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        quarter = int(self.fetch.ahead_mb * 1e6 / 4)
        self._ahead = ReadAhead(self.cache.read, self.fetch.requests, quarter)
        self._writer = WriteBehind(self.cache, quarter)

    def prefetch(self, series: Sequence[Series]) -> None:
        """Begin to read these series, in their order: from the cache those that it holds, from the archive the others."""
        unknown = [one for one in series if one.location not in self._known]
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="lumid-look") as pool:
            found = pool.map(lambda one: self.cache.load(folder_of(self.kind, one), one), unknown)
            self._known |= {one.location: kept for one, kept in zip(unknown, found, strict=True)}
        missing = []
        for one in series:
            kept = self._known[one.location]
            if kept is None:
                missing.append(one)
            else:
                self._ahead.expect([self._ref(one, item) for item in kept])
        if self.archive is not None:
            self.archive.prefetch(missing)

    def close(self) -> None:
        """Forget what was prefetched; what was on its way into the cache arrives there.

        Raises :class:`~lumid.catalog.errors.StorageError` when it does not.
        """
        try:
            if self.archive is not None:
                self.archive.close()
            self._writer.close()
        finally:
            self.cache.stop.set()
            self._ahead.close()
            self.cache.stop.clear()
            self._known.clear()
            self._sealing.clear()

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The objects of a series, in the archive's order."""
        kept = self._look_up(series)
        if kept is not None:
            yield from self._from_cache(series, [one for one in kept if only is None or one.source_id in only])
        elif self.archive is None:
            source_id = series.location if UUID.fullmatch(series.location) else f"{series.id}/missing"
            if only is None or source_id in only:
                reason = _failed("not in the cache, and --offline was given")
                yield Blob(ObjectRef(source_id, series.bytes), reason, series.objects or 1)
        elif only is None:
            yield from self._passing(series, self.archive)
        else:
            yield from self.archive.blobs(series, only)

    def known_objects(self, series: Series) -> list[ObjectRef] | None:
        """The objects of a series that the cache holds. Of others None: who reads only some of one cannot keep it whole."""
        kept = self._look_up(series)
        return None if kept is None else [ObjectRef(one.source_id, one.size) for one in kept]

    def _look_up(self, series: Series) -> tuple[Kept, ...] | None:
        """What the cache holds of a series, all or nothing; what was kept just now is waited for."""
        sealing = self._sealing.pop(series.location, None)
        if sealing is not None:
            self._known[series.location] = sealing.result()
        elif series.location not in self._known:
            self._known[series.location] = self.cache.load(folder_of(self.kind, series), series)
        return self._known[series.location]

    def _ref(self, series: Series, one: Kept) -> ObjectRef:
        """An object by its place in the cache."""
        return ObjectRef(one.source_id, one.size, location=f"{folder_of(self.kind, series)}/{one.md5}")

    def _passing(self, series: Series, archive: Source) -> Iterator[Blob]:
        """A series from the archive, kept as it passes, and marked as complete when it was."""
        folder = folder_of(self.kind, series)
        stored: list[tuple[Kept, Future[str]]] = []
        whole = True
        for blob in archive.blobs(series):
            whole = whole and not isinstance(blob.data, Reject)
            if whole and isinstance(blob.data, bytes):
                one = Kept(blob.ref.source_id, blob.ref.location, len(blob.data), "", blob.labels, blob.split)
                stored.append((one, self._writer.put(folder, blob.data)))
            yield blob
        names = {one.source_id for one, _ in stored}
        planned = len(stored) if series.objects is None else series.objects
        if whole and stored and len(names) == len(stored) == planned:
            self._sealing[series.location] = self._writer.seal(folder, series, stored)

    def _from_cache(self, series: Series, kept: Sequence[Kept]) -> Iterator[Blob]:
        refs = [self._ref(series, one) for one in kept]
        self._ahead.expect(refs, first=True)
        try:
            for place, (one, ref) in enumerate(zip(kept, refs, strict=True)):
                data = self._ahead.take(ref)
                if isinstance(data, Reject) and self.archive is not None:
                    self._ahead.forget(refs)
                    yield from self._mended(series, kept[place:], self.archive)
                    return
                yield _blob(one, data)
        finally:
            self._ahead.forget(refs)

    def _mended(self, series: Series, kept: Sequence[Kept], archive: Source) -> Iterator[Blob]:
        """These objects, of which one or more are damaged: those are fetched again, all in one go, and put in place."""
        folder = folder_of(self.kind, series)
        refs = {one.source_id: self._ref(series, one) for one in kept}
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="lumid-look") as pool:
            damaged = pool.map(lambda ref: isinstance(self.cache.read(ref), Reject), refs.values())
            wanted = frozenset(name for name, bad in zip(refs, damaged, strict=True) if bad)
        self._ahead.expect([ref for name, ref in refs.items() if name not in wanted], first=True)
        arriving = archive.blobs(series, wanted)
        last = _failed("damaged in the cache, and the archive does not give it any more")
        for one in kept:
            if one.source_id not in wanted:
                yield _blob(one, self._ahead.take(refs[one.source_id]))
                continue
            blob = next(arriving, None)
            if blob is not None and isinstance(blob.data, Reject):
                last = blob.data  # it may stand for all of them
            data: bytes | Reject = last
            if blob is not None and isinstance(blob.data, bytes) and blob.ref.source_id == one.source_id:
                data = blob.data
                if hashlib.md5(data, usedforsecurity=False).hexdigest() == one.md5:
                    self._writer.put(folder, data)
                else:  # two versions must not become one series: the next build begins anew
                    self.cache.unseal(folder)
                    data = _failed("damaged in the cache, and the archive has another one now")
            yield _blob(one, data)
        self._writer.drain()


def _blob(one: Kept, data: bytes | Reject) -> Blob:
    return Blob(ObjectRef(one.source_id, one.size, location=one.location), data, labels=one.labels, split=one.split)


def _failed(detail: str) -> Reject:
    return Reject("fetch", "fetch_failed", detail)
