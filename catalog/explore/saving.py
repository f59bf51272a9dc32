"""Save what is being looked at as a subset. The one place of the page that does, so that it can be done another way."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lumid.catalog.errors import UsageError
from lumid.catalog.layout import atomic_file, read_manifest, storage_errors
from lumid.catalog.query import read_catalog, why_empty

COLUMNS = ("key", "modality", "shard", "offset", "length", "codec")


def save_subset(root: Path, out: Path, condition: str | None) -> int:
    """Write the samples that meet a SQL condition as Parquet, sorted by key; how many there are.

    The file's metadata say how to make it again: condition, catalog hash, samples. Raises :class:`UsageError`, with the
    reason, when no sample meets the condition.
    """
    rows: pa.Table = read_catalog(root, condition, COLUMNS)
    if rows.num_rows == 0:
        raise UsageError("nothing to save: " + "; ".join(why_empty(root, condition)))
    manifest = read_manifest(root)
    note = {
        "dataset": manifest.name,
        "catalog_hash": manifest.catalog_hash,
        "where": condition,
        "samples": rows.num_rows,
    }
    noted = rows.replace_schema_metadata({"lumid.subset": json.dumps(note, sort_keys=True)})
    with storage_errors(out), atomic_file(out) as file:
        pq.write_table(noted, file, compression="zstd")
    return int(rows.num_rows)
