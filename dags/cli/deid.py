"""``lumid deid``: make a secret, look up what a pseudonym stands for, and search a data set for what must not be in it."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer
from rich.console import Console

from lumid.catalog.errors import EXIT_DONE, EXIT_FAILED, UsageError
from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.options import MOST_WORKERS
from lumid.dags.cli.tables import printable

if TYPE_CHECKING:
    from lumid.catalog.audit import Audit
    from lumid.catalog.keys import Keyer
    from lumid.pipeline.mapping import Mapped

SHOWN_FINDINGS = 40
SECRET_BYTES = 32
Policy = Literal["public", "private"]

deid = typer.Typer(name="deid", no_args_is_help=True, help="De-identification: the secret, the way back, the audit.")
key = typer.Typer(name="key", no_args_is_help=True, help="The secret of policy 'private'.")
deid.add_typer(key)
app.add_typer(deid)


@key.command("new")
def new_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the secret goes; must not exist.")],
) -> None:
    """Make a secret for policy 'private', readable by you alone. It is not shown; nothing else is made from it.

    Keep it: without it the same patient gets another pseudonym. Who has it can look patients up.

    Example:

        lumid deid key new ~/lumid.key
    """
    with _private_file(file) as out:
        out.write(secrets.token_hex(SECRET_BYTES) + "\n")
    typer.echo(
        f"{file}: a new secret, readable by you alone; name it in the recipe: [deid] policy = 'private', key_file"
    )


@deid.command("map")
def map_pseudonyms(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Folder of the images that were built.", show_default=False),
    ] = None,
    out: Annotated[
        str,
        typer.Option(metavar="FILE", help="CSV to write, for you alone; - for standard output.", show_default=False),
    ] = "",
    patient: Annotated[list[str] | None, typer.Option(metavar="ID", help="A PatientID to map.")] = None,
    uid: Annotated[
        list[str] | None,
        typer.Option(metavar="UID", help="A UID to map, as study, series, instance and frame of reference."),
    ] = None,
    issuer: Annotated[str, typer.Option(help="With --patient: IssuerOfPatientID; under 'public' the collection.")] = "",
    find: Annotated[
        list[str] | None, typer.Option(metavar="PSEUDONYM", help="Only this one, of all that the folder gives.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="File of the secret.", show_default=False)] = None,
    key_env: Annotated[str, typer.Option(help="Environment variable of the secret, without --key-file.")] = "LUMID_KEY",
    policy: Annotated[Policy, typer.Option(help="The policy that the data set was built under.")] = "private",
    collection: Annotated[str, typer.Option(help="The collection's name in the recipe.")] = "local",
) -> None:
    """Say what pseudonyms stand for, to the owner of the secret. THE RESULT IDENTIFIES PATIENTS: keep it as you keep them.

    Columns: kind (the catalog's column; object is source_id), pseudonym, original.

    Examples:

        lumid deid map ~/dicom --key-file ~/lumid.key --out map.csv

        lumid deid map ~/dicom --key-file ~/lumid.key --find 1f0c3a5b7d9e2468 --out -

        lumid deid map --patient 4711 --issuer CLINIC --key-file ~/lumid.key --out -
    """
    from lumid.pipeline.mapping import KEYWORDS, map_ids
    from lumid.pipeline.recipe import DeidSettings, make_keyer

    if not out:
        raise UsageError(
            "say where the mapping goes: --out FILE, or --out - for standard output; it identifies patients"
        )
    if (folder is None) == (not patient and not uid):
        raise UsageError("give a FOLDER, or --patient and --uid; `lumid deid map --help` has examples")
    keyer = make_keyer(DeidSettings(policy=policy, key_file=str(key_file) if key_file else None, key_env=key_env))
    rows: set[Mapped] = set(map_ids(keyer, "patient", patient or [], issuer=issuer))
    for kind in KEYWORDS:
        rows.update(map_ids(keyer, kind, uid or []))
    if folder is not None:
        rows.update(_map_folder(folder, keyer, policy, collection))
    wanted = set(find or [])
    chosen = sorted(row for row in rows if not wanted or row.pseudonym in wanted)
    _write_mapping(chosen, out)
    raise typer.Exit(EXIT_DONE if chosen else EXIT_FAILED)


def _map_folder(folder: Path, keyer: Keyer, policy: str, collection: str) -> Iterator[Mapped]:
    from rich.progress import Progress

    from lumid.pipeline.decode import quiet_libraries
    from lumid.pipeline.mapping import map_source
    from lumid.pipeline.sources import Provenance
    from lumid.pipeline.sources.folder import FolderSource

    quiet_libraries()
    source = FolderSource(folder, Provenance(collection, "folder", None, None, None), keyer)
    console = Console(stderr=True, emoji=False)
    try:
        paths = {name: path.relative_to(folder).as_posix() for name, path in source.paths().items()}
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
            task = bars.add_task("headers", total=len(paths))
            yield from map_source(source, paths, keyer, policy, lambda: bars.advance(task))
    finally:
        source.close()


def _write_mapping(rows: list[Mapped], out: str) -> None:
    if out == "-":
        from sys import stdout

        _write_csv(rows, stdout.write)
    else:
        with _private_file(Path(out)) as file:
            _write_csv(rows, file.write)
    typer.echo(f"{len(rows):,} pseudonyms; this list identifies patients: keep it as you keep their records", err=True)


def _write_csv(rows: Iterable[Mapped], write: Callable[[str], object]) -> None:
    from types import SimpleNamespace

    writer = csv.writer(SimpleNamespace(write=write), lineterminator="\n")
    writer.writerow(("kind", "pseudonym", "original"))
    writer.writerows((row.kind, row.pseudonym, row.original) for row in rows)


@contextmanager
def _private_file(path: Path) -> Iterator[TextIO]:
    """A new file that its owner alone can read; raises :class:`UsageError` when there is one, or it cannot be made."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path}: is there already, and is not overwritten; choose another name") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be made: {os.strerror(error.errno or 0)}") from None
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@deid.command()
def audit(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a data set, or any other.")],
    terms: Annotated[
        Path,
        typer.Option(metavar="FILE", help="What must not be in it: names, numbers, dates, UIDs; UTF-8, one a line."),
    ],
    logs: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="A folder or file of logs to search, too.")
    ] = None,
    name_parts: Annotated[
        bool, typer.Option("--name-parts", help="Parts of names by themselves, too; surnames can be words.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_WORKERS, help="Threads; by default one a core, 8 at most.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Search all files of a data set for terms that must not be in it, however they are written there.

    A name is looked for in all orders, a date in all usual forms, in the encodings of DICOM, escaped and in base64. Terms
    are named by their line in FILE, never by their text. Pixels are not read: text in an image is not found here.
    Ends with exit code 0 when there is none, 1 when there is one, or something could not be read.

    Examples:

        lumid deid audit DATASET --terms terms.txt

        lumid deid audit DATASET --terms terms.txt --logs build-logs --name-parts --json
    """
    from lumid.catalog.audit import audit as run
    from lumid.catalog.terms import read_terms

    wanted = read_terms(terms)
    with _progress() as progress:
        found = run(dataset, wanted, logs=logs or [], name_parts=name_parts, workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps({"dataset": str(dataset), "clean": found.clean} | asdict(found)))
    else:
        _print_audit(dataset, found)
    raise typer.Exit(EXIT_DONE if found.clean else EXIT_FAILED)


def _print_audit(dataset: Path, found: Audit) -> None:
    for one in found.findings[:SHOWN_FINDINGS]:
        times = "" if one.count == 1 else f", {one.count:,} times"
        typer.echo(f"found  {printable(f'{one.file}: {one.place}')}: line {one.line} of the terms, {one.form}{times}")
    if len(found.findings) > SHOWN_FINDINGS:
        typer.echo(f"       and {len(found.findings) - SHOWN_FINDINGS:,} more; --json lists all")
    for left in found.unsearched[:SHOWN_FINDINGS]:
        typer.echo(f"unread {printable(left.file)}: {left.why}")
    covered = found.covered
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in covered.kinds.items() if kind != "folder")
    parts = ", ".join(f"{count:,} {kind}" for kind, count in covered.parts.items())
    rate = covered.bytes / 1e6 / max(covered.seconds, 1e-9)
    typer.echo(f"searched {many(covered.files, 'file')} ({kinds}), {covered.bytes / 1e6:,.1f} MB, {rate:,.1f} MB/s")
    typer.echo(f"in them  {parts or 'nothing packed'}")
    typer.echo(f"for      {many(covered.terms, 'term')} in {many(covered.patterns, 'form')}")
    for why, count in covered.passed_over.items():
        typer.echo(f"passed   {count:,} numbers {why}, as chance puts them there")
    typer.echo("not      pixels; what is encrypted; terms of fewer than 6 bytes in compressed bytes")
    if not found.finished:
        typer.echo(f"note     {dataset} is no finished data set (no dataset.json)")
    lines = len({one.line for one in found.findings})
    typer.echo(
        f"{dataset}: "
        + ("CLEAN" if found.clean else f"{many(lines, 'term')} FOUND, {many(len(found.unsearched), 'file')} unread")
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, emoji=False)
    columns = (TextColumn("[bold]audit"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("audit", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
