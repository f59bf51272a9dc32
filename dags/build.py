"""The build: list → scan → batches → parts → pack → commit. The same bytes on any cluster, from any point of resuming."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from distributed import Client

from lumid.catalog.cite import write_citations
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.layout import Layout, Manifest, read_manifest, storage_errors, write_text
from lumid.catalog.report import render_report
from lumid.catalog.stores import CREDENTIALS
from lumid.dags.again import Again, base_parts, lay_base, read_again
from lumid.dags.begin import (
    archives_answer,
    check_fetching,
    claimed,
    nothing_unpacked_left,
    open_listed_sources,
    reads_remotely,
    remove_work,
    unreachable,
)
from lumid.dags.cluster import ClusterSettings, open_cluster
from lumid.dags.ingesting import built_parts, ingest_batches
from lumid.dags.packing import pack
from lumid.dags.planning import pinned_before, plan_again, plan_build
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import lock_hash
from lumid.pipeline.parts import PartFiles, choose, read_account
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.scan import listing_hash
from lumid.pipeline.sources import ListedSource, Listing


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

    Of a finished one, and of the finished batches of one that was interrupted, only those series are built again that
    an archive did not give whole.

    ``lock``: what to build, pinned by a plan of the same recipe. Raises :class:`LumidError` with one line for everything
    the user can mend.
    """
    _check_local(out)
    layout = Layout(out)
    with storage_errors(out), nothing_unpacked_left(layout):
        finished, again = _look(layout, recipe)
        sources = _open_sources(recipe, layout, needed=finished is None or again is not None)
        listings = {number: source.objects() for number, source in sources.items()}
        if finished is None:
            _check_out(layout, recipe)
        else:
            _check_current(finished, listings, lock, out)
            if again is None:
                _clear(layout, recipe)
                return BuildResult(finished, already_finished=True)
        if not archives_answer(recipe):
            if finished is not None:
                return BuildResult(finished, already_finished=True)
            raise unreachable()
        check_fetching(recipe, out, again.lock if again else pinned_before(layout) if lock is None else lock)
        with claimed(layout, recipe):
            finished, again = _look(layout, recipe)  # another build may have ended in the meantime
            if again is not None and lock is not None and lock_hash(lock) != lock_hash(again.lock):
                raise UsageError(f"{out}: holds a data set of another lock; choose another --out")
            if finished is not None and again is None:
                remove_work(layout)
                return BuildResult(finished, already_finished=True)
            cluster = replace(cluster, ahead=reads_remotely(recipe))
            with progress, open_cluster(cluster, layout.work / "scratch") as client:
                return _build(client, recipe, layout, progress, lock, sources, listings, finished, again)


def _build(
    client: Client, recipe: Recipe, layout: Layout, progress: BuildProgress, lock: pa.Table | None,
    sources: dict[int, ListedSource], listings: dict[int, Listing], finished: Manifest | None, again: Again | None,
) -> BuildResult:  # fmt: skip
    """All stages, on a cluster, with the folder claimed."""
    started = time.monotonic()
    if again is None:
        plan = plan_build(client, recipe, sources, listings, lock, layout, progress)
    else:
        plan = plan_again(client, recipe, sources, listings, again.lock, again.rows, layout, progress)
    spent = ingest_batches(client, recipe, plan, layout, progress)
    generations = built_parts(plan, layout)
    if again is None:
        parts = choose(generations)
    else:
        if finished is not None:
            if not _anything_new(generations, again):
                remove_work(layout)
                return BuildResult(finished, already_finished=True)
            lay_base(layout, finished, progress)
        parts = choose([base_parts(layout), *generations], again.redone)
    packed, manifest = pack(client, recipe, plan.lock, layout, progress, parts)
    seconds, workers = time.monotonic() - started, len(client.nthreads())
    manifest = replace(manifest, build=_build_facts(manifest, listings, parts, spent, seconds, workers))
    _commit(layout, packed, manifest, progress)
    return BuildResult(manifest, already_finished=False)


def _clear(layout: Layout, recipe: Recipe) -> None:
    """What a build leaves that was killed when all was done."""
    if layout.work.exists():
        with claimed(layout, recipe):
            remove_work(layout)


def _look(layout: Layout, recipe: Recipe) -> tuple[Manifest | None, Again | None]:
    """The finished data set in the folder, if there is one, and what of it, or of one under way to it, is missing."""
    finished = _finished(layout, recipe)
    return finished, read_again(layout, finished)


def _open_sources(recipe: Recipe, layout: Layout, *, needed: bool) -> dict[int, ListedSource]:
    """The sources that have to be looked through; a finished data set does not need them any more."""
    try:
        return open_listed_sources(recipe, layout.unpacked if needed else None)
    except LumidError:
        if needed:
            raise
        return {}


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


def _check_local(out: Path) -> None:
    """``out`` is a folder: an address would become one of a strange name."""
    if out.parts and out.parts[0].removesuffix(":") in CREDENTIALS and out.parts[0].endswith(":"):
        raise UsageError(
            "--out is a folder of this machine: build into one, then `lumid publish FOLDER URL` copies it to an object store"
        )


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


def _anything_new(generations: list[list[PartFiles]], again: Again) -> bool:
    """Whether of any series less is missing than before."""
    accounts = [read_account(files) for generation in generations for files in generation]
    return any(
        one.unfetched < again.missing[one.lock_row]
        for account in accounts
        for one in account.series
        if one.lock_row in again.missing
    )


def _build_facts(
    manifest: Manifest, listings: dict[int, Listing], parts: Sequence[PartFiles], spent: float, seconds: float, workers: int
) -> dict[str, object]:  # fmt: skip
    source_bytes = sum(read_account(files).source_bytes for files in parts)
    return {
        "listing_hash": _listings_hash(listings),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
        "workers": workers,
        "ingest_cpu_seconds": round(spent, 2),
        "source_mb": round(source_bytes / 1e6, 3),
        "slices_per_second": round(manifest.counts.planned / seconds, 1),
        "mb_per_second": round(source_bytes / 1e6 / seconds, 2),
    }


def _commit(layout: Layout, packed: Path, manifest: Manifest, progress: BuildProgress) -> None:
    """Move everything into place, dataset.json last. Interrupted anywhere, the next run does the rest."""
    layout.manifest.unlink(missing_ok=True)  # from here to the end, this is not the data set that it says
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
    remove_work(layout)
    progress.done()
