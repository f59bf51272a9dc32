"""A DuckDB that can read the catalog and the rejects of a data set, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.mistakes import OF_THE_QUESTION, explain, text
from lumid.catalog.places import Anywhere, Tables, as_place, list_tables, place_manifest, read_note
from lumid.catalog.schema import CATALOG, REJECTS
from lumid.catalog.stores import SCHEME, StoreFiles


def connect(where: Anywhere, *, finished: bool = True) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views ``catalog`` and ``rejects`` of a data set, or of a subset of it.

    It can read the Parquet files of these and nothing else: no other file, no network, no extension, no setting, no
    variable of the Python program. Those of an object store are read in the ranges that a query needs. A subset has no
    rejects. ``finished=False`` leaves out the check for ``dataset.json``, for a build that is about to write it. Raises
    :class:`DatasetError` when ``where`` is not a finished, readable data set.
    """
    place = as_place(where)
    if finished:
        place_manifest(place)
    tables = list_tables(place)
    connection = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    try:
        with stoppable(connection):
            if tables.store is not None:
                connection.register_filesystem(StoreFiles(tables.store, tables.stored))
            keys = [] if place.subset is None else [_literal(str(place.subset.resolve()))]
            catalog = [_pattern(name, tables) for name in tables.catalog]
            rejects = [] if place.subset is not None else [_pattern(name, tables) for name in tables.rejects]
            # DuckDB asks for leave twice: for the pattern that it is given, and for the file that it opens
            plain = [f"{SCHEME}://{name}" for name in tables.stored] or [*tables.catalog, *tables.rejects]
            plain += [] if place.subset is None else [str(place.subset.resolve())]
            connection.execute(f"SET allowed_paths = {_text_list([*plain, *catalog, *rejects, *keys])}")
            # a finished catalog does not change: what the files say of themselves is read once
            connection.execute("SET GLOBAL parquet_metadata_cache = true")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            within = "" if place.subset is None else _within(keys[0], read_note(place.subset).modalities)
            _view(connection, "catalog", catalog, CATALOG, within)
            _view(connection, "rejects", rejects, REJECTS)
    except (duckdb.Error, UnicodeDecodeError):  # the latter where DuckDB's error quotes what is no text
        connection.close()
        raise DatasetError(
            f"{where}: the catalog or the rejects cannot be read (damaged, or of another format); build the data set again"
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _within(keys: str, modalities: Iterable[str]) -> str:
    """The condition that a subset's file stands for; its modalities spare the search through the files of others."""
    return f" WHERE modality IN ({', '.join(map(text, modalities))}) AND key IN (SELECT key FROM read_parquet({text(keys)}))"


def _view(
    connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[str], schema: pa.Schema, within: str = ""
) -> None:
    if not files:
        empty = ", ".join(f'CAST(NULL AS {_sql_type(field.type)}) AS "{field.name}"' for field in schema)
        connection.execute(f"CREATE VIEW {name} AS SELECT {empty} WHERE false")
        return
    columns = [f'"{one}"' for one in schema.names]
    options = "hive_partitioning = false"
    if name == "catalog" and all(file.count("=") == 1 for file in files):
        options = "hive_partitioning = true, hive_types_autocast = false"
    elif name == "catalog":
        # DuckDB would take `key=…` and the like from a folder above the catalog's for a column, too
        columns[schema.names.index("modality")] = "regexp_extract(filename, 'modality=([^/]*)/[^/]*$', 1) AS modality"
        options = "hive_partitioning = false, filename = true"
    connection.execute(
        f"CREATE VIEW {name} AS SELECT {', '.join(columns)} FROM read_parquet({_text_list(files)}, {options}){within}"
    )
    known = connection.execute(f"SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = '{name}'")
    if dict(known.fetchall()) != {field.name: _sql_type(field.type) for field in schema}:
        raise duckdb.InvalidInputException("columns of other types")  # told as what it is: of another format


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return _sql_type(kind.value_type) + "[]"
    return {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}[kind]


def _text_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(text(value) for value in values) + "]"


def _pattern(name: str, tables: Tables) -> str:
    return _literal(name) if tables.store is None else f"{SCHEME}://{name}"


def _literal(path: str) -> str:
    """A path as a pattern that only this path meets: DuckDB reads ``*``, ``?`` and ``[`` in every name as a pattern."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


@contextmanager
def stoppable(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """DuckDB says RuntimeError where a signal's handler raised something while it was at work: that is raised instead.

    Its threads would go on with what they are at, and whoever closes the connection wait for them.
    """
    try:
        yield
    except RuntimeError as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, Exception):
            connection.interrupt()
            raise cause from None
        raise


def cast_rows(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Columns of the catalog under their own types.

    Raises :class:`DatasetError` where one lacks what every sample of a finished data set has, or is of another type.
    """
    schema = pa.schema([CATALOG.field(name) for name in names])
    try:
        found = table.select(list(names)).cast(pa.schema([field.with_nullable(True) for field in schema]))
    except (pa.ArrowException, ValueError):
        found = None
    needed = [field.name for field in schema if not field.nullable or field.name == "shard"]
    if found is None or any(found[name].null_count for name in needed):
        raise DatasetError("the catalog has rows that are not those of images: run `lumid verify`")
    return found.cast(schema)


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The answer to one SELECT (or FROM, WITH, DESCRIBE, SUMMARIZE) over the views of :func:`connect`.

    Raises :class:`UsageError` with a suggestion when it does not parse, names a column that is not there, or is
    anything but a question; :class:`DatasetError` when a file of the catalog turns out to be damaged.
    """
    try:
        with stoppable(connection):
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("the query must be one SELECT statement; nothing can be written, attached or set")
            return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        ours = (*OF_THE_QUESTION, duckdb.PermissionException, duckdb.ConversionException, duckdb.OutOfRangeException)
        damaged = (
            isinstance(error, duckdb.IOException | duckdb.SerializationException)
            or "parquet" in str(error).split("\n\n")[0].lower()
        )
        if damaged and not isinstance(error, ours):
            raise DatasetError(
                "a file of the catalog cannot be read: the store does not answer, or the file is damaged or gone; try again, "
                "and if it stays so, build the data set again"
            ) from None
        raise UsageError(explain(error, sql)) from None
    except UnicodeDecodeError:  # an error of DuckDB's that quotes what is no text
        raise DatasetError("a file of the catalog cannot be read (damaged); build the data set again") from None
    except AttributeError:
        raise UsageError("the statement gives no rows; ask with SELECT") from None
