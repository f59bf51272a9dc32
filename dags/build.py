"""The build: list → scan → batches → parts → pack → commit. The same bytes on any cluster, from any point of resuming."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
from distributed import Client

from lumid.catalog.cite import write_citations
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.layout import Layout, Manifest, read_manifest, storage_errors, write_text
from lumid.catalog.paths import AnyPath, StorePath, remove_below, sizes
from lumid.catalog.report import render_report
from lumid.dags.again import Again, lay_own_base, own_base, read_again
from lumid.dags.base import Finished
from lumid.dags.begin import (
    archives_answer,
    check_fetching,
    check_listings,
    open_listed_sources,
    reads_remotely,
    unreachable,
)
from lumid.dags.claim import Claim, anything_left, claimed, is_begun_by_another, nothing_unpacked_left, remove_work
from lumid.dags.cluster import ClusterSettings, open_cluster
from lumid.dags.grow import check_growth, growing_base, take
from lumid.dags.ingesting import built_parts, ingest_batches
from lumid.dags.log_copy import LogCopy
from lumid.dags.packing import Packed, pack
from lumid.dags.planning import pin_series, pinned_before, plan_again, plan_build
from lumid.dags.progress import BuildProgress
from lumid.dags.status import requests_of
from lumid.dags.watch import watching
from lumid.pipeline import traffic
from lumid.pipeline.lock import lock_hash
from lumid.pipeline.parts import PartFiles, choose, forget_accounts, read_accounts
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.scan import listing_hash
from lumid.pipeline.sources import ListedSource, Listing

PACKED = ("shards/", "catalog/", "rejects/")


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
    recipe: Recipe, out: AnyPath, cluster: ClusterSettings, progress: BuildProgress, lock: pa.Table | None = None,
    base: AnyPath | None = None,
) -> BuildResult:  # fmt: skip
    """Build a data set into ``out``, or go on with one that was interrupted, or say that it is finished.

    Of a finished one, and of the finished batches of one that was interrupted, only those series are built again that
    an archive did not give whole.

    ``out``: a folder, or a prefix of an object store that the cluster's workers can write to. ``lock``: what to build,
    pinned by a plan of the same recipe. ``base``: a finished data set whose series that are the same are taken from it;
    the result is that of a build of all. Raises :class:`LumidError` with one line for everything the user can mend.
    """
    traffic.take()  # what this process has asked for before is not this build's
    with _layout(out) as layout, storage_errors(out), nothing_unpacked_left(layout):
        finished, again = _look(layout, recipe)
        grown = check_growth(layout, base, recipe) if finished is None and again is None else None
        sources = _open_sources(recipe, layout, needed=finished is None or again is not None)
        listings = {number: source.objects() for number, source in sources.items()}
        if finished is None:
            check_listings(recipe, listings)
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
        with claimed(layout, recipe, progress.note) as claim, progress.recording(layout, recipe):
            finished, again = _look(layout, recipe)  # another build may have ended in the meantime
            if again is not None and lock is not None and lock_hash(lock) != lock_hash(again.lock):
                raise UsageError(f"{out}: holds a data set of another lock; choose another --out")
            if finished is not None and again is None:
                remove_work(layout)
                return BuildResult(finished, already_finished=True)
            cluster = replace(cluster, ahead=reads_remotely(recipe))
            with (
                progress,
                open_cluster(cluster, layout.local / "scratch", progress.waiting) as client,
                watching(client, progress, recipe.name),
                LogCopy(layout) as log,
            ):
                return _build(
                    client, recipe, layout, claim, log, progress, lock, sources, listings, finished, again, grown
                )


def _build(
    client: Client, recipe: Recipe, layout: Layout[AnyPath], claim: Claim, log: LogCopy, progress: BuildProgress,
    lock: pa.Table | None, sources: dict[int, ListedSource], listings: dict[int, Listing], finished: Manifest | None, again: Again | None,
    grown: Finished | None,
) -> BuildResult:  # fmt: skip
    """All stages, on a cluster, with the folder claimed."""
    started = time.monotonic()
    forget_accounts()
    if again is None:
        pinned = pin_series(client, recipe, sources, listings, lock, layout, progress)
        taken = take(layout, grown, recipe, pinned.lock, pinned.listed, progress)
        plan = plan_build(recipe, pinned, layout, taken)
    else:
        plan = plan_again(client, recipe, sources, listings, again.lock, again.rows, layout, progress)
    spent = ingest_batches(client, recipe, plan, layout, progress)
    generations = built_parts(plan, layout)
    if again is None:
        parts = choose([growing_base(layout).parts(), *generations])
    else:
        if finished is not None:
            if not _anything_new(generations, again):
                log.end()
                remove_work(layout)
                return BuildResult(finished, already_finished=True)
            lay_own_base(layout, progress)
            if isinstance(layout.manifest, StorePath):  # what it names is written over from here on
                layout.manifest.unlink()
        parts = choose([own_base(layout).parts(), *generations], again.redone)
    claim.check()
    packed = pack(client, recipe, plan.lock, layout, progress, parts)
    seconds, workers = time.monotonic() - started, len(client.nthreads())
    facts = _build_facts(listings, parts, spent, seconds, workers, progress.made)
    if again is None and taken:
        facts |= {"base_series": len(taken), "series": plan.lock.num_rows}
    progress.tell_requests()
    asked = {"requests": [asdict(one) for one in requests_of(layout)]}
    manifest = replace(packed.manifest, build=facts | asked)
    claim.check()
    log.end()
    _commit(layout, packed, manifest)
    progress.done()
    return BuildResult(manifest, already_finished=False)


def _clear(layout: Layout[AnyPath], recipe: Recipe) -> None:
    """What a build leaves that was killed when all was done."""
    if anything_left(layout):
        with claimed(layout, recipe):
            remove_work(layout)


def _look(layout: Layout[AnyPath], recipe: Recipe) -> tuple[Manifest | None, Again | None]:
    """The finished data set in the folder, if there is one, and what of it, or of one under way to it, is missing."""
    finished = _finished(layout, recipe)
    return finished, read_again(layout, finished)


def _open_sources(recipe: Recipe, layout: Layout[AnyPath], *, needed: bool) -> dict[int, ListedSource]:
    """The sources that have to be looked through; a finished data set does not need them any more."""
    try:
        return open_listed_sources(recipe, layout.unpacked if needed else None)
    except LumidError:
        if needed:
            raise
        return {}


def _finished(layout: Layout[AnyPath], recipe: Recipe) -> Manifest | None:
    """The manifest, when ``out`` holds this recipe's data set finished; refuses another recipe's."""
    if not layout.manifest.exists():
        return None
    manifest = read_manifest(layout.root)
    if manifest.recipe_hash != recipe.hash():
        raise UsageError(
            f"{layout.root}: holds the finished data set '{manifest.name}' of another recipe; choose another --out"
        )
    return manifest


def _check_current(manifest: Manifest, listings: dict[int, Listing], lock: pa.Table | None, out: AnyPath) -> None:
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


def _check_out(layout: Layout[AnyPath], recipe: Recipe) -> None:
    """``out`` must be new, empty, or hold an unfinished build of the same recipe."""
    root = layout.root
    if isinstance(root, Path) and root.exists() and not root.is_dir():
        raise UsageError(f"{root}: is a file; --out must be a folder")
    if layout.state.is_file():
        is_begun_by_another(layout, recipe)
    elif _holds_other(root, layout.work.name):
        raise UsageError(f"{root}: is not empty and holds no lumid data set; choose another --out")


def _holds_other(root: AnyPath, work: str) -> bool:
    """Whether anything lies there but a build's own."""
    if isinstance(root, StorePath):
        return any(not name.startswith(f"{work}/") for name in sizes(root))
    return root.is_dir() and any(path.name != work for path in root.iterdir())


def _anything_new(generations: list[list[PartFiles]], again: Again) -> bool:
    """Whether of any series less is missing than before."""
    accounts = read_accounts([files for generation in generations for files in generation])
    return any(
        one.unfetched < again.missing[one.lock_row]
        for account in accounts
        for one in account.series
        if one.lock_row in again.missing
    )


def _build_facts(
    listings: dict[int, Listing], parts: Sequence[PartFiles], spent: float, seconds: float, workers: int, made: tuple[int, int]
) -> dict[str, object]:  # fmt: skip
    """``seconds`` and rates are those of this run, which has ``made`` so many frames of so many bytes."""
    source_bytes = sum(account.source_bytes for account in read_accounts(parts))
    return {
        "listing_hash": _listings_hash(listings),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
        "workers": workers,
        "ingest_worker_seconds": round(spent, 2),
        "source_mb": round(source_bytes / 1e6, 3),
        "slices_per_second": round(made[0] / seconds, 1),
        "mb_per_second": round(made[1] / 1e6 / seconds, 2),
    }


def _commit(layout: Layout[AnyPath], packed: Packed, manifest: Manifest) -> None:
    """Put everything into place, dataset.json last. Interrupted anywhere, the next run does the rest."""
    root = layout.root
    if isinstance(root, StorePath):
        strange = [name for name in sizes(root) if name.startswith(PACKED) and name not in packed.names]
        remove_below(root, strange)  # of an earlier run that had other parts
    else:
        _move(packed, root)
    write_citations(root, manifest)
    write_text(layout.report, render_report(root, manifest))
    if isinstance(layout.manifest, StorePath):
        if not layout.manifest.create(manifest.to_json().encode()):
            raise LumidError(f"{root}: another build has finished it in the meantime; see: lumid status {root}")
    else:
        write_text(layout.manifest, manifest.to_json())
    remove_work(layout)


def _move(packed: Packed, root: Path) -> None:
    folder = packed.folder
    assert isinstance(folder, Path)
    for name in sizes(folder):
        if name.startswith(PACKED) and name not in packed.names:  # what a killed worker had begun
            (folder / name).unlink()
    (root / "dataset.json").unlink(missing_ok=True)  # from here to the end, this is not the data set that it says
    shutil.rmtree(folder / "receipts", ignore_errors=True)  # and what is moved would have to be packed again
    for name in ("shards", "catalog", "rejects", "lock.parquet"):
        source, target = folder / name, root / name
        if not source.exists():
            source.mkdir(parents=True)
        if target.is_dir():
            shutil.rmtree(target)
        source.replace(target)


@contextmanager
def _layout(out: AnyPath) -> Iterator[Layout[AnyPath]]:
    """The paths of a build; with a folder of this machine for as long as it runs, where the data set is in a store."""
    if isinstance(out, StorePath):
        with tempfile.TemporaryDirectory(prefix="lumid-build-") as folder:
            yield Layout(out, Path(folder))
    else:
        yield Layout(out.absolute())  # workers elsewhere have another working directory
