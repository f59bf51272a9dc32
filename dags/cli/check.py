"""``lumid verify`` and ``lumid diff``: is a data set what was built, and what does it share with another one?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lumid.catalog.errors import EXIT_DONE, EXIT_FAILED, UsageError
from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.options import MOST_WORKERS
from lumid.dags.cli.tables import Format, printable, write_rows

if TYPE_CHECKING:
    from lumid.catalog.diff import Change, Difference, LockDifference, Sharing
    from lumid.catalog.paths import AnyPath
    from lumid.catalog.verify import Verification
    from lumid.pipeline.recipe import Recipe

SHOWN_FINDINGS = 30
SHOWN_CHANGES = 20
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.command()
def verify(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Folder of a finished data set, or its URL in an object store.")
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Read and decode every image, and compare it and its JSON with its row.")
    ] = False,
    mend: Annotated[
        bool,
        typer.Option(
            "--repair", help="Make damaged samples again from their source, and put their shards together anew."
        ),
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="--repair: the folder that it was built from.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="--repair: its recipe, where that has several folders, a private key or a [fetch] of its own.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="DIR_OR_URL", help="--repair: take the archives' files from here first.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="--repair: from the cache alone.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=MOST_WORKERS, help="Threads; by default one a core.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify that a data set is what was built: shards, catalog, rejects and lock, by their hashes and against each other.

    Ends with exit code 0 when it is sound, 1 when something is damaged; says which samples of which shards. --repair
    fetches only the series of damaged samples; a shard is replaced only by one with the same SHA-256 as then.

    Examples:

        lumid verify DATASET

        lumid verify DATASET --deep --json

        lumid verify s3://bucket/lumid

        lumid verify DATASET --repair --source FOLDER
    """
    from lumid.catalog.paths import StorePath, data_path
    from lumid.catalog.verify import verify as run

    if (source or recipe or cache or offline) and not mend:
        raise UsageError("--source, --recipe, --cache and --offline say from what to repair: add --repair")
    if source and recipe:
        raise UsageError("give --source or --recipe, not both")
    root = data_path(dataset)
    if mend and isinstance(root, StorePath):
        raise UsageError(f"{root}: --repair needs a data set on a local disk; copy it here first")
    with _progress() as progress:
        found = run(root, deep=deep, workers=workers, progress=progress)
    if mend and not found.sound and isinstance(root, Path):
        _repair(root, found, _repair_recipe(root, source, recipe, cache, offline=offline), workers)
        with _progress() as progress:
            found = run(root, deep=deep, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps({"dataset": str(dataset), "sound": found.sound} | asdict(found)))
    else:
        _print_verification(root, found)
    raise typer.Exit(EXIT_DONE if found.sound else EXIT_FAILED)


def _repair_recipe(
    dataset: Path, source: str | None, recipe: str | None, cache: str | None, *, offline: bool
) -> Recipe:
    from lumid.catalog.layout import read_manifest
    from lumid.dags.repair import recipe_of
    from lumid.pipeline.recipe_files import load_recipe, with_overrides

    chosen = load_recipe(recipe) if recipe else recipe_of(read_manifest(dataset), source)
    return with_overrides(chosen, cache=cache, offline=offline)


def _repair(dataset: Path, found: Verification, chosen: Recipe, workers: int | None) -> None:
    from lumid.dags.cluster import ClusterSettings
    from lumid.dags.progress import BuildProgress
    from lumid.dags.repair import repair

    console = Console(stderr=True, highlight=False, emoji=False)
    cluster = ClusterSettings(None, workers, where=chosen.cluster)
    done = repair(dataset, found, chosen, cluster, BuildProgress(console))
    typer.echo(
        f"{dataset}: mended {many(len(done.shards), 'shard')}; {many(done.samples, 'sample')} of {done.series:,} series made again",
        err=True,
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes with rate and time left, on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, emoji=False)
    columns = (
        TextColumn("[bold]verify"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("verify", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_verification(dataset: AnyPath, found: Verification) -> None:
    for finding in found.findings[:SHOWN_FINDINGS]:
        typer.echo(f"{finding.severity:<7}  {printable(f'{finding.where}: {finding.what}')}")
    if len(found.findings) > SHOWN_FINDINGS:
        typer.echo(f"         and {len(found.findings) - SHOWN_FINDINGS:,} more; --json lists all")
    counts = found.counts
    decoded = f"{counts.images_decoded:,} decoded" if found.deep else "hashes only, --deep decodes"
    rate = counts.bytes / 1e6 / max(found.seconds, 1e-9)
    typer.echo(
        f"{dataset}: {'sound' if found.sound else 'DAMAGED'}; {many(counts.samples, 'sample')} ({decoded}) in "
        f"{many(counts.shards, 'shard')}, {counts.bytes / 1e6:,.1f} MB, {many(counts.rejects, 'reject')}; {found.seconds:,.1f} s, {rate:,.0f} MB/s"
    )
    if found.damaged:
        keys = sum(len(shard.keys) for shard in found.damaged)
        typer.echo(f"{many(keys, 'damaged sample')} in {many(len(found.damaged), 'shard')}; --json lists their keys")


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of a finished data set, or its URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of another one.")],
    keys: Annotated[
        Path | None,
        typer.Option(help="Write every key and its status to this Parquet file.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two data sets by their catalogs (lumid verify compares a catalog with its shards): what they share, by key and by pixels, what they do not, and why.

    Ends with exit code 0 when both hold the same samples with the same descriptions, 1 when not.

    Examples:

        lumid diff A B

        lumid diff A B --keys keys.parquet
    """
    from lumid.catalog.diff import diff as run
    from lumid.catalog.paths import data_path

    if keys is not None and (keys.is_dir() or not keys.parent.is_dir()):
        raise UsageError(f"{keys}: --keys must be a file in a folder that exists")
    found = run(data_path(a), data_path(b), keys)
    if as_json:
        typer.echo(json.dumps({"equal": found.equal} | asdict(found)))
    else:
        _print_difference(found)
    if keys is not None:
        typer.echo(f"written: {keys}", err=True)
    raise typer.Exit(EXIT_DONE if found.equal else EXIT_FAILED)


def _print_difference(found: Difference) -> None:
    typer.echo(f"A  {printable(found.a)}: {many(found.total.in_a, 'sample')}")
    typer.echo(f"B  {printable(found.b)}: {many(found.total.in_b, 'sample')}")
    typer.echo(f"{'equal: the same samples with the same descriptions' if found.equal else 'different'}\n")
    _print_sharing("", "all", [found.total])
    if not found.equal:
        _print_sharing("collection", "", found.by_collection)
        _print_sharing("modality", "", found.by_modality)
    if found.described.samples:
        columns = ", ".join(f"{name} ({count:,})" for name, count in found.described.columns)
        typer.echo(f"{found.described.samples:,} shared samples are described differently; of the first "
                   f"{found.described.examined:,} in: {columns}\n")  # fmt: skip
    for title, changes in (
        ("recipe", found.recipe),
        ("versions", found.versions),
        ("rejected frames", found.rejects),
    ):
        _print_changes(title, changes)
    _print_locks(found.locks, found)
    if found.secrets == "different":
        typer.echo("keys      made under different secrets: only pixels can be compared")
    if found.policies[0] != found.policies[1]:
        typer.echo(f"policy    {found.policies[0] or 'not stated'} → {found.policies[1] or 'not stated'}")


def _print_sharing(group: str, name: str, rows: Sequence[Sharing]) -> None:
    import pyarrow as pa

    labels = {
        "same": "same",
        "other_pixels": "other pixels",
        "renamed_a": "A: other key",
        "renamed_b": "B: other key",
        "only_a": "only in A",
        "only_b": "only in B",
    }
    table = pa.table(
        {group or "samples": [row.name or name for row in rows]}
        | {label: [getattr(row, status) for row in rows] for status, label in labels.items()}
    )
    write_rows(table, Format.TABLE, None, len(rows), "")
    typer.echo()


def _print_changes(title: str, changes: Sequence[Change]) -> None:
    if not changes:
        return
    typer.echo(title)
    for change in changes[:SHOWN_CHANGES]:
        typer.echo(f"  {printable(change.key)}: {_value(change.a)} → {_value(change.b)}")
    if len(changes) > SHOWN_CHANGES:
        typer.echo(f"  and {len(changes) - SHOWN_CHANGES:,} more; --json lists all")


def _value(value: object) -> str:
    return "–" if value is None else printable(value if isinstance(value, str) else json.dumps(value))


def _print_locks(locks: LockDifference | None, found: Difference) -> None:
    if not any(change.key == "lock" for change in found.hashes):
        typer.echo("lock      the same")
        return
    if locks is None:
        why = "every pseudonym differs" if found.secrets == "different" else "one of them cannot be read"
        typer.echo(f"lock      not compared: {why}")
        return
    typer.echo(
        f"lock      {locks.shared:,} series in both, {len(locks.changed):,} in another version, "
        f"{len(locks.only_a):,} only in A, {len(locks.only_b):,} only in B"
    )
