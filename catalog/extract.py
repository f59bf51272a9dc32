"""A selection as a data set of its own: the same samples, byte for byte, in new shards with a catalog of their own.

What a row says of the sample's place in its series, and of its duplicates, it says of the data set that it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lumid._version import __version__
from lumid.catalog.catalog_files import CATALOG_CHUNK_ROWS, write_catalog_rows
from lumid.catalog.cite import write_citations
from lumid.catalog.connect import cast_rows
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.fingerprint import catalog_hash
from lumid.catalog.json_files import read_json
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, atomic_file, storage_errors, write_table, write_text
from lumid.catalog.lock import load_lock, lock_hash
from lumid.catalog.places import Anywhere, Place, Shards, as_place, fetched, place_manifest, read_note
from lumid.catalog.query import all_of, ask, connect, text, where_clause, why_empty
from lumid.catalog.report import write_report
from lumid.catalog.schema import CATALOG, FORMAT_VERSION, REJECTS, CatalogRow
from lumid.catalog.shards import BLOCK, END_OF_TAR, image_offset, sample_members

SHARD_MB = 512.0
ROWS_AT_ONCE = 256
JSON_BYTES = 4 * BLOCK
"""About what a sample's JSON takes in a shard, with its header."""
WORK, MOVING = ".extract", ".extract-moving"
OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")

Progress = Callable[[int, int], None]
"""Told the samples written so far, and how many it will be in all."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The shards to be, as numbers of samples, and the chunks of the catalog, as ranges of shards."""

    keys: list[str]
    counts: tuple[int, ...]
    chunks: tuple[range, ...]


def extract_dataset(
    where: Anywhere,
    out: Path,
    condition: str | None = None,
    *,
    limit: int | None = None,
    shard_mb: float = SHARD_MB,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the samples that meet a condition as a finished data set under ``out``, which must be new or empty.

    ``limit``: those with the smallest keys. Every image is checked against its SHA-256 on the way. An extract that was
    interrupted leaves nothing that is taken for one, and begins again. Raises :class:`UsageError` when there are no such
    samples or ``out`` holds something, :class:`DatasetError` when one cannot be read.

    >>> extract_dataset(DATASET, FOLDER / "ct", "modality = 'CT'").counts.kept
    14
    """
    started = time.monotonic()
    place = as_place(where)
    source = place_manifest(place)
    with storage_errors(out), work_folder(out) as work, connect(place) as connection, Shards(place) as shards:
        plan = _plan(connection, place, condition, limit, shard_mb)
        layout = Layout(work)
        written: list[Shard] = []
        hashes: list[str] = []
        modalities: Counter[str] = Counter()
        objects = 0
        for number, chunk in enumerate(plan.chunks):
            table = _chunk_rows(connection, plan, chunk, condition)
            done, table = _write_shards(shards, plan, chunk, table, layout, threads, progress)
            written += done
            file = write_catalog_rows(table, number, layout.catalog)
            hashes.append(file.sha256)
            modalities.update(dict(file.modalities))
            objects += pc.sum(pc.equal(table["frame"], 0)).as_py() or 0
        lock = _lock_of(place, layout)
        write_table(layout.lock, lock)
        write_table(layout.rejects / "part-00000.parquet", REJECTS.empty_table())
        total = len(plan.keys)
        recipe = source.recipe | {"extract": _origin(place, source, condition, limit)}
        manifest = Manifest(
            name=out.resolve().name,
            format_version=FORMAT_VERSION,
            lumid_version=__version__,
            recipe=recipe,
            recipe_hash=hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
            lock_hash=lock_hash(lock),
            catalog_hash=catalog_hash(hashes),
            libraries=source.libraries,
            counts=Counts(objects=objects, planned=total, kept=total, rejected=0),
            modalities=dict(sorted(modalities.items())),
            rejects={},
            shards=tuple(written),
            build={"seconds": round(time.monotonic() - started, 2), "finished": _now()},
        )
        write_text(layout.manifest, manifest.to_json())  # the citations and the report are of a finished data set
        write_citations(work, manifest)
        write_report(work)
    return manifest


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """A folder to write in, whose content goes to ``out`` when all is done, ``dataset.json`` last.

    Raises :class:`UsageError` when ``out`` holds anything but what an interrupted extract has left.
    """
    work, moving = out / WORK, out / MOVING
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out must be a folder")
    new = not out.exists()
    if moving.is_file() and not Layout(out).manifest.exists():
        # killed while it moved its own into place: nothing else was there before
        for name in read_json(moving, f"choose another --out, or remove {out}"):
            if OWN_NAME.fullmatch(name):  # whoever wrote the file, nothing outside of the folder is removed
                _remove(out / name)
    if not new and any(path not in (work, moving) for path in out.iterdir()):
        raise UsageError(f"{out}: is not empty; choose another --out")
    _remove(work)
    work.mkdir(parents=True)
    try:
        yield work
        names = sorted((path.name for path in work.iterdir()), key=lambda name: name == Layout(out).manifest.name)
        write_text(moving, json.dumps(dict.fromkeys(names)))
        for name in names:
            (work / name).replace(out / name)
    except BaseException:
        shutil.rmtree(out if new else work, ignore_errors=True)
        raise
    work.rmdir()
    moving.unlink()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _plan(
    connection: duckdb.DuckDBPyConnection, place: Place, condition: str | None, limit: int | None, shard_mb: float
) -> _Plan:
    last = "" if limit is None else f" LIMIT {int(limit)}"
    index = ask(connection, f'SELECT key, "length" FROM catalog{where_clause(condition)} ORDER BY key{last}')
    index = cast_rows(index, ("key", "length"))
    total = index.num_rows
    if total == 0:
        raise UsageError("nothing to extract: " + "; ".join(why_empty(place, condition) or ("no sample",)))
    padded = -(-index["length"].to_numpy() // BLOCK) * BLOCK + BLOCK + JSON_BYTES
    count = min(max(1, round(int(padded.sum()) / (shard_mb * 1e6))), total)
    counts = tuple((number + 1) * total // count - number * total // count for number in range(count))
    chunks: list[range] = []
    begin = rows = 0
    for number, samples in enumerate(counts):
        if rows and rows + samples > CATALOG_CHUNK_ROWS:
            chunks.append(range(begin, number))
            begin, rows = number, 0
        rows += samples
    return _Plan(index["key"].to_pylist(), counts, (*chunks, range(begin, count)))


def _chunk_rows(connection: duckdb.DuckDBPyConnection, plan: _Plan, chunk: range, condition: str | None) -> pa.Table:
    first = sum(plan.counts[: chunk.start])
    last = first + sum(plan.counts[number] for number in chunk) - 1
    between = f"key BETWEEN {text(plan.keys[first])} AND {text(plan.keys[last])}"
    table = ask(connection, f"SELECT * FROM catalog{where_clause(all_of(condition, between))} ORDER BY key")
    table = cast_rows(table, CATALOG.names)
    if table["key"].to_pylist() != plan.keys[first : last + 1]:
        raise UsageError(
            "the condition does not choose the same samples every time; leave random() and the like out of it"
        )
    return table


def _write_shards(
    shards: Shards, plan: _Plan, chunk: range, table: pa.Table, layout: Layout, threads: int | None, progress: Progress | None
) -> tuple[list[Shard], pa.Table]:  # fmt: skip
    """The shards of a chunk, and its rows with where their images are now."""
    starts = np.cumsum([0, *(plan.counts[number] for number in chunk)])
    before = sum(plan.counts[: chunk.start])
    done = 0

    def write(at: int) -> tuple[Shard, npt.NDArray[np.int64]]:
        rows = table.slice(int(starts[at]), plan.counts[chunk[at]])
        return _write_shard(shards, rows, layout.shards / f"lumid-{chunk[at]:06d}.tar")

    written: list[Shard] = []
    offsets: list[npt.NDArray[np.int64]] = []
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="lumid-extract")
    try:
        for shard, places in pool.map(write, range(len(chunk))):
            written.append(shard)
            offsets.append(places)
            done += shard.samples
            if progress is not None:
                progress(before + done, len(plan.keys))
    finally:
        pool.shutdown(cancel_futures=True)
    names = pa.array(np.repeat([shard.name for shard in written], [shard.samples for shard in written]), pa.string())
    for name, values in {"shard": names, "offset": pa.array(np.concatenate(offsets), pa.int64())}.items():
        table = table.set_column(table.schema.get_field_index(name), CATALOG.field(name), values)
    return written, table


def _write_shard(shards: Shards, rows: pa.Table, path: Path) -> tuple[Shard, npt.NDArray[np.int64]]:
    digest = hashlib.sha256()
    offsets = np.empty(rows.num_rows, np.int64)
    position = number = 0
    with atomic_file(path) as file:
        for values, image in read_samples_of(shards, rows):
            row = CatalogRow(**(values | {"labels": None if values["labels"] is None else tuple(values["labels"])}))
            offsets[number] = image_offset(position)
            members = sample_members(row, image)
            file.write(members)
            digest.update(members)
            position += len(members)
            number += 1
        file.write(END_OF_TAR)
        digest.update(END_OF_TAR)
    keys = rows["key"]
    size = position + len(END_OF_TAR)
    return Shard(path.name, number, size, digest.hexdigest(), keys[0].as_py(), keys[-1].as_py()), offsets


def read_samples_of(shards: Shards, rows: pa.Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows of the catalog with their encoded images, checked against the SHA-256 in the row.

    Raises :class:`DatasetError` when one is not what its row says.
    """
    for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
        for shard, group in groupby(batch.to_pylist(), lambda row: str(row["shard"])):
            some = list(group)
            images = shards.read_many(shard, [(row["offset"], row["length"]) for row in some])
            for row, image in zip(some, images, strict=True):
                if hashlib.sha256(image).hexdigest() != row["sha256"]:
                    raise DatasetError(
                        f"shards/{shard}: sample {row['key']} is damaged; `lumid verify --repair` makes it again"
                    )
                yield row, image


# ---- where it came from


def _origin(place: Place, source: Manifest, condition: str | None, limit: int | None) -> dict[str, Any]:
    """What the recipe of an extract says that a build's does not: of which catalog it is, and which selection."""
    steps = [] if place.subset is None else [_step(step.where, step.limit) for step in read_note(place.subset).steps]
    return {
        "of": source.name,
        "recipe_hash": source.recipe_hash,
        "catalog_hash": source.catalog_hash,
        "steps": [*steps, _step(condition, limit)],
    }


def _step(condition: str | None, limit: int | None) -> dict[str, Any]:
    return {"where": condition, "limit": limit}


def _lock_of(place: Place, layout: Layout) -> pa.Table:
    """The rows of the lock that the extract's samples came out of."""
    with connect(layout.root, finished=False) as connection:
        series = ask(connection, "SELECT DISTINCT series FROM catalog")["series"]
        origins = ask(connection, "SELECT DISTINCT collection, source, license, doi FROM catalog").to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        lock = load_lock(fetched(place, Layout(Path()).lock.name, Path(folder)))
    mine = pc.is_in(lock["series"], value_set=series.combine_chunks())
    found = {_origin_of(row) for row in lock.filter(mine).to_pylist()}
    # a series can have another name in the lock than in the header of its images: then all of the origin's are kept
    lost = {_origin_of(row) for row in origins} - found
    kept = [bool(own) or _origin_of(row) in lost for own, row in zip(mine.to_pylist(), lock.to_pylist(), strict=True)]
    return lock.filter(pa.array(kept, pa.bool_()))


def _origin_of(row: dict[str, Any]) -> tuple[str | None, ...]:
    return tuple(row[name] for name in ("collection", "source", "license", "doi"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
