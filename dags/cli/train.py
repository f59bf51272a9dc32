"""``lumid pretrain``, ``reconstruct``, ``export``, ``convert``: from shards, or another's weights, to an encoder."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from lumid.catalog.errors import UsageError
from lumid.dags.cli.app import app
from lumid.dags.cli.options import Subset, place_of

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Resume(StrEnum):
    """What to do with a run that is there."""

    AUTO = "auto"
    NEVER = "never"


@app.command()
def pretrain(
    data: Annotated[str, typer.Option(help="A finished data set: its folder, s3://… …; or a subset's file.")],
    recipe: Annotated[
        str, typer.Option(help="A shipped training recipe (tiny-cpu, lumid-vitb, paper) or a TOML file.")
    ] = "tiny-cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default ./runs/NAME of the recipe.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition on the catalog, instead of the recipe's.")] = None,
    subset: Subset = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of the recipe's length.")] = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on with the run in --out if there is one; never: refuse to.")
    ] = Resume.AUTO,
    weights: Annotated[
        Path | None, typer.Option(help="Begin from these: a folder of `lumid convert` or `lumid export`.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default the GPU if there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Pre-train a masked auto-encoder from a data set's shards; run it again to go on.

    Ctrl-C and SIGTERM end the run after the step it is in, with a checkpoint and exit code 0.

    Examples:

        lumid pretrain --data demo-data

        lumid pretrain --data demo-data --where "split = 'train' AND modality = 'CT'" --out runs/ct

        lumid pretrain --data demo-data --subset thin.parquet --out runs/thin

        torchrun --nproc-per-node 8 -m lumid pretrain --data /data/lumid --recipe lumid-vitb --out runs/base
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
        fresh=resume is Resume.NEVER,
        weights=weights,
        console=Console(stderr=True, highlight=False, emoji=False),
    )
    if not done.leads:
        return
    if as_json:
        facts = asdict(done) | {"run": str(done.run)}
        del facts["leads"]
        typer.echo(json.dumps(facts))
        return
    if done.already_finished:
        typer.echo(f"{target} is finished already: {done.steps:,} steps, loss {done.final_loss:.4f}")
    elif done.stopped:
        typer.echo(f"{target} stopped and saved at step {done.steps:,}; run the same command again to go on")
    else:
        held_out = f", {done.validation_loss:.4f} on held-out patients" if done.validation_loss is not None else ""
        skipped = f", {done.skipped:,} steps left out" if done.skipped else ""
        typer.echo(
            f"{target} is finished: loss {done.first_loss:.4f} → {done.final_loss:.4f}{held_out}{skipped}, "
            f"{done.images_per_s:,.0f} images/s"
        )
        within = f"{data} --subset {subset}" if subset else data
        typer.echo(f"next: lumid reconstruct {target} --data {within}; lumid export {target}")


@app.command()
def reconstruct(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str, typer.Option(help="The data set, or the subset's file, to take images from.")],
    where: Annotated[str | None, typer.Option(help="A SQL condition on the catalog's columns.")] = None,
    subset: Subset = None,
    out: Annotated[Path | None, typer.Option(help="The PNG; by default reconstruction.png in the run.")] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Images that are scored: of each modality, trained on and not, at most.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Draw original, masked and reconstruction of every modality, and score them: PSNR and SSIM on held-out patients.

    Two images a modality are drawn: one that was trained on and one that was not. The scores are kept in the run, for
    the card that `lumid export` writes.

    Examples:

        lumid reconstruct runs/tiny-cpu --data demo-data --out figure.png

        lumid reconstruct runs/tiny-cpu --data demo-data --where "modality = 'CT' AND split = 'val'"
    """
    from lumid.dags.pretrain import require_torch

    require_torch()
    from lumid.model.reconstruct import reconstruct as draw

    console = Console(stderr=True, emoji=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reconstruct", total=None)
        target = out or run / "reconstruction.png"
        figure = draw(
            run,
            place_of(data, subset),
            target,
            where,
            images=images,
            report=lambda n, total: bar.update(task, completed=n, total=total),
        )
    if as_json:
        rows = [
            {"modality": row.modality, "key": row.key, "seen": row.seen.value, "psnr_db": row.psnr, "ssim": row.ssim}
            for row in figure.rows
        ]
        scores = [asdict(score) for score in figure.scores]
        typer.echo(json.dumps({"figure": str(figure.path), "rows": rows, "scores": scores}))
        return
    for score in figure.scores:
        typer.echo(
            f"{score.modality}  {score.seen:14}  {score.images:3} images  PSNR {score.psnr_db:5.2f} ± {score.psnr_db_sd:.2f} dB  "
            f"SSIM {score.ssim:.3f} ± {score.ssim_sd:.3f}  (hidden patches of one grey: {score.baseline_psnr_db:.2f} dB)"
        )
    typer.echo(str(figure.path))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the encoder; by default export in the run.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The run's data set or subset, to be sure that it is; not needed otherwise."),
    ] = None,
    subset: Subset = None,
    as_json: Json = False,
) -> None:
    """Write the encoder as a timm state dict (safetensors) with a model card.

    Example:

        lumid export runs/tiny-cpu --out encoder
    """
    from lumid.dags.pretrain import require_torch

    if subset is not None and data is None:
        raise UsageError("--subset needs --data: the data set that it is a selection of")
    require_torch()
    from lumid.model.export import export_encoder

    done = export_encoder(run, out or run / "export", None if data is None else place_of(data, subset))
    if as_json:
        typer.echo(json.dumps({name: str(path) for name, path in asdict(done).items()}))
        return
    for path in (done.weights, done.config, done.card):
        typer.echo(str(path))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth file of MAE or MedMAE, with or without decoder.")],
    out: Annotated[Path, typer.Option(help="Folder for the encoder, its configuration and card.")],
    as_json: Json = False,
) -> None:
    """Make a timm encoder (safetensors) of a MAE or MedMAE checkpoint; only weights are loaded, no code in it runs.

    Examples:

        lumid convert mae_visualize_vit_base.pth --out mae-base

        lumid pretrain --data demo-data --recipe my.toml --weights mae-base
    """
    from lumid.dags.pretrain import require_torch

    require_torch()
    from lumid.model.convert import convert as convert_weights

    done = convert_weights(checkpoint, out)
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"folder": str(done.folder)}))
        return
    decoder = "encoder and decoder" if done.has_decoder else "encoder, there is no decoder in it"
    left = f"; left out, as a task's head: {', '.join(done.left_out)}" if done.left_out else ""
    typer.echo(f"{done.folder}: {done.size}, {done.encoder_parameters / 1e6:.1f} M parameters; {decoder}{left}")
