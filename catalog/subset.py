"""Subsets: named selections of a data set, each a small Parquet file that says how to make it again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid._version import __version__
from lumid.catalog.errors import UsageError
from lumid.catalog.layout import atomic_file, storage_errors
from lumid.catalog.places import (
    NOTE,
    Anywhere,
    Place,
    Step,
    SubsetNote,
    as_place,
    place_manifest,
    read_note,
)
from lumid.catalog.query import ask, connect, where_clause, why_empty
from lumid.catalog.schema import CATALOG

COLUMNS = ("key", "modality", "shard", "offset", "length", "codec")
"""The columns of a subset's file: which samples, and where their images are; rows are sorted by key."""


def write_subset(
    where: Anywhere,
    out: Path,
    condition: str | None = None,
    *,
    limit: int | None = None,
    name: str | None = None,
    moves: bool = False,
) -> SubsetNote:
    """Write the samples of a data set (or of a subset of it) that meet a SQL condition as a subset's file.

    ``limit``: at most so many, those with the smallest keys, which are a fair sample; ``name``: by default the file's;
    ``moves``: the file will lie elsewhere than at ``out``, so that it must name the data set's whole path. The same selection of the same catalog gives the same bytes. Raises :class:`UsageError`, with the reason, when no sample
    meets the condition.

    >>> write_subset(DATASET, FOLDER / "thin.parquet", "modality = 'CT' AND slice_thickness <= 2").samples
    6
    """
    return write_steps(where, out, [Step(condition, limit)], name=name, moves=moves)


def write_steps(
    where: Anywhere, out: Path, steps: Sequence[Step], *, name: str | None = None, moves: bool = False
) -> SubsetNote:
    """As :func:`write_subset`, for selections that are made one after the other, as a subset's note lists them."""
    place = as_place(where)
    if out.suffix != ".parquet":
        raise UsageError(f"{out}: a subset is a Parquet file: name it NAME.parquet")
    if out.is_dir() or (place.subset is not None and out.resolve() == place.subset.resolve()):
        raise UsageError(f"{out}: is {'a folder' if out.is_dir() else 'what is read'}; --out must be another file")
    manifest = place_manifest(place)
    earlier = read_note(place.subset).steps if place.subset is not None else ()
    with connect(place) as connection:
        rows = ask(connection, steps_sql(steps, COLUMNS))
    if rows.num_rows == 0:
        raise UsageError("nothing to select: " + "; ".join(why_empty(place, steps[-1].where) or ("no sample",)))
    rows = rows.cast(pa.schema([CATALOG.field(column) for column in COLUMNS]))
    counted = rows.group_by("modality").aggregate([([], "count_all")]).sort_by("modality").to_pylist()
    note = SubsetNote(
        name=name or out.stem,
        data=_from_subset(place, None if moves else out),
        dataset=manifest.name,
        catalog_hash=manifest.catalog_hash,
        steps=(*earlier, *steps),
        samples=rows.num_rows,
        keys_sha256=keys_hash(rows["key"]),
        modalities={row["modality"]: row["count_all"] for row in counted},
        lumid_version=__version__,
    )
    metadata = {NOTE: note.to_json().encode()}
    with storage_errors(out), atomic_file(out) as file:
        pq.write_table(
            rows.replace_schema_metadata(metadata),
            file,
            compression="zstd",
            use_dictionary=["modality", "shard", "codec"],
            column_encoding={"offset": "DELTA_BINARY_PACKED", "length": "DELTA_BINARY_PACKED"},
        )
    return note


def steps_sql(steps: Sequence[Step], columns: Sequence[str]) -> str:
    """The SELECT that makes the selections one after the other, sorted by key."""
    source = "catalog"
    for step in steps:
        last = "" if step.limit is None else f" ORDER BY key LIMIT {int(step.limit)}"
        source = f"(SELECT * FROM {source}{where_clause(step.where)}{last})"
    named = ", ".join(f'"{column}"' for column in columns)
    return f"SELECT {named} FROM {source} ORDER BY key"


def keys_hash(keys: pa.ChunkedArray) -> str:
    """SHA-256 over keys, a line each."""
    digest = hashlib.sha256()
    for chunk in keys.chunks:
        digest.update("\n".join([*pc.fill_null(chunk, "").to_pylist(), ""]).encode())
    return digest.hexdigest()


def _from_subset(place: Place, out: Path | None) -> str:
    """Where the data set is, seen from the subset's folder, or from anywhere."""
    if isinstance(place.root, str):
        return place.root
    if out is None:
        return place.root.resolve().as_posix()
    return Path(os.path.relpath(place.root.resolve(), out.parent.resolve())).as_posix()
