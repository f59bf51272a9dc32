"""What is being looked at: filters by column, an order, and the SQL condition, command and Python that give the same."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import duckdb
import pyarrow as pa

from lumid.catalog.errors import UsageError
from lumid.catalog.query import all_of, text, where_clause
from lumid.catalog.schema import CATALOG

Kind = Literal["text", "number", "flag", "list"]

NOT_STATED = ""
"""How a filter names the rows whose column is null; no column holds an empty text."""
IN_ORDER = "series, slice_index, frame, key"
MAX_VALUES, MAX_CHARS = 200, 4000
RESERVED = ("offset",)
"""Columns whose name means something else in SQL; the others are easier to read, and to quote for a shell, as they are."""


@dataclass(frozen=True, slots=True)
class Values:
    """Rows whose column has one of these values; :data:`NOT_STATED` stands for none. A list has one of them in it."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Rows whose number is within these ends, both included; None leaves an end open."""

    column: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class View:
    """A selection of the catalog in an order.

    ``where``: a further SQL condition; ``one_a_series``: of every series only the slice nearest its middle; ``order``: a
    column, or ``series`` for slice after slice.
    """

    filters: tuple[Values | Range, ...] = ()
    where: str | None = None
    one_a_series: bool = False
    order: str = "key"
    descending: bool = False


def kind_of(column: str) -> Kind:
    """What sort of values a catalog column holds. Raises :class:`UsageError` when there is no such column."""
    if column not in CATALOG.names:
        raise UsageError("a filter names a column that the catalog does not have")
    found = CATALOG.field(column).type
    if pa.types.is_list(found):
        return "list"
    if pa.types.is_boolean(found):
        return "flag"
    return "text" if pa.types.is_string(found) else "number"


def parse_view(parameters: Iterable[tuple[str, str]]) -> View:
    """The view that the parameters of an address ask for; parameters of other names are passed over.

    ``is.COLUMN`` (repeated) gives values, ``from.COLUMN`` and ``to.COLUMN`` the ends of a range, ``where`` a SQL condition,
    ``series=one`` one slice a series, ``order`` and ``desc`` the order. Raises :class:`UsageError` on what cannot be meant.

    >>> condition(parse_view([("is.modality", "CT"), ("is.modality", "MR"), ("to.slice_thickness", "2")]))
    "(modality IN ('CT', 'MR')) AND (slice_thickness <= 2)"
    """
    values: dict[str, list[str]] = {}
    ends: dict[str, dict[str, float]] = {}
    where, series, order, descending = None, False, "key", False
    for name, value in parameters:
        if len(value) > MAX_CHARS:
            raise UsageError("a filter is longer than any that can be meant")
        sort, _, column = name.partition(".")
        if sort == "is" and column:
            kind_of(column)
            values.setdefault(column, []).append(value)
        elif sort in ("from", "to") and column and value:
            if kind_of(column) != "number":
                raise UsageError(f"{column} is not a number: filter it by its values")
            ends.setdefault(column, {})[sort] = _number(value)
        elif name == "where":
            where = _expression(value)
        elif name == "series":
            series = value == "one"
        elif name == "order" and value:
            order = value
        elif name == "desc":
            descending = value == "1"
    if kind_of(order) == "list":
        raise UsageError(f"{order} is a list: order by another column")
    if any(len(found) > MAX_VALUES for found in values.values()):
        raise UsageError(f"more than {MAX_VALUES} values of one column: ask with a SQL condition instead")
    filters: list[Values | Range] = [Values(column, tuple(dict.fromkeys(found))) for column, found in values.items()]
    filters += [Range(column, found.get("from"), found.get("to")) for column, found in ends.items()]
    return View(tuple(filters), where, series, order, descending)


def condition(view: View, *, without: str | None = None) -> str | None:
    """The view as a SQL condition; None when it is everything. ``without``: leave out the filters of this column."""
    parts = [_filter_sql(one) for one in view.filters if one.column != without]
    found = all_of(*parts, view.where)
    if not view.one_a_series:
        return found
    middle = "(abs(2 * coalesce(slice_index, frame) + 1 - slice_count), key)"
    return f"key IN (SELECT min_by(key, {middle}) FROM catalog{where_clause(found)} GROUP BY series)"


def order_by(view: View) -> str:
    """What the view is sorted by, as SQL; the same rows always come in the same order."""
    if view.order == "key":
        return "key DESC" if view.descending else "key"
    columns = IN_ORDER if view.order == "series" else f'"{view.order}", key'
    if not view.descending:
        return columns
    first, _, rest = columns.partition(", ")
    return f"{first} DESC, {rest}"


def as_sql(view: View) -> str:
    """The SELECT that gives the view."""
    asked = condition(view)
    # the line break ends a trailing SQL comment
    return "\n".join(["SELECT *", "FROM catalog", *([f"WHERE {asked}"] if asked else []), f"ORDER BY {order_by(view)}"])


def as_command(dataset: str, view: View) -> str:
    """The command line that gives the view, quoted for a POSIX shell."""
    words = [
        "lumid",
        "query",
        dataset,
        condition(view),
        *(["--order-by", order_by(view)] if view.order != "key" else []),
    ]
    return " ".join(_shell(word) for word in words if word)


def as_subset_command(dataset: str, view: View) -> str:
    """The command line that writes the view as a subset, quoted for a POSIX shell."""
    words = ["lumid", "subset", dataset, condition(view), "--out", "subset.parquet"]
    return " ".join(_shell(word) for word in words if word)


def as_python(dataset: str, view: View) -> str:
    """Python that reads the view into an Arrow table."""
    asked = condition(view)
    arguments = [f"Path({dataset!r})", *([repr(asked)] if asked else [])]
    if view.order != "key" or view.descending:
        arguments.append(f"order_by={order_by(view)!r}")
    return (
        "from pathlib import Path\n\nfrom lumid.catalog.query import read_catalog\n\n"
        f"table = read_catalog({', '.join(arguments)})"
    )


def _shell(word: str) -> str:
    """A word as a POSIX shell reads it: in double quotes, which SQL does not use, where nothing in it means more there."""
    return f'"{word}"' if re.search(r"['\s]", word) and not re.search(r'["$`\\!]', word) else shlex.quote(word)


# ---- SQL of one filter


def _filter_sql(one: Values | Range) -> str:
    column = f'"{one.column}"' if one.column in RESERVED else one.column
    if isinstance(one, Range):
        ends = ((">=", one.low), ("<=", one.high))
        return " AND ".join(f"{column} {sign} {_digits(end)}" for sign, end in ends if end is not None)
    stated = [_literal(one.column, value) for value in one.values if value != NOT_STATED]
    parts = [f"{column} IS NULL"] if NOT_STATED in one.values else []
    if stated and kind_of(one.column) == "list":
        parts.append(f"list_has_any({column}, [{', '.join(stated)}])")
    elif len(stated) == 1:
        parts.append(f"{column} = {stated[0]}")
    elif stated:
        parts.append(f"{column} IN ({', '.join(stated)})")
    return " OR ".join(parts)


def _digits(value: float) -> str:
    """A number as SQL, in as many digits as it has."""
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    digits = repr(value)
    # SQL takes digits for a decimal number, whose way to a double loses the last of them; an exponent makes them one
    return digits if "e" in digits or len(digits) < 16 else f"{digits}e0"


def _literal(column: str, value: str) -> str:
    match kind_of(column):
        case "number":
            return _digits(_number(value))
        case "flag":
            if value not in ("true", "false"):
                raise UsageError(f"{column} is true or false")
            return value
        case _:
            return text(value)


def _number(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError("a filter's number is not a number")
    return found


def _expression(where: str) -> str | None:
    """A condition of the user's, if it is one expression: brackets around it then hold it together."""
    where = where.strip()
    if not where:
        return None
    try:
        duckdb.SQLExpression(where)
    except duckdb.Error as error:
        first = re.sub(r"\s+", " ", str(error).split("\n")[0])
        raise UsageError(f"the condition was not understood: {first}") from None
    return where
