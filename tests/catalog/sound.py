"""A small data set of synthetic images that is sound to the last hash, and the means to damage a copy of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lumid.catalog.cite import write_citations
from lumid.catalog.fingerprint import FILE_NAME, combine, rows_hash
from lumid.catalog.layout import Layout, read_manifest, write_table
from lumid.catalog.lock import LOCK, lock_hash
from lumid.catalog.query import read_catalog
from lumid.catalog.report import write_report
from tests.factory import COLLECTIONS, make_dataset


def make_sound(root: Path, n: int = 12, shards: int = 2, **options: Any) -> Path:
    """A finished data set with lock, citations, report, and a manifest whose every hash is right."""
    make_dataset(root, n=n, shards=shards, **options)
    layout = Layout(root)
    rows = read_catalog(root).to_pylist()
    names = ("source", "collection", "source_version", "license", "doi", "series", "patient", "modality")
    rejected = ("folder", "lung_trial", None, *COLLECTIONS["CT"][1:], "0" * 16, None, None)
    pinned = sorted({rejected} | {tuple(row[name] for name in names) for row in rows}, key=lambda values: values[5])
    lock = pa.Table.from_pylist(
        [
            dict(zip(names, values, strict=True))
            | {"recipe_source": 0, "objects": 4, "bytes": 1000, "urls": [], "digest": values[5] * 4}
            for values in pinned
        ],
        schema=LOCK,
    )
    write_table(layout.lock, lock)
    change_manifest(root, lock_hash=lock_hash(lock), catalog_hash=hash_of_catalog(root))
    change_manifest(root, recipe_hash=hash_of_recipe(root))
    write_citations(root, read_manifest(root))
    write_report(root)
    return root


def catalog_files(root: Path) -> list[Path]:
    """The files of the catalog, in order."""
    return sorted(Layout(root).catalog.rglob("*.parquet"))


def hash_of_catalog(root: Path) -> str:
    """The hash of the catalog as it lies there, from whole tables as a build hashes them."""
    hashes = {}
    for path in catalog_files(root):
        match = FILE_NAME.fullmatch(path.relative_to(Layout(root).catalog).as_posix())
        assert match is not None
        table = pq.read_table(path, partitioning=None)
        modality = pa.array([match["modality"]] * table.num_rows)
        hashes[int(match["chunk"]), match["modality"]] = rows_hash(table.add_column(0, "modality", modality))
    return combine(hashes)


def hash_of_recipe(root: Path) -> str:
    """The hash of the recipe in the manifest."""
    return hashlib.sha256(json.dumps(read_manifest(root).recipe, sort_keys=True).encode()).hexdigest()


def change_manifest(root: Path, **values: Any) -> None:
    """Other values in dataset.json, by key."""
    path = Layout(root).manifest
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_shard(root: Path, number: int, **values: Any) -> None:
    """Other values for a shard in dataset.json."""
    shards = json.loads(Layout(root).manifest.read_text())["shards"]
    shards[number] |= values
    change_manifest(root, shards=shards)


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """A Parquet file with other rows."""
    write_table(path, change(pq.read_table(path, partitioning=None)))


def change_cell(path: Path, column: str, change: Callable[[Any], Any], row: int = 0) -> None:
    """A Parquet file with one other value."""

    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[row][column] = change(rows[row][column])
        return pa.Table.from_pylist(rows, schema=table.schema)

    change_table(path, changed)


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """One bit of a file, the other way round."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))
