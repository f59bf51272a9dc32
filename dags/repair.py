"""Mending a damaged data set: the series of damaged samples are ingested again, and their shards put together anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid.catalog.errors import DatasetError, RecipeError, UsageError
from lumid.catalog.findings import DamagedShard, Verification
from lumid.catalog.layout import Layout, Manifest, Shard, atomic_file, read_manifest, storage_errors
from lumid.catalog.lock import load_lock
from lumid.catalog.paths import AnyPath, read_span
from lumid.catalog.shards import END_OF_TAR, image_offset
from lumid.dags.base import Origins, shard_rows
from lumid.dags.begin import (
    archives_answer,
    check_fetching,
    open_listed_sources,
    reads_remotely,
    unreachable,
)
from lumid.dags.claim import claimed, nobody_builds
from lumid.dags.cluster import ClusterSettings, open_cluster
from lumid.dags.ingesting import built_parts, ingest_batches
from lumid.dags.planning import plan_again
from lumid.dags.progress import BuildProgress
from lumid.dags.versions import PIXEL_LIBRARIES, versions
from lumid.pipeline.parts import LOCK_ROW, UNFETCHED, PartFiles, read_account, read_rejects
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.recipe_files import parse_portable

NEEDED = ("catalog_", "lock_", "manifest_", "recipe_hash", "row_mismatch")
"""How the codes of findings begin that are about what a repair goes by: the catalog, the lock and dataset.json."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair has done: shards by name, and how many samples and series were made again for them."""

    shards: tuple[str, ...]
    samples: int
    series: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample of a damaged shard: where it lies, or has to lie, and from which file its bytes come."""

    key: str
    start: int
    size: int
    file: AnyPath
    at: int


def recipe_of(manifest: Manifest, source: str | None = None) -> Recipe:
    """The recipe that a data set was built from, as it says itself. ``source``: where its folder is, if it reads one.

    Raises :class:`UsageError` when that cannot be told.
    """
    if "extract" in manifest.recipe:
        raise UsageError("the data set was extracted from another one, not built: extract it again")
    values = json.loads(json.dumps(manifest.recipe))
    folders = [one for one in values["sources"] if one["kind"] == "folder"]
    if len(folders) > 1 or (folders and source is None):
        raise UsageError(
            "the data set was built from folders, and does not say where they are: "
            + ("give it with --source FOLDER" if len(folders) == 1 else "give its recipe with --recipe RECIPE")
        )
    if folders:
        folders[0]["path"] = str(source)
    elif source is not None:
        raise UsageError("--source: the data set was not built from a folder")
    return parse_portable(json.dumps(values), "the recipe in dataset.json", base=Path.cwd())


def repair(
    root: Path, found: Verification, recipe: Recipe, cluster: ClusterSettings, progress: BuildProgress
) -> Repaired:
    """Mend the shards that a verification found damaged; what is sound of them stays.

    A shard takes the place of the damaged one only when its SHA-256 is the one in ``dataset.json``. Raises
    :class:`DatasetError` when more than shards is damaged, or when of some the same bytes do not come out any more; the
    others are mended by then.
    """
    other = sorted({finding.where for finding in found.findings
                    if finding.severity == "damage" and finding.code.startswith(NEEDED)})  # fmt: skip
    if other:
        raise DatasetError(
            f"{root}: only shards can be mended, and damaged is also {', '.join(other[:3])}; build it again elsewhere"
        )
    if not found.damaged:
        return Repaired((), 0, 0)
    manifest = read_manifest(root)
    if recipe.hash() != manifest.recipe_hash:
        raise RecipeError(f"{root}: was built from another recipe than this one, or from this one with other options")
    layout, work = Layout(root), Layout(root / ".repair")
    lock = load_lock(layout.lock)
    damaged = {shard.name: shard for shard in found.damaged}
    wanted = [(shard, rows) for shard, rows in shard_rows(layout, manifest) if shard.name in damaged]
    rows = _lock_rows(lock, wanted, damaged)
    with storage_errors(root), nobody_builds(layout), claimed(work, recipe):
        generations = _ingest_again(recipe, cluster, progress, lock, rows, work) if rows else []
        made = _made_again(generations)
        mended: list[DamagedShard] = []
        problems: list[str] = []
        for shard, table in wanted:
            try:
                _put_together(layout, manifest, shard, _samples(layout, shard, table, damaged[shard.name], made))
            except _CannotError as problem:
                problems.append(f"shards/{shard.name}: {problem}")
            else:
                mended.append(damaged[shard.name])
    if problems:
        more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
        raise DatasetError(
            f"{len(mended)} of {len(wanted)} shards were mended; {problems[0]}{_not_fetched(generations)}{more}; what "
            "could not be mended was left as it is"
        )
    shutil.rmtree(work.root, ignore_errors=True)
    return Repaired(tuple(shard.name for shard in mended), sum(len(shard.keys) for shard in mended), len(rows))


def _ingest_again(
    recipe: Recipe, cluster: ClusterSettings, progress: BuildProgress, lock: pa.Table, rows: frozenset[int], work: Layout
) -> list[list[PartFiles]]:  # fmt: skip
    """Parts of these rows of the lock."""
    if not archives_answer(recipe):
        raise unreachable()
    check_fetching(recipe, work.root.parent, lock)
    sources = open_listed_sources(recipe, work.unpacked)
    listings = {number: source.objects() for number, source in sources.items()}
    cluster = replace(cluster, ahead=reads_remotely(recipe))
    with progress, open_cluster(cluster, work.work / "scratch", progress.waiting) as client:
        plan = plan_again(client, recipe, sources, listings, lock, rows, work, progress)
        ingest_batches(client, recipe, plan, work, progress)
        return built_parts(plan, work)


def _not_fetched(generations: Sequence[Sequence[PartFiles]]) -> str:
    """Why the archive did not give what it did not, in the words of the first reject."""
    for files in (files for generation in generations for files in generation):
        table = read_rejects(files)
        lost = table.filter(pc.equal(table["code"], UNFETCHED))
        if lost.num_rows:
            return f": {lost['message'][0].as_py()}"
    return ""


def _lock_rows(
    lock: pa.Table, wanted: Sequence[tuple[Shard, pa.Table]], damaged: Mapping[str, DamagedShard]
) -> frozenset[int]:
    """The rows of the lock that damaged samples come from."""
    origins = Origins(lock)
    found: set[int] = set()
    for shard, rows in wanted:
        keys = pa.array(damaged[shard.name].keys, pa.string())
        for candidates in origins.candidates(rows.filter(pc.is_in(rows["key"], value_set=keys))):
            found.update(candidates)
    return frozenset(found)


def _made_again(generations: Sequence[Sequence[PartFiles]]) -> dict[str, tuple[AnyPath, int, int]]:
    """By key: file, start and size of every sample that was made again; of two with one key the lock's first series'."""
    found: dict[str, tuple[int, tuple[AnyPath, int, int]]] = {}
    for files in (files for generation in generations for files in generation):
        for key, lock_row, start, size in _spans(files):
            if key not in found or found[key][0] >= lock_row:  # what was tried again comes later, and is more whole
                found[key] = lock_row, (files.samples, start, size)
    return {key: place for key, (_, place) in found.items()}


def _spans(files: PartFiles) -> Iterator[tuple[str, int, int, int]]:
    table = pq.read_table(files.rows, columns=["key", LOCK_ROW.name, "offset"])
    starts = [offset - image_offset(0) for offset in table["offset"].to_pylist()]
    ends = [*starts[1:], read_account(files).sample_bytes]
    for key, lock_row, start, end in zip(
        table["key"].to_pylist(), table[LOCK_ROW.name].to_pylist(), starts, ends, strict=False
    ):
        yield key, lock_row, start, end - start


def _samples(
    layout: Layout, shard: Shard, rows: pa.Table, damaged: DamagedShard, made: Mapping[str, tuple[AnyPath, int, int]]
) -> list[_Sample]:
    """The shard's samples in their order: the sound ones where they are, the others as they were made again.

    Raises :class:`_CannotError` when one of those was not, or has another size.
    """
    starts = [offset - image_offset(0) for offset in rows["offset"].to_pylist()]
    ends = [*starts[1:], shard.bytes - len(END_OF_TAR)]
    lost = set(damaged.keys)
    samples = []
    for key, start, end in zip(rows["key"].to_pylist(), starts, ends, strict=True):
        size = end - start
        if key not in lost:
            samples.append(_Sample(key, start, size, layout.shards / shard.name, start))
        elif key in made and made[key][2] == size:
            samples.append(_Sample(key, start, size, made[key][0], made[key][1]))
        else:
            what = "comes out of another size" if key in made else "was not given whole, or is rejected now"
            raise _CannotError(f"sample {key} {what}")
    return samples


def _put_together(layout: Layout, manifest: Manifest, shard: Shard, samples: Sequence[_Sample]) -> None:
    """Write a shard anew; raises :class:`_CannotError` when it is not the one that was built."""
    digest = hashlib.sha256()
    with atomic_file(layout.shards / shard.name) as target:
        for sample in samples:
            data = read_span(sample.file, sample.at, sample.size)
            target.write(data)
            digest.update(data)
        target.write(END_OF_TAR)
        digest.update(END_OF_TAR)
        if digest.hexdigest() != shard.sha256:
            raise _CannotError(f"what was made again has other bytes than then{_why(manifest)}")


class _CannotError(Exception):
    """Why a shard cannot be put together as it was."""


def _why(manifest: Manifest) -> str:
    """Versions of libraries that make pixels, where they are not those of then."""
    now = versions(PIXEL_LIBRARIES)
    changed = [f"{name} {manifest.libraries.get(name, 'absent')} → {now.get(name, 'absent')}"
               for name in sorted(now.keys() | manifest.libraries.keys())
               if now.get(name) != manifest.libraries.get(name)]  # fmt: skip
    return f" ({', '.join(changed[:4])})" if changed else ""
