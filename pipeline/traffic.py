"""What a process asks archives and stores for, and what came: counted where it happens, taken by whoever reports it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lumid.catalog.paths import tell_requests

if TYPE_CHECKING:
    from lumid.pipeline.recipe import FetchSettings

ARCHIVES = (
    "idc-aws", "idc-google", "tcia", "nih", "folder", "folder-s3", "folder-gs", "folder-az", "cache-s3", "cache-gs",
    "cache-az", "data-s3", "data-gs", "data-az",
)  # fmt: skip
"""Who is asked. ``folder`` is this machine's disk; ``folder-…``, ``cache-…`` and ``data-…`` are stores that hold sources, the
cache, and data sets under way or finished, by the scheme of their address."""
OPERATIONS = ("get", "list", "put")
OUTCOMES = ("ok", "busy", "absent", "refused", "failed", "broken")
"""An answer; 429 or 503; 404 or 410; another 4xx; another 5xx; no whole answer, or not what it should be."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one kind that ended in one way, and the bytes that came with them."""

    archive: str
    operation: str
    outcome: str
    requests: int
    bytes: int


_lock = threading.Lock()
_requests: Counter[tuple[str, str, str]] = Counter()
_bytes: Counter[tuple[str, str, str]] = Counter()


def count(archive: str, operation: str, outcome: str, size: int = 0, requests: int = 1) -> None:
    """One more request of this process, or so many, and the ``size`` in bytes of what came."""
    with _lock:
        _requests[archive, operation, outcome] += requests
        _bytes[archive, operation, outcome] += size


def take() -> tuple[Traffic, ...]:
    """Everything that this process has counted since it was last taken."""
    with _lock:
        found = tuple(Traffic(*kind, number, _bytes[kind]) for kind, number in sorted(_requests.items()))
        _requests.clear()
        _bytes.clear()
    return found


def together(traffic: Iterable[Traffic]) -> tuple[Traffic, ...]:
    """The sums, one for each kind."""
    requests: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str]] = Counter()
    for one in traffic:
        kind = one.archive, one.operation, one.outcome
        requests[kind] += one.requests
        sizes[kind] += one.bytes
    return tuple(Traffic(*kind, number, sizes[kind]) for kind, number in sorted(requests.items()))


def outcome_of(status: int | None) -> str:
    """What an HTTP status means for the count.

    >>> [outcome_of(status) for status in (206, 503, 404, 403, 500, None)]
    ['ok', 'busy', 'absent', 'refused', 'failed', 'broken']
    """
    if status is None:
        return "broken"
    if status in (429, 503):
        return "busy"
    if status < 400:
        return "ok"
    if status in (404, 410):
        return "absent"
    return "refused" if status < 500 else "failed"


def archive_of(url: str, fetch: FetchSettings) -> str:
    """Whose an address is, by the addresses in the settings."""
    addresses = {"idc-aws": fetch.s3_endpoint, "idc-google": fetch.gs_endpoint, "tcia": fetch.nbia_url}
    return next((name for name, address in addresses.items() if url.startswith(address.rstrip("/"))), "nih")


def store_name(use: str, address: str) -> str:
    """``folder`` or ``cache`` with the scheme of the store's address."""
    return f"{use}-{address.partition('://')[0]}"


def _count_data(scheme: str, operation: str, status: int | None, size: int, requests: int) -> None:
    count(f"data-{scheme}", operation, outcome_of(status), size, requests)


tell_requests(_count_data)
