"""Tables of counts for the report: modality by body part, by collection, and by both within each collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import duckdb

from lumid.catalog.query import ask

BODY_PARTS, COLLECTIONS = 14, 80
NOT_STATED = "not stated"

Cell = tuple[str, str, str]
"""Collection, modality, body part."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Samples by something (rows) and modality (columns), the largest first, and the largest cell."""

    modalities: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    largest: int

    @property
    def samples(self) -> int:
        """The sum of all cells."""
        return sum(value for _, values in self.rows for value in values)


@dataclass(frozen=True, slots=True)
class Matrices:
    """The counts of a data set from three sides.

    ``within``: modality by body part in each collection, by its name, the largest first; empty where there is but one.
    """

    body_parts: Matrix
    collections: Matrix
    within: tuple[tuple[str, Matrix], ...]
    more_collections: int


def matrices(connection: duckdb.DuckDBPyConnection) -> Matrices:
    """Count the samples of a catalog by collection, modality and body part."""
    sql = "SELECT collection, modality, body_part, count(*) AS n FROM catalog GROUP BY ALL ORDER BY ALL"
    cells = {
        (row["collection"], row["modality"], row["body_part"] or NOT_STATED): row["n"]
        for row in ask(connection, sql).to_pylist()
    }
    sizes: Counter[str] = Counter()
    for (collection, _, _), count in cells.items():
        sizes[collection] += count
    shown = sorted(sizes, key=lambda name: (-sizes[name], name))[:COLLECTIONS]
    of_each: dict[str, dict[Cell, int]] = {name: {} for name in shown}
    for cell, count in cells.items():
        if cell[0] in of_each:
            of_each[cell[0]][cell] = count
    within = tuple((name, _by(2, of_each[name], BODY_PARTS)) for name in shown) if len(sizes) > 1 else ()
    return Matrices(_by(2, cells, BODY_PARTS), _by(0, cells, COLLECTIONS), within, len(sizes) - len(shown))


def _by(side: int, cells: Mapping[Cell, int], limit: int) -> Matrix:
    """Cells summed by their element ``side`` and modality; what is beyond ``limit`` rows in one row."""
    summed: Counter[tuple[str, str]] = Counter()
    for cell, count in cells.items():
        summed[cell[side], cell[1]] += count
    columns = _by_size((modality, count) for (_, modality), count in summed.items())
    names = _by_size((name, count) for (name, _), count in summed.items())
    named = [name for name in names if name != NOT_STATED]
    rows = [(name, tuple(summed[name, modality] for modality in columns)) for name in named[:limit]]
    if others := named[limit:]:
        values = tuple(sum(summed[name, modality] for name in others) for modality in columns)
        rows.append((f"{len(others)} others", values))
    if len(named) < len(names):  # what is not stated comes last, whatever its size
        rows.append((NOT_STATED, tuple(summed[NOT_STATED, modality] for modality in columns)))
    return Matrix(tuple(columns), tuple(rows), max((value for _, values in rows for value in values), default=0))


def _by_size(counts: Iterable[tuple[str, int]]) -> list[str]:
    sizes: Counter[str] = Counter()
    for name, count in counts:
        sizes[name] += count
    return sorted(sizes, key=lambda name: (-sizes[name], name))
