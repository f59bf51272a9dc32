"""A series as a strip: its slices in their order, evenly spaced, all on one scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb

from lumid.catalog.errors import UsageError
from lumid.catalog.mistakes import text
from lumid.catalog.places import Anywhere
from lumid.catalog.query import ask, connect
from lumid.catalog.show import (
    IMAGE_COLUMNS,
    ImageRow,
    Sheet,
    Tile,
    contact_sheet,
    image_rows,
    read_images,
    thumbnail,
    write_picture,
)

ACROSS = 12
"""Slices in a row of a strip."""
SHORTEST_PREFIX = 4
ORDER = "slice_index, slice_position, frame, key"


def show_series(
    root: Anywhere, series: str, out: Path, *, n: int = ACROSS, window: str | None = None, size: int = 160
) -> Sheet:
    """Write a series as a strip of ``n`` slices, evenly spaced from the first to the last, to the PNG file ``out``.

    ``series``: its pseudonym, or the key of one of its samples, or the beginning of either. Images that are shown by their
    percentiles share one scale. Raises :class:`UsageError` when no series is meant, or more than one.

    >>> key = read_catalog(DATASET, "slice_position > 7", ["key"])["key"][0].as_py()
    >>> len(show_series(DATASET, key[:8], FOLDER / "series.png").rows)
    4
    """
    with connect(root) as connection:
        name = find_series(connection, series)
        where = f" FROM catalog WHERE series = {text(name)}"
        columns = ", ".join(f'"{column}"' for column in (*IMAGE_COLUMNS, "slice_index", "slice_position"))
        table = ask(connection, f"SELECT {columns}{where} ORDER BY {ORDER}")
    total = table.num_rows
    shown = min(n, total)
    chosen = [round(step * (total - 1) / max(1, shown - 1)) for step in range(shown)]
    table = table.take(chosen)
    rows = _on_one_scale(image_rows(table))
    places = zip(table["slice_index"].to_pylist(), table["slice_position"].to_pylist(), strict=True)
    tiles = []
    for number, row, pixels, (index, position) in zip(chosen, rows, read_images(root, rows), places, strict=True):
        at = "" if position is None else f"{position:.1f} mm"
        # without positions the order is that of frames
        tiles.append(
            Tile(thumbnail(row, pixels, size, window), f"{number if index is None else index}  {at}", row.key[:8])
        )
    picture = contact_sheet(tiles, ACROSS)
    write_picture(out, picture)
    return Sheet(out, picture, tuple(rows), total)


def find_series(connection: duckdb.DuckDBPyConnection, wanted: str) -> str:
    """The series with that pseudonym, or with a sample of that key; the beginning is enough where only one begins so.

    Raises :class:`UsageError` when there is none, or more than one.
    """
    digits = wanted.strip().lower()
    if len(digits) < SHORTEST_PREFIX or not re.fullmatch("[0-9a-f]+", digits):
        raise UsageError(
            f"--series {wanted!r}: give the pseudonym of a series, or a key, as the catalog has them; "
            f"{SHORTEST_PREFIX} of its hex digits or more"
        )
    found = ask(
        connection,
        f"SELECT DISTINCT series FROM catalog WHERE starts_with(series, {text(digits)}) OR starts_with(key, {text(digits)}) "
        "ORDER BY 1 LIMIT 4",
    )["series"].to_pylist()
    if not found:
        raise UsageError(
            f"--series {digits}: no series and no key begins so; see `lumid query DATASET --group-by series`"
        )
    if len(found) > 1:
        raise UsageError(f"--series {digits}: more than one begins so ({', '.join(found[:3])} …); give more digits")
    return str(found[0])


def _on_one_scale(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """The rows with the percentiles of all of them together: a dark slice stays dark beside a bright one."""
    low, high = min(row.p01 for row in rows), max(row.p99 for row in rows)
    return [replace(row, p01=low, p99=high) for row in rows]
