"""What was wrong with a question, in one line, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import duckdb

from lumid.catalog.schema import CATALOG, REJECTS


def text(value: str) -> str:
    """A string as a SQL literal.

    >>> text("L'Aquila")
    "'L''Aquila'"
    """
    return "'" + value.replace("'", "''") + "'"


def explain(error: duckdb.Error, sql: str) -> str:
    """DuckDB's message on one line, with the column that was probably meant."""
    message = str(error).split("\n\n")[0]
    first = re.sub(r"\s+", " ", message.split("\n")[0]).strip()
    unknown = re.search(r'Referenced column "([^"]+)"|does not have a column named "([^"]+)"', message, re.IGNORECASE)
    if unknown:
        names = REJECTS.names if re.search(r"\brejects\b", sql, re.IGNORECASE) else CATALOG.names
        return no_column(unknown[1] or unknown[2], names)
    table = re.search(r"Table with name (\S+) does not exist", message)
    if table:
        return f"no table {table[1]!r}; there are catalog and rejects"
    if isinstance(error, duckdb.PermissionException):
        return "the query may read the tables catalog and rejects and nothing else"
    if isinstance(error, OF_THE_QUESTION):
        return f"the query was not understood: {first}"
    return _of_a_value(message)


OF_THE_QUESTION = (duckdb.ParserException, duckdb.SyntaxException, duckdb.BinderException, duckdb.CatalogException)
"""Errors that come before any row is read; the words of all others can hold what the rows hold, in any form."""
TYPES = {
    "INT8": "TINYINT", "INT16": "SMALLINT", "INT32": "INTEGER", "INT64": "BIGINT", "INT128": "HUGEINT", "BOOL": "BOOLEAN",
} | {name: name for name in (
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "DOUBLE", "FLOAT", "DECIMAL", "BOOLEAN", "DATE", "TIMESTAMP",
    "TIME", "INTERVAL", "JSON", "UUID", "BLOB",
)}  # fmt: skip


def _of_a_value(message: str) -> str:
    """That a value does not fit, in our own words.

    >>> _of_a_value("Conversion Error: Could not convert string 'HEAD' to DOUBLE")
    'a value cannot be turned into what the query wants, DOUBLE; TRY_CAST(… AS DOUBLE) gives NULL for such'
    """
    named = [TYPES[word] for word in re.findall(r"[A-Z]+[0-9]*", message) if word in TYPES]
    if not named:
        return (
            "the query fails for some value of the data; leave such rows out with WHERE, or TRY(…) gives NULL for them"
        )
    return f"a value cannot be turned into what the query wants, {named[-1]}; TRY_CAST(… AS {named[-1]}) gives NULL for such"


def no_column(name: str, names: Sequence[str]) -> str:
    """That there is no such column, and which ones have a name like it."""
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    contained = [one for one in names if len(name) > 2 and name.lower() in one and one not in close]
    meant = (close + contained)[:3]
    if meant:
        return f"no column {name!r}; did you mean {', '.join(meant)}?"
    return f"no column {name!r}; text goes in single quotes ({text(name)}), and `lumid query DATASET --columns` lists the columns"
