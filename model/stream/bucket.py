"""The shards of a data set in an object store, read in ranges from many threads; what fails is tried again with care."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import obstore
from obstore.store import ObjectStore

from lumid.catalog.errors import StorageError, UsageError
from lumid.catalog.stores import GONE, STORE_ERRORS, open_store, tried, why_not

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bucket:
    """What lies under ``scheme://bucket/prefix``, read from any thread; a failed request is tried again, up to
    ``attempts`` in all, with waits that double from ``first_wait_s``.

    Raises :class:`UsageError` when the address is none that can be read.
    """

    url: str
    attempts: int = 6
    timeout_s: float = 60.0
    first_wait_s: float = 0.2
    _store: ObjectStore = field(init=False, repr=False, compare=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _process.used = True
        object.__setattr__(self, "_store", open_store(self.url.rstrip("/"), timeout_s=self.timeout_s, attempts=1))

    def ranges(self, name: str, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview] | None:
        """Ranges of an object's bytes; None when there is no such object. A range beyond its end is cut there.

        Raises :class:`StorageError` when the store gives no answer, or none to us.
        """

        def attempt() -> list[memoryview]:
            return [
                memoryview(part) for part in obstore.get_ranges(self._store, name, starts=starts, ends=ends, coalesce=0)
            ]

        return self._tried(attempt)

    def close(self) -> None:
        """End waits between attempts: what is under way fails soon."""
        self._closed.set()

    def _tried(self, attempt: Callable[[], T]) -> T | None:
        if _process.forked:
            raise UsageError(
                f"{self.url}: a process that was forked cannot use its parent's connections; start workers with "
                "multiprocessing_context='spawn'"
            )
        try:
            return tried(attempt, attempts=self.attempts, first_wait_s=self.first_wait_s, ended=self._closed)
        except GONE:
            return None
        except STORE_ERRORS as error:  # the store's own words hold request addresses: they are not passed on
            raise StorageError(f"{self.url}: {why_not(error)}") from None


@dataclass(slots=True)
class _Process:
    """Whether this process has used a store's client, whose threads a fork leaves behind."""

    used: bool = False
    forked: bool = False

    def after_fork(self) -> None:
        self.forked = self.forked or self.used


_process = _Process()
os.register_at_fork(after_in_child=_process.after_fork)
