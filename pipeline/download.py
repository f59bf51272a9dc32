"""HTTP downloads that end in a whole, verified body or in a reason; network trouble never raises.

A transfer that breaks off is resumed by Range where what was read can still be told to belong to the rest (the same
strong ETag, or an MD5 to compare in the end); what does not match its size or MD5 is thrown away and begun anew.
"""

from __future__ import annotations

import email.utils
import hashlib
import io
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
    ResponseError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from lumid._version import __version__
from lumid.catalog.errors import LumidError
from lumid.catalog.layout import storage_errors
from lumid.pipeline.connections import NO_ANSWER, NO_CONNECTION, is_address, send, turn
from lumid.pipeline.partial import Validator, is_verified, mark_verified, open_partial
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.traffic import archive_of, count, outcome_of

CHUNK_BYTES = 1 << 20
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})
"""Statuses that another attempt may change; after any other the next mirror is asked."""


class FetchError(LumidError):
    """An archive did not give an answer that a plan cannot do without."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A body to fetch: the addresses of its mirrors in the order to try them, and what is known of it beforehand."""

    urls: tuple[str, ...]
    bytes: int | None = None
    md5: str | None = None
    max_bytes: int = 1 << 40
    form: Mapping[str, str] | None = None  # what is posted; None gets

    def __post_init__(self) -> None:
        if self.md5 is not None and not re.fullmatch(r"[0-9a-f]{32}", self.md5):
            raise ValueError("an MD5 is 32 lower-case hex digits")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait between attempts, and how little progress is too little.

    Waits double from ``first_wait_s`` up to ``longest_wait_s``, each drawn from the upper half of its span. A server's
    Retry-After is kept, up to ``retry_after_s``. A body has to bring ``bytes_per_s`` over every span of the timeout. An
    attempt that brought ``progress_bytes`` is not counted: large archives break off more often than one may fail.
    """

    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    retry_after_s: float = 300.0
    bytes_per_s: float = 1024.0
    progress_bytes: int = 8 << 20

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Seconds to wait after so many failures (0: there was progress), when the server asked for ``asked_s``."""
        span = min(self.longest_wait_s, self.first_wait_s * 2.0 ** max(failures - 1, 0))
        own = span * (0.5 + random.random() / 2)
        return max(own, min(asked_s, self.retry_after_s)) if asked_s is not None else own


class StoppedError(Exception):
    """A turn at a host was not waited for to the end."""


@contextmanager
def waited_turn(url: str, requests: int, stop: threading.Event) -> Iterator[None]:
    """A turn at the address's host, as of :func:`~lumid.pipeline.connections.turn`; raises :class:`StoppedError` on ``stop``."""
    slot = turn(url, requests)
    while not slot.acquire(timeout=0.1):
        if stop.is_set():
            raise StoppedError
    try:
        yield
    finally:
        slot.release()


class _TroubleError(Exception):
    """An attempt failed; ``final`` when another at the same address would as well."""

    def __init__(self, detail: str, *, final: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail, self.final, self.retry_after_s = detail, final, retry_after_s


@dataclass(slots=True)
class _Received:
    """What has been written so far, its running MD5, and what tells whether the rest belongs to it."""

    file: BinaryIO
    known: Validator | None
    remember: Callable[[Validator | None], None]
    size: int = 0
    most: int = 0
    digest: hashlib._Hash = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    def load(self) -> None:
        """Take what an earlier run has left."""
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            self.digest.update(chunk)
            self.size += len(chunk)
        self.most = self.size

    def add(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)
        self.most = max(self.most, self.size)

    def restart(self, known: Validator | None = None) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size, self.digest = 0, hashlib.md5(usedforsecurity=False)
        self.learn(known)

    def learn(self, known: Validator | None) -> None:
        if known != self.known:
            self.known = known
            self.remember(known)


@dataclass(frozen=True, slots=True)
class Downloader:
    """Fetches over HTTP under the recipe's settings. Connections, and the number of requests at a host, are the process's."""

    settings: FetchSettings
    patience: Patience = Patience()
    stop: threading.Event = field(default_factory=threading.Event, repr=False)  # set from outside, ends transfers soon

    def file(self, wanted: Wanted, path: Path) -> Path | Reject:
        """The body as the file ``path``, which appears whole and verified, or not at all.

        A file that is there and verified is not fetched again; a partial one beside it is resumed, by a later run too.
        Raises :class:`StorageError` when the disk refuses.
        """
        if is_verified(path, wanted.bytes, wanted.md5):
            return path
        if self.settings.offline:
            return _failed("offline, and not there yet")
        with storage_errors(path), open_partial(path) as partial:
            if is_verified(path, wanted.bytes, wanted.md5):  # another process was faster
                partial.discard()
                return path
            size = self.into(wanted, partial.file, known=partial.load(), remember=partial.save)
            if isinstance(size, Reject):
                return size
            partial.finish()
            mark_verified(path, wanted.md5)
        return path

    def bytes(self, wanted: Wanted, failures: int = 0) -> bytes | Reject:
        """The body in memory. ``failures``: attempts at the first address that others have made."""
        buffer = io.BytesIO()
        size = self.into(wanted, buffer, failures=failures)
        return size if isinstance(size, Reject) else buffer.getvalue()

    def into(
        self,
        wanted: Wanted,
        file: BinaryIO,
        *,
        known: Validator | None = None,
        remember: Callable[[Validator | None], None] = lambda _: None,
        failures: int = 0,
    ) -> int | Reject:
        """Write the body into an open file that can be read, sought and truncated; its size, or why it is not whole.

        What is in the file already is taken for the body's beginning; ``known`` is what ``remember`` was told of it.
        ``failures``: attempts at the first address that others have made, and after which it is time to wait.
        """
        if self.settings.offline:
            return _failed("offline")
        received = _Received(file, known, remember)
        received.load()
        detail = "no address"
        if failures:
            self.stop.wait(self.patience.pause_s(failures, None))
        for number, url in enumerate(wanted.urls):
            failures = failures if number == 0 else 0
            while failures < self.settings.attempts and not self.stop.is_set():
                before = received.most
                try:
                    self._attempt(url, wanted, received)
                    return received.size
                except StoppedError:
                    break
                except _TroubleError as trouble:
                    detail = trouble.detail
                    if trouble.final:
                        break
                    failures += received.most - before < self.patience.progress_bytes
                    if failures < self.settings.attempts:
                        self.stop.wait(self.patience.pause_s(failures, trouble.retry_after_s))
        return _failed("stopped" if self.stop.is_set() else detail)

    def _attempt(self, url: str, wanted: Wanted, received: _Received) -> None:
        """One request, and all of the body that is missing; raises ``_TroubleError``."""
        if not is_address(url):
            raise _TroubleError("not an address", final=True)
        resume = received.size > 0 and _may_resume(url, wanted, received)
        if not resume or received.size != wanted.bytes:
            with waited_turn(url, self.settings.requests, self.stop):
                outcome, came = "broken", 0
                try:
                    headers = self._headers(url, received, resume)
                    response = send(url, headers, wanted.form, self.settings.timeout_s)
                    if response.status >= 400:
                        outcome = outcome_of(response.status)
                    try:
                        self._receive(url, response, wanted, received, resume)
                    except BaseException:
                        response.close()
                        raise
                    finally:
                        came = response.tell()
                    outcome = "ok"
                    response.release_conn()
                except HTTPError as error:
                    raise _TroubleError(_words(error, self.settings.timeout_s)) from error
                finally:
                    count(archive_of(url, self.settings), "get", outcome, came)
        _verify(wanted, received)

    def _headers(self, url: str, received: _Received, resume: bool) -> dict[str, str]:
        headers = {"User-Agent": f"lumid/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
        if resume:
            headers["Range"] = f"bytes={received.size}-"
            if received.known and received.known.url == url and received.known.etag:
                headers["If-Range"] = received.known.etag
        return headers

    def _receive(self, url: str, response: BaseHTTPResponse, wanted: Wanted, received: _Received, resume: bool) -> None:
        total = _accept(url, response, wanted, received, resume)
        limit = wanted.max_bytes if wanted.bytes is None else min(wanted.bytes, wanted.max_bytes)
        if wanted.bytes is not None and total not in (None, wanted.bytes):
            raise _TroubleError(f"{total} bytes, {wanted.bytes} expected")
        if (total or 0) > limit:
            raise _TroubleError(f"larger than {limit} bytes", final=True)
        begun = time.monotonic()
        span_bytes = 0
        while chunk := response.read1(CHUNK_BYTES, decode_content=False):
            if received.size + len(chunk) > limit:
                received.restart()
                raise _TroubleError(f"larger than {limit} bytes", final=wanted.bytes is None)
            received.add(chunk)
            if self.stop.is_set():
                raise _TroubleError("stopped", final=True)
            span_bytes += len(chunk)
            span_s = time.monotonic() - begun
            if span_s >= self.settings.timeout_s:
                if span_bytes < self.patience.bytes_per_s * span_s:
                    raise _TroubleError(f"too slow: {span_bytes} bytes in {span_s:.0f} s")
                begun, span_bytes = time.monotonic(), 0
        if total is not None and received.size < total:
            raise _TroubleError(f"ends after {received.size} of {total} bytes")
        sized = total is not None or response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if not sized and received.size == 0 and wanted.bytes != 0:
            # a connection that closes within the headers looks like this, too
            raise _TroubleError("an empty answer")


def _may_resume(url: str, wanted: Wanted, received: _Received) -> bool:
    """Whether what was read and what is still to come can be known to be of one body."""
    known = received.known
    return wanted.md5 is not None or (known is not None and known.url == url and known.etag is not None)


def _accept(url: str, response: BaseHTTPResponse, wanted: Wanted, received: _Received, resume: bool) -> int | None:
    """Decide by status and headers where the body goes; the whole body's size, None where nobody says."""
    status = response.status
    where = urllib.parse.urljoin(url, response.geturl() or "")
    if url.startswith("https:") and not where.startswith("https:"):
        raise _TroubleError("redirected to an address without encryption", final=True)
    pinned = wanted.md5 is not None or wanted.bytes is not None
    if status in (200, 206) and pinned and response.headers.get("Content-Type", "").startswith("text/html"):
        raise _TroubleError("a web page in place of the file")  # before what is there is thrown away for it
    if status == 206 and resume:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        total = int(match[3]) if match and match[3] != "*" else None
        known = received.known
        other = known is not None and known.url == url and known.etag not in (None, _strong(response))
        changed = other or (known is not None and None not in (known.total, total) and known.total != total)
        if not match or int(match[1]) != received.size or changed:
            received.restart()
            raise _TroubleError("another part than was asked for")
        return total
    if status == 200:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        received.restart(Validator(url, _strong(response), total))
        return total
    if status == 416:
        received.restart()
    retry_after_s = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    raise _TroubleError(f"HTTP {status}", final=status not in TRANSIENT | {206, 416}, retry_after_s=retry_after_s)


def _strong(response: BaseHTTPResponse) -> str | None:
    """The ETag, where it says that bodies are equal byte by byte (RFC 9110, 8.8.3)."""
    tag = response.headers.get("ETag", "").strip()
    return tag if re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', tag) else None


def _verify(wanted: Wanted, received: _Received) -> None:
    if wanted.bytes is not None and received.size < wanted.bytes:
        raise _TroubleError(f"ends after {received.size} of {wanted.bytes} bytes")
    if wanted.md5 is not None and received.digest.hexdigest() != wanted.md5:
        received.restart()
        raise _TroubleError("MD5 does not match")
    received.file.flush()


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given as such or as a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def _failed(detail: str) -> Reject:
    return Reject("fetch", "fetch_failed", detail)


def _words(error: HTTPError, timeout_s: float) -> str:
    """What went wrong, in our own words: a library's may quote the server."""
    if isinstance(error, ReadTimeoutError | ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return f"{NO_ANSWER} {timeout_s:g} s"
    if isinstance(error, NewConnectionError):
        return NO_CONNECTION
    if isinstance(error, SSLError):
        return "no trusted encryption"
    if isinstance(error, MaxRetryError) and isinstance(error.reason, HTTPError):
        return _words(error.reason, timeout_s)
    if isinstance(error, ResponseError):
        return "too many redirects"
    return "the connection broke off"
