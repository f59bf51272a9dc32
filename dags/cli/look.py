"""``lumid query``, ``show``, ``rejects``, ``report``, ``cite``: look at a data set, ask it, share it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lumid.catalog.errors import UsageError
from lumid.dags.cli.app import app

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_ROWS = 20
DEFAULT_COLUMNS = "key, modality, body_part, plane, width, height, collection, split"

Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a finished data set.", show_default=False)]
Modality = Annotated[
    list[str] | None, typer.Option("--modality", help="Only this modality; can be repeated.", show_default=False)
]
BodyPart = Annotated[
    list[str] | None, typer.Option("--body-part", help="Only this body part; can be repeated.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class WindowName(StrEnum):
    """Window presets for CT; see :data:`lumid.catalog.show.WINDOWS`."""

    SOFT = "soft"
    LUNG = "lung"
    BONE = "bone"
    BRAIN = "brain"


@app.command()
def query(
    dataset: Dataset,
    where: Annotated[
        str | None, typer.Argument(metavar="WHERE", help="A SQL condition on the catalog's columns.")
    ] = None,
    select: Annotated[str | None, typer.Option(help="Columns or SQL expressions, with commas.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Count the samples of each value of these columns.")] = None,
    order_by: Annotated[str | None, typer.Option(help="Columns to sort by; DESC after one for descending.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Rows at most; 20 for a table, all for other formats.", show_default=False)
    ] = None,
    sql: Annotated[str | None, typer.Option(help="A whole SELECT over the tables catalog and rejects.")] = None,
    format: Annotated[Format, typer.Option(help="How the rows are written.")] = Format.TABLE,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file; its ending can name the format.", show_default=False)
    ] = None,
    columns: Annotated[bool, typer.Option("--columns", help="List the columns, their units and meanings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    modality: Modality = None,
    body_part: BodyPart = None,
) -> None:
    """Ask the catalog: SQL conditions over its columns, in a database that can read nothing else.

    Examples:

        lumid query DATASET --modality CT --body-part CHEST

        lumid query DATASET "modality = 'MR' AND slice_thickness <= 2" --select "key, sequence, slice_thickness"

        lumid query DATASET --group-by "modality, body_part"

        lumid query DATASET "license NOT LIKE '%NC%'" --out free.parquet

        lumid query DATASET --sql "SELECT collection, avg(age_years) FROM catalog GROUP BY collection"

        lumid query DATASET --columns
    """
    from lumid.catalog.query import all_of, ask, connect, count_samples, where_clause, why_empty

    shape = _format(format, out, as_json)
    if columns:
        _print_columns(dataset, shape)
        return
    condition = all_of(where, _one_of("modality", modality), _one_of("body_part", body_part))
    if sql is not None:
        if condition or select or group_by or order_by:
            raise UsageError("--sql is a whole query: leave out WHERE, --select, --group-by, --order-by and filters")
        with connect(dataset) as connection:
            answer = ask(connection, sql)
        _write(answer, shape, out, limit, f"of {answer.num_rows:,} rows")
        return
    if group_by:
        selected = f"{group_by}, {select}" if select else f"{group_by}, count(*) AS samples"
        order = order_by or (f"samples DESC, {group_by}" if not select else group_by)
        statement = f"SELECT {selected} FROM catalog{where_clause(condition)} GROUP BY {group_by} ORDER BY {order}"
    else:
        statement = f"SELECT {select or DEFAULT_COLUMNS} FROM catalog{where_clause(condition)}"
        statement += f" ORDER BY {order_by}" if order_by else ("" if select else " ORDER BY key")
        rows = limit if limit is not None else (TABLE_ROWS if shape is Format.TABLE else None)
        statement += f" LIMIT {rows}" if rows is not None else ""
    with connect(dataset) as connection:
        answer = ask(connection, statement)
    total = count_samples(dataset, condition)
    _write(
        answer,
        shape,
        out,
        limit,
        f"of {answer.num_rows:,} groups, {total:,} samples" if group_by else f"of {total:,} samples",
    )
    if total == 0:
        for line in why_empty(dataset, condition):
            typer.echo(f"nothing found: {_printable(line)}", err=True)


@app.command()
def show(
    dataset: Dataset,
    modality: Modality = None,
    body_part: BodyPart = None,
    where: Annotated[str | None, typer.Option(help="A SQL condition on the catalog's columns.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=400, help="How many images.")] = 24,
    window: Annotated[
        WindowName | None, typer.Option(help="Window for CT; soft tissue by default.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("sheet.png"),
    as_json: Json = False,
) -> None:
    """Draw a contact sheet of a selection: the same images every time, spread over modalities and series.

    Examples:

        lumid show DATASET

        lumid show DATASET --modality CT --body-part CHEST --window lung --out lungs.png

        lumid show DATASET --where "split = 'val' AND age_years > 60" --n 48
    """
    from lumid.catalog.query import all_of
    from lumid.catalog.show import show as draw

    condition = all_of(where, _one_of("modality", modality), _one_of("body_part", body_part))
    sheet = draw(dataset, out, condition, n=n, window=window.value if window else None)
    if window and not any(row.intensity_unit == "HU" for row in sheet.rows):
        typer.echo("--window had no effect: none of these images is in HU", err=True)
    if as_json:
        keys = [row.key for row in sheet.rows]
        typer.echo(json.dumps({"out": str(out), "shown": len(keys), "samples": sheet.samples, "keys": keys}))
    else:
        typer.echo(f"{out}: {len(sheet.rows):,} of {sheet.samples:,} samples, {sheet.width} × {sheet.height} pixels")


@app.command()
def rejects(
    dataset: Dataset,
    by_code: Annotated[bool, typer.Option("--by-code", help="Count the reasons, with what they mean.")] = False,
    code: Annotated[str | None, typer.Option(help="Only this reason.", show_default=False)] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Rows at most; 20 for a table, all for JSON.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List what was planned and is not in the shards, and why.

    Examples:

        lumid rejects DATASET --by-code

        lumid rejects DATASET --code decode_failed --json
    """
    from lumid.catalog.query import ask, connect, text
    from lumid.catalog.schema import REASONS

    if code is not None and code not in REASONS:
        raise UsageError(f"no reason {code!r}; there are {', '.join(REASONS)}")
    only = f" WHERE code = {text(code)}" if code else ""
    with connect(dataset) as connection:
        frames = int(ask(connection, f"SELECT coalesce(sum(frames), 0) AS n FROM rejects{only}")["n"][0].as_py())
        if by_code:
            answer = ask(
                connection,
                "SELECT code, sum(frames)::BIGINT AS frames, count(*) AS objects, list(DISTINCT stage ORDER BY stage) AS stages "
                f"FROM rejects{only} GROUP BY code ORDER BY frames DESC, code",
            )
            meanings = [REASONS.get(one, "") for one in answer["code"].to_pylist()]
            stages = [", ".join(one) for one in answer["stages"].to_pylist()]
            answer = (
                answer.drop_columns(["stages"]).append_column("stage", [stages]).append_column("meaning", [meanings])
            )
        else:
            answer = ask(
                connection,
                f"SELECT code, stage, modality, collection, source_id, frame, frames, message FROM rejects{only} "
                "ORDER BY collection, source_id, frame",
            )
    kind = "reasons" if by_code else "rejects"
    more = "" if by_code else "; --by-code counts the reasons"
    _write(
        answer,
        Format.JSON if as_json else Format.TABLE,
        None,
        limit,
        f"of {answer.num_rows:,} {kind}, {frames:,} frames{more}",
    )


@app.command()
def report(dataset: Dataset, as_json: Json = False) -> None:
    """Write report.html again, and print where it is: counts, rejects, licences, pictures, in one file.

    Example:

        lumid report DATASET
    """
    from lumid.catalog.report import write_report

    path = write_report(dataset)
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))


@app.command()
def cite(
    dataset: Dataset,
    licenses: Annotated[bool, typer.Option("--licenses", help="Print LICENSES.md instead of CITATION.bib.")] = False,
    as_json: Json = False,
) -> None:
    """Print what to cite, as BibTeX, and which licences apply; writes CITATION.bib and LICENSES.md too.

    Examples:

        lumid cite DATASET > refs.bib

        lumid cite DATASET --licenses
    """
    from lumid.catalog.cite import (
        citation_bib,
        collections_in,
        licenses_md,
        non_commercial_line,
        unstated_line,
        write_citations,
    )
    from lumid.catalog.layout import read_manifest
    from lumid.catalog.query import connect

    manifest = read_manifest(dataset)
    with connect(dataset) as connection:
        uses = collections_in(connection)
    if as_json:
        typer.echo(json.dumps([asdict(use) | {"non_commercial": use.non_commercial} for use in uses]))
    else:
        typer.echo(licenses_md(uses) if licenses else citation_bib(uses, manifest), nl=False)
    written = write_citations(dataset, manifest)
    for line in (non_commercial_line(uses), unstated_line(uses)):
        if line and not licenses:
            typer.echo(line, err=True)
    typer.echo(f"written: {', '.join(str(path) for path in written)}", err=True)


# ---- printing


def _one_of(column: str, values: list[str] | None) -> str | None:
    """``column IN (…)``; modalities and body parts are upper case in the catalog."""
    from lumid.catalog.query import text

    wanted = [part.strip().upper() for value in values or [] for part in value.split(",") if part.strip()]
    if not wanted:
        return None
    if len(wanted) == 1:
        return f"{column} = {text(wanted[0])}"
    return f"{column} IN ({', '.join(text(one) for one in wanted)})"


def _format(format: Format, out: Path | None, as_json: bool) -> Format:
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


def _print_columns(dataset: Path, shape: Format) -> None:
    import pyarrow as pa

    from lumid.catalog.layout import read_manifest
    from lumid.catalog.schema import CATALOG
    from lumid.catalog.schema_page import columns_of

    read_manifest(dataset)
    table = pa.Table.from_pylist([asdict(info) for info in columns_of(CATALOG)])
    _write(table.select(["column", "type", "unit", "meaning", "dicom"]), shape, None, table.num_rows, "")


def _write(table: pa.Table, shape: Format, out: Path | None, limit: int | None, footer: str) -> None:
    """Rows to a file or to standard output; a table with ``N footer`` under it."""
    if shape is Format.TABLE:
        shown = table.slice(0, TABLE_ROWS if limit is None else limit)
        _print_table(shown)
        if footer:
            typer.echo(f"{shown.num_rows:,} {footer}")
        return
    data = _encoded(table if limit is None else table.slice(0, limit), shape)
    if out is None:
        sys.stdout.write(data.decode("utf-8"))
        return
    from lumid.catalog.layout import atomic_file, storage_errors

    if out.is_dir():
        raise UsageError(f"{out}: is a folder; --out must be a file")
    with storage_errors(out), atomic_file(out) as file:
        file.write(data)
    typer.echo(f"{out}: {table.num_rows if limit is None else min(limit, table.num_rows):,} rows", err=True)


def _encoded(table: pa.Table, shape: Format) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    if shape is Format.PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(table, sink, compression="zstd")
    elif shape is Format.CSV:
        import csv
        import io

        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        return lines.getvalue().encode("utf-8")
    else:
        return (
            json.dumps([_finite(row) for row in table.to_pylist()], ensure_ascii=False, default=str) + "\n"
        ).encode()
    return bytes(sink.getvalue())


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
    console = Console(highlight=False, width=None if terminal else 10_000)
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

    return Text(_printable(value))


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _printable(value: str) -> str:
    """Without control characters: a value must not be able to drive the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value)
