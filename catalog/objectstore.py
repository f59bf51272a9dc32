"""Reading object stores: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

Where credentials are found the way each provider's own tools find them, in the environment, they are used; without any,
requests go unsigned, which is how public buckets are read. ``AWS_ENDPOINT_URL`` names another server than Amazon's.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from lumid.catalog.errors import StorageError, UsageError

T = TypeVar("T")
CREDENTIALS: dict[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
           "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
           "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN",
           "AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
}  # fmt: skip
"""Schemes that are read, and what in the environment says that there are credentials; ``*_SKIP_SIGNATURE`` overrules."""

SKIP_SIGNATURE = {"s3": "AWS_SKIP_SIGNATURE", "gs": "GOOGLE_SKIP_SIGNATURE", "az": "AZURE_SKIP_SIGNATURE"}
DENIED = (PermissionError, PermissionDeniedError, UnauthenticatedError)
MISSING = (FileNotFoundError, NotFoundError)
LONGEST_WAIT_S = 20.0


def is_url(place: object) -> bool:
    """Whether a data set's place is in an object store, not on a disk.

    >>> is_url("s3://bucket/data"), is_url("data")
    (True, False)
    """
    return isinstance(place, str) and "://" in place


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
        object.__setattr__(self, "_store", _open(self.url.rstrip("/"), self.timeout_s))

    def read(self, name: str) -> bytes | None:
        """A whole object; None when there is no such object. Raises as :meth:`ranges`."""
        return self._tried(lambda: bytes(obstore.get(self._store, name).bytes()))

    def ranges(self, name: str, starts: Sequence[int], ends: Sequence[int]) -> list[memoryview] | None:
        """Ranges of an object's bytes; None when there is no such object. A range beyond its end is cut there.

        Raises :class:`StorageError` when the store gives no answer, or none to us.
        """

        def attempt() -> list[memoryview]:
            return [
                memoryview(part) for part in obstore.get_ranges(self._store, name, starts=starts, ends=ends, coalesce=0)
            ]

        return self._tried(attempt)

    def names(self, prefix: str) -> list[tuple[str, int]]:
        """Name and size in bytes of every object under a prefix, sorted. Raises as :meth:`ranges`."""

        def attempt() -> list[tuple[str, int]]:
            return sorted((meta["path"], meta["size"]) for page in obstore.list(self._store, prefix) for meta in page)

        return self._tried(attempt) or []

    def close(self) -> None:
        """End waits between attempts: what is under way fails soon."""
        self._closed.set()

    def _tried(self, attempt: Callable[[], T]) -> T | None:
        if _process.forked:
            raise UsageError(
                f"{self.url}: a process that was forked cannot use its parent's connections; start workers with "
                "multiprocessing_context='spawn'"
            )
        failures = 0
        while True:
            try:
                return attempt()
            except MISSING:
                return None
            except (
                BaseError,
                OSError,
            ) as error:  # the store's own words hold request addresses: they are not passed on
                if isinstance(error, (*DENIED, InvalidPathError)) or _is_refusal(error):
                    raise StorageError(
                        f"{self.url}: access denied; give credentials in the environment, or check that the bucket is public"
                    ) from None
                failures += 1
                wait = min(LONGEST_WAIT_S, self.first_wait_s * 2.0 ** (failures - 1)) * (0.5 + random.random() / 2)
                if failures >= self.attempts or self._closed.wait(wait):
                    raise StorageError(
                        f"{self.url}: the store does not answer ({failures} attempts); check the network and "
                        "AWS_ENDPOINT_URL, then run the same again"
                    ) from None


@dataclass(slots=True)
class _Process:
    """Whether this process has used a store's client, whose threads a fork leaves behind."""

    used: bool = False
    forked: bool = False

    def after_fork(self) -> None:
        self.forked = self.forked or self.used


_process = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


def _is_refusal(error: Exception) -> bool:
    text = str(error)
    return any(code in text for code in ("403 Forbidden", "401 Unauthorized"))


def _open(url: str, timeout_s: float) -> ObjectStore:
    scheme = url.partition("://")[0]
    if scheme not in CREDENTIALS:
        raise UsageError(f"{url}: not an address that can be read; use a folder, or s3://, gs:// or az://")
    allow_http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    signed = SKIP_SIGNATURE[scheme] in os.environ or any(name in os.environ for name in CREDENTIALS[scheme])
    try:
        return from_url(
            url,
            config=None if signed else {"skip_signature": True},
            client_options={"timeout": timedelta(seconds=timeout_s), **({"allow_http": True} if allow_http else {})},
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError):  # their text can hold what the environment holds
        raise UsageError(
            f"{url}: not a proper address of a bucket, or its settings in the environment are wrong"
        ) from None
