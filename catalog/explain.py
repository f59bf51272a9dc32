"""Why a question has no answer: which of its conditions emptied it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from lumid.catalog.connect import ask, connect
from lumid.catalog.places import Anywhere
from lumid.catalog.schema import CATALOG

SHOWN_VALUES = 8
"""Values of a column that an explanation lists."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the conditions that a WHERE joins by AND: its SQL, the catalog columns that it names."""

    sql: str
    columns: tuple[str, ...]


def why_empty(root: Anywhere, where: str | None) -> tuple[str, ...]:
    """Why no sample meets ``where``: a line for every AND-ed part that no sample meets, or how they exclude each other.

    Empty when some sample does meet it.
    """
    with connect(root) as connection:
        total = int(ask(connection, "SELECT count(*) AS n FROM catalog")["n"][0].as_py())
        if total == 0:
            return ("the data set holds no samples",)
        if not where or not where.strip():
            return ()
        parts = _parts(connection, where)
        alone = [f"count(*) FILTER (WHERE {part.sql})" for part in parts]
        together = [
            f"count(*) FILTER (WHERE {' AND '.join(f'({one.sql})' for one in parts[: k + 1])})"
            for k in range(len(parts))
        ]
        columns = ", ".join(f"{sql} AS n{i}" for i, sql in enumerate(alone + together))
        counts = [int(column[0].as_py()) for column in ask(connection, f"SELECT {columns} FROM catalog").columns]
        if counts[-1]:
            return ()
        never = [part for part, met in zip(parts, counts, strict=False) if met == 0]
        if never:
            return tuple(f"no sample has {part.sql}{_values(connection, part)}" for part in never)
        first = counts.index(0, len(parts)) - len(parts)
        before = " AND ".join(part.sql for part in parts[:first])
        left = counts[len(parts) + first - 1]
        return (f"{left:,} samples have {before}, and {counts[first]:,} have {parts[first].sql}, but none has both",)


def _parts(connection: duckdb.DuckDBPyConnection, where: str) -> list[Part]:
    """The AND-ed parts of a condition, found by DuckDB's own parser."""
    try:
        statement = f"SELECT 1 FROM catalog WHERE ({where}\n)"
        row = connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchone()
        tree = json.loads(row[0]) if row else {}
        node = tree["statements"][0]["node"]
        parts = []
        for branch in _conjuncts(node["where_clause"]):
            node["where_clause"] = branch
            row = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchone()
            condition = str(row[0]).partition(" WHERE ")[2] if row else ""
            if not condition:
                return [Part(where, ())]
            # an OR keeps its brackets: it is printed between ANDs
            sql = condition if branch["class"] == "CONJUNCTION" else _unwrapped(condition)
            parts.append(Part(sql, tuple(sorted(_columns(branch)))))
        return parts
    except (duckdb.Error, ValueError, KeyError, IndexError, TypeError, RecursionError):
        # a condition that DuckDB can run but not print is explained as a whole
        return [Part(where, ())]


def _conjuncts(expression: dict[str, Any]) -> list[dict[str, Any]]:
    if expression["type"] == "CONJUNCTION_AND":
        return [part for child in expression["children"] for part in _conjuncts(child)]
    return [expression]


def _columns(expression: object) -> set[str]:
    if isinstance(expression, list):
        return {name for child in expression for name in _columns(child)}
    if not isinstance(expression, dict):
        return set()
    if expression.get("class") == "COLUMN_REF":
        name = str(expression["column_names"][-1]).lower()
        return {name} if name in CATALOG.names else set()
    return {name for child in expression.values() for name in _columns(child)}


def _unwrapped(sql: str) -> str:
    """``(a = 1)`` → ``a = 1``, where the outer brackets are one pair."""
    if not (sql.startswith("(") and sql.endswith(")")):
        return sql
    depth, quote = 0, ""
    for position, char in enumerate(sql):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char == "(") - (char == ")")
            if depth == 0 and position < len(sql) - 1:
                return sql
    return sql[1:-1]


def _values(connection: duckdb.DuckDBPyConnection, part: Part) -> str:
    """What the column of a part does hold, when it names one: the commonest values, or the range of a number."""
    if len(part.columns) != 1:
        return ""
    (name,) = part.columns
    field = CATALOG.field(name)
    is_list = pa.types.is_list(field.type)
    unit = (field.metadata or {}).get(b"unit", b"").decode()
    if not (is_list or pa.types.is_string(field.type) or pa.types.is_boolean(field.type)):
        answer = ask(connection, f'SELECT min("{name}") AS low, max("{name}") AS high FROM catalog').to_pylist()[0]
        if answer["low"] is None:
            return f"; {name} is not stated for any"
        return f"; {name} is from {answer['low']:g} to {answer['high']:g}{f' {unit}' if unit else ''}"
    value = f'unnest("{name}")' if is_list else f'"{name}"'
    found = ask(
        connection,
        f"SELECT value, count(*) AS n FROM (SELECT {value} AS value FROM catalog) WHERE value IS NOT NULL "
        f"GROUP BY ALL ORDER BY n DESC, value LIMIT {4 * SHOWN_VALUES}",
    ).to_pylist()
    if not found:
        return f"; {name} is not stated for any"
    if len(found) == 4 * SHOWN_VALUES:
        return ""
    listed = ", ".join(f"{row['value']} ({row['n']:,})" for row in found[:SHOWN_VALUES])
    return f"; {name} is {listed}{' …' if len(found) > SHOWN_VALUES else ''}"
