"""``lumid query``, ``show``, ``rejects``, ``report``, ``cite``: look at a data set, ask it, share it."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lumid.catalog.errors import UsageError
from lumid.dags.cli.app import app
from lumid.dags.cli.tables import TABLE_ROWS, Format, chosen_format, printable, write_rows

if TYPE_CHECKING:
    from lumid.catalog.cite import CollectionUse

DEFAULT_COLUMNS = "key, modality, body_part, plane, width, height, collection, split"

Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a finished data set.", show_default=False)]
Modality = Annotated[
    list[str] | None, typer.Option("--modality", help="Only this modality; can be repeated.", show_default=False)
]
BodyPart = Annotated[
    list[str] | None, typer.Option("--body-part", help="Only this body part; can be repeated.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


class WindowName(StrEnum):
    """Window presets for CT; see :data:`lumid.catalog.show.WINDOWS`."""

    SOFT = "soft"
    LUNG = "lung"
    BONE = "bone"
    BRAIN = "brain"


class CitationFormat(StrEnum):
    """How citations are printed."""

    BIBTEX = "bibtex"
    MARKDOWN = "markdown"
    TEXT = "text"
    JSON = "json"


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

    shape = chosen_format(format, out, as_json)
    if columns:
        _print_columns(dataset, shape)
        return
    condition = all_of(where, _one_of("modality", modality), _one_of("body_part", body_part))
    if sql is not None:
        if condition or select or group_by or order_by:
            raise UsageError("--sql is a whole query: leave out WHERE, --select, --group-by, --order-by and filters")
        with connect(dataset) as connection:
            answer = ask(connection, sql)
        write_rows(answer, shape, out, limit, f"of {answer.num_rows:,} rows")
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
    write_rows(
        answer,
        shape,
        out,
        limit,
        f"of {answer.num_rows:,} groups, {total:,} samples" if group_by else f"of {total:,} samples",
    )
    if total == 0:
        for line in why_empty(dataset, condition):
            typer.echo(f"nothing found: {printable(line)}", err=True)


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
    source: Annotated[
        Path | None,
        typer.Option(help="The folder that was built from: adds each file's path, for its owner.", show_default=False),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="With --source: the secret's file, where the recipe named one.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Rows at most; 20 for a table, all for JSON.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List what was planned and is not in the shards, and why.

    Examples:

        lumid rejects DATASET --by-code

        lumid rejects DATASET --code decode_failed --json

        lumid rejects DATASET --source ~/dicom
    """
    from lumid.catalog.query import connect, count_rejects, list_rejects

    if by_code and source is not None:
        raise UsageError("--by-code counts reasons, --source lists files: give one of them")
    if key_file is not None and source is None:
        raise UsageError("--key-file goes with --source FOLDER")
    with connect(dataset) as connection:
        counted = count_rejects(connection, code)
        answer = counted if by_code else list_rejects(connection, code)
    frames = sum(counted["frames"].to_pylist())
    if source is not None:
        from lumid.dags.locate import paths_of

        paths = paths_of(dataset, source, answer["source_id"].to_pylist(), key_file)
        if answer.num_rows and not any(paths):
            typer.echo(
                f"none of these files is in {source}: is it the folder that the data set was built from?", err=True
            )
        answer = answer.add_column(0, "path", [[None if path is None else _shown(path) for path in paths]])
    kind = "reasons" if by_code else "rejects"
    more = "" if by_code else "; --by-code counts the reasons"
    write_rows(
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
    format: Annotated[CitationFormat, typer.Option(help="How to print it.")] = CitationFormat.BIBTEX,
    licenses: Annotated[bool, typer.Option("--licenses", help="The same as --format markdown: LICENSES.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print what to cite, and which licences apply; writes CITATION.bib and LICENSES.md too.

    Exactly the collections inside, in the archives' own words where these are known.

    Examples:

        lumid cite DATASET > refs.bib

        lumid cite DATASET --format text

        lumid cite DATASET --licenses
    """
    from lumid.catalog import cite as citations
    from lumid.catalog.layout import read_manifest
    from lumid.catalog.query import connect

    manifest = read_manifest(dataset)
    with connect(dataset) as connection:
        uses = citations.collections_in(connection)
    shape = CitationFormat.JSON if as_json else CitationFormat.MARKDOWN if licenses else format
    if shape is CitationFormat.JSON:
        typer.echo(json.dumps([_cited(use) for use in uses], ensure_ascii=False))
    elif shape is CitationFormat.MARKDOWN:
        typer.echo(citations.licenses_md(uses), nl=False)
    elif shape is CitationFormat.TEXT:
        typer.echo(citations.citation_text(uses, manifest), nl=False)
    else:
        typer.echo(citations.citation_bib(uses, manifest), nl=False)
    written = citations.write_citations(dataset, manifest)
    for line in (citations.non_commercial_line(uses), citations.unstated_line(uses)):
        if line and shape in (CitationFormat.BIBTEX, CitationFormat.JSON):
            typer.echo(line, err=True)
    typer.echo(f"written: {', '.join(str(path) for path in written)}", err=True)


def _cited(use: CollectionUse) -> dict[str, object]:
    from lumid.catalog.cite import NIH_ATTRIBUTION, archive_citation, citation_confirmed, is_nih

    citation = archive_citation(use)
    return asdict(use) | {
        "non_commercial": use.non_commercial,
        "citation": citation,
        "citation_confirmed": citation is not None and citation_confirmed(use),
        "attribution": NIH_ATTRIBUTION if is_nih(use) else None,
    }


# ---- options


def _one_of(column: str, values: list[str] | None) -> str | None:
    """``column IN (…)``; modalities and body parts are upper case in the catalog."""
    from lumid.catalog.query import text

    wanted = [part.strip().upper() for value in values or [] for part in value.split(",") if part.strip()]
    if not wanted:
        return None
    if len(wanted) == 1:
        return f"{column} = {text(wanted[0])}"
    return f"{column} IN ({', '.join(text(one) for one in wanted)})"


def _print_columns(dataset: Path, shape: Format) -> None:
    import pyarrow as pa

    from lumid.catalog.layout import read_manifest
    from lumid.catalog.schema import CATALOG
    from lumid.catalog.schema_page import columns_of

    read_manifest(dataset)
    table = pa.Table.from_pylist([asdict(info) for info in columns_of(CATALOG)])
    write_rows(table.select(["column", "type", "unit", "meaning", "dicom"]), shape, None, table.num_rows, "")


def _shown(path: Path) -> str:
    """A path as text that can be printed, whatever bytes its name is made of."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
