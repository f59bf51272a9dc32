"""``lumid rejects``, ``report``, ``cite``: what is not in a data set, what is, and whose it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lumid.catalog.errors import UsageError
from lumid.dags.cli.app import app
from lumid.dags.cli.options import Dataset, Json, place_of
from lumid.dags.cli.tables import Format, write_rows

if TYPE_CHECKING:
    from lumid.catalog.cite import CollectionUse
    from lumid.catalog.places import Place


class CitationFormat(StrEnum):
    """How citations are printed."""

    BIBTEX = "bibtex"
    MARKDOWN = "markdown"
    TEXT = "text"
    JSON = "json"


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
    place = place_of(dataset)
    with connect(place) as connection:
        counted = count_rejects(connection, code)
        answer = counted if by_code else list_rejects(connection, code)
    frames = sum(counted["frames"].to_pylist())
    if source is not None:
        from lumid.catalog.places import local_root
        from lumid.dags.locate import paths_of

        paths = paths_of(local_root(place), source, answer["source_id"].to_pylist(), key_file)
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
    from lumid.catalog.places import local_root
    from lumid.catalog.report import write_report

    path = write_report(local_root(_whole(place_of(dataset))))
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))


@app.command()
def cite(
    dataset: Dataset,
    format: Annotated[CitationFormat, typer.Option(help="How to print it.")] = CitationFormat.BIBTEX,
    licenses: Annotated[bool, typer.Option("--licenses", help="The same as --format markdown: LICENSES.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print what to cite, and which licences apply; writes CITATION.bib and LICENSES.md too.

    Exactly the collections inside, in the archives' own words where these are known. Of a subset, and of a data set in an
    object store, it only prints.

    Examples:

        lumid cite DATASET > refs.bib

        lumid cite DATASET --format text

        lumid cite DATASET --licenses
    """
    from lumid.catalog import cite as citations
    from lumid.catalog.places import place_manifest
    from lumid.catalog.query import connect

    place = place_of(dataset)
    manifest = place_manifest(place)
    with connect(place) as connection:
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
    for line in (citations.non_commercial_line(uses), citations.unstated_line(uses)):
        if line and shape in (CitationFormat.BIBTEX, CitationFormat.JSON):
            typer.echo(line, err=True)
    if place.subset is None and isinstance(place.root, Path):
        written = citations.write_citations(place.root, manifest)
        typer.echo(f"written: {', '.join(str(path) for path in written)}", err=True)


def _whole(place: Place) -> Place:
    """The data set, which must not be a subset."""
    if place.subset is not None:
        raise UsageError(f"{place.subset}: a report is of a whole data set; `lumid extract` makes one of a subset")
    return place


def _cited(use: CollectionUse) -> dict[str, object]:
    from lumid.catalog.cite import NIH_ATTRIBUTION, archive_citation, citation_confirmed, is_nih

    citation = archive_citation(use)
    return asdict(use) | {
        "non_commercial": use.non_commercial,
        "citation": citation,
        "citation_confirmed": citation is not None and citation_confirmed(use),
        "attribution": NIH_ATTRIBUTION if is_nih(use) else None,
    }


def _shown(path: Path) -> str:
    """A path as text that can be printed, whatever bytes its name is made of."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
