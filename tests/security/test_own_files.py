"""Files that lumid writes for itself, damaged or made by somebody: a line that says what to do, and nothing else touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.extract import MOVING, WORK, work_folder
from lumid.catalog.json_files import read_json
from lumid.catalog.layout import Layout, parse_manifest
from lumid.catalog.show import IMAGE_COLUMNS, image_rows
from lumid.dags.state import read_state
from lumid.dags.status import status

STATE = {"recipe_name": "r", "recipe_hash": "0" * 64, "phase": "ingest", "batches": 2, "batch_ids": ["ab", "cd-1"]}
BROKEN = [b"", b"\xff", b"[]", b"null", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 6000]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_object_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="mend it") as caught:
        read_json(path, "mend it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_ids": ["../../outside"]}, {"batch_ids": ["/etc/x"]}, {"batch_ids": [3]}, {"batch_ids": "ab"}, {"batches": "2"},
        {"batches": None}, {"phase": 3}, {"recipe_hash": None}, {"batches": True},
    ],
)  # fmt: skip
def test_the_state_of_a_build_that_is_none(wrong: dict[str, object], tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.work.mkdir()
    layout.state.write_text(json.dumps(STATE))
    assert read_state(layout) == STATE
    assert status(tmp_path).state == "stopped"
    layout.state.write_text(json.dumps(STATE | wrong))
    for ask in (lambda: read_state(layout), lambda: status(tmp_path)):
        with pytest.raises(DatasetError, match="lumid build"):
            ask()


def test_an_extract_that_was_interrupted_removes_nothing_outside(tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out"
    (kept / "inner").mkdir(parents=True)
    (out / WORK).mkdir(parents=True)
    (out / "shards").mkdir()
    names = ["../kept", "..", ".", "/etc/none", str(kept), "shards", "", "a/../../kept"]
    (out / MOVING).write_text(json.dumps(dict.fromkeys(names)))
    with work_folder(out) as work:
        assert not (out / "shards").exists(), "its own goes"
        (work / "dataset.json").write_text("{}")
    assert (kept / "inner").is_dir()
    assert (out / "dataset.json").is_file()


def test_rows_without_what_every_image_has() -> None:
    table = pa.table({name: pa.nulls(2) for name in IMAGE_COLUMNS})
    with pytest.raises(DatasetError, match="lumid verify"):
        image_rows(table)
    with pytest.raises(DatasetError, match="lumid verify"):
        image_rows(table.set_column(IMAGE_COLUMNS.index("p01"), "p01", pa.array(["a", "b"])))


def read_run_files() -> dict[str, Callable[[Path], object]]:
    pytest.importorskip("torch")
    from lumid.model.export import results
    from lumid.model.provenance import read_provenance
    from lumid.model.weights import read_config

    return {"data.json": read_provenance, "summary.json": results, "config.json": read_config}


@pytest.mark.parametrize("name", ["data.json", "summary.json", "config.json"])
@pytest.mark.parametrize("data", [b"[" * 100_000, b"[]", b"\xff", b"{"])
def test_files_of_a_run(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LumidError) as caught:
        read_run_files()[name](tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"collections": 3}',
        b'{"collections": [{}], "modalities": {}}',
        b'{"collections": [], "modalities": {"CT": "x"}}',
    ],
)
def test_a_provenance_of_something_else(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(data)
    with pytest.raises(LumidError, match="damaged"):
        read_run_files()["data.json"](tmp_path)


def test_a_journal_keeps_the_lines_that_are_whole(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from lumid.model.journal import lines_until

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[]\n{"step": "x"}\n' + b"[" * 100_000 + b'\n{"step": 2}\n{"step": 9}\n')
    assert lines_until(path, 5) == ['{"step": 1}', '{"step": 2}']


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3), ("recipe", []), ("recipe", "x"), ("build", 7), ("modalities", {"CT": "many"}), ("catalog_hash", None),
        ("counts", {"objects": 1, "planned": 1.5, "kept": 1, "rejected": 0}), ("lock_hash", ["a"]),
        ("counts", {"objects": 10**400, "planned": 1, "kept": 1, "rejected": 0}),
        ("shards", [{"name": "a", "samples": "1", "bytes": 1, "sha256": "", "first_key": "", "last_key": ""}]),
    ],
)  # fmt: skip
def test_a_manifest_with_values_of_another_type_is_damaged(field: str, value: object) -> None:
    sound: dict[str, object] = {
        "name": "n", "format_version": 3, "lumid_version": "1", "recipe": {}, "recipe_hash": "", "lock_hash": "",
        "catalog_hash": "", "libraries": {}, "counts": {"objects": 1, "planned": 1, "kept": 1, "rejected": 0},
        "modalities": {}, "rejects": {}, "shards": [], "build": {},
    }  # fmt: skip
    assert parse_manifest(json.dumps(sound).encode(), "x").name == "n"
    with pytest.raises(DatasetError, match="damaged"):
        parse_manifest(json.dumps(sound | {field: value}).encode(), "x")


def test_the_recipe_of_a_strangers_run_is_not_quoted() -> None:
    pytest.importorskip("torch")
    from lumid.model.runs import _difference

    assert _difference({"recipe": {"steps": 40}}, {"recipe": {"steps": 80}}) == "steps was 40, is 80"
    for found in ({"recipe": "DOE^JANE"}, {"recipe": {"DOE^JANE": 1}}, {"recipe": {"steps": ["DOE^JANE"]}}):
        assert "JANE" not in _difference(found, {"recipe": {"steps": 80}})


@pytest.mark.parametrize(
    ("summary", "scores"),
    [({}, {"modalities": 3}), ({}, {"modalities": ["x"]}), ({"validation_loss": "low"}, {}), ({"validation_loss_by_modality": 1.5}, {})],
)  # fmt: skip
def test_scores_of_a_run_that_are_none(summary: dict[str, object], scores: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from lumid.model.export import results

    assert results(tmp_path).validation_loss is None
    (tmp_path / "summary.json").write_text(json.dumps({"validation_loss": 0.5} | summary))
    (tmp_path / "reconstruction.json").write_text(json.dumps({"modalities": [{"modality": "CT"}]} | scores))
    with pytest.raises(DatasetError, match="remove it"):
        results(tmp_path)
