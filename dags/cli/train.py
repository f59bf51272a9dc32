"""``lumid pretrain``, ``reconstruct``, ``export``: from shards to an encoder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lumid.dags.cli.app import app
from lumid.dags.cli.options import Subset, place_of

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def pretrain(
    data: Annotated[str, typer.Option(help="A finished data set: its folder, s3://… …; or a subset's file.")],
    recipe: Annotated[
        str, typer.Option(help="A shipped training recipe's name (tiny-cpu) or a TOML file.")
    ] = "tiny-cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default ./runs/NAME of the recipe.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition on the catalog, instead of the recipe's.")] = None,
    subset: Subset = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of the recipe's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default the GPU if there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Pre-train a masked auto-encoder from a data set's shards; run it again to go on.

    Examples:

        lumid pretrain --data demo-data

        lumid pretrain --data demo-data --where "split = 'train' AND modality = 'CT'" --out runs/ct

        lumid pretrain --data demo-data --subset thin.parquet --out runs/thin

        torchrun --nproc-per-node 8 -m lumid pretrain --data /data/lumid --recipe my.toml --out runs/base
    """
    from lumid.dags.pretrain import run_pretraining

    target = out or Path("runs") / Path(recipe).stem
    done = run_pretraining(
        place_of(data, subset),
        target,
        recipe,
        steps=steps,
        where=where,
        device=device,
        console=Console(stderr=True, highlight=False),
    )
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"run": str(done.run)}))
        return
    if done.already_finished:
        typer.echo(f"{target} is finished already: {done.steps:,} steps, loss {done.final_loss:.4f}")
    elif done.stopped:
        typer.echo(f"{target} stopped and saved at step {done.steps:,}; run the same command again to go on")
    else:
        held_out = f", {done.validation_loss:.4f} on held-out patients" if done.validation_loss is not None else ""
        typer.echo(
            f"{target} is finished: loss {done.first_loss:.4f} → {done.final_loss:.4f}{held_out}, {done.images_per_s:,.0f} images/s"
        )
        given = subset or data
        typer.echo(f"next: lumid reconstruct {target} --data {given}; lumid export {target} --data {given}")


@app.command()
def reconstruct(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str, typer.Option(help="The data set, or the subset's file, to take images from.")],
    where: Annotated[str | None, typer.Option(help="A SQL condition on the catalog's columns.")] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG; by default reconstruction.png in the run.")] = None,
    as_json: Json = False,
) -> None:
    """Draw original, masked and reconstruction: an image that was trained on and one that was not, a modality.

    Examples:

        lumid reconstruct runs/tiny-cpu --data demo-data --out figure.png

        lumid reconstruct runs/tiny-cpu --data demo-data --where "modality = 'CT' AND split = 'val'"
    """
    from lumid.dags.pretrain import require_torch

    require_torch()
    from lumid.model.reconstruct import reconstruct as draw

    figure = draw(run, place_of(data), out or run / "reconstruction.png", where)
    if as_json:
        rows = [
            {"modality": row.modality, "key": row.key, "seen": row.seen.value, "psnr_db": row.psnr, "ssim": row.ssim}
            for row in figure.rows
        ]
        typer.echo(json.dumps({"figure": str(figure.path), "rows": rows}))
        return
    for row in figure.rows:
        typer.echo(f"{row.modality}  PSNR {row.psnr:5.2f} dB  SSIM {row.ssim:.3f}  {row.seen.value}")
    typer.echo(str(figure.path))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the encoder; by default export in the run.")] = None,
    data: Annotated[
        str | None, typer.Option(help="The run's data set or subset, for the licences in the model card.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the encoder as a timm state dict (safetensors) with a model card.

    Example:

        lumid export runs/tiny-cpu --data demo-data --out encoder
    """
    from lumid.dags.pretrain import require_torch

    require_torch()
    from lumid.model.export import export_encoder

    done = export_encoder(run, out or run / "export", None if data is None else place_of(data))
    if as_json:
        typer.echo(json.dumps({name: str(path) for name, path in asdict(done).items()}))
        return
    for path in (done.weights, done.config, done.card):
        typer.echo(str(path))
