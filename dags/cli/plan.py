"""``lumid plan`` and ``lumid collections``: what there is, and what a build would take, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lumid.catalog.words import many
from lumid.dags.cli.app import app
from lumid.dags.cli.tables import printable

if TYPE_CHECKING:
    from lumid.catalog.collections import Collection
    from lumid.pipeline.plan import CollectionPlan, Drift, Plan

Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
PIPE_WIDTH = 10_000


@dataclass(frozen=True, slots=True)
class Heading:
    """A column of a table, and the narrowest terminal that has room for it."""

    name: str
    justify: Literal["left", "right"] = "right"
    from_width: int = 0


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (demo, lumid, paper) or a TOML file.")],
    sample: Annotated[
        str | None,
        typer.Option(help="Only a share of the patients, as 0.1% or 0.001; a larger share holds the smaller."),
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option(help="Only as many patients as fit into so many GB to fetch.", show_default=False)
    ] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option(help="Only this one of the recipe's collections; can be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_URL",
            help="Write the lock: every series pinned, to be built now or next year.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET", help="Say what of it is in this finished data set already, for `lumid build --base`."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a build will read: patients, slices, GB, licences, and what differs from the paper.

    Needs no network, but for sources of kind tcia. GB out and time are estimates; what they assume is printed.

    Examples:

        lumid plan lumid

        lumid plan lumid --max-gb 5 --out small.lock.parquet

        lumid plan lumid --collection lidc_idri --collection qin_lung_ct --sample 10%

        lumid plan lumid --base /data/lumid-v24

        lumid plan my-recipe.toml --json
    """
    from lumid.catalog.paths import data_path
    from lumid.pipeline.lock import lock_hash, write_lock
    from lumid.pipeline.plan import plan as make
    from lumid.pipeline.recipe_files import load_recipe, parse_fraction, with_overrides

    share = None if sample is None else parse_fraction(sample)
    chosen = with_overrides(load_recipe(recipe), sample=share, max_gb=max_gb, collections=collection or ())
    made = make(chosen)
    if out is not None:
        write_lock(data_path(out), made.lock, chosen)
    growth = None
    if base is not None:
        from lumid.dags.grow import plan_growth

        growth = plan_growth(data_path(base), chosen, made.lock)
    if as_json:
        lock = None if out is None else {"path": str(out), "series": made.lock.num_rows, "hash": lock_hash(made.lock)}
        typer.echo(
            json.dumps(_plan_values(made) | {"lock": lock, "base": growth and asdict(growth)}, ensure_ascii=False)
        )
        return
    _print_plan(made)
    if growth is not None:
        folders = any(one.files is not None for one in made.collections)
        facts = [f"{growth.taken:,} series; to fetch: {growth.fetched:,} series, {_size(growth.gb_fetched)} GB"]
        facts = (
            facts * bool(growth.taken or growth.fetched) + ["what folders hold is compared when it is read"] * folders
        )
        typer.echo(f"from {printable(growth.base)}: {'; '.join(facts) or 'nothing to build'}")
    if out is not None:
        typer.echo(f"{out}: {made.lock.num_rows:,} series pinned", err=True)


def _plan_values(made: Plan) -> dict[str, Any]:
    return {
        "recipe": made.recipe.name,
        "recipe_hash": made.recipe.hash(),
        "totals": asdict(made.totals),
        "assumptions": asdict(made.assumptions),
        "notes": list(made.notes),
        "collections": [asdict(one) | {"commercial": one.commercial} for one in made.collections],
    }


def _print_plan(made: Plan) -> None:
    console = _console()
    headings = [
        Heading("collection", "left"), Heading("patients"), Heading("series", from_width=100), Heading("slices"),
        Heading("GB"), Heading("GB out"), Heading("time", from_width=110), Heading("licence", "left"),
        Heading("from", "left", 150), Heading("against the paper", "left", 120),
    ]  # fmt: skip
    rows = [_plan_row(one) for one in made.collections]
    totals = made.totals
    known = any(one.files is None for one in made.collections)  # what folders hold, nobody knows yet
    last = [
        "all", *(_count(one if known else None) for one in (totals.patients, totals.series, totals.slices)),
        _size(totals.gb), _size(totals.gb_out if known else None), _duration(totals.seconds if known else None), "", "", "",
    ]  # fmt: skip
    _print_table(console, headings, rows, last)
    nc = totals.non_commercial_slices
    if nc:
        share = nc / totals.slices
        typer.echo(f"{nc:,} slices ({share:.1%}) are under licences that exclude commercial use (NC)")
    for note in (*made.notes, str(made.assumptions)):
        console.print(Text(printable(note)), soft_wrap=True)


def _plan_row(one: CollectionPlan) -> list[str]:
    slices = _count(one.slices) if one.files is None else many(one.files, "file")
    estimated = one.estimated
    return [
        one.collection,
        _count(one.patients),
        _count(one.series),
        slices,
        _size(one.gb),
        _size(estimated.gb_out if estimated else None),
        _duration(estimated.seconds if estimated else None),
        one.license or "not stated",
        one.source_version or one.source,
        _drift(one.drift) if one.drift else "",
    ]


def _drift(drift: Drift) -> str:
    """The paper's subjects and the plan's patients, then modalities: ``10 → 129, +PT``; ``=`` where nothing differs."""
    parts = []
    if drift.patients != drift.paper_subjects:
        shared = " with " + ", ".join(drift.rows[1:]) if len(drift.rows) > 1 else ""
        planned = "?" if drift.patients is None else f"{drift.patients:,}"
        parts.append(f"{drift.paper_subjects:,} → {planned}{shared}")
    changes = [f"−{name}" for name in drift.missing] + [f"+{name}" for name in drift.extra]
    parts += [" ".join(changes)] if changes else []
    return ", ".join(parts) or "="


# ---- collections


@app.command()
def collections(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, by its id or name.")] = None,
    as_json: Json = False,
) -> None:
    """List the collections of LUMID: where each is, how large, under which licence; or show one whole.

    Examples:

        lumid collections

        lumid collections lidc_idri

        lumid collections --json
    """
    from lumid.catalog.collections import collections as known
    from lumid.catalog.collections import find_collection

    if name is not None:
        one = find_collection(name)
        if as_json:
            typer.echo(json.dumps(_collection_values(one), ensure_ascii=False))
        else:
            _print_collection(one)
        return
    every = list(known().values())
    if as_json:
        typer.echo(json.dumps([_collection_values(one) for one in every], ensure_ascii=False))
    else:
        _print_collections(every)


def _collection_values(one: Collection) -> dict[str, Any]:
    return one.model_dump() | {"commercial_use": one.commercial_use, "doi_url": one.doi_url}


def _print_collections(every: list[Collection]) -> None:
    headings = [
        Heading("collection", "left"), Heading("from", "left", 100), Heading("modalities", "left"),
        Heading("paper", from_width=90), Heading("patients"), Heading("slices"), Heading("GB"),
        Heading("licence", "left", 110), Heading("NC", "left"), Heading("DOI", "left", 140),
    ]  # fmt: skip
    rows = [
        [
            one.id, _PLACES[one.source], " ".join(one.modalities or one.paper_modalities), _paper_subjects(one),
            _count(one.patients), _count(one.images), _size(one.gb), one.license, "" if one.commercial_use else "NC",
            one.doi,
        ]
        for one in every
    ]  # fmt: skip
    subjects = sum({one.paper_row: one.paper_subjects for one in every}.values())
    patients, images = sum(one.patients or 0 for one in every), sum(one.images or 0 for one in every)
    last = ["all", "", "", _count(subjects), _count(patients), _count(images), _size(sum(one.gb or 0 for one in every))]
    _print_table(_console(), headings, rows, [*last, "", "", ""])
    typer.echo("paper: subjects as the paper counts them; * shares a row of its table. NC: no commercial use.")
    typer.echo("The rest is what the archive holds (IDC version 25, images only). One whole: lumid collections NAME")


_PLACES = {"idc": "IDC", "nih": "NIH", "tcia_package": "by hand"}


def _paper_subjects(one: Collection) -> str:
    return f"{one.paper_subjects:,}{'*' if one.shares_row_with else ''}"


def _print_collection(one: Collection) -> None:
    shared = f", together with {', '.join(one.shares_row_with)}" if one.shares_row_with else ""
    holds = ", ".join(
        f"{_count(count)} {what}" for count, what in
        ((one.patients, "patients"), (one.series, "series"), (one.images, "images")) if count is not None
    )  # fmt: skip
    kinds = ", ".join(f"{modality} {count:,}" for modality, count in one.modalities.items())
    use = "commercial use is not excluded" if one.commercial_use else "no commercial use"
    lines = [
        ("name", one.name),
        ("archive", f"{_PLACES[one.source]}: {one.source_id} ({one.format.upper()})"),
        ("holds", f"{holds}, {_size(one.gb)} GB" if holds else "not known before it is fetched"),
        ("images", kinds),
        ("licence", f"{one.license}: {use}"),
        ("DOI", one.doi_url),
        ("cite", one.citation),
        ("in the paper", f"{one.paper_row}: {one.paper_subjects:,} subjects{shared}"),
        ("", f"{', '.join(one.paper_location)}; {', '.join(one.paper_modalities)}"),
        ("its errors", one.paper_errors),
        ("note", one.note),
        ("unconfirmed", ", ".join(one.unconfirmed)),
    ]
    console = _console()
    if not console.is_terminal:
        typer.echo("\n".join([one.id, *(f"{label:<14}{value}" for label, value in lines if value)]))
        return
    view = Table.grid(padding=(0, 2))
    view.add_column(style="bold", no_wrap=True)
    view.add_column(overflow="fold")
    for label, value in lines:
        if value:
            view.add_row(label, Text(value))
    console.print(Text(one.id, style="bold"))
    console.print(view)


# ---- tables


def _console() -> Console:
    console = Console(highlight=False, emoji=False)
    # a pipe has no width: nothing is cut or wrapped there
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=PIPE_WIDTH)


def _print_table(console: Console, headings: list[Heading], rows: Iterable[list[str]], last: list[str]) -> None:
    """The columns that the terminal has room for; the last row is set off."""
    shown = [place for place, heading in enumerate(headings) if heading.from_width <= console.width]
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for place in shown:
        view.add_column(headings[place].name, justify=headings[place].justify, overflow="fold")
    for row in rows:
        view.add_row(*(Text(printable(row[place])) for place in shown))
    view.add_section()
    view.add_row(*(Text(last[place], style="bold") for place in shown))
    console.print(view)
    if len(shown) < len(headings):
        console.print("(more columns in a wider terminal, or with --json)", style="dim")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _size(gigabytes: float | None) -> str:
    if gigabytes is None:
        return "–"
    digits = 0 if gigabytes >= 100 else 1 if gigabytes >= 0.1 else 3
    return "<0.001" if 0 < gigabytes < 0.001 else f"{gigabytes:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"
