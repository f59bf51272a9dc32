"""A data set of an earlier format into one of today's, with what was recorded then; what was not stays null.

Format 2 added what the archive says an image shows, later the places of slices, noise, clipping and duplicates; it gave
up JPEG XL. Format 3 added the frame of reference and counts what vocabularies do not know. Each step is a function from
rows to rows; the files are written once, after the last. Pixels stay those that were stored: a re-encoded image is
compared with its ``pixel_hash``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid._version import __version__
from lumid.catalog.catalog_files import write_catalog_rows
from lumid.catalog.cite import write_citations
from lumid.catalog.codecs import CODECS, Codec, encode, pixel_hash
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.fingerprint import FILE_NAME, catalog_hash, combine, file_hash
from lumid.catalog.layout import (
    Layout,
    Manifest,
    Shard,
    atomic_file,
    read_manifest,
    remove_half_written,
    storage_errors,
    write_table,
    write_text,
)
from lumid.catalog.report import write_report
from lumid.catalog.schema import CATALOG, FORMAT_VERSION, CatalogRow
from lumid.catalog.shards import END_OF_TAR, image_offset, read_range, sample_members
from lumid.catalog.verify import verify

OLDEST = 1
REPLACES_JPEG_XL: Codec = "jhc"
ROWS_AT_ONCE = 256
SHARD = b"lumid.shard"
PIECES = ("shards", "catalog", "rejects", "lock.parquet", "LICENSES.md", "CITATION.bib", "report.html")
"""What takes its place, in this order, before ``dataset.json``."""

Progress = Callable[[int, int], None]
"""Told the samples written so far, and how many it will be in all."""


@dataclass(frozen=True, slots=True)
class Step:
    """From one format to the next: columns that came with it, or while it was the newest.

    ``manifest``: what of ``dataset.json`` came with it.
    """

    columns: tuple[str, ...]
    manifest: tuple[str, ...] = ()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows with these columns: null where nothing was recorded."""
        for name in self.columns:
            if name not in rows.column_names:
                rows = rows.append_column(CATALOG.field(name), pa.nulls(rows.num_rows, CATALOG.field(name).type))
        return rows


STEPS: Mapping[int, Step] = {
    1: Step(("labels",)),
    2: Step(
        ("slice_index", "slice_spacing", "slice_gap", "slice_repeats", "spacing_kind", "noise", "clipped_fraction",
         "duplicate_of", "frame_of_reference"),
        ("unknown",),
    ),
}  # fmt: skip
"""By the format that they lead away from."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """A data set of today's format.

    ``not_recorded``: columns that are null in all rows, and entries of ``dataset.json`` that are empty, because the
    earlier format did not have them; ``reencoded``: images of a codec that there is no more. ``already``: it was of
    today's format before.
    """

    manifest: Manifest
    from_format: int
    not_recorded: tuple[str, ...]
    reencoded: int
    already: bool = False


def migrate(root: Path, out: Path | None = None, progress: Progress | None = None) -> Migrated:
    """Bring a data set into today's format: in its place, or as a new one in the folder ``out``.

    Every shard's hash is compared before, the result is verified after; only then anything takes its place. Stopped at
    any point it goes on when called again; what is of today's format stays as it is. Raises :class:`DatasetError` when
    the data set is damaged or holds what no format has, :class:`UsageError` when ``out`` is not free, or there is
    nothing to write there.
    """
    target = Layout(root if out is None else out)
    work = target.root / ".migrate"
    if not (work / "ready").is_file():
        manifest = read_manifest(root, oldest=OLDEST)
        if manifest.format_version == FORMAT_VERSION:
            shutil.rmtree(_gone(work), ignore_errors=True)  # of a migration that was stopped when all was done
            if out is None:
                return replace(_migrated(manifest), already=True)
            raise UsageError(f"{root}: is of format {FORMAT_VERSION} already; there is nothing to migrate")
        if out is not None and out.exists() and (not out.is_dir() or any(path != work for path in out.iterdir())):
            raise UsageError(f"{out}: is not empty; choose another --out")
    with storage_errors(target.root), _alone(work):
        remove_half_written(work)
        if not (work / "ready").is_file():
            _write(root, work, progress)
        _put_in_place(work, target)
    return _migrated(read_manifest(target.root))


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """The work folder for this process alone. Raises :class:`LumidError` when another one has it."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "running").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LumidError(f"{work.parent}: another lumid is migrating it; wait until it has ended") from None
        yield


def _write(root: Path, work: Path, progress: Progress | None) -> None:
    """Write the new data set whole into the work folder; the file ``ready`` says that it is sound."""
    source, identity = Layout(root), hashlib.sha256(Layout(root).manifest.read_bytes()).hexdigest()
    begun = work / "source"
    if begun.is_file() and begun.read_text("utf-8") != identity:
        raise UsageError(f"{work.parent}: holds the unfinished migration of another data set; choose another --out")
    write_text(begun, identity)
    old = read_manifest(root, oldest=OLDEST)
    new = Layout(work / "new")
    files = _catalog_files(source, old)
    shards: list[Shard] = []
    hashes: list[str] = []
    modalities: Counter[str] = Counter()
    reencoded = 0
    for number in sorted(files):
        rows = _chunk(files[number], old)
        named, tables = frozenset(pc.unique(rows["shard"]).to_pylist()), []
        for shard in (one for one in old.shards if one.name in named):
            mine = rows.filter(pc.equal(rows["shard"], shard.name)).sort_by([("offset", "ascending")])
            done, table = _shard(source, new, work / "rows", shard, mine)
            reencoded += pc.sum(pc.not_equal(table["codec"], mine["codec"])).as_py() or 0
            shards.append(done)
            tables.append(table)
            if progress:
                progress(sum(one.samples for one in shards), old.counts.kept)
        file = write_catalog_rows(pa.concat_tables(tables), number, new.catalog)
        hashes.append(file.sha256)
        modalities.update(dict(file.modalities))
    for name in ("shards", "catalog"):  # of a data set without samples
        (new.root / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(source.rejects, new.rejects, dirs_exist_ok=True)
    shutil.copyfile(source.lock, new.lock)
    about = {
        "from_format": old.format_version,
        "lumid": __version__,
        "not_recorded": _not_recorded(files, old),
        "reencoded": reencoded,
    }
    manifest = replace(
        old, format_version=FORMAT_VERSION, catalog_hash=catalog_hash(hashes), shards=tuple(shards),
        modalities=dict(sorted(modalities.items())), build=old.build | {"migrated": about},
    )  # fmt: skip
    write_text(new.manifest, manifest.to_json())
    write_citations(new.root, manifest)
    write_report(new.root)
    found = verify(new.root)
    if not found.sound:
        first = next(finding for finding in found.findings if finding.severity == "damage")
        raise DatasetError(f"{root}: cannot be migrated: {first.where}: {first.what}; it is left as it was")
    write_text(work / "ready", identity)


def _catalog_files(source: Layout, old: Manifest) -> dict[int, dict[str, Path]]:
    """The catalog's files by chunk and modality; raises :class:`DatasetError` when they are not what was built."""
    files: defaultdict[int, dict[str, Path]] = defaultdict(dict)
    for path in sorted(source.catalog.glob("modality=*/*.parquet")):
        if match := FILE_NAME.fullmatch(path.relative_to(source.catalog).as_posix()):
            files[int(match["chunk"])][match["modality"]] = path
    try:
        found = {(chunk, name): file_hash(path, name) for chunk, held in files.items() for name, path in held.items()}
    except (OSError, pa.ArrowException):
        raise DatasetError(f"{source.root}: a file of its catalog cannot be read; nothing was changed") from None
    if combine(found) != old.catalog_hash:
        raise DatasetError(
            f"{source.root}: its catalog is damaged: its hash is not the one in dataset.json; nothing was changed"
        )
    for path in (path for held in files.values() for path in held.values()):
        names = {*pq.read_schema(path).names, "modality", *(name for step in _steps(old) for name in step.columns)}
        if strange := names ^ set(CATALOG.names):
            raise DatasetError(
                f"{source.root}: cannot be migrated: format {old.format_version} has no such columns, or must have them: "
                f"{', '.join(sorted(strange))}; build it again from its recipe"
            )
    return dict(files)


def _steps(old: Manifest) -> list[Step]:
    return [STEPS[version] for version in range(old.format_version, FORMAT_VERSION)]


def _chunk(files: Mapping[str, Path], old: Manifest) -> pa.Table:
    """The rows of a chunk under today's schema."""
    pieces = []
    for modality, path in sorted(files.items()):
        with pq.ParquetFile(path) as file:
            table = file.read()
        table = table.append_column("modality", pa.repeat(pa.scalar(modality), table.num_rows))
        for step in _steps(old):
            table = step(table)
        pieces.append(table.select(CATALOG.names).cast(CATALOG))
    return pa.concat_tables(pieces)


def _not_recorded(files: Mapping[int, Mapping[str, Path]], old: Manifest) -> list[str]:
    """What today's format has and this data set had not."""
    had = {name for held in files.values() for path in held.values() for name in pq.read_schema(path).names}
    columns = {name for step in _steps(old) for name in step.columns} - had
    return sorted(columns | {name for step in _steps(old) for name in step.manifest})


def _shard(source: Layout, new: Layout, kept: Path, shard: Shard, rows: pa.Table) -> tuple[Shard, pa.Table]:
    """A shard of today's format, and its rows; ``kept``: where those are, when an earlier run has written both.

    ``rows``: the old ones, by offset. Raises :class:`DatasetError` when the old shard is damaged.
    """
    receipt = kept / f"{shard.name}.parquet"
    if receipt.is_file():
        table = pq.read_table(receipt)
        return Shard(**json.loads(table.schema.metadata[SHARD])), table.cast(CATALOG)
    path, written = source.shards / shard.name, []
    total, digest = 0, hashlib.sha256()
    try:
        if _file_hash(path) != shard.sha256:
            raise DatasetError(f"{path}: is damaged: its hash is not the one in dataset.json; nothing was changed")
        with path.open("rb") as old, atomic_file(new.shards / shard.name) as file:
            for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    row, image = _todays(values, read_range(old, values["offset"], values["length"]), path)
                    members = sample_members(row, image)
                    written.append(replace(row, offset=image_offset(total)))
                    total += len(members)
                    digest.update(members)
                    file.write(members)
            file.write(END_OF_TAR)
            digest.update(END_OF_TAR)
    except FileNotFoundError:
        raise DatasetError(f"{path}: is missing; nothing was changed") from None
    done = Shard(shard.name, len(written), total + len(END_OF_TAR), digest.hexdigest(), shard.first_key, shard.last_key)
    columns = {name: [getattr(row, name) for row in written] for name in CATALOG.names}
    table = pa.Table.from_pydict(columns, schema=CATALOG)
    write_table(receipt, table.replace_schema_metadata({SHARD: json.dumps(asdict(done)).encode()}))
    return done, table


def _todays(values: dict[str, Any], image: bytes, path: Path) -> tuple[CatalogRow, bytes]:
    """A sample with an image of a codec that there still is."""
    labels = values.pop("labels")
    row = CatalogRow(**values, labels=None if labels is None else tuple(labels))
    if hashlib.sha256(image).hexdigest() != row.sha256:
        raise DatasetError(f"{path}: is damaged: an image has another hash than its row; nothing was changed")
    if row.codec in CODECS:
        return row, image
    import imagecodecs

    if row.codec != "jxl" or not imagecodecs.JPEGXL.available:
        raise DatasetError(f"{path}: holds images of codec '{row.codec}', which cannot be read here; build it again")
    pixels = imagecodecs.jpegxl_decode(image, numthreads=1)
    if pixel_hash(pixels) != row.pixel_hash:
        raise DatasetError(f"{path}: an image has other pixels than its row says; nothing was changed")
    image = encode(pixels, REPLACES_JPEG_XL)
    digest = hashlib.sha256(image).hexdigest()
    return replace(row, codec=REPLACES_JPEG_XL, length=len(image), sha256=digest), image


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(work: Path, target: Layout) -> None:
    """Move everything, dataset.json last. Interrupted anywhere, the next run does the rest."""
    new, old = work / "new", work / "old"
    old.mkdir(exist_ok=True)
    if (new / target.manifest.name).is_file():
        if target.manifest.is_file():
            target.manifest.replace(old / target.manifest.name)  # from here to the end, there is no data set
        for name in PIECES:
            if not (new / name).exists():
                continue
            if (target.root / name).exists():
                (target.root / name).replace(old / name)
            (new / name).replace(target.root / name)
        (new / target.manifest.name).replace(target.manifest)
    shutil.rmtree(_gone(work), ignore_errors=True)
    work.replace(_gone(work))  # by one rename: nobody takes a half of it for a migration that has to go on
    shutil.rmtree(_gone(work))


def _gone(work: Path) -> Path:
    return work.with_name(".migrate.gone")


def _migrated(manifest: Manifest) -> Migrated:
    about = manifest.build.get("migrated", {"from_format": FORMAT_VERSION, "not_recorded": (), "reencoded": 0})
    return Migrated(manifest, about["from_format"], tuple(about["not_recorded"]), about["reencoded"])
