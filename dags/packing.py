"""The last stage of a build: parts become shards, catalog and rejects, and the manifest that goes with them."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
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
from lumid.dags.cluster import slots
from lumid.dags.progress import BuildProgress
from lumid.dags.state import write_state
from lumid.dags.tasks import Failure, Task, guarded, run_tasks
from lumid.dags.turns import turn
from lumid.dags.versions import PIXEL_LIBRARIES, versions
from lumid.pipeline.lock import lock_hash, write_lock
from lumid.pipeline.pack import (
    ExactDuplicates,
    Group,
    IndexPiece,
    ShardPlan,
    build_index,
    group_parts,
    pack_shard,
    plan_shards,
    read_index,
    write_rejects,
)
from lumid.pipeline.pack_catalog import CatalogChunk, Cut, plan_catalog, plan_cuts, write_catalog_chunk, write_cut
from lumid.pipeline.parts import PartAccount, PartFiles, read_accounts
from lumid.pipeline.recipe import Recipe

GROUPS_PER_SLOT = 2
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
    folder = _packed_folder(layout, lock, parts)
    data, cuts = folder if isinstance(layout.root, Path) else layout.root, folder / "cuts"
    groups = group_parts(parts, GROUPS_PER_SLOT * max(1, slots(client)))
    exact = recipe.select.exact_duplicates
    read = [(f"index-{one.number}", index_task, (one, exact)) for one in groups]
    progress.begin_index(len(groups))
    found: dict[str, IndexPiece] = {}
    for name, piece in run_tasks(client, read, watch=progress.tasks):
        found[name] = piece
        progress.indexed()
    pieces = [found[name] for name, *_ in read]
    index, duplicates = build_index(pieces, parts, exact)
    shard_plans = plan_shards(index, recipe.shards.size_mb)
    chunks = plan_catalog(shard_plans)
    cut: list[Task] = [(f"cut-{one.group.number}", cut_task, (one, cuts)) for one in plan_cuts(groups, chunks)]
    progress.begin_pack(len(cut) + len(shard_plans) + len(chunks))
    for _ in run_tasks(client, cut, watch=progress.tasks):
        progress.packed()
    # chunks first: one takes as long as a dozen shards, and at the end the other workers would wait for it
    firsts, tars = [one.first for one in groups], Tars.of(parts)
    tasks: list[Task] = [
        (f"catalog-{one.number}", catalog_task, (one, firsts, cuts, data / "catalog")) for one in chunks
    ]
    tasks += [(f"pack-{one.name}", pack_task, (one, tars, data / "shards", folder / "receipts")) for one in shard_plans]
    shards: list[Shard] = []
    files: dict[str, CatalogFile] = {}
    for name, done in run_tasks(client, tasks, watch=progress.tasks):
        if isinstance(done, Shard):
            shards.append(done)
        else:
            files[name] = done
        progress.packed()
    rejects = write_rejects(data / REJECTS_NAME, pieces, duplicates, parts)
    write_lock(data / LOCK_NAME, lock, recipe)

    manifest = _manifest(
        recipe,
        lock,
        read_accounts(parts),
        len(index),
        rejects,
        shards,
        [files[f"catalog-{one.number}"] for one in chunks],
    )
    names = {f"shards/{shard.name}" for shard in shards} | {REJECTS_NAME, LOCK_NAME}
    for one in chunks:
        counted = files[f"catalog-{one.number}"].modalities
        names |= {f"catalog/{file_name(modality, one.number)}" for modality, _ in counted}
    return Packed(folder, data, frozenset(names), manifest)


def _manifest(
    recipe: Recipe, lock: pa.Table, accounts: Sequence[PartAccount], kept: int, rejects: pa.Table,
    shards: Sequence[Shard], chunks: Sequence[CatalogFile],
) -> Manifest:  # fmt: skip
    """What was packed, counted; without facts about the build.

    Raises :class:`AccountingError` when planned frames are not kept plus rejected ones.
    """
    planned = sum(account.planned for account in accounts)
    objects = sum(account.objects for account in accounts)
    rejected = sum(rejects["frames"].to_pylist())
    counts = Counts(objects=objects, planned=planned, kept=kept, rejected=rejected)
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
    for file in chunks:
        modalities.update(dict(file.modalities))
    return Manifest(
        name=recipe.name,
        format_version=FORMAT_VERSION,
        lumid_version=__version__,
        recipe=recipe.canonical(),
        recipe_hash=recipe.hash(),
        lock_hash=lock_hash(lock),
        catalog_hash=catalog_hash([file.sha256 for file in chunks]),
        libraries=versions(PIXEL_LIBRARIES),
        counts=counts,
        modalities=dict(sorted(modalities.items())),
        rejects=dict(sorted(reasons.items())),
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        build={},
        unknown=dict(sorted(sum((account.unknown for account in accounts), Counter[str]()).items())),
    )


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


@dataclass(frozen=True, slots=True)
class Tars:
    """The parts' samples as a task is told of them: thousands of names go with every shard, their folder once."""

    folders: tuple[tuple[AnyPath, tuple[str, ...]], ...]

    @classmethod
    def of(cls, parts: Sequence[PartFiles]) -> Tars:
        """Of these parts, in their order."""
        together = groupby(parts, key=lambda files: files.folder)
        return cls(tuple((folder, tuple(files.name for files in mine)) for folder, mine in together))

    def paths(self) -> list[AnyPath]:
        """One for each part."""
        return [PartFiles(folder, name).samples for folder, names in self.folders for name in names]


def index_task(group: Group, exact: ExactDuplicates) -> IndexPiece | Failure:
    """What a group of parts says of its samples, on a worker."""

    def work() -> IndexPiece:
        with turn():
            return read_index(group, exact)

    return guarded(work)


def cut_task(cut: Cut, folder: AnyPath) -> Failure | None:
    """A group of parts, cut by the catalog's chunks, on a worker."""

    def work() -> None:
        with turn():
            write_cut(cut, folder)

    return guarded(work, folder)


def pack_task(plan: ShardPlan, tars: Tars, folder: AnyPath, receipts: AnyPath) -> Shard | Failure:
    """A shard, on a worker."""

    def work() -> Shard:
        with turn():  # it holds a window of the shard, or from a store all of it
            return pack_shard(plan, tars.paths(), folder, receipts)

    return guarded(work, folder)


def catalog_task(chunk: CatalogChunk, firsts: Sequence[int], cuts: AnyPath, folder: AnyPath) -> CatalogFile | Failure:
    """A chunk of the catalog, on a worker."""

    def work() -> CatalogFile:
        with turn():
            return write_catalog_chunk(chunk, firsts, cuts, folder)

    return guarded(work, folder)
