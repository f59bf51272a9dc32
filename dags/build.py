"""The build: list → scan → batches → parts → pack → commit. The same bytes on any cluster, from any point of resuming."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client

from lumid import __version__
from lumid.catalog.cite import write_citations
from lumid.catalog.errors import AccountingError, DatasetError, LumidError, UsageError
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, read_manifest, storage_errors, write_table, write_text
from lumid.catalog.report import render_report
from lumid.catalog.schema import FORMAT_VERSION
from lumid.dags.cluster import ClusterSettings, open_cluster, slots
from lumid.dags.progress import BuildProgress
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
from lumid.pipeline.plan import Batch, Scanned, group_series, listing_hash, lock_hash, lock_table, make_batches, scan
from lumid.pipeline.recipe import Recipe, make_keyer
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ObjectRef, Source, open_source

SCAN_CHUNK = 1000
Listing = list[ObjectRef | tuple[ObjectRef, Reject]]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished data set, and whether this run did anything for it."""

    manifest: Manifest
    already_finished: bool

    def too_many_rejects(self, limit: float) -> bool:
        """Whether more than ``limit`` of the planned frames were rejected."""
        counts = self.manifest.counts
        return counts.planned > 0 and counts.rejected / counts.planned > limit


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built: batches in order, and the lock that pins them."""

    batches: list[Batch] = field(repr=False)
    lock: pa.Table = field(repr=False)


def build(recipe: Recipe, out: Path, cluster: ClusterSettings, progress: BuildProgress) -> BuildResult:
    """Build a data set into ``out``, or go on with one that was interrupted, or say that it is finished.

    Raises :class:`LumidError` with one line for everything the user can mend.
    """
    layout = Layout(out)
    with storage_errors(out):
        finished = _finished(layout, recipe)
        sources = _open_sources(recipe, finished)
        listings = [source.objects() for source in sources]
        if finished is not None:
            _check_current(finished, listings, out)
            return BuildResult(finished, already_finished=True)
        _check_out(layout, recipe)
        started = time.monotonic()
        with _claimed(layout, recipe), progress, open_cluster(cluster, layout.work / "scratch") as client:
            plan = _plan(client, recipe, sources, listings, layout, progress)
            accounts = _ingest(client, recipe, plan, layout, progress)
            workers = slots(client)
            manifest = _pack(client, recipe, plan, layout, progress, accounts)
            seconds = time.monotonic() - started
            manifest = _with_build_facts(manifest, listings, accounts, seconds, workers)
            _commit(layout, manifest, progress)
    return BuildResult(manifest, already_finished=False)


def _open_sources(recipe: Recipe, finished: Manifest | None) -> list[Source]:
    keyer = make_keyer(recipe.deid)
    try:
        return [open_source(settings, keyer) for settings in recipe.sources]
    except LumidError:
        if finished is not None:  # a finished data set does not need its source any more
            return []
        raise


def _finished(layout: Layout, recipe: Recipe) -> Manifest | None:
    """The manifest, when ``out`` holds this recipe's data set finished; refuses another recipe's."""
    if not layout.manifest.exists():
        return None
    manifest = read_manifest(layout.root)
    if manifest.recipe_hash != recipe.hash():
        raise UsageError(
            f"{layout.root}: holds the finished data set '{manifest.name}' of another recipe; choose another --out"
        )
    return manifest


def _check_current(manifest: Manifest, listings: list[Listing], out: Path) -> None:
    if not listings:
        return
    if manifest.build.get("listing_hash") != _listings_hash(listings):
        objects = sum(len(listing) for listing in listings)
        raise DatasetError(
            f"{out}: finished, but its source has changed since ({manifest.counts.objects} objects then, {objects} now); "
            "build into another --out, or remove this one"
        )


def _listings_hash(listings: list[Listing]) -> str:
    return listing_hash([item for listing in listings for item in listing])


def _check_out(layout: Layout, recipe: Recipe) -> None:
    """``out`` must be new, empty, or hold an unfinished build of the same recipe."""
    root = layout.root
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: is a file; --out must be a folder")
    if layout.state.is_file():
        try:
            state = json.loads(layout.state.read_text("utf-8"))
        except ValueError:
            state = {}
        if state.get("recipe_hash") != recipe.hash():
            raise UsageError(f"{root}: holds an unfinished build of another recipe; choose another --out, or remove it")
    elif root.is_dir() and any(path != layout.work for path in root.iterdir()):
        raise UsageError(f"{root}: is not empty and holds no lumid data set; choose another --out")


@contextmanager
def _claimed(layout: Layout, recipe: Recipe) -> Iterator[None]:
    """The out folder for this process alone; what a killed process left half-written is swept away."""
    layout.parts.mkdir(parents=True, exist_ok=True)
    with (layout.work / "running").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LumidError(f"{layout.root}: another lumid is building here; see `lumid status`") from None
        for leftover in layout.work.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not layout.state.is_file():
            write_state(layout, recipe_name=recipe.name, recipe_hash=recipe.hash(), phase="scan", batches=0)
        yield


def write_state(layout: Layout, **facts: Any) -> None:
    """Update what `lumid status` reads."""
    state = json.loads(layout.state.read_text("utf-8")) if layout.state.is_file() else {"started": time.time()}
    write_text(layout.state, json.dumps(state | facts) + "\n")


# ---- scan and plan


def _plan(
    client: Client,
    recipe: Recipe,
    sources: list[Source],
    listings: list[Listing],
    layout: Layout,
    progress: BuildProgress,
) -> Plan:
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


def _ingest(client: Client, recipe: Recipe, plan: Plan, layout: Layout, progress: BuildProgress) -> list[PartAccount]:
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


# ---- pack and commit


def _pack(
    client: Client, recipe: Recipe, plan: Plan, layout: Layout, progress: BuildProgress, accounts: list[PartAccount]
) -> Manifest:
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


def _with_build_facts(
    manifest: Manifest, listings: list[Listing], accounts: list[PartAccount], seconds: float, workers: int
) -> Manifest:
    source_bytes = sum(account.source_bytes for account in accounts)
    facts = {
        "listing_hash": _listings_hash(listings),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
        "workers": workers,
        "ingest_cpu_seconds": round(sum(account.seconds for account in accounts), 2),
        "source_mb": round(source_bytes / 1e6, 3),
        "slices_per_second": round(manifest.counts.planned / seconds, 1),
        "mb_per_second": round(source_bytes / 1e6 / seconds, 2),
        "packed": manifest.build["packed"],
    }
    return replace(manifest, build=facts)


def _commit(layout: Layout, manifest: Manifest, progress: BuildProgress) -> None:
    """Move everything into place, dataset.json last. Interrupted anywhere, the next run does the rest."""
    packed = layout.work / str(manifest.build.pop("packed"))
    for receipt in (packed / "shards").glob("*.json"):
        receipt.unlink()
    for name in ("shards", "catalog", "rejects", "lock.parquet"):
        source, target = packed / name, layout.root / name
        if not source.exists():
            source.mkdir(parents=True)
        if target.is_dir():
            shutil.rmtree(target)
        source.replace(target)
    write_citations(layout.root, manifest)
    write_text(layout.report, render_report(layout.root, manifest))
    write_text(layout.manifest, manifest.to_json())
    shutil.rmtree(layout.work, ignore_errors=True)
    progress.done()
