"""Object stores: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

Where credentials are found the way each provider's own tools find them, in the environment, they are used; without any,
requests go unsigned, which is how public buckets are read. ``AWS_ENDPOINT_URL`` names another server than Amazon's.
"""

from __future__ import annotations

import io
import os
import random
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import obstore
from fsspec.spec import AbstractFileSystem
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from lumid.catalog.errors import RecipeError

T = TypeVar("T")
LONGEST_WAIT_S = 20.0
CREDENTIALS: dict[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
           "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
           "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN",
           "AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
}  # fmt: skip
"""Schemes that are read, and what in the environment says that there are credentials; ``*_SKIP_SIGNATURE`` overrules."""

NO_SECRETS = "an address must hold no name, password or query: give credentials in the environment"
"""What is said of an address that :func:`holds_secret`, which is not repeated."""
SKIP_SIGNATURE = {"s3": "AWS_SKIP_SIGNATURE", "gs": "GOOGLE_SKIP_SIGNATURE", "az": "AZURE_SKIP_SIGNATURE"}
DENIED = (PermissionError, PermissionDeniedError, UnauthenticatedError)
GONE = (FileNotFoundError, NotFoundError)
NOT_MET = (AlreadyExistsError, PreconditionError)
"""The condition of a write was not so."""
STORE_ERRORS = (BaseError, OSError, TimeoutError)
"""What obstore raises when a store does not give what it is asked for."""
SCHEME = "lumid"
"""How names begin that DuckDB asks :class:`StoreFiles` for."""


def holds_secret(url: str) -> bool:
    """Whether an address has a place where secrets stand: a name and password before the host, or a query (a signature).

    Addresses are in tasks, logs and files; credentials belong in the environment.

    >>> holds_secret("s3://key:secret@bucket/prefix"), holds_secret("az://account/box?sig=x"), holds_secret("gs://bucket/a@b")
    (True, True, False)
    """
    after = url.partition("://")[2]
    return "@" in re.split(r"[/?#]", after, maxsplit=1)[0] or "?" in after or "#" in after


def open_store(url: str, *, timeout_s: float = 60.0, attempts: int = 5) -> ObjectStore:
    """The store of ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``; Azure's account is in ``AZURE_STORAGE_ACCOUNT_NAME``.

    With more than one of ``attempts`` its client tries again by itself. Raises :class:`RecipeError` for anything else.
    """
    scheme = url.partition("://")[0]
    if holds_secret(url):
        raise RecipeError(NO_SECRETS)
    if scheme not in CREDENTIALS:
        raise RecipeError(f"{url}: not an address that can be looked through; use a folder, or s3://, gs:// or az://")
    options: dict[str, Any] = {"client_options": {"timeout": timedelta(seconds=timeout_s)}}
    options["retry_config"] = {
        "max_retries": attempts - 1,
        "retry_timeout": timedelta(seconds=timeout_s * attempts),
    }
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["client_options"]["allow_http"] = True
    if SKIP_SIGNATURE[scheme] not in os.environ and not any(name in os.environ for name in CREDENTIALS[scheme]):
        options["config"] = {"skip_signature": True}
    try:
        return from_url(url, **options)
    except (BaseError, ValueError):  # their text can hold what the environment holds
        raise RecipeError(
            f"{url}: not a proper address of a bucket, or its settings in the environment are wrong"
        ) from None


def tried(
    attempt: Callable[[], T], *, attempts: int = 6, first_wait_s: float = 0.2, ended: threading.Event | None = None
) -> T:
    """What ``attempt`` gives, tried again when a store fails, up to ``attempts`` times, with waits that double.

    A client tries a request again, but not an answer that breaks off. What is not there, or not for us, is not asked for
    again. ``ended``: set by another thread to end the waits. Raises the last of :data:`STORE_ERRORS`.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except STORE_ERRORS as error:
            failures += 1
            wait = min(LONGEST_WAIT_S, first_wait_s * 2.0 ** (failures - 1)) * (0.5 + random.random() / 2)
            if is_final(error) or failures >= attempts or (ended or _never).wait(wait):
                raise


def status_of(error: Exception) -> int | None:
    """The HTTP status that a store has answered with; None where there was no answer, or none of HTTP's."""
    if isinstance(error, GONE):
        return 404
    if isinstance(error, NOT_MET):
        return 412
    found = re.search(r"non-2xx status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def put_new(store: ObjectStore, name: str, data: bytes) -> None:
    """Write an object if there is none, in one try. A put whose answer was lost finds its own: the caller compares."""
    with suppress(AlreadyExistsError):
        obstore.put(store, name, data, mode="create")


def create_object(store: ObjectStore, name: str, data: bytes) -> None:
    """:func:`put_new`, tried again when the store fails. Raises the last of :data:`STORE_ERRORS`."""
    tried(lambda: put_new(store, name, data))


_never = threading.Event()


def is_final(error: Exception) -> bool:
    """Whether asking a store again would give the same answer."""
    text = str(error)
    refused = any(code in text for code in ("403 Forbidden", "401 Unauthorized", "404 Not Found"))
    return refused or isinstance(error, (*GONE, *DENIED, *NOT_MET, InvalidPathError))


def why_not(error: Exception) -> str:
    """What the store said, in our words: its own holds request addresses and the provider's XML."""
    text = str(error)
    if isinstance(error, GONE) or "404 Not Found" in text:
        return "no such bucket or object"
    if isinstance(error, DENIED) or "403 Forbidden" in text or "401 Unauthorized" in text:
        return "access denied; give credentials in the environment, or check that the bucket is public"
    if isinstance(error, InvalidPathError):
        return "an object's name cannot be read ('..' or an empty part in its path)"
    return "the store does not answer; check the address, AWS_ENDPOINT_URL and the network"


def why_not_written(error: Exception) -> str:
    """What the store said to a write, in our words; all that was written before counts when it is tried again."""
    text = str(error)
    if isinstance(error, GONE) or "404 Not Found" in text:
        return "no such bucket; make it first"
    if isinstance(error, DENIED) or "403 Forbidden" in text or "401 Unauthorized" in text:
        return "not allowed to write; give credentials in the environment that may put, list and delete there"
    if "507 " in text or "QuotaExceeded" in text:
        return "the bucket is full; make room and run the same command again, it goes on where it stopped"
    return "the store does not take it; run the same command again, it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object as a listing gives it."""

    size: int
    changed: datetime


class StoreFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Some objects of a store as files that DuckDB can read, under ``lumid://NAME``: these, and nothing else.

    Every read is one request for just those bytes: DuckDB knows which it wants, and keeps what it has read.
    """

    protocol = (SCHEME,)
    cachable = False

    def __init__(self, store: ObjectStore, files: Mapping[str, StoredFile]) -> None:
        super().__init__()
        self._store = store
        self._files = files

    def _listed(self, path: str) -> tuple[str, StoredFile]:
        name = path.removeprefix(f"{SCHEME}://")
        if name not in self._files:
            raise FileNotFoundError(name)
        return name, self._files[name]

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        """A file to read from."""
        if mode != "rb":
            raise PermissionError("the files of a data set are read only")
        name, file = self._listed(path)
        return _RangeFile(self._store, name, file.size)

    def glob(self, path: str, **_: Any) -> list[str]:
        """The one file of that name: names are no patterns here."""
        return [path] if path.removeprefix(f"{SCHEME}://") in self._files else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and kind, from the listing."""
        name, file = self._listed(path)
        return {"name": name, "size": file.size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """When the object was written, from the listing."""
        return self._listed(path)[1].changed


class _RangeFile(io.RawIOBase):
    """An object as a file with a position."""

    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        super().__init__()
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        data = tried(lambda: self._bytes(self._at, end))
        self._at += len(data)
        return data

    def _bytes(self, start: int, end: int) -> bytes:
        if start == 0 and end == self._size:
            # some servers answer a range that is all of an object with 200 for 206, which obstore takes for a failure
            return bytes(obstore.get(self._store, self._name).bytes())
        return bytes(obstore.get_range(self._store, self._name, start=start, end=end))
