"""``lumid query``, ``subset``: ask the catalog, and keep an answer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lumid.catalog.errors import UsageError
from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.options import (
    BodyPart,
    Collection,
    Dataset,
    Json,
    License,
    Modality,
    Split,
    Subset,
    Where,
    chosen,
    place_of,
)
from lumid.dags.cli.tables import TABLE_ROWS, Format, chosen_format, printable, write_rows
from lumid.dags.cli.waiting import waiting

if TYPE_CHECKING:
    from lumid.catalog.places import Place, SubsetNote

DEFAULT_COLUMNS = "key, modality, body_part, plane, width, height, collection, split"


@app.command()
def query(
    dataset: Dataset,
    where: Where = None,
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
    collection: Collection = None,
    license: License = None,
    split: Split = None,
    subset: Subset = None,
) -> None:
    """Ask the catalog: SQL conditions over its columns, in a database that can read nothing else.

    Examples:

        lumid query DATASET --modality CT --body-part CHEST --license cc-by

        lumid query DATASET "modality = 'MR' AND slice_thickness <= 2" --select "key, sequence, slice_thickness"

        lumid query s3://bucket/lumid --group-by "modality, body_part"

        lumid query DATASET "license NOT LIKE '%NC%'" --out free.parquet

        lumid query DATASET --sql "SELECT collection, avg(age_years) FROM catalog GROUP BY collection"

        lumid query DATASET --columns
    """
    from lumid.catalog.query import ask, connect, where_clause, why_empty

    shape = chosen_format(format, out, as_json)
    place = place_of(dataset, subset)
    if columns:
        _print_columns(place, shape)
        return
    given = (where, modality, body_part, collection, license, split)
    if sql is not None and any((*given, select, group_by, order_by)):
        raise UsageError("--sql is a whole query: leave out WHERE, --select, --group-by, --order-by and filters")
    with waiting("reading the catalog …"), connect(place) as connection:
        condition = None if sql is not None else chosen(connection, *given)
        rows = limit if limit is not None else (TABLE_ROWS if shape is Format.TABLE else None)
        statement = sql or _statement(condition, select, group_by, order_by, rows)
        answer = ask(connection, statement)
        if sql is not None:
            total, footer = 1, f"of {many(answer.num_rows, 'row')}"
        elif shape is Format.TABLE or answer.num_rows == 0:
            count = ask(connection, f"SELECT count(*) AS n FROM catalog{where_clause(condition)}")
            total = count["n"][0].as_py()
            footer = (
                f"of {many(answer.num_rows, 'group')}, {many(total, 'sample')}"
                if group_by
                else f"of {many(total, 'sample')}"
            )
        else:
            total, footer = answer.num_rows, ""
    write_rows(answer, shape, out, limit, footer)
    if total == 0:
        for line in why_empty(place, condition):
            typer.echo(f"nothing found: {printable(line)}", err=True)


def _statement(
    condition: str | None, select: str | None, group_by: str | None, order_by: str | None, rows: int | None
) -> str:
    """The SELECT that the options stand for. Groups are all counted: ``rows`` cuts only what is printed of them."""
    from lumid.catalog.query import where_clause

    if group_by:
        selected = f"{group_by}, {select}" if select else f"{group_by}, count(*) AS samples"
        order = order_by or (f"samples DESC, {group_by}" if not select else group_by)
        return f"SELECT {selected} FROM catalog{where_clause(condition)} GROUP BY {group_by} ORDER BY {order}"
    order = f" ORDER BY {order_by}" if order_by else ("" if select else " ORDER BY key")
    last = f" LIMIT {rows}" if rows is not None else ""
    return f"SELECT {select or DEFAULT_COLUMNS} FROM catalog{where_clause(condition)}{order}{last}"


@app.command()
def subset(
    dataset: Dataset,
    where: Where = None,
    out: Annotated[Path | None, typer.Option(help="The subset's file, NAME.parquet.", show_default=False)] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many samples: a fair draw, the same every time.", show_default=False),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Make the selection of this subset's file again, here.", show_default=False),
    ] = None,
    modality: Modality = None,
    body_part: BodyPart = None,
    collection: Collection = None,
    license: License = None,
    split: Split = None,
    as_json: Json = False,
) -> None:
    """Keep a selection as a file: it can be used wherever a data set can, and says how to make it again.

    Without `--out`, a subset's file is shown: its query, its data set, how many samples.

    Examples:

        lumid subset DATASET "modality = 'CT' AND slice_thickness <= 2" --out thin.parquet

        lumid subset DATASET --modality MR --license cc-by --limit 10000 --out mr.parquet

        lumid query thin.parquet --group-by collection

        lumid pretrain --data DATASET --subset thin.parquet

        lumid subset NEWER_DATASET --like thin.parquet --out thin-again.parquet
    """
    from lumid.catalog.places import Step, read_note
    from lumid.catalog.query import connect
    from lumid.catalog.subset import write_steps

    place = place_of(dataset)
    filters = (where, modality, body_part, collection, license, split)
    if out is None:
        if place.subset is None or any((*filters, limit, like)):
            raise UsageError("--out NAME.parquet: the file to write is missing")
        _print_note(place.subset, read_note(place.subset), as_json=as_json)
        return
    if like is not None and any((*filters, limit)):
        raise UsageError("--like makes a subset's own selection again: leave out WHERE, --limit and filters")
    with waiting("selecting …"):
        if like is not None:
            steps = read_note(like).steps
        else:
            with connect(place) as connection:
                steps = (Step(chosen(connection, *filters), limit),)
        note = write_steps(place, out, steps)
    _print_note(out, note, as_json=as_json)


def _print_note(path: Path, note: SubsetNote, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"subset": str(path)} | asdict(note), ensure_ascii=False))
        return
    counts = ", ".join(f"{modality} {count:,}" for modality, count in note.modalities.items())
    typer.echo(f"{path}: {many(note.samples, 'sample')} ({counts})")
    typer.echo(f"of {note.dataset}, catalog {note.catalog_hash[:16]}, at {printable(note.data)}")
    for step in note.steps:
        first = "" if step.limit is None else f", the {step.limit:,} smallest keys"
        typer.echo(f"where {printable(' '.join((step.where or 'true').split()))}{first}")


def _print_columns(place: Place, shape: Format) -> None:
    import pyarrow as pa

    from lumid.catalog.places import place_manifest
    from lumid.catalog.schema import CATALOG
    from lumid.catalog.schema_page import columns_of

    place_manifest(place)
    table = pa.Table.from_pylist([asdict(info) for info in columns_of(CATALOG)])
    write_rows(table.select(["column", "type", "unit", "meaning", "dicom"]), shape, None, table.num_rows, "")
