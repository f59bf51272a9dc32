"""The stages of a build on a Dask cluster, and what a worker does in each: scan and plan, ingest, pack."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client

from lumid import __version__
from lumid.catalog.errors import AccountingError
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, write_table
from lumid.catalog.schema import FORMAT_VERSION
from lumid.dags.progress import BuildProgress
from lumid.dags.status import write_state
from lumid.dags.tasks import Failure, Task, guarded, run_tasks
from lumid.dags.versions import PIXEL_LIBRARIES, versions
from lumid.pipeline.ingest import ingest
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
from lumid.pipeline.plan import Batch, Scanned, group_series, lock_hash, lock_table, make_batches, scan
from lumid.pipeline.recipe import Recipe, make_keyer
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ObjectRef, Source, open_source

SCAN_CHUNK = 1000
Listing = list[ObjectRef | tuple[ObjectRef, Reject]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built: batches in order, and the lock that pins them."""

    batches: list[Batch] = field(repr=False)
    lock: pa.Table = field(repr=False)


# ---- scan and plan


def plan_build(
    client: Client,
    recipe: Recipe,
    sources: list[Source],
    listings: list[Listing],
    layout: Layout,
    progress: BuildProgress,
) -> Plan:
    """Read every object's header and make the batches; pins what there is in ``work/lock.parquet``."""
    batches: list[Batch] = []
    locks = []
    progress.begin_scan(sum(len(listing) for listing in listings))
    for number, (source, listing) in enumerate(zip(sources, listings, strict=True)):
        scanned = _scan(client, recipe, number, listing, layout, progress)
        series = group_series(scanned)
        batches += make_batches(series, number, recipe.hash(), recipe.shards.batch_slices)
        locks.append(lock_table(series, source.provenance))
    lock = pa.concat_tables(locks)
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
    tasks = [(f"scan-{number}-{begin}", scan_task, (recipe, number, chunk)) for begin, chunk in enumerate(chunks)]
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


def scan_task(recipe: Recipe, number: int, listing: Listing) -> list[Scanned] | Failure:
    """A chunk of a scan, on a worker."""

    def work() -> list[Scanned]:
        keyer = make_keyer(recipe.deid)
        return scan(open_source(recipe.sources[number], keyer), listing, keyer, recipe.deid.policy)

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
    tasks = [(batch.id, ingest_task, (recipe, batch, layout.parts)) for batch in missing]
    batch_of = {batch.id: batch for batch in missing}
    for name, account in run_tasks(
        client, tasks, on_killed=lambda name: _isolate(client, recipe, batch_of[name], layout)
    ):
        accounts[name] = account
        progress.ingested(batch_of[name], account)
    return [accounts[batch.id] for batch in plan.batches]


def ingest_task(
    recipe: Recipe, batch: Batch, parts: Path, poisoned: frozenset[str] = frozenset()
) -> PartAccount | Failure:
    """A batch, on a worker: ingested, and written as a part."""

    def work() -> PartAccount:
        keyer = make_keyer(recipe.deid)
        started = time.monotonic()
        result = ingest(batch, open_source(recipe.sources[batch.source], keyer), recipe, keyer, poisoned)
        return write_part(PartFiles(parts, batch.id), result, time.monotonic() - started)

    return guarded(work, parts)


def try_task(recipe: Recipe, batch: Batch) -> int | Failure:
    """Ingest a batch and forget the result: finds out whether the process survives."""

    def work() -> int:
        keyer = make_keyer(recipe.deid)
        return ingest(batch, open_source(recipe.sources[batch.source], keyer), recipe, keyer).planned

    return guarded(work)


def _isolate(client: Client, recipe: Recipe, batch: Batch, layout: Layout) -> PartAccount:
    """A batch that keeps killing its worker: find the objects that do it, reject those, ingest the rest."""
    poisoned: set[str] = set()
    pending = [[item for series in batch.series for item in series.objects]]
    while pending:
        group = pending.pop()
        if not _survives(client, recipe, batch, group):
            if len(group) == 1:
                poisoned.add(group[0].ref.source_id)
            else:
                pending += [group[: len(group) // 2], group[len(group) // 2 :]]
    task = (f"{batch.id}-without-{len(poisoned)}", ingest_task, (recipe, batch, layout.parts, frozenset(poisoned)))
    ((_, account),) = run_tasks(client, [task])
    assert isinstance(account, PartAccount)
    return account


def _survives(client: Client, recipe: Recipe, batch: Batch, objects: list[Scanned]) -> bool:
    trial = Batch(f"{batch.id}-trial", batch.source, tuple(group_series(objects)))
    name = f"{batch.id}-trial-{objects[0].ref.source_id}-{len(objects)}"
    killed: list[str] = []

    def note(task: str) -> None:
        killed.append(task)

    for _ in run_tasks(client, [(name, try_task, (recipe, trial))], on_killed=note):
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
    if counts.planned != counts.kept + counts.rejected or objects != sum(plan.lock["objects"].to_pylist()):
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
        catalog_hash=_combined_hash([files[name].sha256 for name in sorted(files)]),
        libraries=versions(PIXEL_LIBRARIES),
        counts=counts,
        modalities=dict(sorted(modalities.items())),
        rejects=dict(sorted(reasons.items())),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        build={"packed": packed.name},
    )


def _combined_hash(hashes: list[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def pack_task(plan: ShardPlan, parts: Sequence[PartFiles], folder: Path) -> Shard | Failure:
    """A shard, on a worker."""
    return guarded(lambda: pack_shard(plan, parts, folder), folder)


def catalog_task(chunk: CatalogChunk, parts: Sequence[PartFiles], folder: Path) -> CatalogFile | Failure:
    """A chunk of the catalog, on a worker."""
    return guarded(lambda: write_catalog_chunk(chunk, parts, folder), folder)
