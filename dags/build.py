"""The build: list → scan → batches → parts → pack → commit. The same bytes on any cluster, from any point of resuming."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from lumid.catalog.cite import write_citations
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.layout import Layout, Manifest, read_manifest, storage_errors, write_text
from lumid.catalog.report import render_report
from lumid.dags.cluster import ClusterSettings, open_cluster, slots
from lumid.dags.progress import BuildProgress
from lumid.dags.stages import ingest_batches, pack, plan_build
from lumid.dags.status import write_state
from lumid.pipeline.lock import lock_hash
from lumid.pipeline.pack import PartAccount
from lumid.pipeline.recipe import FolderSettings, PydicomSettings, Recipe, make_keyer
from lumid.pipeline.scan import listing_hash
from lumid.pipeline.sources import ListedSource, Listing, open_listed


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished data set, and whether this run did anything for it."""

    manifest: Manifest
    already_finished: bool

    def too_many_rejects(self, limit: float) -> bool:
        """Whether more than ``limit`` of the planned frames were rejected."""
        counts = self.manifest.counts
        return counts.planned > 0 and counts.rejected / counts.planned > limit


def build(
    recipe: Recipe, out: Path, cluster: ClusterSettings, progress: BuildProgress, lock: pa.Table | None = None
) -> BuildResult:
    """Build a data set into ``out``, or go on with one that was interrupted, or say that it is finished.

    ``lock``: what to build, pinned by a plan of the same recipe. Raises :class:`LumidError` with one line for everything
    the user can mend.
    """
    layout = Layout(out)
    with storage_errors(out):
        finished = _finished(layout, recipe)
        sources = _open_listed(recipe, finished, layout)
        listings = {number: source.objects() for number, source in sources.items()}
        if finished is not None:
            _check_current(finished, listings, lock, out)
            return BuildResult(finished, already_finished=True)
        _check_out(layout, recipe)
        started = time.monotonic()
        with _claimed(layout, recipe), progress, open_cluster(cluster, layout.work / "scratch") as client:
            plan = plan_build(client, recipe, sources, listings, lock, layout, progress)
            accounts = ingest_batches(client, recipe, plan, layout, progress)
            workers = slots(client)
            manifest = pack(client, recipe, plan, layout, progress, accounts)
            seconds = time.monotonic() - started
            manifest = _with_build_facts(manifest, listings, accounts, seconds, workers)
            _commit(layout, manifest, progress)
    return BuildResult(manifest, already_finished=False)


def _open_listed(recipe: Recipe, finished: Manifest | None, layout: Layout) -> dict[int, ListedSource]:
    """The sources that have to be looked through, by their number in the recipe."""
    keyer = make_keyer(recipe.deid)
    try:
        return {
            number: open_listed(settings, recipe, keyer, None if finished else layout.unpacked)
            for number, settings in enumerate(recipe.sources)
            if isinstance(settings, FolderSettings | PydicomSettings) and not _awaited(settings)
        }
    except LumidError:
        if finished is not None:  # a finished data set does not need its source any more
            return {}
        raise


def _awaited(settings: FolderSettings | PydicomSettings) -> bool:
    """Whether a folder has to be filled by hand and is not there: a plan says from where; a build leaves it out."""
    if not isinstance(settings, FolderSettings) or not settings.by_hand or "://" in settings.path:
        return False
    return not Path(settings.path).is_dir()


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


def _check_current(manifest: Manifest, listings: dict[int, Listing], lock: pa.Table | None, out: Path) -> None:
    if lock is not None and lock_hash(lock) != manifest.lock_hash:
        raise UsageError(f"{out}: holds the finished data set of another lock; choose another --out")
    if not listings:
        return
    if manifest.build.get("listing_hash") != _listings_hash(listings):
        objects = sum(len(listing) for listing in listings.values())
        raise DatasetError(
            f"{out}: finished, but from other files, or its source has changed since ({manifest.counts.objects} objects "
            f"then, {objects} now); build into another --out, or remove this one"
        )


def _listings_hash(listings: dict[int, Listing]) -> str:
    return listing_hash([item for listing in listings.values() for item in listing])


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


def _with_build_facts(
    manifest: Manifest, listings: dict[int, Listing], accounts: list[PartAccount], seconds: float, workers: int
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
