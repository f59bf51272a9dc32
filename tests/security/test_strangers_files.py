"""Files of strangers: a line of words for each that is not what it should be, in bounded memory, and no code of theirs runs."""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lumid
from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.extract import extract_dataset
from lumid.catalog.layout import parse_manifest, read_manifest
from lumid.catalog.lock import LOCK, load_lock
from lumid.catalog.places import NOTE, read_note
from lumid.catalog.query import count_samples, run_sql
from lumid.catalog.report import render_report
from lumid.catalog.shards import END_OF_TAR, member, read_range, read_samples
from lumid.catalog.show import choose_rows
from lumid.pipeline.lock import read_lock
from lumid.pipeline.recipe_files import load_recipe, parse_recipe
from tests.catalog.sound import make_sound

MARKER = "PLANTED^MARKER"
KEY = "0" * 24
DEEP = b"[" * 200_000


class Payload:
    """What runs when it is unpickled: it makes a folder."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.where,)


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(LumidError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    assert MARKER not in text
    return text


def all_of(path: Path) -> list[object]:
    return list(read_samples(path))


READERS: dict[str, Callable[[Path], object]] = {
    "dataset.json": lambda path: parse_manifest(path.read_bytes(), "ds"),
    "lock": load_lock,
    "lock with its recipe": read_lock,
    "subset": read_note,
    "recipe": lambda path: load_recipe(str(path)),
    "shard": all_of,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\0", DEEP, b'{"a":' * 200_000, b"9" * 6000, MARKER.encode(), bytes(2048)],
    ids=["empty", "binary", "deep list", "deep object", "long number", "words", "zeros"],
)
def test_junk_is_refused_in_a_line(reader: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(data)
    if reader == "shard" and data == bytes(2048):
        assert not all_of(path), "which is an empty tar"
    else:
        assert refused(lambda: READERS[reader](path))


@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_does_not_run(reader: str, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "file.toml"
    path.write_bytes(pickle.dumps(Payload(ran)))
    assert refused(lambda: READERS[reader](path))
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists(), "the payload would have run"


def test_an_array_of_objects_does_not_run(tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "features.npy"
    np.save(path, np.array([Payload(ran)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|Python objects"):
        np.load(path, mmap_mode="r", allow_pickle=False)
    assert not ran.exists()


def test_a_recipe_nested_too_deeply() -> None:
    for text in ("a=" + "[" * 20_000, "[x" + ".x" * 20_000 + "]\n"):
        assert "nested too deeply" in refused(lambda text=text: parse_recipe(text, "r.toml", base=Path()))


def test_a_subset_whose_note_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"key": ["a"]}).replace_schema_metadata({NOTE: DEEP}), path)
    assert refused(lambda: read_note(path))


def sparse() -> bytes:
    """A GNU sparse member that says it is 4 TiB large, in 1.5 KiB."""
    info = tarfile.TarInfo(f"{KEY}.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    header[483:495] = b"\x80" + (1 << 42).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + END_OF_TAR


def linked(kind: bytes, target: str = "") -> bytes:
    info = tarfile.TarInfo(f"{KEY}.png")
    info.type, info.linkname = kind, target
    return info.tobuf() + END_OF_TAR


@pytest.mark.parametrize(
    "data",
    [
        sparse(),
        linked(tarfile.SYMTYPE, "/etc/passwd"),
        linked(tarfile.LNKTYPE, "../../etc/passwd"),
        linked(tarfile.DIRTYPE),
        linked(tarfile.CHRTYPE),
        member(f"{KEY}.png", b"x") + member(f"{KEY}.json", DEEP) + END_OF_TAR,
        member(f"{KEY}.png", b"x") + member(f"{KEY}.json", b'{"' + MARKER.encode()) + END_OF_TAR,
        member(f"{MARKER}.json", b"{}") + END_OF_TAR,
    ],
    ids=["sparse", "symlink", "hard link", "folder", "device", "deep JSON", "broken JSON", "no image"],
)
def test_what_is_no_shard_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lumid-000000.tar"
    path.write_bytes(data)
    assert refused(lambda: all_of(path))


@pytest.mark.parametrize(("offset", "length"), [(0, 1 << 50), (-1, 10), (0, -1), (1 << 60, 1 << 60), (0, 1 << 62)])
def test_a_catalog_that_lists_absurd_ranges_takes_no_memory(offset: int, length: int) -> None:
    with io.FileIO(__file__) as file, pytest.raises(DatasetError, match="the catalog lists"):
        read_range(file, offset, length)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (make_sound(tmp_path_factory.mktemp("sound") / "ds") / "dataset.json").read_bytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(MARKER), lambda inner: st.lists(inner, max_size=2)
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_manifest_with_another_value_somewhere_is_read_or_refused(manifest: bytes, data: st.DataObject) -> None:
    values = json.loads(manifest)
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(JSON)
    said = ""
    try:
        parse_manifest(json.dumps(values).encode(), "ds")
    except LumidError as error:
        said = str(error)
    assert "\n" not in said


def made_lock(**columns: pa.Array) -> pa.Table:
    values = {field.name: pa.array([None], field.type) for field in LOCK}
    values |= {"recipe_source": pa.array([0])} | {
        name: pa.array(["x"]) for name in ("source", "collection", "series", "digest")
    }
    return pa.table(values | columns)


NO_TEXT = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])


@pytest.mark.parametrize(
    "column", [NO_TEXT, pa.array([None], pa.string()), pa.array([[1]])], ids=["no UTF-8", "null", "list"]
)
def test_a_lock_whose_rows_are_none(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "lock.parquet"
    pq.write_table(made_lock(), path)
    assert load_lock(path).num_rows == 1
    pq.write_table(made_lock(series=column), path)
    assert refused(lambda: load_lock(path))
    assert refused(lambda: read_lock(path))


@pytest.mark.parametrize("value", [MARKER, f"x'{MARKER}'y", f"{MARKER}'", f"{MARKER}\nfoo", f"parquet {MARKER}"])
@pytest.mark.parametrize("which", [0, -1])
def test_a_catalog_whose_columns_are_of_other_types(tmp_path: Path, which: int, value: str) -> None:
    """In the file that DuckDB goes by, or in another, whose text it then wants to turn into numbers, and quotes."""
    root = make_sound(tmp_path / "ds", n=12)
    path = sorted((root / "catalog").rglob("*.parquet"))[which]
    table = pq.ParquetFile(path).read()
    at = table.schema.get_field_index("p99")
    pq.write_table(table.set_column(at, "p99", pa.array([value] * len(table))), path)
    questions: tuple[Callable[[], object], ...] = (
        lambda: run_sql(root, "SELECT avg(p99) FROM catalog"),
        lambda: count_samples(root, "p99 > 5"),
        lambda: render_report(root, read_manifest(root)),
    )
    for question in questions:
        assert refused(question)


ASKED = (
    "patient::DATE", "patient::DECIMAL(4,2)", "patient::DOUBLE", "patient::JSON", "error(patient)",
    "regexp_matches('x', patient || '(')", "strptime(patient, '%Y')", "(ascii(patient) + 9223372036854775807)::BIGINT",
)  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        MARKER,
        f'Referenced column "{MARKER}"',
        f"Table with name {MARKER} does not exist",
        f'does not have a column named "{MARKER}"',
    ],
)
def test_an_error_does_not_say_which_value_it_met(tmp_path: Path, value: str) -> None:
    root = make_sound(tmp_path / "ds", n=6)
    for path in sorted((root / "catalog").rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        at = table.schema.get_field_index("patient")
        pq.write_table(table.set_column(at, table.schema.field(at), pa.array([value] * len(table))), path)
    for asked in ASKED:
        said = refused(lambda asked=asked: run_sql(root, f"SELECT {asked} FROM catalog"))  # type: ignore[misc]
        assert "NULL for" in said
        assert not {str(ord(MARKER[0])), str(ord(value[0]))} & set(re.findall("[0-9]+", said))


@pytest.mark.parametrize("name", ["shard", "offset", "length", "codec"])
def test_images_of_a_catalog_that_lacks_where_they_are(tmp_path: Path, name: str) -> None:
    root = make_sound(tmp_path / "ds", n=12)
    for path in sorted((root / "catalog").rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        field = table.schema.field(name).with_nullable(True)
        at = table.schema.get_field_index(name)
        pq.write_table(table.set_column(at, field, pa.nulls(len(table), field.type)), path)
    assert "not those of images" in refused(lambda: extract_dataset(root, tmp_path / "out"))
    assert "not those of images" in refused(lambda: list(lumid.open(root).images()))


@pytest.mark.parametrize("name", ["shard", "offset", "collection", "foreground_fraction", "patient"])
def test_a_catalog_that_lacks_what_every_sample_has(tmp_path: Path, name: str) -> None:
    root = make_sound(tmp_path / "ds", n=12)
    for path in sorted((root / "catalog").rglob("*.parquet")):
        table = pq.ParquetFile(path).read()
        field = table.schema.field(name).with_nullable(True)
        pq.write_table(
            table.set_column(table.schema.get_field_index(name), field, pa.nulls(len(table), field.type)), path
        )
    assert refused(lambda: render_report(root, read_manifest(root)))
    if name in ("shard", "offset"):
        assert "not those of images" in refused(lambda: choose_rows(root))


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    root = make_sound(tmp_path / "ds", n=12)
    for path in sorted((root / "catalog").rglob("*.parquet")):
        path.write_bytes(path.read_bytes().replace(b"age_years", b"age_y\xf7rs"))
    assert "of another format" in refused(lambda: run_sql(root, "SELECT count(*) FROM catalog"))
