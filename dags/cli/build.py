"""``lumid build`` and ``lumid status``: make a data set, and see how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape

from lumid.catalog.errors import EXIT_DONE, EXIT_REJECTS, LumidError, UsageError
from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.options import MOST_WORKERS

if TYPE_CHECKING:
    import pyarrow as pa

    from lumid.catalog.layout import Manifest
    from lumid.catalog.paths import AnyPath
    from lumid.dags.events import EventLog
    from lumid.dags.status import Status
    from lumid.pipeline.recipe import Recipe


@app.command()
def build(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="A shipped recipe's name (demo, lumid, paper) or a TOML file."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_URL", help="A folder of DICOM files, or its address, instead of a recipe."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_URL",
            help="Folder of the data set, or its prefix in an object store (s3://, gs://, az://); by default ./NAME of the recipe.",
        ),
    ] = None,
    collection: Annotated[str, typer.Option(help="With --source: the collection's name in the catalog.")] = "local",
    license: Annotated[str | None, typer.Option(help="With --source: the licence to put into every row.")] = None,
    doi: Annotated[str | None, typer.Option(help="With --source: the collection's DOI.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="With --source: your own patients, policy 'private', this secret (lumid deid key new)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_WORKERS, help="Worker processes on this machine; by default one a core."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask scheduler, e.g. tcp://host:8786.")
    ] = None,
    lock: Annotated[
        str | None,
        typer.Option(help="Build what this lock (a file or its URL) pins, from `lumid plan RECIPE --out LOCK`."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="A finished data set (a folder or its URL): series that are the same are taken from it, and only the others are built.",
        ),
    ] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Whole patients, this share of them: 0.1% or 0.001.")
    ] = None,
    max_gb: Annotated[float | None, typer.Option(min=0, help="Whole patients, for as long as they fit.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="COLLECTION", help="Only this of the recipe's collections.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_URL", help="Keep the archives' own files here; what is here is not fetched again."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no archive: build from the cache alone.")] = False,
    log: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Append what happens, a line of JSON an event; - for stderr."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build a data set; run it again to go on with one that was interrupted.

    Examples:

        lumid build demo --out demo-data

        lumid build my-recipe.toml --out /data/mine

        lumid build --source ~/dicom --out /data/mine --collection my-study --license "CC BY 4.0"

        lumid build --source ~/dicom --key-file ~/lumid.key --out /data/mine

        lumid build lumid --only lidc_idri --max-gb 5 --out part

        lumid build --lock plan.lock.parquet --out again

        lumid build lumid --lock plan.lock.parquet --cache /data/raw --offline --out again

        lumid build larger.toml --base /data/mine --out /data/larger

        lumid build lumid.toml --scheduler tcp://10.0.0.1:8786 --out s3://bucket/lumid

        lumid build lumid.toml --out /data/lumid --log /var/log/lumid.jsonl
    """
    from lumid.catalog.paths import data_path
    from lumid.dags.build import build as run
    from lumid.dags.cluster import ClusterSettings
    from lumid.dags.events import EventLog
    from lumid.dags.progress import BuildProgress
    from lumid.pipeline.recipe_files import with_overrides

    words = {"--source": source, "--scheduler": scheduler, "--out": out, "--base": base, "--log": log}
    for option, given in words.items():
        if given == "":
            raise UsageError(f"{option}: is empty; is the variable set that you gave?")
    chosen, pinned = _chosen(recipe, source, collection, license, doi, lock, sample, max_gb, only or [])
    chosen = with_overrides(chosen, cache=cache, offline=offline)
    if key_file is not None:
        chosen = _private(chosen, source, key_file)
    target = data_path(out or chosen.name)
    console = Console(stderr=True, highlight=False, emoji=False, quiet=log == "-")
    events = EventLog()
    with _only_events(log), log_to(events, log, target), events.told_how_it_ends():
        old = None if base is None else data_path(base)
        where = ClusterSettings(scheduler, workers, where=chosen.cluster)
        result = run(chosen, target, where, BuildProgress(console, events), pinned, base=old)
        manifest = result.manifest
        events.tell(
            "already_finished" if result.already_finished else "build_done",
            seconds=manifest.build.get("seconds"), objects=manifest.counts.objects, frames=manifest.counts.planned,
            kept=manifest.counts.kept, rejected=manifest.counts.rejected, rejects=manifest.rejects,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"out": str(target), "already_finished": result.already_finished} | asdict(manifest)))
    else:
        _print_summary(manifest, target, already=result.already_finished)
    limit = chosen.limits.max_reject_fraction
    if result.too_many_rejects(limit):
        typer.echo(f"more than {limit:.0%} of the frames were rejected; see: lumid rejects {target}", err=True)
        raise typer.Exit(EXIT_REJECTS)
    raise typer.Exit(EXIT_DONE)


@contextmanager
def _only_events(log: str | None) -> Iterator[None]:
    """Where events go to stderr, nothing else does: how a build ends is the last of them, and the exit code."""
    from lumid.dags.stopping import Stopped

    try:
        yield
    except (LumidError, Stopped) as error:
        if log == "-":
            raise typer.Exit(error.exit_code) from None
        raise


def log_to(events: EventLog, log: str | None, out: AnyPath) -> AbstractContextManager[None]:
    """Write events where ``--log`` says."""
    if log is None:
        return nullcontext()
    if log != "-" and isinstance(out, Path) and Path(log).resolve().is_relative_to(out.resolve()):
        raise UsageError(f"--log {log}: is inside --out {out}, which holds the data set alone; choose another place")
    return events.writing(None if log == "-" else Path(log))


def _chosen(
    name: str | None, source: str | None, collection: str, license: str | None, doi: str | None,
    lock: str | None, sample: str | None, max_gb: float | None, only: list[str],
) -> tuple[Recipe, pa.Table | None]:  # fmt: skip
    """The recipe with the command line's changes, and the lock's rows where one is given."""
    from lumid.catalog.paths import data_path
    from lumid.pipeline.lock import read_lock
    from lumid.pipeline.recipe_files import parse_fraction, with_overrides

    if lock is not None and name is None and source is None:
        if sample or max_gb or only:
            raise UsageError("--lock without a RECIPE builds all that it pins; plan another one for a part")
        pinned, embedded = read_lock(data_path(lock))
        if embedded is None:
            raise UsageError(
                f"{lock}: its recipe reads folders of its own: give it too, lumid build RECIPE --lock {lock}"
            )
        return embedded, pinned
    chosen = _recipe(name, source, collection, license, doi)
    share = None if sample is None else parse_fraction(sample)
    chosen = with_overrides(chosen, sample=share, max_gb=max_gb, collections=only)
    return chosen, None if lock is None else read_lock(data_path(lock), chosen)[0]


def _private(chosen: Recipe, source: str | None, key_file: Path) -> Recipe:
    from lumid.pipeline.recipe import DeidSettings

    if source is None:
        raise UsageError("--key-file goes with --source; a recipe says it under [deid]: policy = 'private', key_file")
    return chosen.model_copy(
        update={"deid": DeidSettings(policy="private", key_file=str(key_file.expanduser().resolve()))}
    )


def _recipe(name: str | None, source: str | None, collection: str, license: str | None, doi: str | None) -> Recipe:
    from lumid.pipeline.recipe_files import load_recipe, make_recipe

    if (name is None) == (source is None):
        raise UsageError(
            "give a RECIPE or --source FOLDER (one of them), or --lock LOCK; `lumid build --help` has examples"
        )
    if name is not None:
        return load_recipe(name)
    assert source is not None
    return make_recipe(source, collection=collection, license=license, doi=doi)


def _print_summary(manifest: Manifest, out: AnyPath, *, already: bool) -> None:
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    counts = manifest.counts
    console.print(f"[bold]{escape(str(out))}[/] {'is finished already' if already else 'is finished'}")
    by_modality = ", ".join(f"{name} {count:,}" for name, count in manifest.modalities.items()) or "none"
    console.print(
        f"  planned {counts.planned:,} = kept {counts.kept:,} + rejected {counts.rejected:,}   (frames of {many(counts.objects, 'object')})"
    )
    console.print(f"  kept      {by_modality}")
    if manifest.rejects:
        console.print(
            f"  rejected  {', '.join(f'{code} {count:,}' for code, count in sorted(manifest.rejects.items(), key=lambda item: -item[1]))}"
        )
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    console.print(f"  shards    {many(len(manifest.shards), 'file')}, {megabytes:,.1f} MB")
    if not already:
        facts = manifest.build
        if "base_series" in facts:
            console.print(f"  from base {facts['base_series']:,} of {facts['series']:,} series")
        console.print(
            f"  took      {facts['seconds']:,.1f} s: {facts['slices_per_second']:,} slices/s, {facts['mb_per_second']:,} MB/s with {many(facts['workers'], 'worker')}"
        )
    console.print(f"  report    {out / 'report.html'}", markup=False)


WATCH_EVERY_S = 2.0
PRINT_EVERY_S = 10.0


@app.command()
def status(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a data set or of a build under way.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it until the build ends or you press Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say how far a build is, what it does and what it costs; or why it stopped.

    Examples:

        lumid status /data/mine

        lumid status /data/mine --watch

        lumid status s3://bucket/lumid
    """
    from lumid.catalog.paths import data_path
    from lumid.dags.status import status as look
    from lumid.dags.status_view import view
    from lumid.dags.stopping import Stopped

    root = data_path(dataset)
    if watch and as_json:
        raise UsageError("--watch is to look at, --json to read by a program: give one of them")
    if as_json:
        typer.echo(json.dumps(asdict(look(root))))
        return
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160

    def shown(found: Status) -> RenderableType:
        return view(root, found, time.time(), bar=console.is_terminal)

    found = look(root)
    if not watch:
        console.print(shown(found))
        return
    if not console.is_terminal:  # a file or a pipe is given one after the other
        console.print(shown(found))
        while found.state == "running":
            time.sleep(PRINT_EVERY_S)
            found = look(root)
            console.print(shown(found))
        return
    with suppress(Stopped), Live(shown(found), console=console, auto_refresh=False) as live:
        while found.state == "running":
            time.sleep(WATCH_EVERY_S)
            found = look(root)
            live.update(shown(found), refresh=True)
