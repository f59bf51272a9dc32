"""Public buckets through obstore: one attempt a call, ended soon by :meth:`Buckets.close`, and failures in our own words.

obstore's client neither tries again nor shows the headers of a refusal: what comes after a failed attempt is decided
where that can be done well. Its ``timeout`` bounds a request as a whole, the body included, so an object should be no
larger than what a slow connection brings in that time.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError, InvalidPathError
from obstore.store import S3Store

from lumid._version import __version__
from lumid.catalog.stores import status_of
from lumid.pipeline.connections import CONNECT_S, NO_ANSWER, NO_CONNECTION
from lumid.pipeline.download import TRANSIENT, StoppedError, waited_turn
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.traffic import archive_of, count, outcome_of

MD5 = re.compile(r"[0-9a-f]{32}")
BUSY = frozenset({429, 503})
"""Statuses that ask for a pause."""
PAGE_KEYS = 1000
STOPPED = "stopped"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Missed:
    """An attempt that failed; ``final`` when another would as well, ``busy`` when the server wants a pause."""

    detail: str
    status: int | None = None

    @property
    def final(self) -> bool:
        """Whether another attempt at the same address is of no use."""
        return self.status is not None and self.status not in TRANSIENT

    @property
    def busy(self) -> bool:
        """Whether the server asks for a pause; for how long, obstore does not tell."""
        return self.status in BUSY


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix of a bucket, without a slash at its end, and the server that is asked for it."""

    endpoint: str
    bucket: str
    key: str

    @classmethod
    def of(cls, url: str, fetch: FetchSettings) -> Prefix:
        """That of ``s3://bucket/prefix/`` or ``gs://bucket/prefix/``."""
        parts = urllib.parse.urlsplit(url)
        endpoint = fetch.gs_endpoint if parts.scheme == "gs" else fetch.s3_endpoint
        return cls(endpoint.rstrip("/"), parts.netloc, parts.path.strip("/"))

    def address(self, name: str) -> str:
        """The plain HTTP address of an object below the prefix.

        >>> Prefix("https://s3.amazonaws.com", "idc-open-data", "a1").address("b 2+.dcm")
        'https://s3.amazonaws.com/idc-open-data/a1/b%202%2B.dcm'
        """
        return f"{self.endpoint}/{self.bucket}/{urllib.parse.quote(f'{self.key}/{name}', safe='/')}"


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a bucket lists it, by its name below the prefix; ``md5`` where the ETag is one."""

    name: str
    size: int
    md5: str | None


@cache
def bucket_of(bucket: str, endpoint: str, timeout_s: float) -> S3Store:
    """An anonymous client of a bucket. Google's buckets are read through their S3-compatible interface."""
    return S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1",
        skip_signature=True,
        virtual_hosted_style_request=False,
        client_options={
            "timeout": timedelta(seconds=timeout_s),
            "connect_timeout": timedelta(seconds=min(timeout_s, CONNECT_S)),
            "allow_http": endpoint.startswith("http://"),
            "user_agent": f"lumid/{__version__}",
        },
        retry_config={"max_retries": 0},
    )


@dataclass(frozen=True, slots=True)
class Buckets:
    """Reads buckets under a recipe's settings, from any thread. Turns at a host are the process's."""

    fetch: FetchSettings
    stop: threading.Event = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _calls: set[Future[Any]] = field(default_factory=set, init=False, repr=False, compare=False)

    def read(self, prefix: Prefix, name: str, size: int) -> bytes | Missed:
        """An object's bytes, as many as there should be, or why they did not come."""

        async def get() -> obstore.Bytes | Missed:
            found = await obstore.get_async(self._store(prefix), f"{prefix.key}/{name}")
            if found.meta["size"] != size:  # before memory is given to it
                return Missed(f"{found.meta['size']} bytes, {size} expected")
            return await found.bytes_async()

        data = self._ask(prefix, get)
        if isinstance(data, Missed):
            self._count(prefix, "get", data)
            return data
        whole = len(data) == size
        count(archive_of(prefix.endpoint, self.fetch), "get", "ok" if whole else "broken", len(data))
        return bytes(data) if whole else Missed(f"{len(data)} bytes, {size} expected")

    def list(self, prefix: Prefix, most: int) -> dict[str, Listed] | Missed:
        """The objects below a prefix by name, or why they could not be listed; a little more than ``most`` at most."""

        async def pages() -> dict[str, Listed] | Missed:
            found: dict[str, Listed] = {}
            keys = 0
            stream = obstore.list(self._store(prefix), f"{prefix.key}/", chunk_size=PAGE_KEYS)
            while keys <= most:
                try:  # a server can send empty pages for ever
                    page = await asyncio.wait_for(anext(stream), 2 * self.fetch.timeout_s)
                except StopAsyncIteration:
                    break
                keys += len(page)
                count(archive_of(prefix.endpoint, self.fetch), "list", "ok")
                for meta in page:
                    name = meta["path"].removeprefix(f"{prefix.key}/")
                    etag = (meta["e_tag"] or "").strip('"').lower()
                    found[name] = Listed(name, meta["size"], etag if MD5.fullmatch(etag) else None)
            return found

        found = self._ask(prefix, pages)
        if isinstance(found, Missed):
            self._count(prefix, "list", found)
        return found

    def close(self) -> None:
        """End what is under way; nothing is asked any more."""
        self.stop.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _count(self, prefix: Prefix, operation: str, missed: Missed) -> None:
        if missed.detail != STOPPED:  # nobody was asked, or nobody waited for the answer
            count(archive_of(prefix.endpoint, self.fetch), operation, outcome_of(missed.status))

    def _store(self, prefix: Prefix) -> S3Store:
        return bucket_of(prefix.bucket, prefix.endpoint, self.fetch.timeout_s)

    def _ask(self, prefix: Prefix, call: Callable[[], Coroutine[Any, Any, T | Missed]]) -> T | Missed:
        future: Future[T | Missed] | None = None
        try:
            with waited_turn(prefix.endpoint, self.fetch.requests, self.stop):
                with self._lock:
                    if self.stop.is_set():
                        return Missed(STOPPED)
                    future = asyncio.run_coroutine_threadsafe(call(), _loop())
                    self._calls.add(future)
                return future.result()
        except (StoppedError, CancelledError):
            return Missed(STOPPED)
        except (BaseError, OSError) as error:
            return missed(error, self.fetch.timeout_s)
        finally:
            if future is not None:
                with self._lock:
                    self._calls.discard(future)


def missed(error: Exception, timeout_s: float) -> Missed:
    """What went wrong, in our own words: obstore's text holds addresses, and what the server says."""
    text = str(error)
    if "non-2xx status code: " in text and (status := status_of(error)):
        return Missed(f"HTTP {status}", status)
    if isinstance(error, InvalidPathError):
        return Missed("an object's name cannot be read")
    if isinstance(error, TimeoutError) or "kind: Timeout" in text:
        return Missed(f"{NO_ANSWER} {timeout_s:g} s")
    if "HTTP error" not in text and "HttpError" not in text:
        return Missed("not the answer of a bucket")
    return Missed(NO_CONNECTION if "kind: Connect," in text else "the connection broke off")


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_loops_lock = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The loop that this process's calls run in: a call that is under way can be ended, as a blocked thread cannot."""
    with _loops_lock:
        if os.getpid() not in _loops:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="lumid-buckets", daemon=True).start()
        return _loops[os.getpid()]
