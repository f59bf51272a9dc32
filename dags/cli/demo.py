"""``lumid demo``: everything once, on real DICOM, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lumid.dags.cli.app import app


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("lumid-demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; by default what takes about two minutes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print where everything is as JSON.")] = False,
) -> None:
    """Build, query, pre-train and reconstruct on real DICOM, in a few minutes and offline.

    Example:

        lumid demo --out lumid-demo
    """
    from lumid.dags.demo import demo as run

    done = run(out, Console(stderr=as_json, highlight=False, emoji=False), steps=steps)
    if as_json:
        places = {
            name: str(getattr(done, name)) if getattr(done, name) else None
            for name in ("data", "sheet", "run", "figure")
        }
        typer.echo(json.dumps(places))
        return
    data = done.data
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    console.rule("where everything is")
    for what, path in (
        ("report", data / "report.html"),
        ("shards", data / "shards"),
        ("catalog", data / "catalog"),
        ("contact sheet", done.sheet),
        ("training run", done.run),
        ("reconstruction", done.figure),
    ):
        if path is not None:
            console.print(f"  {what:<15} {path}")
    console.rule("what to try next")
    for command in (
        f"lumid query {data} \"modality = 'CT'\"",
        f"lumid query {data} --group-by modality,body_part",
        f"lumid show {data} --modality MR --out mr.png",
        f"lumid explore {data}                                # look around in a browser",
        f"lumid report {data}                                 # the page again: {data / 'report.html'}",
        f"lumid subset {data} \"modality = 'MR'\" --out mr.parquet",
        f"lumid rejects {data} --by-code",
        "lumid build --source FOLDER_OF_DICOM --out my-data",
        f"lumid pretrain --data {data} --help",
    ):
        console.print(f"  {command}")
