"""Builds as a user runs them: the same bytes whatever the workers, and what is in a data set that is built."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from lumid.catalog.codecs import decode, pixel_hash
from lumid.catalog.layout import read_manifest
from lumid.catalog.verify import verify
from tests.dags.command import content, lumid
from tests.dicom import TEST_FILES

pytestmark = pytest.mark.whole


def test_two_workers_give_the_same_bytes_as_one(built_study: Path, recipe: Path, tmp_path: Path) -> None:
    assert len(read_manifest(built_study).shards) > 3
    done = lumid("build", recipe, "--out", tmp_path / "data", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "data") == content(built_study)


def test_a_scheduler_that_is_there_already_gives_the_same_bytes(
    built_study: Path, recipe: Path, tmp_path: Path
) -> None:
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(tmp_path / "scheduler.json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    worker = None
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "scheduler.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1", "--local-directory", str(tmp_path)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        done = lumid("build", recipe, "--out", tmp_path / "data", "--scheduler", address)
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / "data") == content(built_study)
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.terminate()
                process.wait(30)


def test_rejects_lead_their_owner_back_to_the_files(built_study: Path, study: Path, tmp_path: Path) -> None:
    (row,) = json.loads(lumid("rejects", built_study, "--source", study, "--json").stdout)
    assert (row["path"], row["code"]) == (str(study / "notes.txt"), "not_dicom")
    assert "notes" not in lumid("rejects", built_study, "--json").stdout, "names of files are hidden from everyone else"
    (tmp_path / "other").write_bytes(b"another file")
    elsewhere = lumid("rejects", built_study, "--source", tmp_path, "--json")
    assert json.loads(elsewhere.stdout)[0]["path"] is None
    assert "is it the folder" in elsewhere.stderr


def test_the_account_adds_up(built_study: Path) -> None:
    manifest = read_manifest(built_study)
    assert (manifest.counts.objects, manifest.counts.planned, manifest.counts.kept, manifest.counts.rejected) == (
        241,
        241,
        240,
        1,
    )
    kept = duckdb.sql(f"select count(*) from '{built_study}/catalog/*/*.parquet'").fetchone()
    assert kept == (240,)
    assert verify(built_study, deep=True).findings == ()
    for shard in manifest.shards:
        data = (built_study / "shards" / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert sum(shard.samples for shard in manifest.shards) == 240


def test_plain_webdataset_reads_the_shards(built_study: Path) -> None:
    last = len(read_manifest(built_study).shards) - 1
    pattern = f"{built_study}/shards/lumid-{{000000..{last:06d}}}.tar"
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False).to_tuple("__key__", "jhc", "json"))
    assert len(samples) == 240
    keys = [key for key, _, _ in samples]
    assert keys == sorted(keys)
    rows = {
        row[0]: row[1:]
        for row in duckdb.sql(
            f"select key, shard, \"offset\", length, pixel_hash from '{built_study}/catalog/*/*.parquet'"
        ).fetchall()
    }
    for key, encoded, text in samples:
        shard, offset, length, _ = rows[key]
        with (built_study / "shards" / shard).open("rb") as file:
            file.seek(offset)
            assert file.read(length) == encoded
        assert json.loads(text)["key"] == key
        assert decode(encoded, "jhc").dtype == np.uint16


def test_one_line_decodes_the_shards_of_plain_webdataset(built_study: Path) -> None:
    import imagecodecs

    shards = [str(path) for path in sorted((built_study / "shards").glob("*.tar"))]
    decoder = webdataset.handle_extension("jhc", imagecodecs.htj2k_decode)  # the line that the documentation gives
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode(decoder).to_tuple("__key__", "jhc", "json")
    hashes = dict(duckdb.sql(f"select key, pixel_hash from '{built_study}/catalog/*/*.parquet'").fetchall())
    assert {key: pixel_hash(pixels) for key, pixels, _ in samples} == hashes


def test_members_of_shards_hold_nothing_but_names_and_sizes(built_study: Path) -> None:
    with tarfile.open(next((built_study / "shards").iterdir())) as archive:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in archive} == {
            (0, 0, 0, "", "", 0o644)
        }


def test_splits_are_by_patient(built_study: Path) -> None:
    found = duckdb.sql(
        f"select patient, count(distinct split) from '{built_study}/catalog/*/*.parquet' group by 1"
    ).fetchall()
    assert len(found) == 8
    assert {splits for _, splits in found} == {1}


def test_what_a_build_prints_and_writes_holds_no_name(
    built_study: Path, study: Path, recipe: Path, tmp_path: Path
) -> None:
    done = lumid("build", recipe, "--out", tmp_path / "data")
    assert "Jane" not in done.stdout + done.stderr
    assert str(study.name) not in (built_study / "dataset.json").read_text()
    for path in built_study.rglob("*"):
        if path.is_file():
            # a compressed table hides what it holds from a search of its bytes
            table = pq.read_table(path, partitioning=None).to_pylist() if path.suffix == ".parquet" else None
            content = path.read_bytes() if table is None else str(table).encode()
            assert b"Doe^Jane" not in content
            assert b"00-00.dcm" not in content


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    done = lumid("build", "demo", "--out", out)
    assert done.returncode == 0, done.stderr
    said = [
        line for line in done.stderr.splitlines() if line.partition(":")[0] not in ("scan", "ingest", "index", "pack")
    ]
    assert said == [], "reading real files must not print warnings; a slow machine shows progress"
    return out


PYDICOM_REASONS = {
    "CT_small.dcm": "kept", "JPGExtended.dcm": "duplicate_instance", "JPEG-lossy.dcm": "kept", "MR_truncated.dcm": "truncated",
    "JPEG2000-embedded-sequence-delimiter.dcm": "decode_failed", "README.txt": "not_dicom", "SC_rgb_small_odd.dcm": "too_small",
    "badVR.dcm": "not_an_image", "rtdose.dcm": "not_an_image", "rtplan.dcm": "not_an_image", "test-SR.dcm": "not_an_image",
    "liver_1frame.dcm": "not_an_image", "waveform_ecg.dcm": "not_an_image", "dicomdirtests/DICOMDIR": "dicomdir",
    "dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000": "no_pixel_data", "examples_ybr_color.dcm": "kept",
    "zipMR.gz": "not_dicom",
}  # fmt: skip


def test_every_file_of_pydicom_is_accounted_for(demo: Path) -> None:
    kept: Counter[str] = Counter(
        name for (name,) in duckdb.sql(f"select source_id from '{demo}/catalog/*/*.parquet'").fetchall()
    )
    rejected = dict(duckdb.sql(f"select source_id, code from '{demo}/rejects/*.parquet'").fetchall())
    files = {path.relative_to(TEST_FILES).as_posix() for path in TEST_FILES.rglob("*") if path.is_file()}
    assert set(kept) | set(rejected) == files
    assert not set(kept) & set(rejected)
    assert kept["examples_ybr_color.dcm"] == 30
    for name, expected in PYDICOM_REASONS.items():
        assert ("kept" if name in kept else rejected[name]) == expected, name
    assert "internal_error" not in rejected.values()


def test_a_frame_of_ours_is_the_frame_of_pydicom(demo: Path) -> None:
    import pydicom

    (row,) = duckdb.sql(
        f"select shard, \"offset\", length, store_slope, store_intercept from '{demo}/catalog/*/*.parquet' where source_id = 'CT_small.dcm'"
    ).fetchall()
    with (demo / "shards" / row[0]).open("rb") as file:
        file.seek(row[1])
        pixels = decode(file.read(row[2]), "jhc")
    dataset = pydicom.dcmread(TEST_FILES / "CT_small.dcm")
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    mask = dataset.pixel_array != dataset.PixelPaddingValue
    np.testing.assert_array_equal((pixels * row[3] + row[4])[mask], expected[mask])
