"""``lumid extract``: a selection as shards, as a folder of images, or described for others."""

from __future__ import annotations

import json
from enum import StrEnum
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
from lumid.dags.cli.pictures import Window
from lumid.dags.cli.waiting import counting, waiting

if TYPE_CHECKING:
    from lumid.catalog.places import Place


class Shape(StrEnum):
    """What a selection is written as."""

    SHARDS = "shards"
    IMAGES = "images"
    CROISSANT = "croissant"


@app.command()
def extract(
    dataset: Dataset,
    where: Where = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write: a new one, or, for a description, the data set's own.", show_default=False),
    ] = None,
    shape: Annotated[Shape, typer.Option("--as", help="What to write.")] = Shape.SHARDS,
    by: Annotated[
        str, typer.Option(help="Images: the columns whose values name the folders, with commas.")
    ] = "modality",
    window: Window = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many samples: a fair draw, the same every time.", show_default=False),
    ] = None,
    shard_mb: Annotated[float, typer.Option(min=0.001, help="Shards: about how large each, in MB.")] = 512.0,
    url: Annotated[
        str | None, typer.Option(help="Description: the page where the data set is published.", show_default=False)
    ] = None,
    modality: Modality = None,
    body_part: BodyPart = None,
    collection: Collection = None,
    license: License = None,
    split: Split = None,
    subset: Subset = None,
    as_json: Json = False,
) -> None:
    """Write a selection out: as a data set of its own, as a folder of images, or as a description of what there is.

    `shards` is a finished data set that every command reads and `lumid verify` accepts. `images` is a folder of PNG files,
    16 bits wide where the data are, in torchvision's ImageFolder layout, with metadata.csv. `croissant` writes
    croissant.json (MLCommons Croissant) and README.md (a Hugging Face card) for a data set or a subset's file.

    Examples:

        lumid extract DATASET "modality = 'CT' AND slice_thickness <= 2" --out thin-ct

        lumid extract DATASET --modality MR --as images --by "split,body_part" --out mr-images

        lumid extract DATASET --modality CT --as images --window lung --by labels --out lungs

        lumid extract DATASET --as croissant
    """
    place = place_of(dataset, subset)
    given = (where, modality, body_part, collection, license, split)
    if shape is Shape.CROISSANT:
        if any((*given, limit)):
            raise UsageError("--as croissant describes a data set or a subset: write the selection as a subset first")
        _describe(place, out, url, as_json=as_json)
        return
    if out is None:
        raise UsageError("--out FOLDER: the folder to write is missing")
    if window is not None and shape is not Shape.IMAGES:
        raise UsageError("--window is for --as images: shards keep what was measured")
    from lumid.catalog.query import connect

    with connect(place) as connection:
        condition = chosen(connection, *given)
    if shape is Shape.IMAGES:
        from lumid.catalog.images import extract_images

        columns = [name.strip() for name in by.split(",") if name.strip()]
        name = window.value if window else None
        with counting("extract") as tell:
            folder = extract_images(place, out, condition, by=columns, window=name, limit=limit, progress=tell)
        if as_json:
            typer.echo(json.dumps({"out": str(out), "images": folder.images, "classes": folder.classes}))
            return
        typer.echo(f"{out}: {many(folder.images, 'image')} in {many(len(folder.classes), 'folder')}, and metadata.csv")
        return
    from lumid.catalog.extract import extract_dataset

    with counting("extract") as tell:
        manifest = extract_dataset(place, out, condition, limit=limit, shard_mb=shard_mb, progress=tell)
    size = sum(shard.bytes for shard in manifest.shards)
    if as_json:
        about = {"samples": manifest.counts.kept, "shards": len(manifest.shards), "bytes": size}
        typer.echo(json.dumps({"out": str(out)} | about | {"catalog_hash": manifest.catalog_hash}))
        return
    typer.echo(
        f"{out}: {many(manifest.counts.kept, 'sample')} in {many(len(manifest.shards), 'shard')}, {size / 1e6:,.1f} MB"
    )


def _describe(place: Place, out: Path | None, url: str | None, *, as_json: bool) -> None:
    from lumid.catalog.croissant import write_croissant
    from lumid.catalog.places import local_root

    folder = out or (place.subset.parent if place.subset is not None else local_root(place))
    with waiting("hashing the catalog …"):
        paths = write_croissant(place, folder, url)
    if as_json:
        typer.echo(json.dumps({"written": [str(path) for path in paths]}))
    else:
        typer.echo("\n".join(map(str, paths)))
