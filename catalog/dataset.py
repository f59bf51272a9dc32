"""A data set in Python: ``lumid.open(...)``, then tables by SQL, pandas or polars, and images in their unit.

The examples run on the synthetic data set of the tests, ``DATASET``: 14 samples of CT, 13 of MR, 13 of US.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lumid.catalog.codecs import decode
from lumid.catalog.connect import ask, cast_rows, connect
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.find import Member, find_sample, read_found
from lumid.catalog.keys import KEY_DIGITS
from lumid.catalog.layout import Shard
from lumid.catalog.mistakes import no_column, text
from lumid.catalog.places import Anywhere, Place, Shards, SubsetNote, as_place, place_manifest
from lumid.catalog.query import all_of, where_clause
from lumid.catalog.schema import CATALOG
from lumid.catalog.shards import BLOCK
from lumid.catalog.subset import write_subset

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Values = npt.NDArray[np.float32]
"""``float32 [rows, columns]``, or ``[rows, columns, 3]`` for colour, in the row's ``intensity_unit``."""
IMAGES_AT_ONCE = 64
SORTED_BY = ("modality", "collection", "patient", "study", "series")
PLACE_COLUMNS = ("key", "shard", "offset", "length", "codec", "store_slope", "store_intercept")


def open_dataset(where: Anywhere, subset: Path | str | None = None) -> Dataset:
    """Open a finished data set: a folder, ``s3://…``, ``gs://…`` or ``az://…``, or a subset's file. As ``lumid.open``.

    ``subset``: the file of a subset, where the data set is named, too. Raises :class:`DatasetError` when there is none.

    >>> import lumid
    >>> ds = lumid.open(DATASET)
    >>> ds
    <lumid data set 'synthetic': 40 samples>
    >>> ds.query("SELECT modality, count(*) AS n FROM catalog GROUP BY ALL ORDER BY n DESC, modality").to_pydict()
    {'modality': ['CT', 'MR', 'US'], 'n': [14, 13, 13]}
    """
    return Dataset(as_place(where, subset))


class Dataset:
    """A finished data set, or a selection of it. Threads may share it; close it, or use it in a ``with`` statement."""

    def __init__(self, place: Place, condition: str | None = None, shards: Shards | None = None) -> None:
        self.place = place
        self.manifest = place_manifest(place)
        self.condition = condition
        self._shards = shards or Shards(place)
        self._last_keys = [shard.last_key for shard in self.manifest.shards]
        self._connection = connect(place, finished=False)
        if condition is not None:
            ask(self._connection, f"SELECT 1 FROM catalog{where_clause(condition)} LIMIT 0")  # before it is in a view

    def __repr__(self) -> str:
        chosen = f" with {self.condition}" if self.condition else ""
        kind = "data set" if self.place.subset is None else f"subset {self.place.subset.stem!r} of"
        return f"<lumid {kind} {self.manifest.name!r}: {len(self):,} samples{chosen}>"

    def __len__(self) -> int:
        return int(self.query("SELECT count(*) AS n FROM catalog")["n"][0].as_py())

    @property
    def schema(self) -> pa.Schema:
        """The catalog's columns, with unit and meaning in their metadata.

        >>> ds.schema.field("slice_thickness").metadata[b"unit"]
        b'mm'
        """
        return CATALOG

    def where(self, condition: str) -> Dataset:
        """The samples of this one that meet a SQL condition, as a data set.

        >>> chest = ds.where("modality = 'CT' AND body_part = 'CHEST'")
        >>> len(chest), len(chest.where("slice_thickness < 2"))
        (8, 4)
        """
        return Dataset(self.place, all_of(self.condition, condition), self._shards)

    def query(self, sql: str) -> pa.Table:
        """The answer to one SELECT over the tables ``catalog`` and ``rejects``.

        It can read these and nothing else. Raises :class:`~lumid.catalog.errors.UsageError`, with a suggestion, when it
        is not understood.

        >>> ds.query("SELECT max(age_years) AS oldest FROM catalog WHERE sex = 'F'").to_pylist()
        [{'oldest': 40}]
        """
        return ask(self._cursor(), sql)

    def to_arrow(self, columns: Sequence[str] | None = None, *, limit: int | None = None) -> pa.Table:
        """Rows of the catalog, sorted by key; ``columns`` defaults to all.

        >>> ds.to_arrow(["key", "modality"], limit=2).num_rows
        2
        """
        return self._rows(columns, "key", limit)

    def to_pandas(self, columns: Sequence[str] | None = None, *, limit: int | None = None) -> pd.DataFrame:
        """The same as a pandas frame.

        >>> ds.to_pandas(["modality", "age_years"]).groupby("modality")["age_years"].max().to_dict()
        {'CT': 47, 'MR': 47, 'US': 47}
        """
        _needs("pandas")
        frame: pd.DataFrame = self.to_arrow(columns, limit=limit).to_pandas()
        return frame

    def to_polars(self, columns: Sequence[str] | None = None, *, limit: int | None = None) -> pl.DataFrame:
        """The same as a polars frame."""
        polars = _needs("polars")
        frame: pl.DataFrame = polars.from_arrow(self.to_arrow(columns, limit=limit))
        return frame

    def sample(self, n: int, seed: int = 0, columns: Sequence[str] | None = None) -> pa.Table:
        """``n`` rows at random, or all where there are fewer: the same ones for the same seed.

        Keys are a fair shuffle: these are the rows whose keys follow a point that the seed gives, in that order.

        >>> ds.sample(3, columns=["modality"]).equals(ds.sample(3, columns=["modality"]))
        True
        """
        begin = hashlib.sha256(f"sample {seed}".encode()).hexdigest()[:KEY_DIGITS]
        return self._rows(columns, f"key < {text(begin)}, key", n)

    def read(self, key: str) -> tuple[Values, Row]:
        """An image in its unit (HU for CT, see ``intensity_unit``), and its row.

        Returns ``float32 [rows, columns]`` (``[rows, columns, 3]`` for colour). The sample is found in its shard by its
        key alone, in a few reads. Raises :class:`~lumid.catalog.errors.UsageError` when there is no such key, and
        :class:`DatasetError` when it cannot be read.

        >>> key = ds.where("modality = 'CT'").sample(1)["key"][0].as_py()
        >>> hounsfield, row = ds.read(key)
        >>> hounsfield.shape, hounsfield.dtype.name, row["intensity_unit"], row["manufacturer"]
        ((48, 64), 'float32', 'HU', 'Siemens')
        """
        shard = self._shard_of(key)

        def read(offset: int, length: int) -> bytes:
            return self._shards.read(shard.name, offset, length)

        member = find_sample(read, shard.bytes, key, shard.first_key, shard.last_key)
        if member is None:
            # an image could hold what looks like a sample: the catalog has the last word
            whole = self._whole_row(key)
            member = Member(whole["offset"] - BLOCK, key, whole["codec"], whole["length"])
        image, values = read_found(read, shard.bytes, member)
        pixels = _in_unit(image, member.codec, values["store_slope"], values["store_intercept"], key)
        return pixels, Row(values, lambda: self._whole_row(key, values))

    def row(self, key: str) -> dict[str, Any]:
        """All columns of a sample. Raises :class:`~lumid.catalog.errors.UsageError` when there is no such key."""
        self._shard_of(key)
        return self._whole_row(key)

    def images(self, columns: Sequence[str] = (), *, threads: int = 2) -> Iterator[tuple[Values, dict[str, Any]]]:
        """All images in their units, by key, each with its key and the columns that are asked for.

        >>> sum(1 for pixels, row in ds.where("modality = 'MR'").images(["body_part"]) if row["body_part"] == "HEAD")
        8
        """
        wanted = list(dict.fromkeys([*PLACE_COLUMNS, *columns]))
        table = self.to_arrow(wanted)
        with ThreadPoolExecutor(threads, thread_name_prefix="lumid-images") as pool:
            for batch in table.to_batches(max_chunksize=IMAGES_AT_ONCE):
                rows = batch.to_pylist()
                for pixels, row in zip(pool.map(_decoded, self._encoded(rows), rows), rows, strict=True):
                    yield pixels, {name: row[name] for name in ("key", *columns)}

    def subset(self, out: Path | str, *, limit: int | None = None) -> SubsetNote:
        """Write this selection as a subset's file; see :func:`lumid.catalog.subset.write_subset`.

        >>> ds.where("modality = 'US'").subset(FOLDER / "us.parquet").samples
        13
        >>> lumid.open(FOLDER / "us.parquet")
        <lumid subset 'us' of 'synthetic': 13 samples>
        """
        return write_subset(self.place, Path(out), self.condition, limit=limit)

    def close(self) -> None:
        """Close what is open."""
        self._connection.close()
        self._shards.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of this thread's own, on the same views."""
        cursor = self._connection.cursor()
        if self.condition is not None:
            # a temporary view goes before the one that every connection sees
            cursor.execute(f"CREATE TEMP VIEW catalog AS FROM memory.main.catalog{where_clause(self.condition)}")
        return cursor

    def _rows(self, columns: Sequence[str] | None, order_by: str, limit: int | None) -> pa.Table:
        names = list(columns or CATALOG.names)
        for name in names:
            if name not in CATALOG.names:
                raise UsageError(no_column(name, CATALOG.names))
        chosen = ", ".join(f'"{name}"' for name in names)
        last = "" if limit is None else f" LIMIT {int(limit)}"
        table = self.query(f"SELECT {chosen} FROM catalog ORDER BY {order_by}{last}")
        return cast_rows(table, names)

    def _shard_of(self, key: str) -> Shard:
        at = bisect.bisect_left(self._last_keys, key)
        digits = len(key) == KEY_DIGITS and not set(key) - set("0123456789abcdef")
        if not digits or at == len(self._last_keys) or key < self.manifest.shards[at].first_key:
            raise UsageError(_no_key(key))
        return self.manifest.shards[at]

    def _whole_row(self, key: str, near: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """All columns of a sample. What is known of it spares most of the search: the catalog is sorted by this."""
        known = [f"{name} = {text(near[name])}" for name in SORTED_BY if near.get(name) is not None]
        condition = all_of(f"key = {text(key)}", *known)
        rows = ask(self._connection.cursor(), f"SELECT * FROM catalog{where_clause(condition)}").to_pylist()
        if not rows:
            raise UsageError(_no_key(key))
        whole: dict[str, Any] = rows[0]
        return whole

    def _encoded(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes]:
        for shard, group in groupby(rows, lambda row: str(row["shard"])):
            yield from self._shards.read_many(shard, [(row["offset"], row["length"]) for row in group])


class Row(Mapping[str, Any]):
    """A sample's row: what lies beside its image is here at once, all other columns are read when one is asked for."""

    def __init__(self, near: dict[str, Any], whole: Callable[[], dict[str, Any]]) -> None:
        self._near = near
        self._whole = whole
        self._rest: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        if name in self._near:
            return self._near[name]
        if name not in CATALOG.names:
            raise KeyError(no_column(name, CATALOG.names))
        if self._rest is None:
            self._rest = self._whole()
        return self._rest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(CATALOG.names)

    def __len__(self) -> int:
        return len(CATALOG.names)

    def __repr__(self) -> str:
        return f"<row {self._near.get('key')}: {self._near}>"


def _decoded(image: bytes, row: dict[str, Any]) -> Values:
    return _in_unit(image, row["codec"], row["store_slope"], row["store_intercept"], row["key"])


def _in_unit(image: bytes, codec: str, slope: float, intercept: float, key: str) -> Values:
    try:
        stored = decode(image, codec)
    except ValueError:
        raise DatasetError(f"sample {key}: its image cannot be decoded; run `lumid verify --deep`") from None
    values: Values = stored.astype(np.float32)
    values *= np.float32(slope)
    values += np.float32(intercept)
    return values


def _no_key(key: str) -> str:
    return f"no sample {key[:40]!r}; a key is {KEY_DIGITS} hex digits, as in the catalog's column key"


def _needs(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"this needs {name}: pip install {name}") from None
