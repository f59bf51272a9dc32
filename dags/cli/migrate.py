"""``lumid migrate``: a data set of an earlier format into one of today's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.options import Json
from lumid.dags.cli.tables import printable
from lumid.dags.cli.waiting import counting


@app.command()
def migrate(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a finished data set.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Write a new data set here, and leave the old one alone.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring a data set of an earlier format into this lumid's; run it again to go on with one that was interrupted.

    Shards are checked before and the result is verified, before it takes the old one's place; both need room until then.
    What the earlier format did not record stays null, and is named.

    Examples:

        lumid migrate /data/old

        lumid migrate /data/old --out /data/new
    """
    from lumid.catalog.migrate import migrate as run

    with counting("samples") as tell:
        done = run(dataset, out, tell)
    manifest = done.manifest
    if as_json:
        facts = asdict(done) | {"manifest": {"name": manifest.name, "format_version": manifest.format_version}}
        typer.echo(json.dumps({"dataset": str(out or dataset)} | facts))
        return
    if done.already:
        typer.echo(f"{printable(str(dataset))}: is of format {manifest.format_version} already")
        return
    typer.echo(
        f"{printable(str(out or dataset))}: from format {done.from_format} to {manifest.format_version}; "
        f"{many(manifest.counts.kept, 'sample')} in {many(len(manifest.shards), 'shard')}"
    )
    if done.reencoded:
        typer.echo(f"  {done.reencoded:,} images were JPEG XL, and are HTJ2K with the same pixels now")
    if done.not_recorded:
        typer.echo(f"  not recorded then, and not there now: {', '.join(done.not_recorded)}")
