"""Parts of any number and size, as batches leave them, with random bytes in place of images; and a lock that fits them.

Rows are those of :mod:`synthetic_catalog`: series with the shares and lengths of a real archive, keys that are uniform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from synthetic_catalog import chunk_table, draw, hex_digits, pseudonyms

from lumid.catalog.layout import atomic_file
from lumid.catalog.schema import CATALOG, REJECTS
from lumid.catalog.shards import BLOCK, END_OF_TAR, image_offset, member
from lumid.pipeline.batches import Batch
from lumid.pipeline.lock import LOCK
from lumid.pipeline.parts import PartAccount, PartFiles, SeriesAccount, write_rejects_of, write_rows
from lumid.pipeline.recipe import IdcSettings, Recipe, ShardSettings

JSON_BYTES = 700
"""What lies beside an image, about."""


def idc_recipe(batch_slices: int = 1000) -> Recipe:
    """A recipe of one archive."""
    return Recipe(name="bench", sources=(IdcSettings(),), shards=ShardSettings(batch_slices=batch_slices))


def synthetic_lock(series: int, slices: int) -> pa.Table:
    """Series of the archive, ``slices`` objects of half a megabyte each."""
    rng = np.random.default_rng(0)
    uuids = hex_digits(rng, series, 32).to_pylist()
    columns = {
        "recipe_source": np.zeros(series, np.int64), "source": ["idc"] * series, "collection": ["nlst"] * series,
        "source_version": ["IDC"] * series, "license": ["CC BY 4.0"] * series, "doi": [None] * series,
        "series": hex_digits(rng, series, 16), "patient": [None] * series, "modality": ["CT"] * series,
        "objects": np.full(series, slices), "bytes": np.full(series, 526_000 * slices), "location": uuids,
        "urls": [[f"s3://idc-open-data/{one}/"] for one in uuids], "digest": hex_digits(rng, series, 64),
    }  # fmt: skip
    return pa.table(columns, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


def synthetic_rows(rows: int, seed: int = 0) -> pa.Table:
    """So many rows in the order of their keys, series and all."""
    return chunk_table(draw(rows, seed), 0, rows, seed, pseudonyms(seed))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many parts, samples of each, and bytes of an image on average."""

    parts: int
    samples: int
    image_bytes: int


def write_parts(folder: Path, sizes: Sizes) -> Iterator[PartFiles]:
    """Write parts; every one holds keys of the whole range, as in a build."""
    rng = np.random.default_rng(0)
    rows = synthetic_rows(sizes.parts * sizes.samples)
    noise = rng.bytes(8 * sizes.image_bytes)
    lengths = rng.integers(sizes.image_bytes // 2, 3 * sizes.image_bytes // 2, rows.num_rows)
    for number in range(sizes.parts):
        mine = np.arange(number, rows.num_rows, sizes.parts)
        yield write_one(folder, f"{number:024x}", rows.take(pa.array(mine)), lengths[mine], noise, [number])


def write_one(
    folder: Path, name: str, rows: pa.Table, lengths: Sequence[int], noise: bytes, lock_rows: Sequence[int]
) -> PartFiles:
    """One part of these rows, of which the series of ``lock_rows`` have equal shares."""
    files = PartFiles(folder, name)
    offsets, position = [], 0
    with atomic_file(files.samples) as file:
        for at, (key, length) in enumerate(zip(rows["key"].to_pylist(), lengths, strict=True)):
            begin = at * 4093 % (len(noise) - int(length))
            members = member(f"{key}.jhc", noise[begin : begin + int(length)]) + member(
                f"{key}.json", b" " * JSON_BYTES
            )
            offsets.append(image_offset(position))
            file.write(members)
            position += len(members)
        file.write(END_OF_TAR)
    assert position % BLOCK == 0
    for column, values in {"offset": offsets, "length": lengths}.items():
        at = rows.schema.get_field_index(column)
        rows = rows.set_column(at, CATALOG.field(column), pa.array(values, pa.int64()))
    each = [len(one) for one in np.array_split(np.arange(rows.num_rows), len(lock_rows))]
    series = tuple(SeriesAccount(row, kept, kept, 0) for row, kept in zip(lock_rows, each, strict=True))
    write_rejects_of(files, REJECTS.empty_table(), [])
    write_rows(
        files, rows, np.repeat(lock_rows, each).tolist(), PartAccount(series, 526_000 * rows.num_rows, position, 8.0)
    )
    return files


def noop_task(recipe: Recipe, batch: Batch, parts: Path, scratch: Path) -> PartAccount:
    """What stands in for a batch's work: given the same, and answering with as much."""
    series = tuple(SeriesAccount(one.lock_row, one.frames, one.frames, 0) for one in batch.series)
    return PartAccount(series, batch.bytes, batch.objects * 53_000, 4.0)
