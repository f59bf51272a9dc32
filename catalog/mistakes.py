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
    return f"the query was not understood: {_without_values(first, sql)}"


def _without_values(message: str, sql: str) -> str:
    """DuckDB's words without what they quote of the data: of those in quotes, only the question's own.

    >>> _without_values("Could not convert string 'HEAD' to DOUBLE", "SELECT body_part::DOUBLE FROM catalog")
    'Could not convert string … to DOUBLE'
    >>> _without_values("Could not convert string 'x' to INT32", "SELECT 'x'::INTEGER")
    "Could not convert string 'x' to INT32"
    """
    return re.sub(r"'([^']*)'", lambda quoted: quoted[0] if quoted[1] in sql else "…", message)


def no_column(name: str, names: Sequence[str]) -> str:
    """That there is no such column, and which ones have a name like it."""
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    contained = [one for one in names if len(name) > 2 and name.lower() in one and one not in close]
    meant = (close + contained)[:3]
    if meant:
        return f"no column {name!r}; did you mean {', '.join(meant)}?"
    return f"no column {name!r}; text goes in single quotes ({text(name)}), and `lumid query DATASET --columns` lists the columns"
