"""A data set built, verified, reported and, with models, used to evaluate them, by Prefect 3.

pip install 'lumid[train,eval]' prefect
python prefect_flow.py my-recipe.toml /data/my-data                          # once
python prefect_flow.py my-recipe.toml /data/my-data --cron "0 20 * * *"      # stays, and runs it every evening

The tasks call the functions that lumid's commands call. A run that failed or was stopped is run again with the same
words: what is finished is not made again.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from rich.console import Console

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.layout import read_manifest
from lumid.catalog.report import write_report
from lumid.catalog.verify import verify
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.evaluate import run_evaluation
from lumid.dags.progress import BuildProgress
from lumid.dags.quiet import keep_quiet, place_of
from lumid.pipeline.recipe_files import load_recipe

P = ParamSpec("P")
T = TypeVar("T")
CONSOLE = Console(stderr=True, highlight=False)
logging.getLogger("distributed").setLevel(logging.CRITICAL)  # else Prefect shows every step of Dask's


def quoting_nothing(work: Callable[P, T]) -> Callable[P, T]:
    """Prefect keeps what an exception says and where it came from; of an unforeseen one it could be a header."""

    @wraps(work)
    def run(*args: P.args, **named: P.kwargs) -> T:
        try:
            return work(*args, **named)
        except LumidError:
            raise
        except Exception as error:
            raise RuntimeError(f"lumid failed ({type(error).__name__} at {place_of(error)})") from None

    return run


def worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """A wrong recipe or folder stays wrong; what a network, a disk or a machine did may be over."""
    return not isinstance(state.result(raise_on_failure=False), UsageError)


@task(retries=3, retry_delay_seconds=[60, 600, 3600], retry_condition_fn=worth_another_try)
@quoting_nothing
def build_data_set(recipe: str, out: Path) -> bool:
    """Build it, or go on; whether more was rejected than the recipe allows."""
    chosen = load_recipe(recipe)
    result = build(chosen, out, ClusterSettings(where=chosen.cluster), BuildProgress(CONSOLE))
    return result.too_many_rejects(chosen.limits.max_reject_fraction)


@task(retries=1, retry_delay_seconds=60)
@quoting_nothing
def verify_data_set(data: Path) -> None:
    """Read and decode every image, and compare it with its row."""
    found = verify(data, deep=True)
    if not found.sound:
        raise DatasetError(f"{data}: damaged; `lumid verify {data} --repair` makes the damaged samples again")


@task(retries=1, retry_delay_seconds=60)
@quoting_nothing
def report_data_set(data: Path) -> Path:
    """Write report.html, and show its counts on Prefect's page."""
    path = write_report(data)
    manifest = read_manifest(data)
    counts = manifest.counts
    rows = [("planned", counts.planned), ("kept", counts.kept), ("rejected", counts.rejected)]
    rows += [(f"kept: {name}", count) for name, count in manifest.modalities.items()]
    rows += [(f"rejected: {code}", count) for code, count in manifest.rejects.items()]
    table = "\n".join(f"| {name} | {count:,} |" for name, count in rows)
    create_markdown_artifact(f"| frames | |\n|---|---:|\n{table}\n\nMore in {path}", key="lumid-data-set")
    return path


@task(retries=1, retry_delay_seconds=60, retry_condition_fn=worth_another_try)
@quoting_nothing
def evaluate_models(models: tuple[str, ...], tasks: tuple[str, ...], data: Path, out: Path) -> None:
    """Judge encoders; features and predictions that are there are not made again."""
    from torch import cuda

    from lumid.model.evaluate.jobs import jobs_of

    device = "cuda" if cuda.is_available() else "cpu"
    jobs = jobs_of(models, tasks, str(data), [], 3, {}, device=device)
    here = ClusterSettings(workers=1)
    done = run_evaluation(jobs, out, baseline=None, cluster=here, draws=1000, console=CONSOLE)
    if done.failures:
        first = done.failures[0]
        raise LumidError(f"{first.model} · {first.task}: {first.why}")
    create_markdown_artifact((out / "tables.md").read_text("utf-8"), key="lumid-evaluation")


@flow(name="lumid")
def data_set(recipe: str, out: Path, models: tuple[str, ...] = (), tasks: tuple[str, ...] = ("modality",)) -> None:
    """Build → verify → report → evaluate."""
    keep_quiet()
    too_many_rejects = build_data_set(recipe, out)
    verify_data_set(out)
    report_data_set(out)
    if too_many_rejects:
        raise LumidError(f"{out}: more rejects than the recipe allows; see: lumid rejects {out} --by-code")
    if models:
        evaluate_models(models, tasks, out, out.with_name(f"{out.name}-evaluation"))


def main() -> None:
    """Run the flow once, or stay and run it by a timetable, one run at a time."""
    parser = argparse.ArgumentParser(description="lumid by Prefect: build, verify, report, evaluate.")
    parser.add_argument("recipe", help="a recipe")
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--model", action="append", help="evaluate this, as `lumid evaluate` does; can be repeated")
    parser.add_argument("--task", action="append", help="by this task; can be repeated")
    parser.add_argument("--cron", help="run it at these times")
    given = parser.parse_args()
    words = {"recipe": given.recipe, "out": given.out.resolve(), "models": tuple(given.model or ())}
    words["tasks"] = tuple(given.task or ["modality"])
    if given.cron:
        data_set.serve(name=given.out.name, cron=given.cron, limit=1, parameters=words)
        return
    try:
        data_set(**words)
    except LumidError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
