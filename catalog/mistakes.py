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
    """What was wrong, on one line, with the column that was probably meant. No value of the data is in it."""
    if isinstance(error, duckdb.PermissionException):
        return "the query may read the tables catalog and rejects and nothing else"
    if isinstance(error, duckdb.OutOfMemoryException):
        return "the query needs more memory than there is; ask for fewer columns, or for some rows at a time"
    message = str(error).split("\n\n")[0]
    if not isinstance(error, OF_THE_QUESTION):
        return _of_a_value(message, sql)
    unknown = re.search(r'Referenced column "([^"]+)"|does not have a column named "([^"]+)"', message, re.IGNORECASE)
    if unknown:
        names = REJECTS.names if re.search(r"\brejects\b", sql, re.IGNORECASE) else CATALOG.names
        return no_column(unknown[1] or unknown[2], names)
    table = re.search(r"Table with name (\S+) does not exist", message)
    if table:
        return f"no table {table[1]!r}; there are catalog and rejects"
    first = re.sub(r"\s+", " ", message.split("\n")[0]).strip()
    return f"the query was not understood: {first}"


OF_THE_QUESTION = (duckdb.ParserException, duckdb.SyntaxException, duckdb.BinderException, duckdb.CatalogException)
"""Errors that come before any row is read; the words of all others can hold what the rows hold, in any form."""
TYPES = {
    "INT8": "TINYINT",
    "INT16": "SMALLINT",
    "INT32": "INTEGER",
    "INT64": "BIGINT",
    "INT128": "HUGEINT",
    "BOOL": "BOOLEAN",
}
"""DuckDB's own names of types, as SQL has them."""


def _of_a_value(message: str, sql: str) -> str:
    """That a value does not fit, in our own words; with the value where it is one of the question's.

    >>> _of_a_value("Conversion Error: Could not convert string 'HEAD' to DOUBLE", "SELECT body_part::DOUBLE FROM catalog")
    'a value cannot be turned into DOUBLE; TRY_CAST(… AS DOUBLE) gives NULL for such'
    >>> _of_a_value("Conversion Error: Could not convert string 'wide' to INT64", "SELECT key FROM catalog WHERE width > 'wide'")
    "'wide' cannot be turned into BIGINT"
    """
    if "More than one row returned by a subquery" in message.split("\n")[0] and "'" not in message:
        return "a subquery gives more than one row where one value is wanted; add LIMIT 1, or ask for IN (…)"
    found = OF_A_VALUE.fullmatch(message)
    if found is None:
        return "the query fails for a value, of the data or of its own; leave such rows out with WHERE, or TRY(…) gives NULL for them"
    value, wanted, column = found[1], TYPES.get(found[2], found[2]), found[3]
    if column is None and value and re.fullmatch(r"'[^']*'", value) and value in sql:
        return f"{value} cannot be turned into {wanted}"
    where = f" of {column}" if column in CATALOG.names or column in REJECTS.names else ""
    return f"a value{where} cannot be turned into {wanted}; TRY_CAST(… AS {wanted}) gives NULL for such"


OF_A_VALUE = re.compile(
    r"Conversion Error: (?:Could not convert string (.*) to|Type .* destination type) ([A-Z]+[0-9]*)(?:\([0-9, ]+\))?"
    r"(?: when casting from source column (\w+))?",
    re.DOTALL,
)
"""DuckDB's words on a value that is of no such type: the value, which is not repeated, the type, and the column."""


def no_column(name: str, names: Sequence[str]) -> str:
    """That there is no such column, and which ones have a name like it."""
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    contained = [one for one in names if len(name) > 2 and name.lower() in one and one not in close]
    meant = (close + contained)[:3]
    if meant:
        return f"no column {name!r}; did you mean {', '.join(meant)}?"
    return f"no column {name!r}; text goes in single quotes ({text(name)}), and `lumid query DATASET --columns` lists the columns"
