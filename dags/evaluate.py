"""Evaluation through the Dask graph: a task for every model on every task, tables when all are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.layout import storage_errors, write_text
from lumid.dags.cluster import WHERE_TO_LOOK, ClusterSettings, default_workers, open_cluster
from lumid.dags.pretrain import require_torch
from lumid.dags.quiet import place_of
from lumid.dags.tasks import run_tasks

if TYPE_CHECKING:
    from lumid.model.evaluate.jobs import Job
    from lumid.model.evaluate.tables import Line

TOPIC = "lumid-evaluate"
PAGE = "evaluation.html"
KILLED = "keeps killing its worker: is there enough memory? try fewer --workers"


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that gave no predictions, and why in one line."""

    model: str
    task: str
    why: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The lines of the tables, the files that hold them, and what failed."""

    lines: tuple[Line, ...]
    files: tuple[Path, ...]
    failures: tuple[Failure, ...]


def require_evaluation() -> None:
    """Raise :class:`UsageError` when the extras are not installed."""
    require_torch()
    if find_spec("sklearn") is None:
        raise UsageError("this needs scikit-learn: pip install 'lumid[train,eval]'")


def run_evaluation(
    jobs: Sequence[Job], out: Path, *, baseline: str | None, cluster: ClusterSettings, draws: int, console: Console
) -> Evaluated:
    """Run jobs and write ``tables.md``, ``.csv``, ``.json``, ``.tex``, ``classes.csv`` and ``evaluation.html`` into ``out``.

    A job whose predictions are there is done; one that fails costs only itself.
    """
    require_evaluation()
    with storage_errors(out):
        (out / "scratch").mkdir(parents=True, exist_ok=True)
        failures = _run(jobs, out, cluster, console)
        lines, files = write_tables(out, baseline, draws, missing_is_an_error=not failures)
    return Evaluated(lines, files, failures)


def write_tables(
    out: Path, baseline: str | None, draws: int, *, missing_is_an_error: bool = True
) -> tuple[tuple[Line, ...], tuple[Path, ...]]:
    """The tables of a folder's predictions: they are all that is needed."""
    require_evaluation()
    from lumid.model.evaluate.page import page
    from lumid.model.evaluate.predictions import prediction_paths, read_prediction
    from lumid.model.evaluate.tables import as_csv, as_json, classes_csv, latex, lines, markdown

    paths = prediction_paths(out)
    found = [read_prediction(path) for path in paths]
    if not found and not missing_is_an_error:
        return (), ()
    made = lines(found, baseline, count=draws)
    texts = {
        "tables.md": markdown(made, baseline),
        "tables.csv": as_csv(made),
        "classes.csv": classes_csv(made),
        "tables.json": as_json(made),
        "tables.tex": latex(made),
        PAGE: page(made, list(zip(paths, found, strict=True)), baseline),
    }
    files = tuple(out / name for name in texts)
    for file, text in zip(files, texts.values(), strict=True):
        write_text(file, text)
    return tuple(made), files


def _run(jobs: Sequence[Job], out: Path, cluster: ClusterSettings, console: Console) -> tuple[Failure, ...]:
    failures: list[Failure] = []
    bars = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def waiting(kind: str, seconds: float) -> None:
        console.print(f"waiting for the first worker of the {kind}, {seconds:,.0f} s so far; {WHERE_TO_LOOK[kind]}")

    with open_cluster(cluster, out / "scratch", waiting) as client, bars:
        whole = bars.add_task("jobs", total=len(jobs))
        images = [bars.add_task(escape(f"{job.model} · {job.task}"), total=None, visible=False) for job in jobs]

        def heard(event: Any) -> None:
            number, done, total = event[1]
            bars.update(images[number], completed=done, total=total, visible=done < total)

        client.subscribe_topic(TOPIC, heard)
        threads = max(1, default_workers() // max(1, cluster.workers or 1))
        tasks = [(f"job-{number}", job_task, (job, number, out.resolve(), threads)) for number, job in enumerate(jobs)]
        for name, why in run_tasks(client, tasks, on_killed=lambda _: KILLED):
            number = int(name.removeprefix("job-"))
            job = jobs[number]
            if why:
                failures.append(Failure(job.model, job.task, why))
            bars.update(images[number], visible=False)
            bars.advance(whole)
            if not (console.is_terminal or why):  # failures are told at the end
                console.print(escape(f"{job.model} · {job.task}: done"), soft_wrap=True)
    return tuple(failures)


def job_task(job: Job, number: int, out: Path, threads: int) -> str:
    """A job on a worker; why it failed, or an empty text."""
    import torch

    from lumid.model.evaluate.jobs import run_job

    torch.set_num_threads(threads)
    if job.device == "cuda" and torch.cuda.device_count() > 1:
        torch.cuda.set_device(_place() % torch.cuda.device_count())
    try:
        run_job(job, out, _reporter(number))
    except LumidError as error:
        return str(error)
    except Exception as error:  # its text may quote anything
        return f"failed ({type(error).__name__} at {place_of(error)}); please report this line"
    return ""


def _place() -> int:
    """Which of a machine's workers this is: those of one are numbered, and each takes the next GPU."""
    name = str(get_worker().name)
    return int(name) if name.isdecimal() else os.getpid()


def _reporter(number: int) -> Callable[[int, int], None]:
    worker = get_worker()

    def report(done: int, total: int) -> None:
        worker.log_event(TOPIC, (number, done, total))

    return report
