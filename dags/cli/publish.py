"""``lumid publish``: a finished data set into an object store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.options import Json
from lumid.dags.cli.waiting import counting


@app.command()
def publish(
    dataset: Annotated[Path, typer.Argument(help="Folder of a finished data set.")],
    url: Annotated[str, typer.Argument(help="Where to: s3://bucket/prefix, gs://… or az://container/prefix.")],
    as_json: Json = False,
) -> None:
    """Copy a finished data set to an object store; run it again to go on with a copy that was interrupted.

    Readers see it when all of it is there. What another data set or anybody else has there is never overwritten.

    Example:

        lumid publish /data/mine s3://my-bucket/mine
    """
    from lumid.catalog.publish import publish as run

    with counting("bytes") as tell:
        manifest = run(dataset, url, tell)
    if as_json:
        typer.echo(json.dumps({"url": url, "name": manifest.name, "catalog_hash": manifest.catalog_hash}))
    else:
        typer.echo(
            f"{url}: '{manifest.name}' is there, {many(manifest.counts.kept, 'sample')} in {many(len(manifest.shards), 'shard')}"
        )
