"""What reads such files, as a command or a worker would: each returns what became of a file, in a word."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from lumid.catalog.connect import ask, connect
from lumid.catalog.errors import LumidError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.lock import load_lock
from lumid.catalog.places import Place, read_note
from lumid.catalog.query import count_samples, run_sql
from lumid.catalog.report import render_report
from lumid.catalog.shards import read_samples
from lumid.catalog.subset import write_subset
from lumid.catalog.verify import verify
from lumid.dags.status import status
from lumid.pipeline.batches import make_batches
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.ingest import ingest
from lumid.pipeline.lock import read_lock, series_of, write_lock
from lumid.pipeline.parts import PartFiles, write_part
from lumid.pipeline.rawcache import read_marker
from lumid.pipeline.recipe import FolderSettings, IdcSettings, Recipe, SelectSettings
from lumid.pipeline.recipe_files import parse_recipe
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import Provenance
from lumid.pipeline.sources.folder import FolderSource
from tests.catalog.sound import make_sound
from tests.security.campaign import mutants, seeds

KEYER = Keyer(PUBLIC_SECRET)
Reader = Callable[[bytes, Path], str]
"""Reads a file's bytes; ``folder`` is empty, and may be used."""


class DefectError(Exception):
    """A reader ended in a way that is neither a value nor a line for the user."""


def read_object(data: bytes, folder: Path) -> str:
    """A folder that holds just this file, through scan, ingest and the writing of its part, as in a build."""
    (folder / "source").mkdir()
    (folder / "source" / "object").write_bytes(data)
    recipe = _choosy() if len(data) % 2 else _plain()
    provenance = Provenance("fuzz", "folder", None, None, None, modality="CT")
    source = FolderSource(folder / "source", provenance, KEYER, plain_names=True, scratch=folder / "scratch")
    try:
        series = group_series(scan(source, source.objects(), KEYER, "public"), provenance)
        codes: Counter[str] = Counter()
        for batch in make_batches(series, 0, recipe.hash(), 1000):
            done = ingest(batch, source, recipe, KEYER)
            write_part(PartFiles(folder / "parts", batch.id), done, 0.0)
            codes["kept"] += len(done.samples)
            codes.update(row.code for row in done.rejects)
            for row in done.rejects:
                if row.code == "internal_error":
                    raise DefectError(row.message)
                if mutants.MARKER in row.message:
                    raise DefectError("a reject quotes the file")
    finally:
        source.close()
    unexpected = {path.name for path in folder.iterdir()} - {"source", "scratch", "parts"}
    if unexpected or len(list((folder / "source").iterdir())) != 1:
        raise DefectError("something was written outside")
    return "kept" if codes["kept"] else codes.most_common(1)[0][0] if codes else "nothing"


@cache
def _plain() -> Recipe:
    return Recipe(name="fuzz", sources=(FolderSettings(path="source", modality="CT"),))


@cache
def _choosy() -> Recipe:
    select = SelectSettings(stride=2, max_slices=3, near_duplicates="drop", exact_duplicates="drop")
    return Recipe(name="fuzz", sources=(FolderSettings(path="source", modality="CT"),), select=select)


def read_recipe(data: bytes, folder: Path) -> str:
    """A recipe of a build, and the same text as one of a training run."""
    from lumid.model.recipe import parse_recipe as parse_training

    text = data.decode("utf-8", "replace")
    said = []
    for parse in (lambda: parse_recipe(text, "r.toml", base=folder), lambda: parse_training(text, "r.toml")):
        try:
            parse()
        except LumidError as error:
            said.append(str(error))
    _in_a_line(said)
    return "refused" if len(said) == 2 else "read"


def read_json_marker(data: bytes, folder: Path) -> str:
    """The marker of a series in the cache."""
    from lumid.pipeline.sources import Series

    one = Series(
        "0" * 16, Provenance("c", "idc", None, None, None), 1, 1, location="7a5e5f0c-39aa-4e0e-8f5b-3b3f62a1b0c4"
    )
    return "refused" if read_marker(one, data) is None else "read"


@cache
def _sound(folder: str) -> Path:
    return make_sound(Path(folder) / "sound", n=6)


def read_lock_file(data: bytes, folder: Path) -> str:
    """A lock, as a build and as a data set reads it, and the series that it pins."""
    path = folder / "l.parquet"
    path.write_bytes(data)
    return _asked((lambda: read_lock(path), lambda: series_of(load_lock(path), 0)))


def read_dataset(data: bytes, folder: Path) -> str:
    """A data set one of whose files is this: ``data`` is the file's name, a line break, and its bytes."""
    name, _, content = data.partition(b"\n")
    root = Path(shutil.copytree(_sound(str(folder.parent)), folder / "ds"))
    (root / name.decode()).write_bytes(content)
    questions: tuple[Callable[[], object], ...] = (
        lambda: verify(root, deep=True),
        lambda: run_sql(root, "SELECT modality, count(*), avg(age_years) FROM catalog GROUP BY ALL"),
        lambda: run_sql(root, "SELECT code, sum(frames) FROM rejects GROUP BY ALL"),
        lambda: count_samples(root, "modality = 'CT' AND age_years > 50"),
        lambda: status(root),
        lambda: render_report(root, read_manifest(root)),
        lambda: series_of(load_lock(Layout(root).lock), 0),
        lambda: [list(read_samples(path)) for path in sorted(Layout(root).shards.iterdir())],
    )
    first = len(data) % len(questions)  # two of them: each takes its time
    return _asked((questions + questions)[first : first + 2])


def read_subset(data: bytes, folder: Path) -> str:
    """A subset's file beside its data set."""
    path = folder / "subset.parquet"
    path.write_bytes(data)
    root = _sound(str(folder.parent))
    return _asked((lambda: read_note(path), lambda: count_samples(Place(root, path)), lambda: _keys(root, path)))


def _keys(root: Path, path: Path) -> object:
    with connect(Place(root, path)) as connection:
        return ask(connection, "SELECT key FROM catalog ORDER BY key LIMIT 5").to_pylist()


def read_build(data: bytes, folder: Path) -> str:
    """The state of a build that stopped: ``data`` is what ``build.json`` holds."""
    layout = Layout(folder / "ds")
    layout.work.mkdir(parents=True)
    layout.state.write_bytes(data)
    return _asked((lambda: status(layout.root), lambda: read_manifest(layout.root)))


def read_run(data: bytes, folder: Path) -> str:
    """A file of a training run or of weights: its name, a line break, and its bytes."""
    from torch import nn

    from lumid.model.checkpoint import load_weights, read_state
    from lumid.model.convert import read_weights
    from lumid.model.export import results
    from lumid.model.journal import lines_until
    from lumid.model.provenance import read_provenance
    from lumid.model.runs import read_run as read_whole
    from lumid.model.weights import read_config

    name, _, content = data.partition(b"\n")
    step = folder / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    path = (step if name in (b"state.json", b"model.safetensors") else folder) / name.decode()
    path.write_bytes(content)
    ask: dict[str, tuple[Callable[[], object], ...]] = {
        "state.json": (lambda: read_state(step), lambda: read_whole(folder)),
        "model.safetensors": (lambda: load_weights(step, nn.Linear(2, 2)),),
        "weights.pth": (lambda: read_weights(path),),
        "data.json": (lambda: read_provenance(folder),),
        "config.json": (lambda: read_config(folder),),
        "metrics.jsonl": (lambda: lines_until(path, 5),),
        "run.json": (lambda: _claimed(folder),),
    }
    return _asked(ask.get(path.name, (lambda: results(folder),)))


def _claimed(run: Path) -> None:
    from lumid.model.runs import _claim

    _claim(run, {"recipe": {}, "catalog_hash": ""}, fresh=False)


def _asked(questions: tuple[Callable[[], object], ...]) -> str:
    said = []
    for question in questions:
        try:
            question()
        except LumidError as error:
            said.append(str(error))
    _in_a_line(said)
    return "refused" if len(said) == len(questions) else "partly" if said else "read"


def _in_a_line(said: list[str]) -> None:
    for text in said:
        if "\n" in text or mutants.MARKER in text:
            raise DefectError(f"not a line of its own words: {text[:300]!r}")


# ---- mutants of each kind


def _of_object(kind: str) -> Callable[[random.Random, Path], bytes]:
    change = {
        "dicom": mutants.of_bytes, "png": mutants.of_png, "nifti": mutants.of_gzip(mutants.of_bytes), "nrrd": mutants.of_lines,
        "mha": mutants.of_lines, "zip": mutants.of_bytes, "tar": mutants.of_tar, "recipe": mutants.of_lines,
    }[kind]  # fmt: skip

    def make(rng: random.Random, folder: Path) -> bytes:
        if kind == "recipe":
            made = seeds.recipe()
            return change(rng.choice(made), rng, made)
        one, made = seeds.drawn(kind, rng)
        return one if one not in made and rng.random() < 0.5 else change(one, rng, made)

    return make


def _of_dataset(rng: random.Random, folder: Path) -> bytes:
    root = _sound(str(folder))
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in (".html", ".bib", ".md"))
    path = rng.choice(paths)
    data, others = path.read_bytes(), [one.read_bytes() for one in paths]
    if path.suffix == ".parquet" and rng.random() < 0.5:
        data = _other_table(path, rng)
    else:
        data = {".json": mutants.of_json, ".tar": mutants.of_tar}.get(path.suffix, mutants.of_bytes)(data, rng, others)
        if path.suffix == ".parquet" and rng.random() < 0.5:
            data = _other_footer(path.read_bytes(), rng)
    return str(path.relative_to(root)).encode() + b"\n" + data


def _other_footer(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed in the footer alone, where the counts and offsets are."""
    length = int.from_bytes(data[-8:-4], "little")
    begin = max(4, len(data) - 8 - length)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(begin, len(data) - 4)
        value = rng.choice(mutants.ABSURD) if rng.random() < 0.3 else bytes([rng.randrange(256)])
        data = data[:at] + value + data[at + len(value) :]
    return data


def _other_table(path: Path, rng: random.Random) -> bytes:
    """A whole Parquet file of other rows: columns missing, of other types, or with values that nobody expects."""
    import pyarrow as pa

    table = pq.ParquetFile(path).read()
    for _ in range(rng.choice((1, 1, 3))):
        if not table.num_columns:
            break
        at = rng.randrange(table.num_columns)
        name, count = table.column_names[at], table.num_rows
        match rng.randrange(6):
            case 0:
                table = table.drop_columns([name])
            case 1:
                table = table.set_column(at, name, pa.nulls(count, table.schema.field(at).type))
            case 2:
                table = table.set_column(at, name, pa.array([mutants.MARKER] * count, pa.string()))
            case 3:
                numbers = rng.choice(([1 << 62] * count, [-1] * count, [0] * count))
                table = table.set_column(at, name, pa.array(numbers, pa.int64()))
            case 4:
                table = table.set_column(at, name, pa.array([float("nan")] * count, pa.float64()))
            case _:
                table = pa.concat_tables([table] * 3) if count < 1000 else table.slice(0, 0)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return bytes(buffer.getvalue().to_pybytes())


@cache
def _subset(folder: str) -> bytes:
    root = _sound(folder)
    path = root.parent / "subset.parquet"
    write_subset(root, path, "modality = 'CT'")
    return path.read_bytes()


def _of_subset(rng: random.Random, folder: Path) -> bytes:
    data = _subset(str(folder))
    if rng.random() < 0.3:
        return _other_footer(data, rng)
    if rng.random() < 0.5:
        return mutants.of_bytes(data, rng, [data])
    import io

    import pyarrow as pa

    from lumid.catalog.places import NOTE

    table = pq.read_table(io.BytesIO(data))
    note = mutants.of_json((table.schema.metadata or {})[NOTE], rng, [data])
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({NOTE: note}), buffer)
    return bytes(buffer.getvalue().to_pybytes())


@cache
def _lock(folder: str) -> bytes:
    path = Path(folder) / "seed.lock"
    write_lock(path, load_lock(Layout(_sound(folder)).lock), _plain().model_copy(update={"sources": (IdcSettings(),)}))
    return path.read_bytes()


def _of_lock(rng: random.Random, folder: Path) -> bytes:
    data = _lock(str(folder))
    if rng.random() < 0.4:
        return _other_footer(data, rng)
    return mutants.of_bytes(data, rng, [data]) if rng.random() < 0.4 else _other_table(folder / "seed.lock", rng)


STATE = {
    "started": 1.0, "recipe_name": "x", "recipe_hash": "0" * 64, "phase": "ingest", "batches": 3, "batch_ids": ["a", "b"],
    "objects": 10, "bytes": 100,
}  # fmt: skip


def _of_build(rng: random.Random, folder: Path) -> bytes:
    return mutants.of_json(json.dumps(STATE).encode(), rng, [b"{}"])


def _of_marker(rng: random.Random, folder: Path) -> bytes:
    from lumid.pipeline.rawcache import Kept, marker_of
    from lumid.pipeline.sources import Series

    one = Series(
        "0" * 16, Provenance("c", "idc", None, None, None), 1, 1, location="7a5e5f0c-39aa-4e0e-8f5b-3b3f62a1b0c4"
    )
    data = marker_of(one, [Kept("a/b", "a/b", 3, "0" * 32)])
    return mutants.of_json(data, rng, [data])


def _of_run(rng: random.Random, folder: Path) -> bytes:
    from tests.security.campaign.training import files

    made = files(str(folder))
    name = rng.choice(sorted(made))
    change = mutants.of_json if name.endswith(".json") else mutants.of_bytes
    return name.encode() + b"\n" + change(made[name], rng, list(made.values()))


Maker = Callable[[random.Random, Path], bytes]
KINDS: dict[str, tuple[Maker, Reader]] = {
    **{kind: (_of_object(kind), read_object) for kind in seeds.OBJECTS},
    "recipe": (_of_object("recipe"), read_recipe),
    "dataset": (_of_dataset, read_dataset),
    "lock": (_of_lock, read_lock_file),
    "subset": (_of_subset, read_subset),
    "build": (_of_build, read_build),
    "marker": (_of_marker, read_json_marker),
    "run": (_of_run, read_run),
}
"""By name: what makes a mutant, and what reads it."""

quiet_libraries()
