"""The lock of a data set: which series it is made from, each pinned; its columns, its hash, and reading it."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from lumid.catalog.errors import DatasetError
from lumid.catalog.paths import AnyPath, read_parquet


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning} | ({"unit": unit} if unit else {}))


LOCK = pa.schema(
    [
        _field("recipe_source", pa.int64(), "which of the recipe's sources, from 0"),
        _field("source", pa.string(), "kind of source"),
        _field("collection", pa.string(), "collection the series belongs to"),
        _field("source_version", pa.string(), "version of the source"),
        _field("license", pa.string(), "licence, as the source names it"),
        _field("doi", pa.string(), "DOI of the collection"),
        _field("series", pa.string(), "pseudonym of the series"),
        _field("patient", pa.string(), "pseudonym of the patient, where the archive's index tells"),
        _field("modality", pa.string(), "modality, where the archive's index tells"),
        _field("objects", pa.int64(), "objects planned; null where the archive does not say how many there are"),
        _field("bytes", pa.int64(), "their size", "bytes"),
        _field("location", pa.string(), "the archive's own name of this version of the series; null for folders"),
        _field("urls", pa.list_(pa.string()), "where the archive and its mirrors keep it"),
        _field("digest", pa.string(), "SHA-256 over the objects' names and sizes, or over the location"),
    ]
)


def lock_hash(lock: pa.Table) -> str:
    """SHA-256 over a lock's content, whatever file it is in."""
    digest = hashlib.sha256()
    for batch in lock.select(LOCK.names).to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            line = "\t".join("" if value is None else str(value) for value in row.values())
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def whole(lock: pa.Table) -> pa.Table:
    """A table with a lock's columns under :data:`LOCK`.

    Raises ``ArrowException`` or ``ValueError`` where values are of other types, text is no UTF-8, or a row names no series.
    """
    lock = lock.cast(LOCK)
    lock.validate(full=True)
    if any(lock[name].null_count for name in ("recipe_source", "source", "collection", "series")):
        raise ValueError("a row without its series")
    return lock


def load_lock(path: AnyPath) -> pa.Table:
    """A lock from its file, under :data:`LOCK`; raises :class:`DatasetError` when the file does not hold one."""
    try:
        lock = read_parquet(path)
        if lock.schema.names == LOCK.names:
            return whole(lock)
    except FileNotFoundError:
        raise DatasetError(f"{path}: is missing; copy it from another copy, or build the data set again") from None
    except (OSError, pa.ArrowException, ValueError):  # of text that is no UTF-8
        raise DatasetError(f"{path}: cannot be read; copy it from another copy, or build the data set again") from None
    raise DatasetError(f"{path}: does not have the columns of a lock; build the data set again")
