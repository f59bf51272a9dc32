"""``lumid evaluate``: is an encoder better than others, by how much, and is that luck?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lumid.catalog.errors import EXIT_FAILED, UsageError
from lumid.dags.cli.app import app
from lumid.dags.cli.options import MOST_WORKERS, Json

if TYPE_CHECKING:
    from lumid.model.evaluate.tables import Line


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL…",
        help="Runs, folders of `lumid export` or `convert`, .pth files of MAE, names of timm's; random:MODEL: the same, untrained; baselines: the paper's eight and DINOv3.",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="modality, plane, body-part, mr-quality, ct-quality, chestxray14, ct-scanners; cvc-clinicdb:FOLDER, medmnist:NAME, csv:FILE, FILE.py; can be repeated."
    ),
]
Data = Annotated[str | None, typer.Option(help="The data set, or a subset's file, that tasks are made of.")]
Out = Annotated[Path, typer.Option(help="Folder for features, predictions and tables; run again to go on.")]
Protocols = Annotated[
    list[str] | None,
    typer.Option(
        help="linear, logistic, knn, paper, finetune; of masks segmentation or finetune; can be repeated.",
        show_default="linear, or segmentation",
    ),
]
Shots = Annotated[
    list[int] | None,
    typer.Option(min=0, help="Training images a class; 0: all; can be repeated.", show_default="0"),
]
Seeds = Annotated[int, typer.Option(min=1, help="How often each is fitted.")]
Baseline = Annotated[
    str | None, typer.Option(help="The model that the others are tested against, by its name in the tables.")
]
Weights = Annotated[
    list[str] | None, typer.Option(help="NAME=FILE: the weights of a model of timm's; can be repeated.")
]
AllowLeak = Annotated[
    bool,
    typer.Option("--allow-leak", help="Go on where an encoder has seen the test's patients; the table says so."),
]
Seen = Annotated[
    list[str] | None,
    typer.Option(help="A data set that encoders may have been trained on: it tells which patients they have seen."),
]
Tune = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A setting of finetune, such as epochs=20 or mixup=0.8; can be repeated."),
]
Head = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A setting of the segmentation head, such as epochs=20; can be repeated."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")]
Workers = Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Jobs at a time on this machine.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")]
Draws = Annotated[int, typer.Option(min=10, help="Draws of the bootstrap.")]
TablesOnly = Annotated[bool, typer.Option("--tables-only", help="Make the tables again from the predictions in --out.")]


@app.command()
def evaluate(
    models: Models = None,
    task: Tasks = None,
    data: Data = None,
    out: Out = Path("evaluation"),
    protocol: Protocols = None,
    shots: Shots = None,
    seeds: Seeds = 3,
    baseline: Baseline = None,
    weights: Weights = None,
    allow_leak: AllowLeak = False,
    seen: Seen = None,
    tune: Tune = None,
    head: Head = None,
    device: Device = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    draws: Draws = 1000,
    tables_only: TablesOnly = False,
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
        from lumid.model.evaluate.jobs import jobs_of
        from lumid.model.evaluate.settings import FineTuning, Probing, set_fields

        models = expanded(models)
        jobs = jobs_of(
            models, task, data, protocol or [], seeds, _weights(weights or [], models),
            shots=tuple(shots or [0]), device=device or _device(), allow_leak=allow_leak, seen=tuple(seen or []),
            fine_tuning=set_fields(FineTuning(), tune or []), probing=set_fields(Probing(), head or []),
        )  # fmt: skip
        baseline = _baseline(baseline, models, out)
        cluster = ClusterSettings(scheduler, workers)
        console = Console(stderr=True, highlight=False, emoji=False)
        done = run_evaluation(jobs, out, baseline=baseline, cluster=cluster, draws=draws, console=console)
    if as_json:
        facts = {
            "tables": [str(file) for file in done.files],
            "failures": [asdict(one) for one in done.failures],
            "lines": json.loads((out / "tables.json").read_text("utf-8")) if done.files else [],
        }
        typer.echo(json.dumps(facts))
    else:
        _print(done, Console(highlight=False, emoji=False))
    if done.failures:
        raise typer.Exit(EXIT_FAILED)


def _baseline(name: str | None, models: list[str], out: Path) -> str | None:
    """The baseline by its name in the tables, or as the command line has it; it may be of an earlier evaluation."""
    from lumid.model.evaluate.encoders import display_name
    from lumid.model.evaluate.predictions import FOLDER

    known = [display_name(model) for model in models]
    name = display_name(name) if name in models else name
    if name is not None and name not in known and not (out / FOLDER).is_dir():
        raise UsageError(f"--baseline {name}: is none of {', '.join(known)}")
    return name


def _weights(pairs: list[str], models: list[str]) -> dict[str, str]:
    """Files of weights by their models."""
    given = dict(_pair(one) for one in pairs)
    if unused := [name for name in given if name not in models]:
        raise UsageError(f"--weights {unused[0]}: is none of the models that are named")
    return given


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
            tables[title] = Table(*heads, title=escape(title), title_justify="left")
        tested, against = line.metrics[line.tested], line.against
        tables[title].add_row(
            escape(line.model), f"{line.metrics[_second(line)].value:.3f}", f"{tested.value:.3f}", f"{tested.low:.3f}–{tested.high:.3f}",
            "" if against is None else f"{against.value:+.3f}", "" if against is None or math.isnan(against.p) else f"{against.p:.3f}",
        )  # fmt: skip
    for table in tables.values():
        console.print(table)
    for file in done.files:
        console.print(escape(str(file)), soft_wrap=True)
    for one in done.failures:
        Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(
            f"[red]{escape(f'{one.model} · {one.task}')}:[/] {escape(one.why)}"
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
