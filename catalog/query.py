"""Questions to the catalog: SQL over the Parquet files, through a DuckDB that can read them and nothing else."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.schema import CATALOG, REASONS, REJECTS

SHOWN_VALUES = 8
"""Values of a column that an explanation lists."""


def connect(root: Path, *, finished: bool = True) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views ``catalog`` and ``rejects`` of a data set.

    It can read the Parquet files of these two and nothing else: no other file, no network, no extension, no setting,
    no variable of the Python program. ``finished=False`` leaves out the check for ``dataset.json``, for a build that
    is about to write it. Raises :class:`DatasetError` when ``root`` is not a finished, readable data set.
    """
    if finished:
        read_manifest(root)
    layout = Layout(root.resolve())
    catalog, rejects = sorted(layout.catalog.glob("modality=*/*.parquet")), sorted(layout.rejects.glob("*.parquet"))
    connection = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    try:
        files = [str(path) for path in catalog + rejects]
        # DuckDB asks for leave twice: for the pattern that it is given, and for the file that it opens
        connection.execute(f"SET allowed_paths = {_text_list([*files, *(_literal(file) for file in files)])}")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _view(connection, "catalog", catalog, CATALOG)
        _view(connection, "rejects", rejects, REJECTS)
    except duckdb.Error:
        connection.close()
        raise DatasetError(
            f"{root}: the catalog or the rejects cannot be read (damaged, or of another format); build the data set again"
        ) from None
    return connection


def _view(connection: duckdb.DuckDBPyConnection, name: str, files: list[Path], schema: pa.Schema) -> None:
    if not files:
        connection.register(name, schema.empty_table())
        return
    # The modality is taken from the file's own folder: hive_partitioning would take `key=…` and the like from any
    # folder above it.
    folder = "regexp_extract(filename, 'modality=([^/]*)/[^/]*$', 1) AS modality"
    columns = ", ".join(folder if name == "catalog" and one == "modality" else f'"{one}"' for one in schema.names)
    connection.execute(
        f"CREATE VIEW {name} AS SELECT {columns} "
        f"FROM read_parquet({_text_list([_literal(str(path)) for path in files])}, hive_partitioning = false, filename = true)"
    )


def text(value: str) -> str:
    """A string as a SQL literal.

    >>> text("L'Aquila")
    "'L''Aquila'"
    """
    return "'" + value.replace("'", "''") + "'"


def _text_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(text(value) for value in values) + "]"


def _literal(path: str) -> str:
    """A path as a pattern that only this path meets: DuckDB reads ``*``, ``?`` and ``[`` in every name as a pattern."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


def all_of(*conditions: str | None) -> str | None:
    """The conditions that are given, joined by AND; None when there is none.

    >>> all_of("modality = 'CT'", None, "age_years > 60 OR sex = 'F'")
    "(modality = 'CT') AND (age_years > 60 OR sex = 'F')"
    """
    given = [condition.strip() for condition in conditions if condition and condition.strip()]
    if len(given) < 2:
        return given[0] if given else None
    # the line break ends a trailing SQL comment
    return " AND ".join(f"({one}\n)" if "--" in one else f"({one})" for one in given)


def where_clause(condition: str | None) -> str:
    """`` WHERE (condition)``, or nothing."""
    return f" WHERE ({condition}\n)" if condition and condition.strip() else ""


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The answer to one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE) over the views of :func:`connect`.

    Raises :class:`UsageError` with a suggestion when it does not parse, names a column that is not there, or is
    anything but a question; :class:`DatasetError` when a file of the catalog turns out to be damaged.
    """
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise UsageError("the query must be one SELECT statement; nothing can be written, attached or set")
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        damaged = (
            isinstance(error, duckdb.IOException | duckdb.SerializationException) or "parquet" in str(error).lower()
        )
        if damaged and not isinstance(error, duckdb.PermissionException):
            raise DatasetError(
                "a file of the catalog cannot be read (damaged or gone); build the data set again"
            ) from None
        raise UsageError(_explain(error, sql)) from None
    except AttributeError:
        raise UsageError("the statement gives no rows; ask with SELECT") from None


def run_sql(root: Path, sql: str, *, finished: bool = True) -> pa.Table:
    """The answer to one SELECT over the views ``catalog`` and ``rejects``; see :func:`ask` for what it raises."""
    with connect(root, finished=finished) as connection:
        return ask(connection, sql)


def read_catalog(
    root: Path,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    order_by: str = "key",
    limit: int | None = None,
    finished: bool = True,
) -> pa.Table:
    """Rows of the catalog as an Arrow table, sorted by ``order_by``; its schema carries units and meanings.

    ``where`` is a SQL condition such as ``"modality = 'CT' AND slice_thickness <= 2"``; ``columns`` defaults to all.

    >>> read_catalog(root, "modality = 'CT'", ["key", "shard", "offset", "length"])  # doctest: +SKIP
    """
    names = list(columns or CATALOG.names)
    for name in names:
        if name not in CATALOG.names:
            raise UsageError(_no_column(name, CATALOG.names))
    selected = ", ".join(f'"{name}"' for name in names)
    only = f" LIMIT {int(limit)}" if limit is not None else ""
    sql = f"SELECT {selected} FROM catalog{where_clause(where)} ORDER BY {order_by}{only}"
    return run_sql(root, sql, finished=finished).cast(pa.schema([CATALOG.field(name) for name in names]))


def count_samples(root: Path, where: str | None = None, *, finished: bool = True) -> int:
    """How many samples meet the condition."""
    return int(
        run_sql(root, f"SELECT count(*) AS n FROM catalog{where_clause(where)}", finished=finished)["n"][0].as_py()
    )


# ---- why there is no answer


@dataclass(frozen=True, slots=True)
class Part:
    """One of the conditions that a WHERE joins by AND: its SQL, the catalog columns that it names."""

    sql: str
    columns: tuple[str, ...]


def why_empty(root: Path, where: str | None) -> tuple[str, ...]:
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
    except (duckdb.Error, ValueError, KeyError, IndexError, TypeError):
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


# ---- errors in one line


def _explain(error: duckdb.Error, sql: str) -> str:
    """DuckDB's message on one line, with the column that was probably meant."""
    message = str(error).split("\n\n")[0]
    first = re.sub(r"\s+", " ", message.split("\n")[0]).strip()
    unknown = re.search(r'Referenced column "([^"]+)"|does not have a column named "([^"]+)"', message, re.IGNORECASE)
    if unknown:
        names = REJECTS.names if re.search(r"\brejects\b", sql, re.IGNORECASE) else CATALOG.names
        return _no_column(unknown[1] or unknown[2], names)
    table = re.search(r"Table with name (\S+) does not exist", message)
    if table:
        return f"no table {table[1]!r}; there are catalog and rejects"
    if isinstance(error, duckdb.PermissionException):
        return "the query may read the tables catalog and rejects and nothing else"
    return f"the query was not understood: {first}"


def _no_column(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    contained = [one for one in names if len(name) > 2 and name.lower() in one and one not in close]
    meant = (close + contained)[:3]
    if meant:
        return f"no column {name!r}; did you mean {', '.join(meant)}?"
    return f"no column {name!r}; text goes in single quotes ({text(name)}), and `lumid query DATASET --columns` lists the columns"


def count_rejects(connection: duckdb.DuckDBPyConnection, code: str | None = None) -> pa.Table:
    """Reasons with their frames, objects, stages and meanings, commonest first; only ``code`` if given."""
    answer = ask(
        connection,
        "SELECT code, sum(frames)::BIGINT AS frames, count(*) AS objects, "
        f"string_agg(DISTINCT stage, ', ' ORDER BY stage) AS stage FROM rejects{_of_code(code)} "
        "GROUP BY code ORDER BY frames DESC, code",
    )
    return answer.append_column("meaning", [[REASONS.get(one, "") for one in answer["code"].to_pylist()]])


def list_rejects(connection: duckdb.DuckDBPyConnection, code: str | None = None) -> pa.Table:
    """The rejects one by one, in the order of their sources; only those of ``code`` if given."""
    return ask(
        connection,
        "SELECT code, stage, modality, collection, source_id, frame, frames, message "
        f"FROM rejects{_of_code(code)} ORDER BY collection, source_id, frame",
    )


def _of_code(code: str | None) -> str:
    if code is None:
        return ""
    if code not in REASONS:
        raise UsageError(f"no reason {code!r}; there are {', '.join(REASONS)}")
    return f" WHERE code = {text(code)}"
