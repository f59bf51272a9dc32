"""Arguments and options that several commands have: which data set, and which of its samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import duckdb

    from lumid.catalog.places import Place

MOST_WORKERS = 1_024
"""On one machine."""
DATASET_HELP = "A finished data set: its folder, s3://…, gs://… or az://…; or a subset's file."
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help=DATASET_HELP, show_default=False)]
Where = Annotated[str | None, typer.Argument(metavar="WHERE", help="A SQL condition on the catalog's columns.")]
Subset = Annotated[
    Path | None, typer.Option("--subset", help="Only the samples of this subset's file.", show_default=False)
]
Modality = Annotated[
    list[str] | None, typer.Option("--modality", help="Only this modality; can be repeated.", show_default=False)
]
BodyPart = Annotated[
    list[str] | None, typer.Option("--body-part", help="Only this body part; can be repeated.", show_default=False)
]
Collection = Annotated[
    list[str] | None, typer.Option("--collection", help="Only this collection; can be repeated.", show_default=False)
]
License = Annotated[
    list[str] | None,
    typer.Option(
        "--license", help="Only this licence: cc-by, cc-by-nc, cc-by-3.0 …; can be repeated.", show_default=False
    ),
]
Split = Annotated[
    list[str] | None, typer.Option("--split", help="Only train, val, test or benchmark.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def place_of(dataset: str, subset: Path | None = None) -> Place:
    """The data set that the command line names."""
    from lumid.catalog.places import as_place

    return as_place(dataset, subset)


def chosen(
    connection: duckdb.DuckDBPyConnection,
    where: str | None,
    modality: list[str] | None,
    body_part: list[str] | None,
    collection: list[str] | None,
    license: list[str] | None,
    split: list[str] | None,
) -> str | None:
    """The condition and the short forms as one condition."""
    from lumid.catalog.filters import Filters, condition_of
    from lumid.catalog.query import all_of

    filters = Filters(_split(modality), _split(body_part), _split(collection), _split(license), _split(split))
    return all_of(where, condition_of(connection, filters))


def _split(values: list[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for value in values or [] for part in value.split(",") if part.strip())
