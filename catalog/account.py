"""The books of a data set: whether manifest, catalog, rejects and lock can be read, and agree with each other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.findings import Finding, damage, warning
from lumid.catalog.fingerprint import FILE_NAME, combine, file_hash
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, read_manifest
from lumid.catalog.lock import load_lock, lock_hash
from lumid.catalog.paths import AnyPath
from lumid.catalog.query import ask, connect
from lumid.catalog.schema import CATALOG, REJECTS

UNREADABLE = (OSError, pa.ArrowException, ValueError, TypeError, KeyError, MemoryError)
"""What reading a damaged Parquet file can raise."""
NAMED = 3


class Origin(NamedTuple):
    """Where a sample comes from, as its row and the lock both say it."""

    collection: str | None
    source: str | None
    license: str | None
    doi: str | None


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A readable file of the catalog: the rows of one modality out of one chunk of shards."""

    path: Path
    chunk: int
    modality: str
    rows: int
    shards: frozenset[str]
    origins: frozenset[Origin]
    hash: str


@dataclass(frozen=True, slots=True)
class Books:
    """The rejects and where they come from: frames by code, origins (no licence, no DOI), series."""

    rows: int
    by_code: Counter[str]
    origins: frozenset[Origin]
    series: frozenset[str]


# ---- dataset.json


def load_manifest(root: AnyPath) -> Manifest | Finding:
    """The manifest, or what is wrong with it.

    Raises :class:`DatasetError` when there is none, or one of another format: then there is nothing to verify.
    """
    try:
        manifest = read_manifest(root)
    except DatasetError as error:
        if error.__cause__ is None:
            raise
        return damage("manifest_damaged", "dataset.json", "not a lumid manifest; copy it from another copy")
    wrong = [name for name, right in _types(manifest) if not right]
    if wrong:
        return damage("manifest_damaged", "dataset.json", f"not what a build writes: {', '.join(wrong)}")
    return manifest


def _types(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    numbers = (manifest.counts.objects, manifest.counts.planned, manifest.counts.kept, manifest.counts.rejected)
    yield "counts", all(type(value) is int for value in numbers)
    for name in ("name", "recipe_hash", "lock_hash", "catalog_hash"):
        yield name, isinstance(getattr(manifest, name), str)
    for name in ("recipe", "libraries", "build"):
        yield name, isinstance(getattr(manifest, name), dict)
    for name in ("modalities", "rejects"):
        table = getattr(manifest, name)
        yield name, isinstance(table, dict) and all(type(value) is int for value in table.values())
    yield "shards", all(_shard_is_plain(shard) for shard in manifest.shards)


def _shard_is_plain(shard: Shard) -> bool:
    texts = (shard.name, shard.sha256, shard.first_key, shard.last_key)
    if not all(isinstance(value, str) for value in texts) or not all(
        type(value) is int and value >= 0 for value in (shard.samples, shard.bytes)
    ):
        return False
    return bool(shard.name) and Path(shard.name).name == shard.name


def check_manifest(manifest: Manifest) -> Iterator[Finding]:
    """Whether dataset.json agrees with itself: recipe, counts, shards."""
    where = "dataset.json"
    recipe = hashlib.sha256(json.dumps(manifest.recipe, sort_keys=True).encode()).hexdigest()
    if recipe != manifest.recipe_hash:
        yield damage("recipe_hash", where)
    counts = manifest.counts
    yield from _sums(where, counts, manifest)
    names = [shard.name for shard in manifest.shards]
    if names != sorted(set(names)):
        yield damage("manifest_damaged", where, "its shards are not in order, or not each once")
    crossed = any(left.last_key >= right.first_key for left, right in pairwise(manifest.shards))
    if crossed or any(shard.first_key > shard.last_key for shard in manifest.shards):
        yield damage("manifest_damaged", where, "the ranges of its shards' keys overlap, or are out of order")


def _sums(where: str, counts: Counts, manifest: Manifest) -> Iterator[Finding]:
    if counts.planned != counts.kept + counts.rejected:
        what = f"planned {counts.planned:,} is not kept {counts.kept:,} + rejected {counts.rejected:,}"
        yield damage("account", where, what)
    totals = {
        "samples of all shards": (sum(shard.samples for shard in manifest.shards), counts.kept),
        "samples of all modalities": (sum(manifest.modalities.values()), counts.kept),
        "frames of all reasons": (sum(manifest.rejects.values()), counts.rejected),
    }
    for name, (found, expected) in totals.items():
        if found != expected:
            yield damage("account", where, f"{name}: {found:,} instead of {expected:,}")


# ---- files


def check_files(names: Mapping[str, int], manifest: Manifest) -> Iterator[Finding]:
    """Whether what every data set has is there, and nothing beside it that would be read as part of it.

    ``names``: all its files, from its root, and their sizes.
    """
    for name in ("CITATION.bib", "LICENSES.md"):
        if not names.get(name):
            yield damage("file_missing", name, "missing or empty; write it again with: lumid cite DATASET")
    if "report.html" not in names:
        yield warning("file_missing", "report.html", "missing; write it again with: lumid report DATASET")
    listed = {shard.name for shard in manifest.shards}
    ours: dict[str, Callable[[str], bool]] = {
        "shards": listed.__contains__,
        "catalog": lambda name: FILE_NAME.fullmatch(name) is not None,
        "rejects": lambda name: "/" not in name and name.endswith(".parquet"),
    }
    for where in sorted(names):
        folder, within, name = where.partition("/")
        if within and folder in ours and not ours[folder](name):
            suffix = ".tar" if folder == "shards" else ".parquet"
            yield (damage if name.endswith(suffix) else warning)("stray_file", where)


# ---- the catalog


def read_catalog_files(layout: Layout) -> tuple[list[CatalogFile], list[Finding]]:
    """The catalog's files that can be read, by chunk and modality; and a finding for each that cannot."""
    files, findings = [], []
    for path in sorted(layout.catalog.glob("modality=*/*.parquet")):
        match = FILE_NAME.fullmatch(path.relative_to(layout.catalog).as_posix())
        if match is None:
            continue
        where = path.relative_to(layout.root).as_posix()
        try:
            files.append(_catalog_file(path, int(match["chunk"]), match["modality"]))
        except UNREADABLE as error:
            reason = str(error) if type(error) is ValueError else "damaged"
            findings.append(damage("catalog_unreadable", where, f"{reason}; build the data set again"))
    return sorted(files, key=lambda file: (file.chunk, file.modality)), findings


def _catalog_file(path: Path, chunk: int, modality: str) -> CatalogFile:
    with pq.ParquetFile(path) as file:
        types = {field.name: field.type for field in file.schema_arrow} | {"modality": pa.string()}
        if types != {field.name: field.type for field in CATALOG}:
            raise ValueError("does not have the catalog's columns")
        shards = pc.unique(file.read(["shard"])["shard"]).to_pylist()
        origins = _origins(file.read(["collection", "source", "license", "doi"]))
        rows = file.metadata.num_rows
    return CatalogFile(
        path, chunk, modality, rows, frozenset(str(name) for name in shards), origins, file_hash(path, modality)
    )


def _origins(table: pa.Table) -> frozenset[Origin]:
    unique = table.group_by(table.column_names).aggregate([])
    return frozenset(Origin(**row) for row in unique.to_pylist())


def check_catalog(files: list[CatalogFile], manifest: Manifest) -> Iterator[Finding]:
    """Whether the rows are those that were built, as far as counts and hash tell."""
    found: Counter[str] = Counter()
    for file in files:
        found[file.modality] += file.rows
    for modality in sorted({*found, *manifest.modalities}):
        expected = manifest.modalities.get(modality, 0)
        if found[modality] != expected:
            what = f"{found[modality]:,} rows instead of {expected:,}"
            yield damage("catalog_count", f"catalog/modality={modality}", what)
    if combine({(file.chunk, file.modality): file.hash for file in files}) != manifest.catalog_hash:
        yield damage("catalog_hash", "catalog", "its rows, or its hash in dataset.json, are not those that were built")
    listed = {shard.name for shard in manifest.shards}
    for file in files:
        if unknown := file.shards - listed:
            where = f"catalog/modality={file.modality}/{file.path.name}"
            yield damage("catalog_shard", where, f"names shards that dataset.json does not list: {_named(unknown)}")


def check_queries(root: Path) -> Iterator[Finding]:
    """Whether DuckDB reads the catalog and the rejects to their end: it stumbles over damage that Arrow does not see."""
    try:
        with connect(root) as connection:
            for name in ("catalog", "rejects"):
                ask(connection, f"SELECT bit_xor(hash({name})) FROM {name}")
    except LumidError:
        yield damage("catalog_unreadable", "catalog, rejects", "DuckDB cannot read a file; build the data set again")


# ---- rejects and lock


def read_books(layout: Layout) -> Books | Finding:
    """The rejects, or that they cannot be read."""
    names = ["collection", "source", "series", "frames", "code"]
    try:
        paths = sorted(layout.rejects.glob("*.parquet"))
        tables = [pq.read_table(path, partitioning=None) for path in paths]
        if not tables or any(table.schema.names != REJECTS.names for table in tables):
            return damage("rejects_unreadable", "rejects", "missing, or without the columns of rejects")
        table = pa.concat_tables([one.cast(REJECTS) for one in tables]).select(names)
        table.validate(full=True)
    except UNREADABLE:
        return damage("rejects_unreadable", "rejects")
    by_code: Counter[str] = Counter()
    for code, frames in zip(table["code"].to_pylist(), table["frames"].to_pylist(), strict=True):
        by_code[code] += frames
    pairs = table.select(["collection", "source"]).group_by(["collection", "source"]).aggregate([]).to_pylist()
    origins = frozenset(Origin(row["collection"], row["source"], None, None) for row in pairs)
    # what two series or sources have is rejected under the name that the sample's own header gives its series
    twice = pc.is_in(table["code"], value_set=pa.array(["duplicate_instance", "exact_duplicate"]))
    own = table.filter(pc.invert(twice))["series"]
    return Books(table.num_rows, by_code, origins, frozenset(pc.unique(own.drop_null()).to_pylist()))


def check_books(books: Books, manifest: Manifest) -> Iterator[Finding]:
    """Whether the rejects account for the frames that dataset.json says were rejected, reason by reason."""
    wrong = [
        f"{code} {books.by_code[code]:,} instead of {manifest.rejects.get(code, 0):,}"
        for code in sorted({*books.by_code, *manifest.rejects})
        if books.by_code[code] != manifest.rejects.get(code, 0)
    ]
    if wrong:
        yield damage("account", "rejects", f"frames by reason: {', '.join(wrong)}")


def check_lock(layout: Layout, manifest: Manifest, files: list[CatalogFile], books: Books | None) -> Iterator[Finding]:
    """Whether the lock is the one that was built, and everything built or rejected comes out of it."""
    where = "lock.parquet"
    try:
        lock = load_lock(layout.lock)
        lock.validate(full=True)
        found = lock_hash(lock)
    except (DatasetError, *UNREADABLE):
        yield damage("lock_unreadable", where)
        return
    if found != manifest.lock_hash:
        yield damage("lock_hash", where)
    origins = _origins(lock.select(["collection", "source", "license", "doi"]))
    unknown = frozenset(chain.from_iterable(file.origins for file in files)) - origins
    if unknown:
        said = _named(" / ".join(part or "none" for part in origin) for origin in unknown)
        yield damage("lock_provenance", "catalog", f"the lock has no such collection, source, licence, DOI: {said}")
    if books is None:
        return
    pairs = {(origin.collection, origin.source) for origin in origins}
    strange = [origin for origin in books.origins if (origin.collection, origin.source) not in pairs]
    if strange:
        said = _named(f"{origin.collection} / {origin.source}" for origin in strange)
        yield damage("lock_provenance", "rejects", f"the lock has no such collection and source: {said}")
    series = lock["series"].to_pylist()
    missing = books.series - frozenset(series)
    if missing and None not in series:
        yield damage("lock_series", "rejects", f"{len(missing):,} series are not in the lock: {_named(missing)}")


def _named(values: Iterable[str]) -> str:
    listed = sorted(values)
    return ", ".join(listed[:NAMED]) + (" …" if len(listed) > NAMED else "")
