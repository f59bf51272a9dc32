"""Parts → catalog: groups of parts are cut by the chunks of the catalog, and a chunk is put together from its pieces.

A part's Parquet file takes as long to open for one row as for all. So each is read once to be cut, together with the
others of its group, and a chunk opens one piece of each group: the work grows with the parts, not with parts times chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lumid.catalog.catalog_files import CATALOG_CHUNK_ROWS, CatalogFile, write_catalog_rows
from lumid.catalog.layout import atomic_file
from lumid.catalog.paths import AnyPath, StorePath, over, read_arrow, read_parquet
from lumid.catalog.schema import CATALOG
from lumid.catalog.shards import image_offset
from lumid.pipeline.pack import Group, ShardPlan, in_store, joined
from lumid.pipeline.parts import LOCK_ROW


@dataclass(frozen=True, slots=True)
class CatalogChunk:
    """The catalog's rows of some consecutive shards: arrays of equal length, in the order of parts and rows.

    ``shard``: places in ``shards``. ``twins`` is None where no sample has one.
    """

    number: int
    shards: tuple[str, ...]
    shard: npt.NDArray[np.int32]
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    twins: npt.NDArray[np.bytes_] | None


def plan_catalog(shards: Sequence[ShardPlan]) -> list[CatalogChunk]:
    """Consecutive shards, as many to a chunk as hold half a million rows."""
    groups: list[list[ShardPlan]] = []
    rows = 0
    for shard in shards:
        if not groups or rows + len(shard.samples) > CATALOG_CHUNK_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(shard)
        rows += len(shard.samples)
    return [_chunk(number, group) for number, group in enumerate(groups)]


def _chunk(number: int, shards: Sequence[ShardPlan]) -> CatalogChunk:
    samples = joined([plan.samples for plan in shards])
    order = np.lexsort((samples.row, samples.part))
    shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(plan.samples) for plan in shards])
    starts = np.concatenate([plan.starts for plan in shards])
    return CatalogChunk(
        number, tuple(plan.name for plan in shards), shard[order], samples.part[order], samples.row[order], starts[order],
        samples.twin[order] if (samples.twin != b"").any() else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cut:
    """Which rows of a group of parts go into which chunks: by chunk, their parts (from the group's first) and rows."""

    group: Group
    chunks: tuple[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int32]], ...]


def plan_cuts(groups: Sequence[Group], chunks: Sequence[CatalogChunk]) -> list[Cut]:
    """How each group is cut."""
    cuts = []
    for group in groups:
        mine = []
        for chunk in chunks:
            begin, end = np.searchsorted(chunk.part, [group.first, group.first + len(group.parts)])
            if begin < end:
                mine.append((chunk.number, chunk.part[begin:end] - np.int32(group.first), chunk.row[begin:end]))
        cuts.append(Cut(group, tuple(mine)))
    return cuts


def write_cut(cut: Cut, folder: AnyPath) -> None:
    """Write the rows of a group of parts into a file for each chunk that has any of them."""
    parts = cut.group.parts
    tables = [
        table.drop_columns([LOCK_ROW.name]).replace_schema_metadata(None)
        for table in over(parts, lambda files: read_parquet(files.rows), remote=in_store(parts))
    ]
    begins = np.cumsum([0, *(table.num_rows for table in tables)])
    rows = pa.concat_tables(tables).combine_chunks()
    for number, part, row in cut.chunks:
        mine = rows.take(pa.array(begins[part] + row))
        with (
            atomic_file(folder / _cut_name(cut.group.number, number)) as file,
            pa.ipc.new_file(file, mine.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
        ):
            writer.write_table(mine)


def _cut_name(group: int, chunk: int) -> str:
    return f"{group:05d}-{chunk:05d}.arrow"


def write_catalog_chunk(chunk: CatalogChunk, firsts: Sequence[int], cuts: AnyPath, folder: AnyPath) -> CatalogFile:
    """Write a chunk's rows as one Parquet file a modality, sorted so that queries can skip most of them.

    ``firsts``: the number of each group's first part. ``cuts``: the folder that :func:`write_cut` has written to.
    """
    return write_catalog_rows(_chunk_rows(chunk, firsts, cuts), chunk.number, folder)


def _chunk_rows(chunk: CatalogChunk, firsts: Sequence[int], cuts: AnyPath) -> pa.Table:
    """The chunk's rows out of all groups, with shard, offset and what they are duplicates of as they will be."""
    groups = np.unique(np.searchsorted(np.array(firsts), chunk.part, side="right") - 1).tolist()
    paths = [cuts / _cut_name(group, chunk.number) for group in groups]
    table = pa.concat_tables(over(paths, read_arrow, remote=isinstance(cuts, StorePath)))
    twins = [None] * len(table) if chunk.twins is None else [twin.decode() or None for twin in chunk.twins.tolist()]
    values = {
        "shard": pa.array(chunk.shards, pa.string()).take(pa.array(chunk.shard)),
        "offset": pa.array(image_offset(0) + chunk.start, pa.int64()),
        "duplicate_of": pa.array(twins, pa.string()),
    }
    for name, column in values.items():
        table = table.set_column(table.schema.get_field_index(name), CATALOG.field(name), column)
    return table.cast(CATALOG)
