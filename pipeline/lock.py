"""The lock a data set is made from, between the plan and the build: its rows, and a file that can be built again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa

from lumid.catalog.errors import RecipeError
from lumid.catalog.layout import storage_errors, write_table
from lumid.catalog.lock import LOCK, lock_hash, whole
from lumid.catalog.paths import AnyPath, read_parquet
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.recipe_files import parse_portable
from lumid.pipeline.sources import Provenance, Series

__all__ = ["LOCK", "lock_hash", "lock_table", "read_lock", "series_of", "write_lock"]

RECIPE = b"lumid.recipe"
RECIPE_HASH = b"lumid.recipe_hash"
ROWS_HASH = b"lumid.rows_hash"


def lock_table(series: Sequence[Series], recipe_source: int) -> pa.Table:
    """The lock's rows of a listed source, under :data:`LOCK`."""
    columns = {
        "recipe_source": [recipe_source] * len(series),
        "source": [one.provenance.source for one in series],
        "collection": [one.provenance.collection for one in series],
        "source_version": [one.provenance.source_version for one in series],
        "license": [one.provenance.license for one in series],
        "doi": [one.provenance.doi for one in series],
        "series": [one.id for one in series],
        "patient": [None] * len(series),
        "modality": [None] * len(series),
        "objects": [one.objects for one in series],
        "bytes": [one.bytes for one in series],
        "location": [None] * len(series),
        "urls": [[]] * len(series),
        "digest": [one.digest() for one in series],
    }
    return pa.table(columns, schema=LOCK)


def series_of(lock: pa.Table, recipe_source: int) -> list[Series]:
    """The pinned series of one of the recipe's sources, by id."""
    names = ("recipe_source", "collection", "source", "license", "doi", "source_version", "series", "objects", "bytes")
    columns = [lock[name].to_pylist() for name in (*names, "location", "urls", "modality")]
    provenance = cache(Provenance)  # series of a collection share theirs: a lock has tens of thousands
    series = [
        Series(
            id=series,
            provenance=provenance(collection, source, terms, doi, version),
            objects=objects,
            bytes=size,
            location=location,
            urls=tuple(urls or ()),
            lock_row=row,
            modality=modality,
        )
        for row, (
            number,
            collection,
            source,
            terms,
            doi,
            version,
            series,
            objects,
            size,
            location,
            urls,
            modality,
        ) in enumerate(zip(*columns, strict=True))
        if number == recipe_source
    ]
    return sorted(series, key=lambda one: (one.id, one.location))


def write_lock(path: AnyPath, lock: pa.Table, recipe: Recipe) -> None:
    """Write a lock, with its recipe's hash, and with the recipe itself where that reads no local files.

    Raises :class:`~lumid.catalog.errors.StorageError` when the disk refuses.
    """
    metadata = {RECIPE_HASH: recipe.hash().encode(), ROWS_HASH: lock_hash(lock).encode()}
    portable = recipe.portable()
    if portable is not None:
        metadata[RECIPE] = portable.encode()
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder; the lock must be a file")
    try:
        with storage_errors(path):
            write_table(path, lock.replace_schema_metadata(metadata))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no file can be made there; choose another place for the lock") from None


def read_lock(path: AnyPath, recipe: Recipe | None = None) -> tuple[pa.Table, Recipe | None]:
    """A lock, and the recipe that it was made from: the given one, else the one in the file, else None.

    Paths of a recipe from the file start from the working directory. Raises :class:`RecipeError` when the file is not a
    lock as it was written, or was made from another recipe than the given one.
    """
    again = f"make one with: lumid plan RECIPE --out {path}"
    try:
        lock = read_parquet(path)
        names = lock.schema.names
    except (OSError, pa.ArrowException, ValueError):  # of names that are no UTF-8
        raise RecipeError(f"{path}: cannot be read as a lock; {again}") from None
    if names != LOCK.names:
        raise RecipeError(f"{path}: a Parquet file, but not a lock; {again}")
    metadata = lock.schema.metadata or {}
    made_from = metadata.get(RECIPE_HASH, b"").decode(errors="replace")
    if recipe is not None and made_from and made_from != recipe.hash():
        raise RecipeError(
            f"{path}: the lock of another recipe, or of this one with other options; build it with the --sample, "
            f"--max-gb and collections (--only) that it was planned with, or {again}"
        )
    try:
        lock = whole(lock)
    except (pa.ArrowException, ValueError):
        raise RecipeError(f"{path}: the lock of another version of lumid; {again}") from None
    if metadata.get(ROWS_HASH, b"").decode(errors="replace") != lock_hash(lock):
        raise RecipeError(f"{path}: its rows are not those that were written; {again}")
    if recipe is None and RECIPE in metadata:
        recipe = parse_portable(metadata[RECIPE].decode(errors="replace"), str(path), base=Path.cwd())
    return lock, recipe
