"""The first stage of a build: every folder's headers are scanned, archives are pinned, and both become batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client

from lumid.catalog.errors import LumidError, RecipeError, UsageError
from lumid.catalog.layout import Layout, write_table
from lumid.catalog.lock import LOCK
from lumid.catalog.paths import AnyPath, read_parquet, sizes
from lumid.dags.progress import BuildProgress
from lumid.dags.state import read_state, write_state
from lumid.dags.tasks import Failure, guarded, run_tasks
from lumid.pipeline.batches import MOST_FRAMES, Batch, make_batches, usual_frames
from lumid.pipeline.lock import lock_hash, lock_table, series_of
from lumid.pipeline.plan import pin
from lumid.pipeline.recipe import FolderSettings, PydicomSettings, Recipe, make_keyer
from lumid.pipeline.reject import Reject
from lumid.pipeline.sample import cap_listed
from lumid.pipeline.scan import Scanned, group_series, scan
from lumid.pipeline.sources import ListedSource, Listing, ObjectRef, Series, open_listed

SCAN_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a data set is made from: the lock, and the series of folders as they were found, by number of the source."""

    lock: pa.Table = field(repr=False)
    listed: dict[int, list[Series]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built: batches in order, and the lock that pins them; they need not be all that it pins.

    ``frames``: by source, of how many frames its batches are.
    """

    batches: list[Batch] = field(repr=False)
    lock: pa.Table = field(repr=False)
    frames: Mapping[int, int]


def pin_series(
    client: Client,
    recipe: Recipe,
    sources: dict[int, ListedSource],
    listings: dict[int, Listing],
    pinned: pa.Table | None,
    layout: Layout[AnyPath],
    progress: BuildProgress,
) -> Pinned:
    """What archives hold is pinned, by the lock given or now; every header of a folder is read.

    What an earlier run of the same build has pinned in ``work/lock.parquet`` stays pinned. Raises
    :class:`LumidError` when a folder is not what the lock says, or there is nothing at all.
    """
    if pinned is None:
        pinned = pinned_before(layout) or pin(recipe)
    series: dict[int, list[Series]] = {}
    locks = [LOCK.empty_table()]
    progress.begin_scan(sum(len(listing) for listing in listings.values()))
    for number in range(len(recipe.sources)):
        if number in listings:
            scanned = _scan(client, recipe, number, listings[number], layout, progress)
            series[number] = _grouped(recipe, scanned, sources[number])
            locks.append(_checked(lock_table(series[number], number), pinned, number))
        else:
            locks.append(pinned.filter(pc.equal(pinned["recipe_source"], number)))
    lock = pa.concat_tables(locks)
    if lock.num_rows == 0:  # not a data set of nothing, which whoever runs this every night would not notice
        raise RecipeError(
            f"recipe '{recipe.name}' selects no series, and no folder that it needs is there; lumid plan says what is missing"
        )
    return Pinned(lock, series)


def plan_build(recipe: Recipe, pinned: Pinned, layout: Layout[AnyPath], taken: frozenset[int] = frozenset()) -> Plan:
    """The batches of all series but those that are ``taken`` from a base, as rows of the lock.

    Raises :class:`LumidError` when this is not what an unfinished build here began with.
    """
    rest = frozenset(range(pinned.lock.num_rows)) - taken if taken else None
    plan = _plan(recipe, pinned.lock, pinned.listed, rest, layout)
    _check_unfinished(layout, {batch.id for batch in plan.batches})
    _begin(layout, plan)
    return plan


def plan_again(
    client: Client,
    recipe: Recipe,
    sources: dict[int, ListedSource],
    listings: dict[int, Listing],
    lock: pa.Table,
    rows: frozenset[int],
    layout: Layout[AnyPath],
    progress: BuildProgress,
) -> Plan:
    """Only some rows of a finished data set's lock; a folder is looked through only when it has to do with them.

    Raises :class:`LumidError` when a folder is not what it was.
    """
    wanted = set(lock.take(pa.array(sorted(rows), pa.int64()))["recipe_source"].to_pylist())
    series: dict[int, list[Series]] = {}
    progress.begin_scan(sum(len(listing) for number, listing in listings.items() if number in wanted))
    for number in sorted(wanted & listings.keys()):
        scanned = _scan(client, recipe, number, listings[number], layout, progress)
        series[number] = _grouped(recipe, scanned, sources[number])
        _checked(lock_table(series[number], number), lock, number)
    plan = _plan(recipe, lock, series, rows, layout)
    _begin(layout, plan)
    return plan


def _grouped(recipe: Recipe, scanned: list[Scanned], source: ListedSource) -> list[Series]:
    """A folder's series, with a reason for those that are above the recipe's cap."""
    return cap_listed(group_series(scanned, source.provenance), recipe.select.max_series, make_keyer(recipe.deid))


def _plan(
    recipe: Recipe,
    lock: pa.Table,
    listed: dict[int, list[Series]],
    only: frozenset[int] | None,
    layout: Layout[AnyPath],
) -> Plan:
    """The lock's series in batches, source by source; of listed ones as they were found; ``only`` some rows of the lock.

    A build that goes on divides the work as it did when it began: what it has finished would be none of it otherwise.
    """
    batches: list[Batch] = []
    frames = _frames_before(layout, recipe)
    for number in range(len(recipe.sources)):
        if number in listed:
            rows = pc.indices_nonzero(pc.equal(lock["recipe_source"], number)).to_pylist()
            series = [replace(one, lock_row=row) for one, row in zip(listed[number], rows, strict=True)]
        else:
            series = series_of(lock, number)
        wanted = [one for one in series if only is None or one.lock_row in only]
        usual = recipe.shards.batch_slices or usual_frames(sum(one.frames for one in wanted))
        batches += make_batches(wanted, number, recipe.hash(), frames.setdefault(number, usual))
    return Plan(batches, lock, frames)


def _frames_before(layout: Layout[AnyPath], recipe: Recipe) -> dict[int, int]:
    """Of how many frames the batches of the unfinished build here are, by source; nothing where none has begun."""
    state = read_state(layout) if layout.state.is_file() else {}
    if "batch_ids" in state and "batch_frames" not in state:  # begun by a lumid that did not write it down
        return dict.fromkeys(range(len(recipe.sources)), recipe.shards.batch_slices or MOST_FRAMES)
    return {int(number): frames for number, frames in state.get("batch_frames", {}).items()}


def _begin(layout: Layout[AnyPath], plan: Plan) -> None:
    write_table(layout.work / "lock.parquet", plan.lock)
    write_state(
        layout,
        phase="ingest",
        batches=len(plan.batches),
        batch_ids=[batch.id for batch in plan.batches],
        batch_series=[len(batch.series) for batch in plan.batches],
        batch_objects=[batch.objects for batch in plan.batches],
        batch_frames=dict(plan.frames),
        objects=sum(batch.objects for batch in plan.batches),
        bytes=sum(batch.bytes for batch in plan.batches),
    )


def pinned_before(layout: Layout[AnyPath]) -> pa.Table | None:
    """What an earlier run pinned of the archives: an index that was updated since must not change a build half-way."""
    path = layout.work / "lock.parquet"
    if not path.is_file():
        return None
    lock = read_parquet(path).cast(LOCK)
    return lock.filter(pc.is_valid(lock["location"]))


def _checked(lock: pa.Table, pinned: pa.Table, number: int) -> pa.Table:
    wanted = pinned.filter(pc.equal(pinned["recipe_source"], number))
    if wanted.num_rows and lock_hash(wanted) != lock_hash(lock):
        raise LumidError(
            f"sources.{number}: the folder does not hold what the lock pins ({lock.num_rows} series now, "
            f"{wanted.num_rows} then); plan again with: lumid plan RECIPE --out LOCK"
        )
    return lock


def _check_unfinished(layout: Layout[AnyPath], batches: set[str]) -> None:
    """Refuse to go on with a build of other files: what it has finished would be thrown away unseen."""
    finished = {
        name.removesuffix(".parquet")
        for name in sizes(layout.parts)
        if name.endswith(".parquet") and "rejects" not in name
    }
    if finished and not finished & batches:
        raise UsageError(
            f"{layout.root}: holds an unfinished build of other files, or of files that have changed since; "
            "choose another --out, or remove it"
        )


def _scan(
    client: Client, recipe: Recipe, number: int, listing: Listing, layout: Layout[AnyPath], progress: BuildProgress
) -> list[Scanned]:
    """Every object's series; what an earlier run has scanned and has not changed since is taken from it."""
    cache = layout.work / f"scan-{number}.parquet"
    known = _read_scan(cache)
    scanned: list[Scanned] = []
    missing: Listing = []
    for item in listing:
        if isinstance(item, ObjectRef) and (item.source_id, item.size_bytes, item.changed_ns) in known:
            series, instance, frames = known[item.source_id, item.size_bytes, item.changed_ns]
            scanned.append(Scanned(item, series, instance, frames))
        else:
            missing.append(item)
    progress.scanned(len(scanned))
    chunks = [missing[begin : begin + SCAN_CHUNK] for begin in range(0, len(missing), SCAN_CHUNK)]
    tasks = [
        (f"scan-{number}-{begin}", scan_task, (recipe, number, chunk, layout.unpacked))
        for begin, chunk in enumerate(chunks)
    ]
    chunk_of = dict(zip((name for name, _, _ in tasks), chunks, strict=True))
    for _, found in run_tasks(
        client,
        tasks,
        on_killed=lambda name: _isolate(client, recipe, number, chunk_of[name], layout, progress),
        watch=progress.tasks,
    ):
        scanned += found
        progress.scanned(len(found))
    keep = [item for item in scanned if item.reject is None]
    write_table(
        cache,
        pa.table(
            {
                "source_id": [item.ref.source_id for item in keep],
                "size": pa.array([item.ref.size_bytes for item in keep], pa.int64()),
                "changed": pa.array([item.ref.changed_ns for item in keep], pa.int64()),
                "series": [item.series for item in keep],
                "instance": [item.instance for item in keep],
                "frames": pa.array([item.frames for item in keep], pa.int64()),
            }
        ),
    )
    return scanned


def _isolate(
    client: Client, recipe: Recipe, number: int, chunk: Listing, layout: Layout[AnyPath], progress: BuildProgress
) -> list[Scanned]:
    """A chunk with objects that keep killing the worker that looks at them: those become rejects, unread."""

    def scanned(items: Listing) -> list[Scanned] | None:
        names = " ".join(item.source_id if isinstance(item, ObjectRef) else item[0].source_id for item in items)
        name = f"scan-{number}-trial-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
        task = name, scan_task, (recipe, number, items, layout.unpacked)
        ((_, found),) = run_tasks(client, [task], on_killed=lambda _: None, watch=progress.tasks)
        return found  # type: ignore[no-any-return]

    whole: list[Scanned] = []
    pending = [chunk]
    while pending:
        group = pending.pop()
        found = scanned(group)
        if found is None and len(group) > 1:
            pending += [group[len(group) // 2 :], group[: len(group) // 2]]
        elif found is None and isinstance(group[0], ObjectRef):
            pending.append([(group[0], Reject("decode", "decoder_crash"))])
        elif found is None:
            raise LumidError("a scan keeps killing its workers: is there enough memory for each? try fewer --workers")
        else:
            whole += found
    return whole


def _read_scan(path: AnyPath) -> dict[tuple[str, int, int], tuple[str, str, int]]:
    if not path.is_file():
        return {}
    rows = read_parquet(path).to_pylist()
    return {
        (row["source_id"], row["size"], row["changed"]): (row["series"], row["instance"], row["frames"]) for row in rows
    }


def _listed_settings(recipe: Recipe, number: int) -> FolderSettings | PydicomSettings:
    settings = recipe.sources[number]
    assert isinstance(settings, FolderSettings | PydicomSettings), "archives are pinned, not scanned"
    return settings


def scan_task(recipe: Recipe, number: int, listing: Listing, scratch: Path) -> list[Scanned] | Failure:
    """A chunk of a scan, on a worker."""

    def work() -> list[Scanned]:
        keyer = make_keyer(recipe.deid)
        return scan(
            open_listed(_listed_settings(recipe, number), recipe, keyer, scratch),
            listing,
            keyer,
            recipe.deid.policy,
            requests=recipe.fetch.requests,
        )

    return guarded(work)
