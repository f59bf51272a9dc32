from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

import lumid
from lumid.catalog.codecs import decode
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.extract import extract_dataset
from lumid.catalog.images import extract_images, folder_of
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.lock import load_lock
from lumid.catalog.query import read_catalog
from lumid.catalog.shards import read_samples
from lumid.catalog.subset import write_subset
from lumid.catalog.verify import verify
from tests.catalog.sound import catalog_files, change_cell, make_sound
from tests.stored import store


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "ds", n=60, shards=3)


MOVED = ("shard", "offset")


@pytest.mark.parametrize("condition", [None, "modality = 'CT'", "sex = 'F' AND modality <> 'US'"])
@pytest.mark.parametrize("shard_mb", [512.0, 0.02])
def test_an_extract_is_a_sound_data_set_of_the_same_samples(
    sound: Path, tmp_path: Path, condition: str | None, shard_mb: float
) -> None:
    out = tmp_path / "new" / "out"
    seen: list[tuple[int, int]] = []
    manifest = extract_dataset(sound, out, condition, shard_mb=shard_mb, progress=lambda *n: seen.append(n))
    found = verify(out, deep=True)
    assert found.sound, found.findings
    assert found.findings == ()
    assert (len(manifest.shards) > 1) == (shard_mb < 1)
    before, after = read_catalog(sound, condition), read_catalog(out)
    assert after.drop_columns(MOVED).equals(before.drop_columns(MOVED))
    assert seen[-1] == (before.num_rows, before.num_rows)
    old = {
        key: (image, about)
        for path in sorted(Layout(sound).shards.iterdir())
        for key, image, about in read_samples(path)
    }
    new = {
        key: (image, about) for path in sorted(Layout(out).shards.iterdir()) for key, image, about in read_samples(path)
    }
    assert list(new) == before["key"].to_pylist()
    assert all(old[key] == sample for key, sample in new.items())
    assert sorted(path.name for path in out.iterdir()) == [
        "CITATION.bib", "LICENSES.md", "catalog", "dataset.json", "lock.parquet", "rejects", "report.html", "shards",
    ]  # fmt: skip
    with lumid.open(out) as ds:
        key = after["key"][0].as_py()
        assert dict(ds.read(key)[1]) == ds.row(key)


def test_it_says_what_it_is_of(sound: Path, tmp_path: Path) -> None:
    write_subset(sound, tmp_path / "ct.parquet", "modality = 'CT'", limit=12)
    manifest = extract_dataset(tmp_path / "ct.parquet", tmp_path / "out", "sex = 'F'", limit=4)
    assert manifest.counts.kept == 4
    assert manifest.recipe["extract"] == {
        "of": "synthetic",
        "recipe_hash": read_manifest(sound).recipe_hash,
        "catalog_hash": read_manifest(sound).catalog_hash,
        "steps": [{"where": "modality = 'CT'", "limit": 12}, {"where": "sex = 'F'", "limit": 4}],
    }
    keys = read_catalog(tmp_path / "ct.parquet", "sex = 'F'")["key"].to_pylist()[:4]
    assert read_catalog(tmp_path / "out")["key"].to_pylist() == keys
    whole, part = load_lock(Layout(sound).lock), load_lock(Layout(tmp_path / "out").lock)
    series = set(read_catalog(tmp_path / "out")["series"].to_pylist())
    assert set(part["series"].to_pylist()) == series
    assert part.num_rows < whole.num_rows


def test_the_same_extract_has_the_same_hashes(sound: Path, tmp_path: Path) -> None:
    one = extract_dataset(sound, tmp_path / "a", "modality = 'CT'", shard_mb=0.02, threads=1)
    two = extract_dataset(sound, tmp_path / "b", "modality = 'CT'", shard_mb=0.02, threads=4)
    assert one.shards == two.shards
    assert (one.catalog_hash, one.lock_hash, one.recipe_hash) == (two.catalog_hash, two.lock_hash, two.recipe_hash)


def test_many_chunks(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumid.catalog.extract.CATALOG_CHUNK_ROWS", 11)
    extract_dataset(sound, tmp_path / "out", shard_mb=0.02)
    assert len({path.name for path in catalog_files(tmp_path / "out")}) > 2
    assert verify(tmp_path / "out", deep=True).findings == ()


def test_out_of_a_bucket(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store(sound, monkeypatch)
    there = extract_dataset(url, tmp_path / "a", "modality = 'MR'")
    here = extract_dataset(sound, tmp_path / "b", "modality = 'MR'")
    assert verify(tmp_path / "a", deep=True).findings == ()
    assert (there.shards, there.catalog_hash, there.lock_hash) == (here.shards, here.catalog_hash, here.lock_hash)


def test_series_that_the_lock_names_otherwise(sound: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "ds"))
    lock = load_lock(Layout(root).lock)
    for row in range(lock.num_rows):
        change_cell(Layout(root).lock, "series", lambda _, row=row: f"{row:016x}", row)
    extract_dataset(root, tmp_path / "out", "modality = 'MR'")
    assert verify(tmp_path / "out").findings == ()


@pytest.mark.parametrize(
    ("condition", "hint"), [("modality = 'XA'", "no sample has modality = 'XA'"), ("modalty = 1", "did you mean modality"),
                            ("random() < 0.5", "random")]
)  # fmt: skip
def test_wrong_use_leaves_nothing(sound: Path, tmp_path: Path, condition: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        extract_dataset(sound, tmp_path / "out", condition)
    assert not (tmp_path / "out").exists()


def test_it_writes_into_nothing_that_is_there(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match=r"choose another|must be a folder"):
            extract_dataset(sound, out)
        with pytest.raises(UsageError, match=r"choose another|must be a folder"):
            extract_images(sound, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_a_damaged_sample_is_not_passed_on(sound: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "ds"))
    row = read_catalog(root, "modality = 'CT'").to_pylist()[3]
    path = Layout(root).shards / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    for extract in (extract_dataset, extract_images):
        with pytest.raises(DatasetError, match=f"{row['key']} is damaged"):
            extract(root, tmp_path / "out", "modality = 'CT'")
        assert not (tmp_path / "out").exists()


def test_a_killed_extract_begins_again(sound: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lumid.catalog import extract\n"
        "def slow(done, total): print(done, flush=True); time.sleep(60)\n"
        f"extract.extract_dataset(Path({str(sound)!r}), Path({str(tmp_path / 'out')!r}), shard_mb=0.02, progress=slow)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Layout(tmp_path / "out").manifest.exists()
    assert any((tmp_path / "out").iterdir())
    extract_dataset(sound, tmp_path / "out", shard_mb=0.02)
    assert verify(tmp_path / "out").findings == ()


KILLED_WHILE_MOVING = """
import os, sys
from pathlib import Path
from lumid.catalog.extract import extract_dataset
count, replace = 0, Path.replace
def stop(self, target):
    global count
    if self.parent.name == ".extract" and target.parent == Path(sys.argv[2]):
        if count == int(sys.argv[3]):
            os._exit(9)
        count += 1
    return replace(self, target)
Path.replace = stop
extract_dataset(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moved", [0, 1, 4, 7])
def test_killed_while_it_moves_into_place(sound: Path, tmp_path: Path, moved: int) -> None:
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_MOVING, sound, out, str(moved)], check=False)
    assert done.returncode == 9
    assert not Layout(out).manifest.exists()
    assert len([path for path in out.iterdir() if not path.name.startswith(".")]) == moved
    extract_dataset(sound, out)
    assert verify(out).findings == ()


# ---- folders of images


def test_a_folder_of_images(sound: Path, tmp_path: Path) -> None:
    done = extract_images(sound, tmp_path / "out", "modality <> 'US'", by=["body_part"])
    rows = {row["key"]: row for row in read_catalog(sound, "modality <> 'US'").to_pylist()}
    with (tmp_path / "out" / "metadata.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == done.images == len(rows) == sum(done.classes.values())
    for line in listed:
        row = rows[line["key"]]
        assert line["file_name"] == f"{row['body_part']}/{row['key']}.png"
        image = cv2.imread(str(tmp_path / "out" / line["file_name"]), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.dtype == np.uint16
        with (Layout(sound).shards / row["shard"]).open("rb") as shard:
            shard.seek(row["offset"])
            assert np.array_equal(image, decode(shard.read(row["length"]), row["codec"]))
        assert float(line["store_slope"]) == row["store_slope"]


def test_windowed_images_are_what_show_shows(sound: Path, tmp_path: Path) -> None:
    extract_images(sound, tmp_path / "out", "modality = 'CT'", by=["split"], window="lung", limit=3)
    paths = sorted((tmp_path / "out").rglob("*.png"))
    assert len(paths) == 3
    with lumid.open(sound) as ds:
        for path in paths:
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert image is not None
            hounsfield, _ = ds.read(path.stem)
            wanted = np.rint(255 * np.clip((hounsfield + 1350) / 1500, 0, 1))
            assert image.dtype == np.uint8
            assert np.abs(image - wanted).max() <= 1


def test_torchvision_reads_it(sound: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    extract_images(sound, tmp_path / "out", "modality <> 'US'", by=["modality"])
    images = datasets.ImageFolder(str(tmp_path / "out"))
    assert images.classes == ["CT", "MR"]
    assert len(images) == 40


@pytest.mark.parametrize(
    "value", ["../../x", "/etc", "..", ".", "", "a/b", "a_b", "con\0", "x" * 300, "unstated", "é\n", "Ünï"]
)
def test_hostile_values_stay_inside(tmp_path: Path, value: str) -> None:
    name = folder_of({"kernel": value}, ["kernel"])
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    (tmp_path / name).mkdir()
    assert name != folder_of({"kernel": None}, ["kernel"])


def test_values_do_not_share_a_folder() -> None:
    values: list[object] = ["a/b", "a_b", "a b", None, "unstated", True, 1, ["Mass", "Nodule"]]
    assert len({folder_of({"kernel": value}, ["kernel"]) for value in values}) == len(values)


def test_no_such_column(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean body_part"):
        extract_images(sound, tmp_path / "out", by=["bodypart"])
    assert not (tmp_path / "out").exists()


def test_manifest_is_plain_json(sound: Path, tmp_path: Path) -> None:
    manifest = extract_dataset(sound, tmp_path / "out", "modality = 'CT'")
    assert json.loads(Layout(tmp_path / "out").manifest.read_text())["name"] == "out" == manifest.name
    assert manifest.modalities == {"CT": 20}
    assert isinstance(pa.table(read_catalog(tmp_path / "out")), pa.Table)
    assert time.strptime(manifest.build["finished"], "%Y-%m-%dT%H:%M:%SZ")
