"""Rows for people and for programs: tables, CSV, JSON and Parquet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from lumid.catalog.errors import UsageError
from lumid.catalog.words import many

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_ROWS = 20
ROWS_AT_ONCE = 10_000


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def chosen_format(format: Format, out: Path | None, as_json: bool) -> Format:
    """The format that options ask for, or that the ending of ``out`` names; raises :class:`UsageError`."""
    if as_json:
        return Format.JSON
    if format is Format.TABLE and out is not None:
        endings = {".csv": Format.CSV, ".json": Format.JSON, ".parquet": Format.PARQUET}
        if out.suffix.lower() not in endings:
            raise UsageError(f"{out}: name the format with --format csv, json or parquet, or by the file's ending")
        return endings[out.suffix.lower()]
    if format is Format.PARQUET and out is None:
        raise UsageError("Parquet goes to a file: add --out FILE.parquet")
    return format


def write_rows(table: pa.Table, shape: Format, out: Path | None, limit: int | None, footer: str) -> None:
    """Rows to a file or to standard output; a table with ``N footer`` under it."""
    if shape is Format.TABLE:
        shown = table.slice(0, TABLE_ROWS if limit is None else limit)
        _print_table(shown)
        if footer:
            typer.echo(f"{shown.num_rows:,} {footer}")
        return
    rows = table if limit is None else table.slice(0, limit)
    if out is None:
        for text in _lines(rows, shape):
            sys.stdout.write(text)
        return
    from lumid.catalog.layout import atomic_file, storage_errors
    from lumid.dags.cli.waiting import waiting

    if out.is_dir():
        raise UsageError(f"{out}: is a folder; --out must be a file")
    with storage_errors(out), waiting(f"writing {out} …"), atomic_file(out) as file:
        if shape is Format.PARQUET:
            import pyarrow.parquet as pq

            pq.write_table(rows, file, compression="zstd")
        else:
            file.writelines(text.encode("utf-8") for text in _lines(rows, shape))
    typer.echo(f"{out}: {many(rows.num_rows, 'row')}", err=True)


def _lines(table: pa.Table, shape: Format) -> Iterator[str]:
    """The rows as CSV, or as one JSON array with a row a line, some at a time: a whole answer may have millions."""
    import csv
    import io

    if shape is Format.CSV:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(table.column_names)
        for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
            columns = (map(_joined, column.to_pylist()) for column in batch.columns)
            writer.writerows(zip(*columns, strict=True))
            yield lines.getvalue()
            lines.seek(0)
            lines.truncate()
        yield lines.getvalue()
        return
    before = "["
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        rows = [json.dumps(_finite(row), ensure_ascii=False, default=str) for row in batch.to_pylist()]
        if rows:
            yield before + ",\n ".join(rows)
            before = ",\n "
    yield "[]\n" if before == "[" else "]\n"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    return {
        k: None if isinstance(v, float) and (v != v or v in (float("inf"), float("-inf"))) else v
        for k, v in row.items()
    }


def _print_table(table: pa.Table) -> None:
    from rich import box
    from rich.table import Table

    terminal = sys.stdout.isatty()
    # a pipe has no width: nothing is cut or wrapped there
    console = Console(highlight=False, emoji=False, width=None if terminal else 10_000)
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    from pyarrow import types

    for field in table.schema:
        number = types.is_integer(field.type) or types.is_floating(field.type) or types.is_decimal(field.type)
        view.add_column(_text(field.name), justify="right" if number else "left", overflow="fold")
    for row in table.to_pylist():
        view.add_row(*(_text(_shown(value)) for value in row.values()))
    console.print(view)


def _text(value: str) -> Any:
    from rich.text import Text

    return Text(printable(value))


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(_joined(value))


def _joined(value: object) -> object:
    """A list as text, where a cell is text."""
    return "|".join(map(str, value)) if isinstance(value, list) else value


def printable(value: str) -> str:
    """Without control characters: a value must not be able to drive the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value)
