"""Questions to the catalog: SQL over the Parquet files, through a DuckDB that can read them and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from lumid.catalog.connect import ask, connect
from lumid.catalog.errors import UsageError
from lumid.catalog.explain import why_empty
from lumid.catalog.mistakes import no_column, text
from lumid.catalog.places import Anywhere
from lumid.catalog.schema import CATALOG, REASONS

__all__ = [
    "all_of", "ask", "connect", "count_rejects", "count_samples", "list_rejects", "read_catalog", "run_sql", "text",
    "where_clause", "why_empty",
]  # fmt: skip


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


def run_sql(root: Anywhere, sql: str, *, finished: bool = True) -> pa.Table:
    """The answer to one SELECT over the views ``catalog`` and ``rejects``; see :func:`ask` for what it raises."""
    with connect(root, finished=finished) as connection:
        return ask(connection, sql)


def read_catalog(
    root: Anywhere,
    where: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    order_by: str = "key",
    limit: int | None = None,
    finished: bool = True,
) -> pa.Table:
    """Rows of the catalog as an Arrow table, sorted by ``order_by``; its schema carries units and meanings.

    ``where`` is a SQL condition such as ``"modality = 'CT' AND slice_thickness <= 2"``; ``columns`` defaults to all.

    >>> read_catalog(DATASET, "modality = 'CT'", ["key", "shard", "offset", "length"]).num_rows
    14
    """
    names = list(columns or CATALOG.names)
    for name in names:
        if name not in CATALOG.names:
            raise UsageError(no_column(name, CATALOG.names))
    selected = ", ".join(f'"{name}"' for name in names)
    only = f" LIMIT {int(limit)}" if limit is not None else ""
    sql = f"SELECT {selected} FROM catalog{where_clause(where)} ORDER BY {order_by}{only}"
    return run_sql(root, sql, finished=finished).cast(pa.schema([CATALOG.field(name) for name in names]))


def count_samples(root: Anywhere, where: str | None = None, *, finished: bool = True) -> int:
    """How many samples meet the condition."""
    return int(
        run_sql(root, f"SELECT count(*) AS n FROM catalog{where_clause(where)}", finished=finished)["n"][0].as_py()
    )


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
