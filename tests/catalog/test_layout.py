from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lumid.catalog.errors import DatasetError, StorageError, UsageError
from lumid.catalog.layout import Layout, Manifest, atomic_file, read_manifest, storage_errors, write_table, write_text
from tests.factory import make_dataset


def test_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    written = make_dataset(tmp_path / "ds", n=5)
    assert read_manifest(tmp_path / "ds") == written
    assert written.counts.planned == written.counts.kept + written.counts.rejected == 5 + 6


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "one", n=9) == make_dataset(tmp_path / "two", n=9)
    assert make_dataset(tmp_path / "three", n=9, seed=1).shards != read_manifest(tmp_path / "one").shards


def test_atomic_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="not a regular file"), atomic_file(path) as file:
            file.write(b"all")
    assert (tmp_path / "pipe").is_fifo()


def write_half(path: Path, failure: type[BaseException]) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_atomic_file_leaves_nothing_and_keeps_the_old(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(failure):
        write_half(path, failure)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_table_round_trip(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    write_table(tmp_path / "t.parquet", table)
    assert pq.read_table(tmp_path / "t.parquet").equals(table)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format_version": "x"}', "\x00", "FIELD", "EXTRA", "SHARD", "COUNTS"],
)
def test_damaged_manifest(dataset: Path, text: str) -> None:
    path = Layout(dataset).manifest
    raw = json.loads(path.read_text())
    if text == "FIELD":
        del raw["recipe_hash"]
    elif text == "EXTRA":
        raw["surprise"] = 1
    elif text == "SHARD":
        del raw["shards"][0]["sha256"]
    elif text == "COUNTS":
        raw["counts"] = [1, 2]
    path.write_text(json.dumps(raw) if text.isupper() else text)
    with pytest.raises(DatasetError, match="damaged"):
        read_manifest(dataset)


def test_newer_format(dataset: Path) -> None:
    path = Layout(dataset).manifest
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 999}))
    with pytest.raises(DatasetError, match="update lumid"):
        read_manifest(dataset)


def test_no_data_set_and_unfinished_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a data set"):
        read_manifest(tmp_path)
    write_text(Layout(tmp_path).state, "{}")
    with pytest.raises(DatasetError, match="has not finished"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_the_disk_refuses_is_one_line(tmp_path: Path, code: int) -> None:
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path):
        raise OSError(code, "no")
    assert "\n" not in str(caught.value)


def test_other_os_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "absent").read_bytes()


def test_manifest_is_json_that_others_read(built: Path) -> None:
    raw = json.loads(Layout(built).manifest.read_text())
    assert set(raw) == set(Manifest.__dataclass_fields__)
    assert raw["shards"][0]["samples"] == 20
