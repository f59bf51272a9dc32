"""``lumid show``: pictures of a selection."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lumid.catalog.errors import UsageError
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
from lumid.dags.cli.waiting import waiting


class WindowName(StrEnum):
    """Window presets for CT; see :data:`lumid.catalog.show.WINDOWS`."""

    SOFT = "soft"
    LUNG = "lung"
    BONE = "bone"
    BRAIN = "brain"


Window = Annotated[
    WindowName | None, typer.Option("--window", help="Window for CT; soft tissue by default.", show_default=False)
]


@app.command()
def show(
    dataset: Dataset,
    where: Where = None,
    also: Annotated[
        str | None, typer.Option("--where", help="The same as WHERE; both must hold.", show_default=False)
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(help="This series as a strip: its pseudonym or a key, or how one begins.", show_default=False),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, max=400, help="How many images; 24, or 12 of a series.", show_default=False),
    ] = None,
    window: Window = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("sheet.png"),
    preview: Annotated[
        bool | None,
        typer.Option("--preview/--no-preview", help="Show it on the terminal, too; by default where it can."),
    ] = None,
    modality: Modality = None,
    body_part: BodyPart = None,
    collection: Collection = None,
    license: License = None,
    split: Split = None,
    subset: Subset = None,
    as_json: Json = False,
) -> None:
    """Draw a contact sheet of a selection, or a series as a strip: the same images every time.

    A sheet is spread over modalities and series; the digits under an image begin its key.

    Examples:

        lumid show DATASET

        lumid show DATASET --modality CT --body-part CHEST --window lung --out lungs.png

        lumid show DATASET "split = 'val' AND age_years > 60" --n 48

        lumid show DATASET --series 3f2a91c4 --window bone --out series.png
    """
    from lumid.catalog.query import all_of, connect
    from lumid.catalog.show import show as draw
    from lumid.catalog.strip import show_series

    place = place_of(dataset, subset)
    given = (modality, body_part, collection, license, split)
    if series is not None and any((where, also, *given)):
        raise UsageError("--series names what is shown: leave out WHERE and filters")
    name = window.value if window else None
    with waiting("drawing …"):
        if series is not None:
            sheet = show_series(place, series, out, n=n or 12, window=name)
        else:
            with connect(place) as connection:
                condition = chosen(connection, all_of(where, also), *given)
            sheet = draw(place, out, condition, n=n or 24, window=name)
    if window and not any(row.intensity_unit == "HU" for row in sheet.rows):
        typer.echo("--window had no effect: none of these images is in HU", err=True)
    if as_json:
        keys = [row.key for row in sheet.rows]
        typer.echo(json.dumps({"out": str(out), "shown": len(keys), "samples": sheet.samples, "keys": keys}))
        return
    from lumid.dags.cli.preview import print_preview

    print_preview(sheet.picture, preview)
    what = "slices of the series" if series is not None else "samples"
    typer.echo(f"{out}: {len(sheet.rows):,} of {sheet.samples:,} {what}, {sheet.width} × {sheet.height} pixels")
