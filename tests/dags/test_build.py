"""Builds as a user runs them: the same bytes whatever happens on the way, and a clear line for what cannot work."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from lumid.catalog.codecs import decode, pixel_hash
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.verify import verify
from tests.dicom import TEST_FILES, as_bytes, gradient, image

TIMEOUT_S = 300


def lumid(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "lumid", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | environment,
    )  # fmt: skip


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lumid", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment, start_new_session=True,
    )  # fmt: skip


def content(root: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on the way a data set was built."""
    files = [
        *sorted((root / "shards").iterdir()),
        *sorted((root / "catalog").rglob("*.parquet")),
        *sorted((root / "rejects").iterdir()),
        root / "lock.parquet",
    ]
    found = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return found | {"catalog_hash": read_manifest(root).catalog_hash}


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 slices in 24 series: enough for many batches."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(1)
    for series in range(24):
        for number in range(10):
            pixels = (gradient(128, 128, high=1500) + rng.integers(0, 60, (128, 128))).astype(np.int16)
            data = image(
                pixels, SOPInstanceUID=f"1.2.{series}.{number}", SeriesInstanceUID=f"1.2.{series}", StudyInstanceUID=f"1.{series}",
                PatientID=f"P{series // 3}", RescaleSlope=1, RescaleIntercept=-1024, Modality="CT" if series % 3 else "MR",
                PatientName="Doe^Jane",
            )  # fmt: skip
            (folder / f"{series:02}-{number:02}.dcm").write_bytes(as_bytes(data))
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def recipe(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "study.toml"
    path.write_text(
        f'name = "study"\n[[sources]]\nkind = "folder"\npath = "{study}"\ncollection = "study"\nlicense = "CC BY 4.0"\n'
        "[shards]\nsize_mb = 0.5\nbatch_slices = 10\n[splits]\nval = 0.2\n"
    )
    return path


@pytest.fixture(scope="session")
def built(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    done = lumid("build", recipe, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    return out


def test_two_workers_give_the_same_bytes_as_one(built: Path, recipe: Path, tmp_path: Path) -> None:
    assert len(read_manifest(built).shards) > 3
    done = lumid("build", recipe, "--out", tmp_path / "data", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "data") == content(built)


@pytest.mark.parametrize(
    ("cap", "codes"),
    [("", {"stride", "series_cap", "derived", "near_duplicate"}), ("max_series = 20", {"collection_cap", "stride"})],
)
def test_selection_does_not_depend_on_workers_batches_or_names(tmp_path: Path, cap: str, codes: set[str]) -> None:
    """Every rule that looks at more than one slice, over pydicom's files, and over the same under other names."""
    select = (
        "[select]\nmin_side = 8\nstride = 2\nmax_slices = 3\nderived = 'drop'\n"
        "exact_duplicates = 'drop'\nnear_duplicates = 'drop'\nnear_duplicate_bits = 12\n"
        f"{cap}\n"
    )
    files = sorted(TEST_FILES.rglob("*.dcm"))
    contents, keys = {}, {}
    for name, order, workers, slices in (
        ("one", files, "1", 1000),
        ("two", files, "2", 7),
        ("other", files[::-1], "1", 1000),
    ):
        source = tmp_path / ("other-names" if name == "other" else "names")
        source.mkdir(exist_ok=True)
        for number, path in enumerate(order):
            (source / f"{number:04}").unlink(missing_ok=True)
            (source / f"{number:04}").symlink_to(path)
        (tmp_path / f"{name}.toml").write_text(
            f"name = 'x'\n[[sources]]\nkind = 'folder'\npath = '{source}'\n[shards]\nbatch_slices = {slices}\n{select}"
        )
        done = lumid("build", tmp_path / f"{name}.toml", "--out", tmp_path / name, "--workers", workers)
        assert done.returncode == 0, done.stderr
        manifest = read_manifest(tmp_path / name)
        assert verify(tmp_path / name, deep=True).findings == ()
        contents[name] = (manifest.rejects, manifest.catalog_hash)
        rows = duckdb.sql(f"select key from '{tmp_path / name}/catalog/*/*.parquet' order by key").fetchall()
        keys[name] = [key for (key,) in rows]
    assert contents["one"] == contents["two"]
    assert keys["one"] == keys["other"]
    assert codes <= contents["one"][0].keys()


def test_rejects_lead_their_owner_back_to_the_files(built: Path, study: Path, tmp_path: Path) -> None:
    (row,) = json.loads(lumid("rejects", built, "--source", study, "--json").stdout)
    assert (row["path"], row["code"]) == (str(study / "notes.txt"), "not_dicom")
    assert "notes" not in lumid("rejects", built, "--json").stdout, "names of files are hidden from everyone else"
    (tmp_path / "other").write_bytes(b"another file")
    elsewhere = lumid("rejects", built, "--source", tmp_path, "--json")
    assert json.loads(elsewhere.stdout)[0]["path"] is None
    assert "is it the folder" in elsewhere.stderr


def wait_for_parts(out: Path, wanted: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if len([path for path in Layout(out).parts.glob("*.parquet") if "rejects" not in path.name]) >= wanted:
            return
        assert process.poll() is None, f"the build ended before it could be stopped: {process.communicate()}"
        time.sleep(0.002)
    raise AssertionError("the build made no parts")


def part_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Layout(out).parts.glob("*.parquet")}


def test_kill_9_in_the_middle_and_again_gives_the_same_bytes(built: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    for parts in (2, 9):
        process = start("build", recipe, "--out", out, "--workers", "2")
        wait_for_parts(out, parts, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(TIMEOUT_S)
        assert not (out / "dataset.json").exists()
        assert not (out / "shards").exists()
    stopped = lumid("status", out, "--json")
    assert json.loads(stopped.stdout)["state"] == "stopped"
    assert "has not finished" in lumid("query", out).stderr
    before = part_times(out)
    done = lumid("build", recipe, "--out", out, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert f"{sum('rejects' not in name for name in before)} of" in done.stderr
    assert content(out) == content(built)
    assert not Layout(out).work.exists()


def test_only_what_is_missing_is_made_again(built: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = start("build", recipe, "--out", out, "--workers", "1")
    wait_for_parts(out, 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    whole = {name for name in part_times(out) if "rejects" not in name}
    before = {name: time_ns for name, time_ns in part_times(out).items() if name in whole}
    process = start("build", recipe, "--out", out, "--workers", "1")
    wait_for_parts(out, len(whole) + 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    after = part_times(out)
    assert {name: after[name] for name in before} == before


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(built: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = start("build", recipe, "--out", out, "--workers", "2")
    wait_for_parts(out, 3, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert lumid("build", recipe, "--out", out).returncode == 0
    assert content(out) == content(built)


def test_a_finished_build_says_so_and_touches_nothing(built: Path, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    done = lumid("build", recipe, "--out", built)
    assert done.returncode == 0
    assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_a_finished_build_whose_source_changed_says_so(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    first, second = sorted(study.glob("*.dcm"))[:2]
    (source / "a.dcm").write_bytes(first.read_bytes())
    assert lumid("build", "--source", source, "--out", tmp_path / "data").returncode == 0
    (source / "b.dcm").write_bytes(second.read_bytes())
    done = lumid("build", "--source", source, "--out", tmp_path / "data")
    assert done.returncode == 1
    assert "source has changed" in done.stderr
    (source / "b.dcm").unlink()
    assert lumid("build", "--source", source, "--out", tmp_path / "data").returncode == 0


def test_the_account_adds_up(built: Path) -> None:
    manifest = read_manifest(built)
    assert (manifest.counts.objects, manifest.counts.planned, manifest.counts.kept, manifest.counts.rejected) == (
        241,
        241,
        240,
        1,
    )
    kept = duckdb.sql(f"select count(*) from '{built}/catalog/*/*.parquet'").fetchone()
    assert kept == (240,)
    assert verify(built, deep=True).findings == ()
    for shard in manifest.shards:
        data = (built / "shards" / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert sum(shard.samples for shard in manifest.shards) == 240


def test_plain_webdataset_reads_the_shards(built: Path) -> None:
    last = len(read_manifest(built).shards) - 1
    pattern = f"{built}/shards/lumid-{{000000..{last:06d}}}.tar"
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False).to_tuple("__key__", "jhc", "json"))
    assert len(samples) == 240
    keys = [key for key, _, _ in samples]
    assert keys == sorted(keys)
    rows = {
        row[0]: row[1:]
        for row in duckdb.sql(
            f"select key, shard, \"offset\", length, pixel_hash from '{built}/catalog/*/*.parquet'"
        ).fetchall()
    }
    for key, encoded, text in samples:
        shard, offset, length, _ = rows[key]
        with (built / "shards" / shard).open("rb") as file:
            file.seek(offset)
            assert file.read(length) == encoded
        assert json.loads(text)["key"] == key
        assert decode(encoded, "jhc").dtype == np.uint16


def test_one_line_decodes_the_shards_of_plain_webdataset(built: Path) -> None:
    import imagecodecs

    shards = [str(path) for path in sorted((built / "shards").glob("*.tar"))]
    decoder = webdataset.handle_extension("jhc", imagecodecs.htj2k_decode)  # the line that the documentation gives
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode(decoder).to_tuple("__key__", "jhc", "json")
    hashes = dict(duckdb.sql(f"select key, pixel_hash from '{built}/catalog/*/*.parquet'").fetchall())
    assert {key: pixel_hash(pixels) for key, pixels, _ in samples} == hashes


def test_members_of_shards_hold_nothing_but_names_and_sizes(built: Path) -> None:
    with tarfile.open(next((built / "shards").iterdir())) as archive:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in archive} == {
            (0, 0, 0, "", "", 0o644)
        }


def test_splits_are_by_patient(built: Path) -> None:
    found = duckdb.sql(
        f"select patient, count(distinct split) from '{built}/catalog/*/*.parquet' group by 1"
    ).fetchall()
    assert len(found) == 8
    assert {splits for _, splits in found} == {1}


def test_what_a_build_prints_and_writes_holds_no_name(built: Path, study: Path, recipe: Path, tmp_path: Path) -> None:
    done = lumid("build", recipe, "--out", tmp_path / "data")
    assert "Jane" not in done.stdout + done.stderr
    assert str(study.name) not in (built / "dataset.json").read_text()
    for path in built.rglob("*"):
        if path.is_file():
            # a compressed table hides what it holds from a search of its bytes
            table = pq.read_table(path, partitioning=None).to_pylist() if path.suffix == ".parquet" else None
            content = path.read_bytes() if table is None else str(table).encode()
            assert b"Doe^Jane" not in content
            assert b"00-00.dcm" not in content


def test_other_files_of_the_same_names_and_sizes_are_not_taken_for_finished_ones(study: Path, tmp_path: Path) -> None:
    first, second = sorted(study.glob("*.dcm"))[:2]
    assert first.stat().st_size == second.stat().st_size
    for number, file in enumerate((first, second)):
        folder = tmp_path / f"source-{number}"
        folder.mkdir()
        (folder / "IM1.dcm").write_bytes(file.read_bytes())
        os.utime(folder / "IM1.dcm", (number + 1, number + 1))
    assert lumid("build", "--source", tmp_path / "source-0", "--out", tmp_path / "data").returncode == 0
    done = lumid("build", "--source", tmp_path / "source-1", "--out", tmp_path / "data")
    assert done.returncode == 1
    assert "from other files" in done.stderr


def test_an_unfinished_build_of_other_files_is_refused(recipe: Path, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = start("build", recipe, "--out", out, "--workers", "1")
    wait_for_parts(out, 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.dcm").write_bytes(next(study.glob("*.dcm")).read_bytes())
    other = tmp_path / "study.toml"
    other.write_text(recipe.read_text().replace(str(study), str(tmp_path / "other")))
    done = lumid("build", other, "--out", out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "unfinished build of other files" in done.stderr


def test_an_out_below_the_source_is_not_read_as_one(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.dcm").write_bytes(next(study.glob("*.dcm")).read_bytes())
    for words in ("is finished", "is finished already"):
        done = lumid("build", "--source", source, "--out", source / "out[b]")
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert "planned 1 = kept 1" in done.stdout


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    done = lumid("build", "demo", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "reading real files must not print warnings"
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


def test_a_recipe_of_another_data_set_is_refused(built: Path) -> None:
    done = lumid("build", "demo", "--out", built)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "another recipe" in done.stderr


def test_an_unfinished_build_of_another_recipe_is_refused(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = start("build", recipe, "--out", out)
    wait_for_parts(out, 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    done = lumid("build", "demo", "--out", out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_two_builds_into_one_folder(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = start("build", recipe, "--out", out, "--workers", "1")
    wait_for_parts(out, 1, process)
    process.send_signal(signal.SIGSTOP)  # it stays where it is, and keeps its claim
    assert json.loads(lumid("status", out, "--json").stdout)["state"] == "running"
    done = lumid("build", recipe, "--out", out)
    assert done.returncode == 1
    assert "another lumid is building here" in done.stderr
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


@pytest.mark.parametrize("what", ["folder", "file"])
def test_an_out_that_holds_something_else_is_refused(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    else:
        out.write_text("precious")
    done = lumid("build", "demo", "--out", out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--out" in done.stderr
    assert (out / "thesis.tex" if what == "folder" else out).read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build"], 2, "RECIPE or --source"),
        (["build", "no-such"], 2, "demo, lumid, paper"),
        (["build", "--source", "no-such-folder", "--out", "x"], 2, "no such folder"),
        (["build", "lumid", "--only", "no_such", "--out", "x"], 2, "no_such"),
        (["build", "demo", "--out", "x", "--scheduler", "tcp://127.0.0.1:9"], 1, "no Dask scheduler answers"),
        (["status", "no-such"], 1, "not a data set"),
        (["query", "no-such"], 1, "not a data set"),
    ],
)
def test_wrong_use_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = lumid(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_folder_without_images_is_a_data_set_of_rejects(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("no image")
    done = lumid("build", "--source", tmp_path / "source", "--out", tmp_path / "data", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["counts"] == {"objects": 1, "planned": 1, "kept": 0, "rejected": 1}
    assert facts["rejects"] == {"not_dicom": 1}
    assert lumid("query", tmp_path / "data").returncode == 0


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    done = lumid("build", "--source", tmp_path / "source", "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "planned 0 = kept 0 + rejected 0" in done.stdout


def test_more_rejects_than_the_recipe_allows_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("no image")
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[[sources]]\nkind = "folder"\npath = "source"\n[limits]\nmax_reject_fraction = 0.5\n'
    )
    done = lumid("build", tmp_path / "r.toml", "--out", tmp_path / "data")
    assert done.returncode == 3
    assert "more than 50%" in done.stderr


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(recipe: Path, built: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "lumid-test", str(mount)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode != 0:
        pytest.skip("needs root and leave to mount a small disk")
    try:
        done = lumid("build", recipe, "--out", mount / "data")
        assert done.returncode == 1
        assert "no space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(mount.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(mount)], check=True)
        assert lumid("build", recipe, "--out", mount / "data").returncode == 0
        assert content(mount / "data") == content(built)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


CRASH = """
import os, pydicom
_read = pydicom.dcmread
def read(source, *arguments, **named):
    if b"POISON" in source.getvalue():
        os.kill(os.getpid(), 9)
    return _read(source, *arguments, **named)
pydicom.dcmread = read
"""


def test_an_object_that_kills_its_worker_is_found_and_rejected(study: Path, tmp_path: Path) -> None:
    """A decoder that crashes takes the process with it; here the process is killed when it reads a marked file."""
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(study.glob("0[01]-0[0-4].dcm")):
        (source / path.name).write_bytes(path.read_bytes())
    for name, uid in (("poison", "1.9.1"), ("poison too", "1.9.2")):
        data = image(gradient(), SOPInstanceUID=uid, SeriesInstanceUID="1.2.0", StudyDescription="POISON")
        (source / name).write_bytes(as_bytes(data))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    (tmp_path / "r.toml").write_text('name = "r"\n[[sources]]\nkind = "folder"\npath = "source"\nnames = "plain"\n')
    done = lumid("build", tmp_path / "r.toml", "--out", tmp_path / "data", "--json", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["rejects"] == {"decoder_crash": 2}
    assert facts["counts"]["kept"] == 10
    rejected = duckdb.sql(f"select source_id from '{tmp_path}/data/rejects/*.parquet' order by 1").fetchall()
    assert rejected == [("poison",), ("poison too",)]


def test_a_scheduler_that_is_there_already_gives_the_same_bytes(built: Path, recipe: Path, tmp_path: Path) -> None:
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(tmp_path / "scheduler.json")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    worker = None
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "scheduler.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1", "--local-directory", str(tmp_path)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        done = lumid("build", recipe, "--out", tmp_path / "data", "--scheduler", address)
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / "data") == content(built)
    finally:
        for process in (worker, scheduler):
            if process is not None:
                process.terminate()
                process.wait(30)


def test_version_lists_the_libraries() -> None:
    done = lumid("--version")
    assert done.returncode == 0
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"lumid", "python", "pydicom", "dask", "pyarrow", "webdataset"} <= names


def test_help_of_every_command_has_an_example() -> None:
    top = lumid("--help")
    assert top.returncode == 0
    for command in (
        "demo",
        "build",
        "status",
        "query",
        "show",
        "rejects",
        "report",
        "cite",
        "pretrain",
        "reconstruct",
        "export",
    ):
        assert command in top.stdout
        done = lumid(command, "--help")
        assert done.returncode == 0
        assert f"lumid {command}" in done.stdout, f"{command} --help shows no example"
