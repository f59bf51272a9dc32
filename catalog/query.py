"""Questions to the catalog: SQL over the Parquet files, through a DuckDB that can read them and nothing else."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from lumid.catalog.errors import UsageError
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.schema import CATALOG, REJECTS


def connect(root: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views ``catalog`` and ``rejects`` of a finished data set.

    It can read the data set's folder and nothing else: no other file, no network, no extension, no setting.
    Raises :class:`DatasetError` when ``root`` is not a finished data set.
    """
    read_manifest(root)
    layout = Layout(root.resolve())
    connection = duckdb.connect(":memory:")
    folder = str(layout.root).replace("'", "''")
    connection.execute(f"SET allowed_directories = ['{folder}']")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    _view(connection, "catalog", layout.catalog, "modality=*/*.parquet", CATALOG)
    _view(connection, "rejects", layout.rejects, "*.parquet", REJECTS)
    return connection


def _view(connection: duckdb.DuckDBPyConnection, name: str, folder: Path, pattern: str, schema: pa.Schema) -> None:
    if not any(folder.glob(pattern)):
        connection.register(name, schema.empty_table())
        return
    files = str(folder / pattern).replace("'", "''")
    columns = ", ".join(schema.names)
    hive = (
        "hive_partitioning = true, hive_types = {'modality': VARCHAR}"
        if name == "catalog"
        else "hive_partitioning = false"
    )
    connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM read_parquet('{files}', {hive})")


def run_sql(root: Path, sql: str) -> pa.Table:
    """The answer to one SQL statement over the views ``catalog`` and ``rejects``.

    Raises :class:`UsageError` with a suggestion when it does not parse or names a column that is not there.
    """
    with connect(root) as connection:
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise UsageError(_explain(error)) from None
        except AttributeError:
            raise UsageError("the statement gives no rows; ask with SELECT") from None


def read_catalog(
    root: Path, where: str | None = None, columns: Sequence[str] | None = None, *, order_by: str = "key"
) -> pa.Table:
    """Rows of the catalog as an Arrow table, sorted by ``order_by``.

    ``where`` is a SQL condition such as ``"modality = 'CT' AND slice_thickness <= 2"``; ``columns`` defaults to all.

    >>> read_catalog(root, "modality = 'CT'", ["key", "shard", "offset", "length"])  # doctest: +SKIP
    """
    names = ", ".join(f'"{name}"' for name in (columns or CATALOG.names))
    condition = f" WHERE ({where}\n)" if where else ""
    return run_sql(root, f"SELECT {names} FROM catalog{condition} ORDER BY {order_by}")


def _explain(error: duckdb.Error) -> str:
    """DuckDB's message on one line, with the column that was probably meant."""
    text = str(error).split("\n\n")[0]
    first = re.sub(r"\s+", " ", text.split("\n")[0]).strip()
    unknown = re.search(r'[Rr]eferenced column "([^"]+)"', text)
    if unknown:
        close = difflib.get_close_matches(unknown[1].lower(), CATALOG.names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else "; `lumid query DATASET --columns` lists them"
        return f"no column {unknown[1]!r} in the catalog{hint}"
    return f"the query was not understood: {first}"
