"""Distributions of a catalog's quantities, counted by the database, with the words that say what a bar says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import duckdb

from lumid.catalog.query import ask

BINS = 24
MEASURES = (
    ("Long side, as stored", "greatest(width, height)", "pixels"),
    ("Pixel spacing, as stored", "pixel_spacing_row", "mm"),
    ("Slice thickness", "slice_thickness", "mm"),
    ("Slices in a series", "slice_count", "slices"),
    ("Age of the patient", "age_years", "years"),
    ("Foreground", "100 * foreground_fraction", "%"),
    ("Sharpness", "sharpness", ""),
    ("Encoded image", "length / 1000", "kB"),
)
"""Title, SQL and unit of the quantities that get a histogram."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram: its height as a share of the highest, and what it says."""

    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """A distribution over the samples that state the quantity."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    low: str
    high: str
    median: str
    stated: int
    total: int
    summary: str


def histograms(connection: duckdb.DuckDBPyConnection, total: int) -> Iterable[Histogram]:
    """A histogram of every one of :data:`MEASURES` that some of the ``total`` samples state."""
    for title, sql, unit in MEASURES:
        (ends,) = ask(
            connection,
            f"SELECT count(x) AS n, min(x)::DOUBLE AS low, max(x)::DOUBLE AS high, median(x)::DOUBLE AS middle, "
            f"quantile_cont(x, 0.99)::DOUBLE AS usual FROM (SELECT ({sql})::DOUBLE AS x FROM catalog)",
        ).to_pylist()
        if ends["n"]:
            yield _histogram(connection, title, sql, unit, ends, total)


def _histogram(
    connection: duckdb.DuckDBPyConnection, title: str, sql: str, unit: str, ends: dict[str, Any], total: int
) -> Histogram:
    low, high = ends["low"], ends["high"]
    # a few values far out would press all others into one bar: the last bar then takes them in
    cut = ends["usual"] if low < ends["usual"] < low + (high - low) / 2 else high
    width = (cut - low) / BINS
    if width <= 0:  # all values are one: a bar in the middle
        width = 1.0
        low -= BINS / 2
    counts = [0] * BINS
    for row in ask(
        connection,
        f"SELECT least({BINS - 1}, floor((x - {low!r}) / {width!r}))::INT AS bin, count(*) AS n "
        f"FROM (SELECT ({sql})::DOUBLE AS x FROM catalog) WHERE x IS NOT NULL GROUP BY bin",
    ).to_pylist():
        counts[row["bin"]] = row["n"]
    highest = max(counts)
    bars = tuple(
        Bar(
            # a bar that stands for something stays visible
            max(count / highest, 0.015) if count else 0.0,
            f"{number(low + place * width)} to {number(high if place == BINS - 1 else low + (place + 1) * width)} "
            f"{unit}: {count:,}",
        )
        for place, count in enumerate(counts)
    )
    last = f"≥ {number(cut - width)}" if cut < high else number(high)
    middle = number(ends["middle"])
    summary = (
        f"{title}: from {number(low)} to {number(high)} {unit}, median {middle}, {ends['n']:,} of {total:,} samples"
    )
    return Histogram(title, unit, bars, number(ends["low"]), last, middle, ends["n"], total, summary)


# ---- numbers in words


def number(value: float | None) -> str:
    """A number for a person: thousands with commas, three digits that matter.

    >>> [number(value) for value in (1234567, 0.70312, 3071.0, 12.34, None)]
    ['1,234,567', '0.703', '3,071', '12.3', '–']
    """
    if value is None or not math.isfinite(value):
        return "–"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """A share as a percentage that never rounds something to nothing, or nearly all to all.

    >>> [percent(share) for share in (0, 0.0001, 0.284, 0.9999, 1)]
    ['0 %', '< 0.1 %', '28.4 %', '> 99.9 %', '100 %']
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"
