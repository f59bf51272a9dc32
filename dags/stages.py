"""The stages of a build on a Dask cluster, and what a worker does in each: scan and plan, ingest, pack."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from distributed import Client

from lumid import __version__
from lumid.catalog.errors import AccountingError, LumidError, UsageError
from lumid.catalog.fingerprint import catalog_hash
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, write_table
from lumid.catalog.lock import LOCK
from lumid.catalog.schema import FORMAT_VERSION
from lumid.dags.progress import BuildProgress
from lumid.dags.status import write_state
from lumid.dags.tasks import Failure, Task, guarded, run_tasks
from lumid.dags.versions import PIXEL_LIBRARIES, versions
from lumid.pipeline.batches import Batch, make_batches
from lumid.pipeline.ingest import ingest
from lumid.pipeline.lock import lock_hash, lock_table, series_of
from lumid.pipeline.pack import (
    CatalogChunk,
    CatalogFile,
    PartAccount,
    PartFiles,
    ShardPlan,
    build_index,
    pack_shard,
    plan_catalog,
    plan_shards,
    read_account,
    write_catalog_chunk,
    write_part,
    write_rejects,
)
from lumid.pipeline.plan import pin
from lumid.pipeline.recipe import FolderSettings, PydicomSettings, Recipe, make_keyer
from lumid.pipeline.scan import Scanned, group_series, scan
from lumid.pipeline.sources import ListedSource, Listing, ObjectRef, open_listed, open_source

SCAN_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built: batches in order, and the lock that pins them."""

    batches: list[Batch] = field(repr=False)
    lock: pa.Table = field(repr=False)


# ---- scan and plan


def plan_build(
    client: Client,
    recipe: Recipe,
    sources: dict[int, ListedSource],
    listings: dict[int, Listing],
    pinned: pa.Table | None,
    layout: Layout,
    progress: BuildProgress,
) -> Plan:
    """What archives hold is pinned, by the lock given or now; every header of a folder is read; both make the batches.

    What an earlier run of the same build has pinned in ``work/lock.parquet`` stays pinned. Raises
    :class:`LumidError` when a folder is not what the lock says, or not what an unfinished build here began with.
    """
    if pinned is None:
        pinned = _pinned_before(layout) or pin(recipe)
    batches: list[Batch] = []
    locks = [LOCK.empty_table()]
    progress.begin_scan(sum(len(listing) for listing in listings.values()))
    for number in range(len(recipe.sources)):
        if number in listings:
            scanned = _scan(client, recipe, number, listings[number], layout, progress)
            series = group_series(scanned, sources[number].provenance)
            locks.append(_checked(lock_table(series, number), pinned, number))
        else:
            series = series_of(pinned, number)
            locks.append(pinned.filter(pc.equal(pinned["recipe_source"], number)))
        batches += make_batches(series, number, recipe.hash(), recipe.shards.batch_slices)
    lock = pa.concat_tables(locks)
    _check_unfinished(layout, {batch.id for batch in batches})
    write_table(layout.work / "lock.parquet", lock)
    write_state(
        layout,
        phase="ingest",
        batches=len(batches),
        batch_ids=[batch.id for batch in batches],
        objects=sum(batch.objects for batch in batches),
        bytes=sum(batch.bytes for batch in batches),
    )
    return Plan(batches, lock)


def _pinned_before(layout: Layout) -> pa.Table | None:
    """What an earlier run pinned of the archives: an index that was updated since must not change a build half-way."""
    path = layout.work / "lock.parquet"
    if not path.is_file():
        return None
    lock = pq.read_table(path).cast(LOCK)
    return lock.filter(pc.is_valid(lock["location"]))


def _checked(lock: pa.Table, pinned: pa.Table, number: int) -> pa.Table:
    wanted = pinned.filter(pc.equal(pinned["recipe_source"], number))
    if wanted.num_rows and lock_hash(wanted) != lock_hash(lock):
        raise LumidError(
            f"sources.{number}: the folder does not hold what the lock pins ({lock.num_rows} series now, "
            f"{wanted.num_rows} then); plan again with: lumid plan RECIPE --out LOCK"
        )
    return lock


def _check_unfinished(layout: Layout, batches: set[str]) -> None:
    """Refuse to go on with a build of other files: what it has finished would be thrown away unseen."""
    finished = {
        path.name.removesuffix(".parquet") for path in layout.parts.glob("*.parquet") if "rejects" not in path.name
    }
    if finished and not finished & batches:
        raise UsageError(
            f"{layout.root}: holds an unfinished build of other files, or of files that have changed since; "
            "choose another --out, or remove it"
        )


def _scan(
    client: Client, recipe: Recipe, number: int, listing: Listing, layout: Layout, progress: BuildProgress
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
    for _, found in run_tasks(client, tasks):
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


def _read_scan(path: Path) -> dict[tuple[str, int, int], tuple[str, str, int]]:
    if not path.is_file():
        return {}
    rows = pq.read_table(path).to_pylist()
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


# ---- parts


def ingest_batches(
    client: Client, recipe: Recipe, plan: Plan, layout: Layout, progress: BuildProgress
) -> list[PartAccount]:
    """Every batch has a part when this returns; batches whose part exists are done already."""
    accounts: dict[str, PartAccount] = {}
    missing: list[Batch] = []
    for batch in plan.batches:
        files = PartFiles(layout.parts, batch.id)
        if files.rows.is_file():
            accounts[batch.id] = read_account(files)
        else:
            missing.append(batch)
    progress.begin_ingest(plan.batches, [accounts[batch.id] for batch in plan.batches if batch.id in accounts])
    tasks = [(batch.id, ingest_task, (recipe, batch, layout.parts, layout.unpacked)) for batch in missing]
    batch_of = {batch.id: batch for batch in missing}
    for name, account in run_tasks(
        client, tasks, on_killed=lambda name: _isolate(client, recipe, batch_of[name], layout)
    ):
        accounts[name] = account
        progress.ingested(batch_of[name], account)
    return [accounts[batch.id] for batch in plan.batches]


def ingest_task(
    recipe: Recipe, batch: Batch, parts: Path, scratch: Path, poisoned: frozenset[str] = frozenset()
) -> PartAccount | Failure:
    """A batch, on a worker: ingested, and written as a part."""

    def work() -> PartAccount:
        keyer = make_keyer(recipe.deid)
        started = time.monotonic()
        source = open_source(recipe, batch.source, keyer, scratch)
        result = ingest(batch, source, recipe, keyer, poisoned)
        return write_part(PartFiles(parts, batch.id), result, time.monotonic() - started)

    return guarded(work, parts)


def try_task(recipe: Recipe, batch: Batch, scratch: Path, poisoned: frozenset[str]) -> int | Failure:
    """Ingest a batch and forget the result: finds out whether the process survives."""

    def work() -> int:
        keyer = make_keyer(recipe.deid)
        return ingest(batch, open_source(recipe, batch.source, keyer, scratch), recipe, keyer, poisoned).planned

    return guarded(work)


def _isolate(client: Client, recipe: Recipe, batch: Batch, layout: Layout) -> PartAccount:
    """A batch that keeps killing its worker: find the objects that do it, reject those, ingest the rest."""
    names = _object_names(recipe, batch, layout)
    everything = frozenset(names)
    poisoned: set[str] = set()
    pending = [names]
    while pending:
        group = pending.pop()
        if not _survives(client, recipe, batch, everything - frozenset(group), layout):
            if len(group) == 1:
                poisoned.add(group[0])
            else:
                pending += [group[: len(group) // 2], group[len(group) // 2 :]]
    arguments = (recipe, batch, layout.parts, layout.unpacked, frozenset(poisoned))
    ((_, account),) = run_tasks(client, [(f"{batch.id}-without-{len(poisoned)}", ingest_task, arguments)])
    assert isinstance(account, PartAccount)
    return account


def _object_names(recipe: Recipe, batch: Batch, layout: Layout) -> list[str]:
    """The source ids of a batch, found out without looking into any object."""
    source = open_source(recipe, batch.source, make_keyer(recipe.deid), layout.unpacked)
    try:
        return [blob.ref.source_id for series in batch.series for blob in source.blobs(series)]
    finally:
        source.close()


def _survives(client: Client, recipe: Recipe, batch: Batch, without: frozenset[str], layout: Layout) -> bool:
    """Whether a batch can be ingested when the objects ``without`` are left unread."""
    name = f"{batch.id}-trial-{hashlib.sha256(' '.join(sorted(without)).encode()).hexdigest()[:16]}"
    killed: list[str] = []
    for _ in run_tasks(client, [(name, try_task, (recipe, batch, layout.unpacked, without))], on_killed=killed.append):
        pass
    return not killed


# ---- pack


def pack(
    client: Client, recipe: Recipe, plan: Plan, layout: Layout, progress: BuildProgress, accounts: list[PartAccount]
) -> Manifest:
    """Sort all parts by key into shards, catalog and rejects under ``work/``; the manifest that goes with them.

    Raises :class:`AccountingError` when planned frames are not kept plus rejected ones.
    """
    write_state(layout, phase="pack")
    parts = [PartFiles(layout.parts, batch.id) for batch in plan.batches]
    index, duplicates = build_index(parts)
    shard_plans = plan_shards(index, recipe.shards.size_mb)
    chunks = plan_catalog(shard_plans)
    packed = layout.work / f"packed-{lock_hash(plan.lock)[:16]}"
    progress.begin_pack(len(shard_plans) + len(chunks))
    tasks: list[Task] = [(f"pack-{one.name}", pack_task, (one, parts, packed / "shards")) for one in shard_plans]
    tasks += [(f"catalog-{one.number}", catalog_task, (one, parts, packed / "catalog")) for one in chunks]
    shards: list[Shard] = []
    files: dict[str, CatalogFile] = {}
    for name, done in run_tasks(client, tasks):
        if isinstance(done, Shard):
            shards.append(done)
        else:
            files[name] = done
        progress.packed()
    rejects = write_rejects(packed / "rejects" / "part-00000.parquet", parts, duplicates)
    write_table(packed / "lock.parquet", plan.lock)

    planned = sum(account.planned for account in accounts)
    objects = sum(account.objects for account in accounts)
    rejected = sum(rejects["frames"].to_pylist())
    counts = Counts(objects=objects, planned=planned, kept=len(index), rejected=rejected)
    pinned = plan.lock["objects"]
    unaccounted = pinned.null_count == 0 and objects != (pc.sum(pinned).as_py() or 0)
    if counts.planned != counts.kept + counts.rejected or unaccounted:
        raise AccountingError(
            f"{planned} frames planned, {counts.kept} kept, {rejected} rejected: they do not add up; please report this line"
        )
    reasons: Counter[str] = Counter()
    for code, frames in zip(rejects["code"].to_pylist(), rejects["frames"].to_pylist(), strict=True):
        reasons[code] += frames
    modalities: Counter[str] = Counter()
    for file in files.values():
        modalities.update(dict(file.modalities))
    return Manifest(
        name=recipe.name,
        format_version=FORMAT_VERSION,
        lumid_version=__version__,
        recipe=recipe.canonical(),
        recipe_hash=recipe.hash(),
        lock_hash=lock_hash(plan.lock),
        catalog_hash=catalog_hash([files[f"catalog-{one.number}"].sha256 for one in chunks]),
        libraries=versions(PIXEL_LIBRARIES),
        counts=counts,
        modalities=dict(sorted(modalities.items())),
        rejects=dict(sorted(reasons.items())),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        build={"packed": packed.name},
    )


def pack_task(plan: ShardPlan, parts: Sequence[PartFiles], folder: Path) -> Shard | Failure:
    """A shard, on a worker."""
    return guarded(lambda: pack_shard(plan, parts, folder), folder)


def catalog_task(chunk: CatalogChunk, parts: Sequence[PartFiles], folder: Path) -> CatalogFile | Failure:
    """A chunk of the catalog, on a worker."""
    return guarded(lambda: write_catalog_chunk(chunk, parts, folder), folder)
