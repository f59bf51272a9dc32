from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lumid.catalog.croissant import license_url, write_croissant
from lumid.catalog.extract import extract_dataset
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import CATALOG
from lumid.catalog.subset import write_subset
from tests.catalog.sound import make_sound
from tests.stored import store


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "ds", n=30)


def test_the_validator_accepts_it_and_reads_every_row(sound: Path, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    extract_dataset(sound, tmp_path / "ds", "modality <> 'US'")
    croissant, _ = write_croissant(tmp_path / "ds", tmp_path / "ds")
    dataset = mlcroissant.Dataset(str(croissant))
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.ctx.issues.warnings == set()
    read = {row["samples/key"].decode(): row for row in dataset.records("samples")}
    rows = {row["key"]: row for row in read_catalog(tmp_path / "ds").to_pylist()}
    assert read.keys() == rows.keys()
    assert Counter(row["samples/modality"] for row in read.values()) == {b"CT": 10, b"MR": 10}
    for key, row in rows.items():
        assert read[key]["samples/offset"] == row["offset"]
        assert read[key]["samples/slice_thickness"] == pytest.approx(row["slice_thickness"])


def test_a_subset_is_described_with_its_file(sound: Path, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    extract_dataset(sound, tmp_path / "ds")
    note = write_subset(tmp_path / "ds", tmp_path / "ds" / "ct.parquet", "modality = 'CT'")
    croissant, card = write_croissant(tmp_path / "ds" / "ct.parquet", tmp_path / "ds")
    dataset = mlcroissant.Dataset(str(croissant))
    assert dataset.metadata.ctx.issues.errors == set()
    assert sum(1 for _ in dataset.records("subset")) == note.samples == 10
    assert "pretty_name: ct" in card.read_text()
    assert "data_files: ct.parquet" in card.read_text()


def test_it_says_of_every_file_and_column_what_it_is(sound: Path, tmp_path: Path) -> None:
    croissant, _ = write_croissant(sound, tmp_path, "https://example.org/lumid")
    described = json.loads(croissant.read_text())
    assert described["url"] == "https://example.org/lumid"
    files = {one["@id"]: one for one in described["distribution"] if one["@type"] == "cr:FileObject"}
    for name, one in files.items():
        path = sound / name
        assert one["contentSize"] == f"{path.stat().st_size} B"
        import hashlib

        assert one["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(files) == 2 + 3
    (records,) = described["recordSet"]
    assert [field["name"] for field in records["field"]] == CATALOG.names
    by_name = {field["name"]: field for field in records["field"]}
    assert by_name["slice_thickness"]["description"].endswith("(mm)")
    assert by_name["labels"]["repeated"] is True
    assert set(described["license"]) == {
        "https://creativecommons.org/licenses/by/4.0/", "https://creativecommons.org/licenses/by-nc/4.0/",
    }  # fmt: skip


def test_hugging_face_reads_the_card(sound: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    extract_dataset(sound, tmp_path / "ds")
    write_croissant(tmp_path / "ds", tmp_path / "ds")
    whole = datasets.load_dataset(str(tmp_path / "ds"), "catalog", cache_dir=str(tmp_path / "cache"))
    assert whole["train"].num_rows == 30
    ct = datasets.load_dataset(str(tmp_path / "ds"), "CT", cache_dir=str(tmp_path / "cache"))
    assert sorted(ct["train"]["key"]) == read_catalog(sound, "modality = 'CT'")["key"].to_pylist()


def test_of_a_data_set_in_a_bucket(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write_croissant(sound, tmp_path / "here")
    there = write_croissant(store(sound, monkeypatch), tmp_path / "there")
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("CC BY-NC-SA 3.0", "https://creativecommons.org/licenses/by-nc-sa/3.0/"),
        ("CC0 1.0 Universal", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("CC BY", "CC BY"),
        ("TCIA Restricted", "TCIA Restricted"),
        ("https://creativecommons.org/licenses/by/4.0/", "https://creativecommons.org/licenses/by/4.0/"),
    ],
)
def test_licences_have_addresses(name: str, url: str) -> None:
    assert license_url(name) == url
