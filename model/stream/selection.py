"""Which samples are streamed: the rows of a catalog, as columns that a batch can be looked up in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.places import Anywhere, Place, as_place, place_manifest
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import MODALITIES
from lumid.model.stream.order import Group, Mixture, quotas

Number = TypeVar("Number", bound=np.number[Any])
COLUMNS = (
    "key", "shard", "offset", "length", "codec", "width", "height", "bits", "channels", "modality", "collection",
    "intensity_unit", "store_slope", "store_intercept", "p01", "p99",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples of a data set that are streamed: their rows of the catalog, and where the data set is."""

    place: Place
    table: pa.Table = field(repr=False)
    version: str = ""
    """The hash of the catalog: the same place may hold another data set later."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def fingerprint(self) -> str:
        """A hash of the samples' keys in their order: another selection has another."""
        digest = hashlib.sha256()
        for chunk in self.table["key"].chunks:
            digest.update("".join(chunk.to_pylist()).encode())
        return digest.hexdigest()

    def groups(self, mixture: Mixture) -> tuple[Group, ...]:
        """The rows by the value of the mixture's column, sorted by it, with what each gives to an epoch.

        Raises :class:`UsageError` when the column was not selected.
        """
        if mixture.by not in self.table.column_names:
            raise UsageError(f"mixing by {mixture.by!r} needs that column: select(…, also=({mixture.by!r},))")
        column = self.table[mixture.by]
        if not (
            pa.types.is_string(column.type) or pa.types.is_boolean(column.type) or pa.types.is_integer(column.type)
        ):
            raise UsageError(f"mixing by {mixture.by!r} is not possible: its values are no categories")
        values = pc.fill_null(pc.cast(column, pa.string()), "null").combine_chunks().dictionary_encode()
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        codes = values.indices.to_numpy()
        names = values.dictionary.to_pylist()
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        rows = {name: order[end - n : end] for name, end, n in zip(names, ends, np.bincount(codes), strict=True)}
        counts = {name: len(rows[name]) for name in sorted(rows)}
        given = quotas(counts, mixture, len(self))
        return tuple(Group(name, rows[name].astype(np.int64), given[name]) for name in counts)


def select(data: Anywhere, where: str | None = None, *, also: Sequence[str] = ()) -> Selection:
    """The samples of a data set, or of a subset of it, that a SQL condition names, sorted by key.

    ``data``: a folder, ``s3://``, ``gs://`` or ``az://`` and a prefix, or a subset's file. ``also``: columns that are to
    be mixed by, besides modality and collection. Raises :class:`LumidError` when there are none.
    """
    place = as_place(data)
    table = read_catalog(place, where, [*COLUMNS, *(name for name in also if name not in COLUMNS)])
    if table.num_rows == 0:
        raise DatasetError(
            f"{place}: no samples{f' where {where}' if where else ''}; see `lumid query {place} --group-by modality,split`"
        )
    return Selection(place, table.combine_chunks(), place_manifest(place).catalog_hash)


@dataclass(frozen=True, slots=True)
class Columns:
    """What a stream wants to know of each row, as arrays of equal length (about 100 bytes a sample)."""

    key: pa.Array
    shards: tuple[str, ...]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    codec: tuple[str, ...]
    codec_of: npt.NDArray[np.int8]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    bits: npt.NDArray[np.int8]
    channels: npt.NDArray[np.int8]
    modality: npt.NDArray[np.int64]
    hounsfield: npt.NDArray[np.bool_]
    suv: npt.NDArray[np.bool_]
    slope: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    white: npt.NDArray[np.float32]

    @classmethod
    def of(cls, table: pa.Table) -> Columns:
        """Those of a selection's table."""

        def numbers(name: str, kind: type[Number]) -> npt.NDArray[Number]:
            found: npt.NDArray[Number] = table[name].to_numpy().astype(kind)
            return found

        def coded(name: str) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
            values = pa.concat_arrays(table[name].chunks).dictionary_encode()
            return values.indices.to_numpy().astype(np.int32), tuple(values.dictionary.to_pylist())

        shard, shards = coded("shard")
        codec_of, codec = coded("codec")
        modality, modalities = coded("modality")
        unit, units = coded("intensity_unit")
        slope, intercept = numbers("store_slope", np.float64), numbers("store_intercept", np.float64)
        known = np.array([MODALITIES.index(name) for name in modalities], np.int64)
        return cls(
            key=pa.concat_arrays(table["key"].chunks),
            shards=shards,
            shard=shard,
            offset=numbers("offset", np.int64),
            length=numbers("length", np.int64),
            codec=codec,
            codec_of=codec_of.astype(np.int8),
            height=numbers("height", np.int32),
            width=numbers("width", np.int32),
            bits=numbers("bits", np.int8),
            channels=numbers("channels", np.int8),
            modality=known[modality],
            hounsfield=np.array([name == "HU" for name in units])[unit],
            suv=np.array([name == "SUVbw" for name in units])[unit],
            slope=slope.astype(np.float32),
            intercept=intercept.astype(np.float32),
            low=((numbers("p01", np.float64) - intercept) / slope).astype(np.float32),
            high=((numbers("p99", np.float64) - intercept) / slope).astype(np.float32),
            white=(2.0 ** numbers("bits", np.float64) - 1).astype(np.float32),
        )
