"""The last stage of a build: parts become shards, catalog and rejects, and the manifest that goes with them."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client

from lumid import __version__
from lumid.catalog.catalog_files import CatalogFile, file_name
from lumid.catalog.errors import AccountingError
from lumid.catalog.fingerprint import catalog_hash
from lumid.catalog.layout import Counts, Layout, Manifest, Shard
from lumid.catalog.paths import AnyPath, StorePath, remove_below, sizes
from lumid.catalog.schema import FORMAT_VERSION
from lumid.dags.progress import BuildProgress
from lumid.dags.state import write_state
from lumid.dags.tasks import Failure, Task, guarded, run_tasks
from lumid.dags.turns import turn
from lumid.dags.versions import PIXEL_LIBRARIES, versions
from lumid.pipeline.lock import lock_hash, write_lock
from lumid.pipeline.pack import (
    CatalogChunk,
    ShardPlan,
    build_index,
    pack_shard,
    plan_catalog,
    plan_shards,
    write_catalog_chunk,
    write_rejects,
)
from lumid.pipeline.parts import PartFiles, read_accounts
from lumid.pipeline.recipe import Recipe

REJECTS_NAME, LOCK_NAME = "rejects/part-00000.parquet", "lock.parquet"


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed. ``data``: where shards, catalog, rejects and lock lie, by ``names`` from there.

    In a folder that is one under ``work/``, ``folder``, to be moved into place. In a store, where nothing can be moved,
    it is their place already: without its ``dataset.json`` it is no data set.
    """

    folder: AnyPath
    data: AnyPath
    names: frozenset[str]
    manifest: Manifest


def pack(
    client: Client, recipe: Recipe, lock: pa.Table, layout: Layout[AnyPath], progress: BuildProgress,
    parts: Sequence[PartFiles],
) -> Packed:  # fmt: skip
    """Sort all parts by key into shards, catalog and rejects.

    Raises :class:`AccountingError` when planned frames are not kept plus rejected ones.
    """
    write_state(layout, phase="pack")
    index, duplicates = build_index(parts, recipe.select.exact_duplicates)
    shard_plans = plan_shards(index, recipe.shards.size_mb)
    chunks = plan_catalog(shard_plans)
    folder = _packed_folder(layout, lock, parts)
    data = folder if isinstance(layout.root, Path) else layout.root
    progress.begin_pack(len(shard_plans) + len(chunks))
    # chunks first: one takes as long as a dozen shards, and at the end the other workers would wait for it
    tasks: list[Task] = [(f"catalog-{one.number}", catalog_task, (one, parts, data / "catalog")) for one in chunks]
    tasks += [
        (f"pack-{one.name}", pack_task, (one, parts, data / "shards", folder / "receipts")) for one in shard_plans
    ]
    shards: list[Shard] = []
    files: dict[str, CatalogFile] = {}
    for name, done in run_tasks(client, tasks, watch=progress.tasks):
        if isinstance(done, Shard):
            shards.append(done)
        else:
            files[name] = done
        progress.packed()
    rejects = write_rejects(data / REJECTS_NAME, parts, duplicates)
    write_lock(data / LOCK_NAME, lock, recipe)

    accounts = read_accounts(parts)
    planned = sum(account.planned for account in accounts)
    objects = sum(account.objects for account in accounts)
    rejected = sum(rejects["frames"].to_pylist())
    counts = Counts(objects=objects, planned=planned, kept=len(index), rejected=rejected)
    pinned = lock["objects"]
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
    manifest = Manifest(
        name=recipe.name,
        format_version=FORMAT_VERSION,
        lumid_version=__version__,
        recipe=recipe.canonical(),
        recipe_hash=recipe.hash(),
        lock_hash=lock_hash(lock),
        catalog_hash=catalog_hash([files[f"catalog-{one.number}"].sha256 for one in chunks]),
        libraries=versions(PIXEL_LIBRARIES),
        counts=counts,
        modalities=dict(sorted(modalities.items())),
        rejects=dict(sorted(reasons.items())),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        build={},
        unknown=dict(sorted(sum((account.unknown for account in accounts), Counter[str]()).items())),
    )
    names = {f"shards/{shard.name}" for shard in shards} | {REJECTS_NAME, LOCK_NAME}
    for one in chunks:
        counted = files[f"catalog-{one.number}"].modalities
        names |= {f"catalog/{file_name(modality, one.number)}" for modality, _ in counted}
    return Packed(folder, data, frozenset(names), manifest)


def _packed_folder(layout: Layout[AnyPath], lock: pa.Table, parts: Sequence[PartFiles]) -> AnyPath:
    """A folder for what these parts give; what an earlier run has packed of others is of no use any more.

    Of a store only its receipts go: what they are of is written again, or removed when all is there.
    """
    digest = hashlib.sha256(lock_hash(lock).encode())
    for files in parts:
        digest.update(f"{files.folder.name}/{files.name} {sorted(files.without)}\n".encode())
    folder = layout.work / f"packed-{digest.hexdigest()[:16]}"
    work = layout.work
    if isinstance(work, StorePath):
        others = [name for name in sizes(work) if name.startswith("packed-") and not name.startswith(f"{folder.name}/")]
        remove_below(work, others)
        return folder
    for other in work.glob("packed-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def pack_task(plan: ShardPlan, parts: Sequence[PartFiles], folder: AnyPath, receipts: AnyPath) -> Shard | Failure:
    """A shard, on a worker."""

    def work() -> Shard:
        with turn():  # it holds the whole shard
            return pack_shard(plan, parts, folder, receipts)

    return guarded(work, folder)


def catalog_task(chunk: CatalogChunk, parts: Sequence[PartFiles], folder: AnyPath) -> CatalogFile | Failure:
    """A chunk of the catalog, on a worker."""

    def work() -> CatalogFile:
        with turn():
            return write_catalog_chunk(chunk, parts, folder)

    return guarded(work, folder)
