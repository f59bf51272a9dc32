"""The catalog's Parquet files: how rows are sorted, cut and encoded. docs/benchmarks.md says why so."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid.catalog.fingerprint import chunk_hash, rows_hash
from lumid.catalog.layout import atomic_file
from lumid.catalog.paths import AnyPath
from lumid.catalog.schema import CATALOG

CATALOG_SORT = [("collection", "ascending"), ("patient", "ascending"), ("study", "ascending"), ("series", "ascending"),
                ("slice_position", "ascending"), ("key", "ascending")]  # fmt: skip
"""Rows of a series lie together: their identifiers take next to no room, and a query for some of them skips the rest."""
CATALOG_CHUNK_ROWS = 500_000
ROW_GROUP_ROWS = 65_536
ALL_DIFFERENT = ("key", "sha256", "pixel_hash", "source_id", "instance")
MEASURED = ("slice_position", "p01", "p50", "p99", "foreground_fraction", "sharpness", "noise", "clipped_fraction")
PLACES = ("offset", "length")
DICTIONARY = tuple(name for name in CATALOG.names if name not in {*ALL_DIFFERENT, *MEASURED, *PLACES, "modality"})
"""Columns whose values repeat: a dictionary of the others is as large as the column."""
ENCODINGS = dict.fromkeys(PLACES, "DELTA_BINARY_PACKED") | dict.fromkeys(
    ("slice_position", "sharpness", "noise"), "BYTE_STREAM_SPLIT"
)


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A finished chunk: a hash of its rows, and how many of each modality."""

    sha256: str
    modalities: tuple[tuple[str, int], ...]


def file_name(modality: str, number: int) -> str:
    """The name of the file that has the rows of one modality out of a chunk, from the catalog's folder."""
    return f"modality={modality}/part-{number:05d}.parquet"


def write_catalog_rows(table: pa.Table, number: int, folder: AnyPath) -> CatalogFile:
    """Write the rows of a chunk, under :data:`~lumid.catalog.schema.CATALOG`, as one Parquet file a modality, sorted."""
    hashes: dict[str, str] = {}
    counts = []
    for modality in sorted(pc.unique(table["modality"]).to_pylist()):
        rows = table.filter(pc.equal(table["modality"], modality)).sort_by(CATALOG_SORT).combine_chunks()
        counts.append((modality, rows.num_rows))
        hashes[modality] = rows_hash(rows)
        write_catalog_file(folder / file_name(modality, number), rows.drop_columns(["modality"]))
    return CatalogFile(chunk_hash(hashes), tuple(counts))


def write_catalog_file(path: AnyPath, rows: pa.Table) -> None:
    """Write the rows of one modality, without that column, atomically."""
    with atomic_file(path) as file:
        pq.write_table(
            rows,
            file,
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
            use_dictionary=list(DICTIONARY),
            column_encoding=ENCODINGS,
        )
