"""The plan of a build: what it will read, how much that is, under which licences, and how it differs from the paper.

What archives hold comes from their indexes and is pinned in a lock, series by series. Folders are only counted: what
is in them is found out when they are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from lumid.catalog.cite import is_non_commercial, plain_doi
from lumid.catalog.collections import Collection, collections
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.catalog.lock import LOCK
from lumid.catalog.schema import MODALITIES
from lumid.pipeline.estimate import Assumptions, Estimate, assumptions_of, estimate
from lumid.pipeline.nbia import UNKNOWN_COLLECTION
from lumid.pipeline.nih_index import ARCHIVE_COUNT, Count, count_xrays
from lumid.pipeline.recipe import (
    AnySource,
    FolderSettings,
    IdcSettings,
    NihSettings,
    PydicomSettings,
    Recipe,
    SampleSettings,
    TciaSettings,
    collections_of,
    make_keyer,
)
from lumid.pipeline.sample import cap_series, draw_sample

XRAY = frozenset({"CR", "DX"})


@dataclass(frozen=True, slots=True)
class Drift:
    """How a collection as it is selected, before any sample, differs from the paper's row of it.

    ``patients``: those of all ``rows``, the collections that share the paper's row; None where no index tells.
    ``missing`` and ``extra``: modalities that the paper lists and the plan lacks, and the other way round.
    """

    paper_subjects: int
    patients: int | None
    rows: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionPlan:
    """A collection of one source. What no index or listing tells is None.

    ``slices``: objects, as far as they are counted; ``uncounted``: series whose objects nobody has counted; ``gb``:
    10^9 bytes to fetch, or of a folder to read.
    """

    collection: str
    name: str
    source: str
    source_version: str | None
    patients: int | None = None
    series: int | None = None
    slices: int | None = None
    uncounted: int = 0
    files: int | None = None
    gb: float | None = None
    estimated: Estimate | None = None
    license: str | None
    doi: str | None
    modalities: tuple[str, ...] = ()
    drift: Drift | None = None

    @property
    def commercial(self) -> bool | None:
        """Whether the licence does not exclude commercial use; None where none is stated."""
        return None if self.license is None else not is_non_commercial(self.license)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the collections of a plan, of what is known of each."""

    patients: int
    series: int
    slices: int
    files: int
    gb: float
    gb_out: float
    seconds: float
    non_commercial_slices: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe's plan: the lock's rows of every archive, and a summary of every collection."""

    recipe: Recipe
    lock: pa.Table = field(repr=False)
    collections: tuple[CollectionPlan, ...]
    assumptions: Assumptions
    notes: tuple[str, ...]

    @property
    def totals(self) -> Totals:
        """Sums of what is known."""
        each = self.collections
        estimates = [one.estimated for one in each if one.estimated]
        return Totals(
            patients=sum(one.patients or 0 for one in each),
            series=sum(one.series or 0 for one in each),
            slices=sum(one.slices or 0 for one in each),
            files=sum(one.files or 0 for one in each),
            gb=sum(one.gb or 0.0 for one in each),
            gb_out=sum(one.gb_out for one in estimates),
            seconds=sum(one.seconds for one in estimates),
            non_commercial_slices=sum(one.slices or 0 for one in each if one.commercial is False),
        )


def plan(recipe: Recipe, index: Path | None = None) -> Plan:
    """Plan a recipe. ``index``: the folder of IDC's index, by default the installed one.

    Raises :class:`RecipeError` when a source is not there, or is asked for what its index does not know.
    """
    keyer = make_keyer(recipe.deid)
    whole = _pin_all(recipe, keyer, index)
    sampled = draw_sample(whole, recipe.sample, keyer)
    lock = cap_series(sampled, recipe.select.max_series, keyer)
    assumed = assumptions_of(recipe.pixels)
    everything, chosen = _summaries(whole), _summaries(lock)
    notes: list[str] = []
    planned = []
    for (number, name), summary in chosen.items():
        count, remarks = _counted(recipe.sources[number], recipe.sample, keyer, summary)
        notes += remarks
        planned.append(_pinned(name, summary, count, _drift(name, everything[number, name], everything), assumed))
    for number, source in enumerate(recipe.sources):
        if isinstance(source, FolderSettings | PydicomSettings):
            entry, remarks = _listed(source)
            planned.append(entry)
            notes += remarks
        elif isinstance(source, IdcSettings):
            notes.append(_version_note(source, index))
            empty = [name for name in collections_of(source) if (number, name) not in everything]
            notes += [f"{name}: IDC has nothing in it that the recipe selects" for name in empty]
        elif isinstance(source, NihSettings) and (number, source.collection) not in chosen:
            notes.append(f"{source.collection}: max_gb leaves none of its archives, which are drawn whole")
    notes += _remarks(recipe, whole, sampled, planned)
    if lock.num_rows < sampled.num_rows:
        most = recipe.select.max_series
        notes.append(f"at most {most:,} series of a collection: {lock.num_rows:,} of {sampled.num_rows:,}")
    return Plan(recipe, lock, _in_order(planned), assumed, tuple(notes))


def pin(recipe: Recipe, index: Path | None = None) -> pa.Table:
    """The lock's rows of a recipe's archives, under :data:`~lumid.catalog.lock.LOCK`: the plan without its summary."""
    keyer = make_keyer(recipe.deid)
    drawn = draw_sample(_pin_all(recipe, keyer, index), recipe.sample, keyer)
    pinned = cap_series(drawn, recipe.select.max_series, keyer)
    check_selection(recipe, pinned)
    return pinned


def check_selection(recipe: Recipe, pinned: pa.Table) -> None:
    """Refuse a recipe of archives alone of which nothing is left. Raises :class:`RecipeError`."""
    listed = any(isinstance(source, FolderSettings | PydicomSettings) for source in recipe.sources)
    if not listed and pinned.num_rows == 0:
        raise RecipeError(
            f"recipe '{recipe.name}' selects no series: no collection has what its modalities, body parts, licences and "
            "sizes allow together, or the sample is too small for a patient"
        )


def _pin_all(recipe: Recipe, keyer: Keyer, index: Path | None) -> pa.Table:
    tables = [LOCK.empty_table()]
    for number, source in enumerate(recipe.sources):
        if isinstance(source, IdcSettings):
            from lumid.pipeline.idc_index import plan_idc

            rows = plan_idc(source, keyer, recipe.deid.policy, index)
        elif isinstance(source, NihSettings):
            from lumid.pipeline.sources.nih import plan_nih

            rows = plan_nih(source, recipe.fetch, keyer)
        elif isinstance(source, TciaSettings):
            from lumid.pipeline.sources.tcia import plan_tcia

            rows = plan_tcia(source, recipe.fetch, keyer, recipe.deid.policy)
        else:
            continue
        numbers = pa.repeat(pa.scalar(number, pa.int64()), rows.num_rows)
        tables.append(rows.set_column(0, LOCK.field("recipe_source"), numbers).cast(LOCK))
    return pa.concat_tables(tables)


# ---- summaries


def _summaries(lock: pa.Table) -> dict[tuple[int, str], Mapping[str, Any]]:
    """Counts and distinct values of a lock's rows, by source and collection."""
    wanted = [
        ("patient", "count_distinct"), ("series", "count"), ("objects", "sum"), ("objects", "count"), ("bytes", "sum"),
        ("license", "distinct"), ("doi", "distinct"), ("modality", "distinct"), ("source", "distinct"),
        ("source_version", "distinct"),
    ]  # fmt: skip
    rows = lock.group_by(["recipe_source", "collection"]).aggregate(wanted).to_pylist()
    uncounted = lock.filter(lock["objects"].is_null()).group_by(["recipe_source", "collection"])
    bytes_of = {
        (row["recipe_source"], row["collection"]): row["bytes_sum"]
        for row in uncounted.aggregate([("bytes", "sum")]).to_pylist()
    }
    found = {(row["recipe_source"], row["collection"]): row for row in rows}
    return {key: row | {"uncounted_bytes": bytes_of.get(key) or 0} for key, row in sorted(found.items())}


def _counted(
    source: AnySource, sample: SampleSettings, keyer: Keyer, summary: Mapping[str, Any]
) -> tuple[Count, list[str]]:
    """What is planned of a collection, and what there is to say of it."""
    if isinstance(source, NihSettings):
        return count_xrays(source, sample, keyer, summary["series_count"], summary["bytes_sum"] or 0)
    uncounted, notes = summary["series_count"] - summary["objects_count"], []
    if isinstance(source, TciaSettings) and summary["collection"] == UNKNOWN_COLLECTION:
        notes.append(
            f"{UNKNOWN_COLLECTION}: {summary['series_count']:,} series of the manifest that the archive does not list "
            "(any more); what it does not serve becomes a reject"
        )
    return Count(_patients(summary), summary["objects_sum"], uncounted, summary["uncounted_bytes"]), notes


def _pinned(
    name: str, summary: Mapping[str, Any], count: Count, drift: Drift | None, assumed: Assumptions
) -> CollectionPlan:
    size = summary["bytes_sum"]
    return CollectionPlan(
        collection=name,
        name=collections()[name].name if name in collections() else name,
        source=_one(summary["source_distinct"]) or "",
        source_version=_span(summary["source_version_distinct"]),
        patients=count.patients,
        series=summary["series_count"],
        slices=count.slices,
        uncounted=count.uncounted,
        gb=None if size is None else size / 1e9,
        estimated=estimate(count.slices or 0, size or 0, count.uncounted_bytes, assumed),
        license=_one(summary["license_distinct"]),
        doi=_one(summary["doi_distinct"]),
        modalities=_modalities(summary),
        drift=drift,
    )


def _drift(
    name: str, summary: Mapping[str, Any], everything: Mapping[tuple[int, str], Mapping[str, Any]]
) -> Drift | None:
    paper = collections().get(name)
    if paper is None:
        return None
    rows = (name, *paper.shares_row_with)
    counts = [_patients(row) for (_, other), row in everything.items() if other in rows]
    planned = set(_modalities(summary))
    listed = set(paper.paper_modalities)
    if "X-Ray" in listed and (planned <= XRAY or not planned):
        listed = set(planned)
    return Drift(
        paper_subjects=paper.paper_subjects,
        patients=None if None in counts else sum(count or 0 for count in counts),
        rows=rows,
        missing=tuple(one for one in paper.paper_modalities if one in listed - planned),
        extra=tuple(one for one in _modalities(summary) if one not in listed),
    )


def _patients(summary: Mapping[str, Any]) -> int | None:
    if _all_xrays(summary):
        return collections()["nih_chest_xray"].patients
    return summary["patient_count_distinct"] or None


def _all_xrays(summary: Mapping[str, Any]) -> bool:
    """Whether these are all archives of the chest X-rays: none of them is counted, but all of them together are."""
    return bool(summary["source_distinct"] == ["nih"] and summary["series_count"] == ARCHIVE_COUNT)


def _modalities(summary: Mapping[str, Any]) -> tuple[str, ...]:
    held = set(summary["modality_distinct"])
    return tuple(one for one in MODALITIES if one in held)


def _one(values: Iterable[str | None]) -> str | None:
    """The value that all rows share, or all of them in one line."""
    return "; ".join(sorted(value for value in values if value)) or None


def _span(values: Iterable[str | None]) -> str | None:
    """The versions of all rows: the first and the last where there are many, as of series that came out one by one."""
    found = sorted({value for value in values if value})
    return f"{found[0]} … {found[-1]}" if len(found) > 2 else _one(found)


def _in_order(planned: Sequence[CollectionPlan]) -> tuple[CollectionPlan, ...]:
    """In the order of the paper's table, others after it in that of the recipe."""
    places = {name: place for place, name in enumerate(collections())}
    return tuple(sorted(planned, key=lambda one: places.get(one.collection, len(places))))


# ---- folders


def _listed(source: FolderSettings | PydicomSettings) -> tuple[CollectionPlan, list[str]]:
    """A folder, counted and not opened; or what the user has to fetch into it."""
    known = collections().get(source.collection)
    path = source.path if isinstance(source, FolderSettings) else None
    by_hand = isinstance(source, FolderSettings) and source.by_hand
    files, size = _count(path)
    absent = not files
    if absent and not by_hand:
        raise RecipeError(f"{path}: no such folder to read images from, or nothing in it")
    entry = CollectionPlan(
        collection=source.collection,
        name=known.name if known else source.collection,
        source="by hand" if absent else source.kind,
        source_version=getattr(source, "version", None),
        files=None if absent else files,
        gb=None if absent else size / 1e9,
        license=source.license,
        doi=plain_doi(source.doi),
        modalities=(source.modality,) if isinstance(source, FolderSettings) and source.modality else (),
    )
    return entry, [_by_hand(entry, known, path or "")] if absent else []


def _by_hand(entry: CollectionPlan, known: Collection | None, path: str) -> str:
    where = f"from https://doi.org/{entry.doi} " if entry.doi else ""
    package = known is not None and known.source == "tcia_package"
    why = " (an Aspera package: needs its browser plug-in or IBM's ascli)" if package else ""
    return f"{entry.collection}: by hand: fetch {entry.name} {where}into the folder {path}{why}; it is left out until it is there"


def _count(path: str | None) -> tuple[int, int]:
    """Files in a folder or below a prefix, and their bytes; zero of both where it is not there."""
    if path is None:
        from lumid.pipeline.sources.folder import pydicom_files

        path = str(pydicom_files())
    sizes = list(_sizes_in_store(path) if "://" in path else _sizes_in_folder(path))
    return len(sizes), sum(sizes)


def _sizes_in_folder(path: str) -> Iterable[int]:
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                yield (Path(folder) / name).stat().st_size
            except OSError:  # gone, or a link to nothing: the build says so
                yield 0


def _sizes_in_store(url: str) -> Iterable[int]:
    from obstore.exceptions import BaseError

    from lumid.catalog.stores import open_store

    try:
        for found in open_store(url).list():
            yield from (int(one["size"]) for one in found)
    except BaseError:  # its text can hold what the environment holds
        raise RecipeError(f"{url}: cannot be listed; check the address, the network and the credentials") from None


# ---- notes


def _version_note(source: IdcSettings, index: Path | None) -> str:
    from lumid.pipeline.idc_index import index_folder, newest_version, planned_version, version_date

    folder = index or index_folder()
    version, newest = planned_version(source, folder), newest_version(folder)
    date = version_date(folder, version)
    newer = "the newest that the installed index knows" if version == newest else f"the installed index knows {newest}"
    return f"IDC version {version}{f' of {date}' if date else ''}, {newer}"


def _remarks(recipe: Recipe, whole: pa.Table, lock: pa.Table, planned: Sequence[CollectionPlan]) -> list[str]:
    notes = []
    if whole.num_rows and (recipe.sample.fraction < 1 or recipe.sample.max_gb is not None):
        drawn, every = (sum(source != "nih" for source in table["source"].to_pylist()) for table in (lock, whole))
        if lock.num_rows == 0:
            notes.append("the sample is empty: no patient is drawn, or the first one drawn is larger than max_gb")
        elif every:
            notes.append(f"a sample: {drawn:,} of {every:,} series, whole patients")
    uncounted = sum(one.uncounted for one in planned if one.source != "nih")
    if uncounted:
        notes.append(f"not in the number of slices: {uncounted:,} series whose objects no index counts")
    folders = [one.collection for one in planned if one.files is not None]
    if folders:
        notes.append(f"{', '.join(folders)}: counted as files; slices are known when they are read")
    return notes
