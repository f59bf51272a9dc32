"""``lumid evaluate``: is an encoder better than others, by how much, and is that luck?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lumid.catalog.errors import EXIT_FAILED, UsageError
from lumid.dags.cli.app import app
from lumid.dags.cli.options import Json

if TYPE_CHECKING:
    from lumid.model.evaluate.tables import Line


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL…",
            help="Runs, folders of `lumid export` or `convert`, .pth files of MAE, names of timm's; random:MODEL: the same, untrained; baselines: the paper's eight and DINOv3.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="modality, plane, body-part, mr-quality, ct-quality, chestxray14, ct-scanners; cvc-clinicdb:FOLDER, medmnist:NAME, csv:FILE, FILE.py; can be repeated."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="The data set, or a subset's file, that tasks are made of.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for features, predictions and tables; run again to go on.")] = Path(
        "evaluation"
    ),
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="linear, logistic, knn, paper, finetune; of masks segmentation or finetune; can be repeated.",
            show_default="linear, or segmentation",
        ),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Training images a class; 0: all; can be repeated.", show_default="0"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often each is fitted.")] = 3,
    baseline: Annotated[
        str | None, typer.Option(help="The model that the others are tested against, by its name in the tables.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: the weights of a model of timm's; can be repeated.")
    ] = None,
    allow_leak: Annotated[
        bool,
        typer.Option("--allow-leak", help="Go on where an encoder has seen the test's patients; the table says so."),
    ] = False,
    seen: Annotated[
        list[str] | None,
        typer.Option(help="A data set that encoders may have been trained on: it tells which patients they have seen."),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A setting of finetune, such as epochs=20 or mixup=0.8; can be repeated."
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="A setting of the segmentation head, such as epochs=20; can be repeated."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Jobs at a time on this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")] = None,
    draws: Annotated[int, typer.Option(min=10, help="Draws of the bootstrap.")] = 1000,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Make the tables again from the predictions in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge frozen encoders by tasks: tables with intervals over patients, and paired tests against a baseline.

    What there is to choose is chosen on validation; the test is asked once. Features are computed once and kept.

    Examples:

        lumid evaluate runs/first random:runs/first --data my-data --task modality --task plane

        lumid evaluate runs/first resnet50.a1_in1k --weights resnet50.a1_in1k=resnet.safetensors --task csv:labels.csv

        lumid evaluate runs/first baselines --data nih --task chestxray14 --protocol finetune --tune epochs=20

        lumid evaluate --tables-only --out evaluation --baseline first
    """
    from lumid.dags.cluster import ClusterSettings
    from lumid.dags.evaluate import Evaluated, require_evaluation, run_evaluation, write_tables

    require_evaluation()
    if tables_only:
        done = Evaluated(*write_tables(out, baseline, draws), ())
    else:
        if not models or not task:
            raise UsageError("name a model and a --task; see: lumid evaluate --help")
        from lumid.model.evaluate.baselines import expanded
        from lumid.model.evaluate.encoders import display_name
        from lumid.model.evaluate.jobs import jobs_of
        from lumid.model.evaluate.settings import FineTuning, Probing, set_fields

        models = expanded(models)
        baseline = display_name(baseline) if baseline in models else baseline
        known = [display_name(model) for model in models]
        if baseline is not None and baseline not in known and not (out / "predictions").is_dir():
            raise UsageError(f"--baseline {baseline}: is none of {', '.join(known)}")
        given = dict(_pair(one) for one in weights or [])
        if unused := [name for name in given if name not in models]:
            raise UsageError(f"--weights {unused[0]}: is none of the models that are named")
        jobs = [
            job
            for model in models
            for job in jobs_of(
                [model], task, data, protocol or [], seeds,
                shots=tuple(shots or [0]), weights=given.get(model), device=device or _device(), allow_leak=allow_leak,
                seen=tuple(seen or []), fine_tuning=set_fields(FineTuning(), tune or []), probing=set_fields(Probing(), head or []),
            )
        ]  # fmt: skip
        done = run_evaluation(
            jobs,
            out,
            baseline=baseline,
            cluster=ClusterSettings(scheduler, workers),
            draws=draws,
            console=Console(stderr=True, highlight=False),
        )
    if as_json:
        facts = {
            "tables": [str(file) for file in done.files],
            "failures": [asdict(one) for one in done.failures],
            "lines": json.loads((out / "tables.json").read_text("utf-8")) if done.files else [],
        }
        typer.echo(json.dumps(facts))
    else:
        _print(done, Console(highlight=False))
    if done.failures:
        raise typer.Exit(EXIT_FAILED)


def _print(done: object, console: Console) -> None:
    from lumid.dags.evaluate import Evaluated
    from lumid.model.evaluate.tables import HEADS

    assert isinstance(done, Evaluated)
    tables: dict[str, Table] = {}
    for line in done.lines:
        few = f", {line.shots} a class" if line.shots else ""
        title = f"{line.task}: {line.protocol}{few} ({line.images:,} test images, {line.patients:,} patients)"
        if title not in tables:
            heads = ("model", HEADS[_second(line)], HEADS[line.tested], "95 %", "Δ", "p")
            tables[title] = Table(*heads, title=title, title_justify="left")
        tested, against = line.metrics[line.tested], line.against
        tables[title].add_row(
            line.model, f"{line.metrics[_second(line)].value:.3f}", f"{tested.value:.3f}", f"{tested.low:.3f}–{tested.high:.3f}",
            "" if against is None else f"{against.value:+.3f}", "" if against is None or math.isnan(against.p) else f"{against.p:.3f}",
        )  # fmt: skip
    for table in tables.values():
        console.print(table)
    for file in done.files:
        console.print(str(file), soft_wrap=True)
    for one in done.failures:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[red]{one.model} · {one.task}:[/] {one.why}", markup=True
        )


def _second(line: Line) -> str:
    """The metric beside the tested one."""
    return "iou" if line.tested == "dice" else "accuracy"


def _pair(text: str) -> tuple[str, str]:
    name, _, file = text.partition("=")
    if not file:
        raise UsageError(f"--weights {text}: give NAME=FILE")
    return name, file


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
