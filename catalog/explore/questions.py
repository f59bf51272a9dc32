"""What the page asks of the catalog: a page of samples, the values of columns, one sample, its series."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from lumid.catalog.codecs import Pixels
from lumid.catalog.errors import UsageError
from lumid.catalog.explore.view import IN_ORDER, NOT_STATED, Kind, Values, View, condition, kind_of, order_by
from lumid.catalog.layout import Manifest, read_manifest
from lumid.catalog.query import all_of, ask, connect, text, where_clause, why_empty
from lumid.catalog.schema import CATALOG
from lumid.catalog.show import IMAGE_COLUMNS, ImageRow, display_range, image_rows

PAGE_SIZE = 60
SHOWN_VALUES = 12
FOUND_VALUES = 100
BARS = 24
SERIES_LIMIT = 20_000
SLOWEST_S = 30.0
REMEMBERED_ROWS = 20_000
HELD_ROWS = 50_000
"""A catalog of so many rows is held in memory, where questions are answered several times as fast; 1.5 kB a row."""
SLICE_COLUMNS = (*IMAGE_COLUMNS, "bits", "channels", "slice_index", "slice_position", "slice_count", "frame")
"""What the page must know of a sample to list it and to show its image."""

Name = TypeVar("Name")
Thing = TypeVar("Thing")


class Recent(Generic[Name, Thing]):
    """The things that were last asked for, up to a total size; safe between threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._things: OrderedDict[Name, tuple[Thing, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Name) -> Thing | None:
        """The thing, if it is remembered."""
        with self._lock:
            found = self._things.get(name)
            if found is None:
                return None
            self._things.move_to_end(name)
            return found[0]

    def put(self, name: Name, thing: Thing, size: int = 1) -> None:
        """Remember it, and forget what has not been asked for longest."""
        with self._lock:
            if name in self._things:
                self._size -= self._things.pop(name)[1]
            self._things[name] = (thing, size)
            self._size += size
            while self._size > self._limit and len(self._things) > 1:
                self._size -= self._things.popitem(last=False)[1][1]


@dataclass(frozen=True, slots=True)
class Page:
    """Some samples of a view, how many there are in all, and why when there are none."""

    total: int
    number: int
    size: int
    rows: tuple[dict[str, Any], ...]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facet:
    """A column within a view: values with their counts, commonest first, or the spread of a number.

    ``more``: there are further values; ``low``, ``high``: ends of the number over the whole data set, of which ``bars`` are
    equal parts and the samples of the view in each.
    """

    column: str
    kind: Kind
    values: tuple[tuple[str, int], ...] = ()
    more: bool = False
    low: float | None = None
    high: float | None = None
    bars: tuple[int, ...] = ()
    stated: int = 0


class Explorer:
    """A finished data set that is being looked at: one database, asked by any number of threads.

    Raises :class:`DatasetError` when ``root`` is not a finished, readable data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: Manifest = read_manifest(root)
        self._connection = connect(root)
        if self.manifest.counts.kept <= HELD_ROWS:
            self._connection.execute("CREATE TABLE held AS SELECT * FROM catalog")
            self._connection.execute("CREATE OR REPLACE VIEW catalog AS SELECT * FROM held")
        self._totals: Recent[str | None, int] = Recent(500)
        self._rows: Recent[str, ImageRow] = Recent(REMEMBERED_ROWS)
        self._ends = self._all_ends()

    def close(self) -> None:
        """Let the catalog's files go."""
        self._connection.close()

    def page(self, view: View, number: int, size: int = PAGE_SIZE) -> Page:
        """The ``number``-th page of a view, from 1; the last one when there are not so many."""
        where = condition(view)
        total = self.total(where)
        number = max(1, min(number, -(-total // size)))
        if not total:
            return Page(0, 1, size, (), why_empty(self.root, condition(replace(view, one_a_series=False))))
        rows = self._ask(
            f"SELECT {_names(SLICE_COLUMNS)} FROM catalog{where_clause(where)} ORDER BY {order_by(view)} "
            f"LIMIT {size} OFFSET {(number - 1) * size}"
        )
        return Page(total, number, size, tuple(self._slices(rows)), ())

    def total(self, where: str | None) -> int:
        """How many samples meet a condition."""
        known = self._totals.get(where)
        if known is None:
            known = int(self._ask(f"SELECT count(*) AS n FROM catalog{where_clause(where)}")["n"][0].as_py())
            self._totals.put(where, known)
        return known

    def facets(self, view: View, columns: Sequence[str]) -> list[Facet]:
        """The values of some columns. Each is counted under all filters but its own: what else could be chosen."""
        numbers = [column for column in columns if kind_of(column) == "number"]
        counted = [column for column in columns if kind_of(column) != "number"]
        spreads = self._spreads(view, numbers)
        values = self._values(view, counted)
        return [spreads[column] if column in spreads else values[column] for column in columns]

    def find_values(self, view: View, column: str, part: str) -> Facet:
        """The values of a text column that contain ``part``, whatever its case, under all filters but its own."""
        if kind_of(column) not in ("text", "list"):
            raise UsageError(f"{column} has no text to look for")
        where = condition(view, without=column)
        value = _value_sql(column)
        pattern = "%" + part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        found = self._ask(
            f"SELECT value, count(*) AS n FROM (SELECT {value} AS value FROM catalog{where_clause(where)}) "
            f"WHERE value ILIKE {text(pattern)} ESCAPE '\\' GROUP BY ALL ORDER BY n DESC, value LIMIT {FOUND_VALUES + 1}"
        ).to_pylist()
        counts = tuple((row["value"], row["n"]) for row in found[:FOUND_VALUES])
        return Facet(column, kind_of(column), counts, more=len(found) > FOUND_VALUES)

    def sample(self, key: str) -> dict[str, Any] | None:
        """The whole row of a sample; None when there is no such key."""
        found = self._ask(f"SELECT * FROM catalog WHERE key = {text(key)} LIMIT 1")
        return _plain(found.to_pylist()[0]) if found.num_rows else None

    def series_of(self, key: str) -> list[dict[str, Any]]:
        """The samples of a key's series, slice after slice, as :meth:`page` gives them; none when there is no such key."""
        return self._slices(
            self._ask(
                f"SELECT {_names(SLICE_COLUMNS)} FROM catalog "
                f"WHERE series = (SELECT series FROM catalog WHERE key = {text(key)} LIMIT 1) "
                f"ORDER BY {IN_ORDER} LIMIT {SERIES_LIMIT}"
            )
        )

    def image_row(self, key: str) -> ImageRow | None:
        """Where a sample's image is and how it is shown; None when there is no such key."""
        known = self._rows.get(key)
        if known is None:
            found = image_rows(
                self._ask(f"SELECT {_names(IMAGE_COLUMNS)} FROM catalog WHERE key = {text(key)} LIMIT 1")
            )
            for known in found:
                self._rows.put(key, known)
        return known

    def _slices(self, table: pa.Table) -> list[dict[str, Any]]:
        """Rows with :data:`SLICE_COLUMNS` for the page, remembered for when their images are asked for."""
        slices = []
        for row, image in zip(table.to_pylist(), image_rows(table), strict=True):
            self._rows.put(image.key, image)
            # the ends of what can be stored, for an image that has no range of its own
            ends: Pixels = (
                np.array([0, 2 ** row["bits"] - 1], "uint16") if row["bits"] > 8 else np.array([0, 255], "uint8")
            )
            slices.append(_plain(row) | {"shown": asdict(display_range(image, ends))})
        return slices

    # ---- columns

    def _all_ends(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest of every number, over the whole data set."""
        numbers = [name for name in CATALOG.names if kind_of(name) == "number"]
        wanted = ", ".join(
            f'min("{name}")::DOUBLE AS "low {name}", max("{name}")::DOUBLE AS "high {name}"' for name in numbers
        )
        (found,) = self._ask(f"SELECT {wanted} FROM catalog").to_pylist()
        ends = {name: (found[f"low {name}"], found[f"high {name}"]) for name in numbers}
        return {
            name: (low, high)
            for name, (low, high) in ends.items()
            if low is not None and math.isfinite(low) and math.isfinite(high)
        }

    def _values(self, view: View, columns: Sequence[str]) -> dict[str, Facet]:
        if not columns:
            return {}
        asked = [
            f"(SELECT {text(column)} AS name, value, count(*) AS n FROM (SELECT {_value_sql(column)} AS value "
            f"FROM catalog{where_clause(condition(view, without=column))}) GROUP BY value "
            f"ORDER BY n DESC, value LIMIT {SHOWN_VALUES + 1})"
            for column in columns
        ]
        found: dict[str, list[tuple[str, int]]] = {column: [] for column in columns}
        for row in self._ask(" UNION ALL ".join(asked)).to_pylist():
            found[row["name"]].append((NOT_STATED if row["value"] is None else row["value"], row["n"]))
        facets = {}
        for column, values in found.items():
            kept = sorted(values, key=lambda one: (-one[1], one[0]))[:SHOWN_VALUES]
            # what is chosen is shown, though nothing else may leave any of it
            chosen = [one for one in view.filters if one.column == column and isinstance(one, Values)]
            missing = [value for one in chosen for value in one.values if value not in dict(kept)]
            kept += [(value, self._count_of(view, column, value)) for value in missing]
            facets[column] = Facet(column, kind_of(column), tuple(kept), more=len(values) > SHOWN_VALUES)
        return facets

    def _count_of(self, view: View, column: str, value: str) -> int:
        only = condition(View((Values(column, (value,)),)))
        return self.total(all_of(condition(view, without=column), only))

    def _spreads(self, view: View, columns: Sequence[str]) -> dict[str, Facet]:
        facets = {column: Facet(column, "number") for column in columns}
        asked = []
        for column in columns:
            low, high = self._ends.get(column, (0.0, 0.0))
            if low == high:
                place = "0"
            else:
                place = f'least({BARS - 1}, floor(("{column}" - ({low!r})) / ({(high - low)!r}) * {BARS}))'
            where = all_of(f'"{column}" IS NOT NULL', condition(view, without=column))
            asked.append(
                f"(SELECT {text(column)} AS name, ({place})::BIGINT AS place, count(*) AS n FROM catalog{where_clause(where)} "
                "GROUP BY ALL)"
            )
        counts: dict[str, list[int]] = {column: [0] * BARS for column in columns}
        for row in self._ask(" UNION ALL ".join(asked)).to_pylist() if asked else []:
            counts[row["name"]][max(0, row["place"] or 0)] += row["n"]
        for column in columns:
            if column in self._ends:
                low, high = self._ends[column]
                bars = tuple(counts[column])
                facets[column] = Facet(column, "number", low=low, high=high, bars=bars, stated=sum(bars))
        return facets

    # ---- the database

    def _ask(self, sql: str) -> pa.Table:
        """An answer, or :class:`UsageError` when it takes longer than a person waits."""
        late = threading.Event()
        with self._connection.cursor() as cursor:

            def stop() -> None:
                late.set()
                cursor.interrupt()

            timer = threading.Timer(SLOWEST_S, stop)
            timer.daemon = True
            timer.start()
            try:
                return ask(cursor, sql)
            except UsageError:
                if late.is_set():
                    raise UsageError(f"that took longer than {SLOWEST_S:.0f} s: add a filter") from None
                raise
            finally:
                timer.cancel()


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _value_sql(column: str) -> str:
    return f'unnest("{column}")' if kind_of(column) == "list" else f'"{column}"::VARCHAR'


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row in JSON's types: what is not a finite number is none."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
