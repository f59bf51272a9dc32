"""A finished data set into an object store, whole or not at all: ``dataset.json`` comes last, created if it is absent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import obstore
from obstore.store import ObjectStore

from lumid.catalog.errors import LumidError, StorageError, UsageError
from lumid.catalog.layout import Layout, Manifest, parse_manifest, read_manifest
from lumid.catalog.stores import GONE, STORE_ERRORS, create_object, open_store, tried, why_not_written

COMMIT = "dataset.json"
CLAIM = "publishing"
"""The object that says, until all is there, which data set may be written under a prefix: SHA-256 of its manifest."""
PUTS = 8


def publish(root: Path, url: str, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Copy the finished data set in the folder ``root`` to ``s3://…``, ``gs://…`` or ``az://…``.

    Stopped at any point it goes on when called again; objects that are there are not sent twice. Of two at once with
    different data sets one is refused. ``progress`` is told bytes done and bytes in all. Raises
    :class:`UsageError` when something else is there, :class:`StorageError` when the store refuses.
    """
    manifest = read_manifest(root)
    store = open_store(url, attempts=1)
    files, ours = _files(root), Layout(root).manifest.read_bytes()
    try:
        _claim(store, url, ours)
        if not _is_committed(store, url, ours):
            _put_all(store, root, files, progress)
            create_object(store, COMMIT, ours)
            if not _is_committed(store, url, ours):
                raise LumidError(f"{url}: {COMMIT} was written and cannot be read; run the same command again")
        tried(lambda: obstore.delete(store, CLAIM))
    except STORE_ERRORS as error:
        raise StorageError(f"{url}: {why_not_written(error)}") from None
    return manifest


def _files(root: Path) -> dict[str, int]:
    """The sizes of all files but the manifest, by name; hidden ones are a build's own."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    names = {path.relative_to(root): path.stat().st_size for path in paths}
    return {
        name.as_posix(): size
        for name, size in names.items()
        if name.as_posix() != COMMIT and not any(part.startswith(".") for part in name.parts)
    }


def _claim(store: ObjectStore, url: str, manifest: bytes) -> None:
    """Take the prefix for this data set. What lies there without a claim is not ours, but for the same data set whole."""
    there = _listing(store)
    if CLAIM not in there and COMMIT not in there and there:
        raise UsageError(f"{url}: is not empty and holds no lumid data set; choose another prefix")
    mine = hashlib.sha256(manifest).hexdigest().encode()
    create_object(store, CLAIM, mine)
    try:
        holder = tried(lambda: bytes(obstore.get(store, CLAIM).bytes()))
    except GONE:  # whoever had it has just ended, and a claim goes only after a commit: that is looked at next
        return
    if holder != mine:
        raise UsageError(
            f"{url}: another data set is being written there; choose another prefix, or remove what an ended one left"
        )


def _is_committed(store: ObjectStore, url: str, manifest: bytes) -> bool:
    """Whether this data set is there, whole. Asked with the claim held: nobody else can commit in the meantime."""
    try:
        there = tried(lambda: bytes(obstore.get(store, COMMIT).bytes()))
    except GONE:
        return False
    if there != manifest:
        tried(lambda: obstore.delete(store, CLAIM))
        raise UsageError(
            f"{url}: holds the finished data set '{parse_manifest(there, url).name}' of another build; choose another prefix"
        )
    return True


def _listing(store: ObjectStore) -> dict[str, int]:
    return tried(lambda: {one["path"]: one["size"] for page in obstore.list(store) for one in page})


def _put_all(
    store: ObjectStore, root: Path, files: dict[str, int], progress: Callable[[int, int], None] | None
) -> None:
    """Send what is not there. A put is atomic and under the claim, so an object of the right size is the right one."""
    there = _listing(store)
    total, done = sum(files.values()), 0

    def put(name: str) -> int:
        if there.get(name) != files[name]:
            tried(lambda: obstore.put(store, name, root / name))
        return files[name]

    pool = ThreadPoolExecutor(PUTS)
    try:
        for ended in as_completed([pool.submit(put, name) for name in files]):
            done += ended.result()
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)  # of what is refused or stopped no more than what is under way is sent
