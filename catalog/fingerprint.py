"""The catalog's hash: over the values of its rows, and over nothing of the files or libraries that hold them."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FILE_NAME = re.compile(r"modality=(?P<modality>[^/=]+)/part-(?P<chunk>\d{5,})\.parquet")
"""A file of the catalog, below ``catalog/``: the rows of one modality out of one chunk of shards."""


def rows_hash(rows: pa.Table) -> str:
    """SHA-256 over the values of some rows, in their order; the order of the columns does not count.

    For a column: its name, then for every value whether it is there, and the value: numbers as 8 little-endian bytes,
    text as lengths and UTF-8, lists as lengths and the values of all of them.
    """
    return _hash_columns(rows.column_names, rows.column, rows.num_rows)


def file_hash(path: Path, modality: str) -> str:
    """:func:`rows_hash` of a catalog file and its folder's modality, reading one column at a time.

    Raises ``OSError`` or ``pyarrow.ArrowException`` when the file is damaged.
    """
    with pq.ParquetFile(path) as file:
        count = file.metadata.num_rows

        def column(name: str) -> pa.ChunkedArray:
            if name == "modality":
                return pa.chunked_array([pa.repeat(pa.scalar(modality), count)])
            return file.read([name]).column(0)

        return _hash_columns([*file.schema_arrow.names, "modality"], column, count)


def chunk_hash(files: Mapping[str, str]) -> str:
    """The hash of a chunk of the catalog, from the hashes of its files by modality."""
    return hashlib.sha256("".join(files[modality] for modality in sorted(files)).encode()).hexdigest()


def catalog_hash(chunks: Iterable[str]) -> str:
    """The hash of a catalog, from those of its chunks in the order of their numbers."""
    return hashlib.sha256("".join(chunks).encode()).hexdigest()


def combine(files: Mapping[tuple[int, str], str]) -> str:
    """The hash of a catalog, from those of its files by chunk and modality."""
    chunks: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for (chunk, modality), value in files.items():
        chunks[chunk][modality] = value
    return catalog_hash(chunk_hash(chunks[chunk]) for chunk in sorted(chunks))


def _hash_columns(names: Iterable[str], column: Callable[[str], pa.ChunkedArray], count: int) -> str:
    digest = hashlib.sha256(f"{count} rows\n".encode())
    for name in sorted(names):
        digest.update(f"{name}\n".encode())
        _hash_values(column(name), digest)
    return digest.hexdigest()


def _hash_values(values: pa.ChunkedArray | pa.Array, digest: hashlib._Hash) -> None:
    kind = values.type
    digest.update(np.asarray(values.is_valid()).astype(np.uint8).data)
    if pa.types.is_list(kind):
        _hash_numbers(pc.fill_null(pc.list_value_length(values), 0), digest)
        _hash_values(pc.list_flatten(values), digest)
    elif pa.types.is_string(kind):
        _hash_numbers(pc.fill_null(pc.binary_length(values), 0), digest)
        for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
            digest.update(_text_bytes(pc.fill_null(chunk, "")))
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        _hash_numbers(pc.fill_null(values, False if pa.types.is_boolean(kind) else 0), digest)
    else:
        raise TypeError(f"the catalog has no columns of type {kind}")


def _text_bytes(texts: pa.StringArray) -> memoryview:
    """The UTF-8 of all texts, one after the other, where Arrow keeps it; there must be no nulls among them."""
    if len(texts) == 0:
        return memoryview(b"")
    _, offsets, data = texts.buffers()
    begin, end = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return memoryview(data)[begin:end] if data is not None else memoryview(b"")


def _hash_numbers(values: pa.ChunkedArray | pa.Array, digest: hashlib._Hash) -> None:
    numbers = np.asarray(values)
    digest.update(np.ascontiguousarray(numbers.astype("<f8" if numbers.dtype.kind == "f" else "<i8")).data)
