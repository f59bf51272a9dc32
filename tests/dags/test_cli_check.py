from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

import lumid.dags.cli.check
import lumid.dags.cli.look  # noqa: F401  registers the commands
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.query import read_catalog
from lumid.dags.cli.app import app
from tests.catalog.sound import catalog_files, change_cell, change_manifest, flip, make_sound
from tests.dicom import TEST_FILES


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def asked(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "ds")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "ds"))


def shard(root: Path) -> Path:
    return root / "shards" / "lumid-000000.tar"


def first_sample(root: Path) -> dict[str, Any]:
    return dict(read_catalog(root).to_pylist()[0])


# ---- verify


def test_verify_a_sound_data_set(sound: Path) -> None:
    result = run("verify", sound)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stdout.startswith(f"{sound}: sound; 12 samples (hashes only, --deep decodes) in 2 shards")
    assert "12 samples (12 decoded)" in run("verify", sound, "--deep", "--workers", 2).stdout
    values = asked("verify", sound, "--deep")
    assert values["sound"] is True
    assert values["findings"] == values["damaged"] == []
    assert values["counts"]["images_decoded"] == 12


def test_verify_a_damaged_data_set(copy: Path) -> None:
    row = first_sample(copy)
    flip(shard(copy), row["offset"] + 50)
    result = run("verify", copy)
    assert result.exit_code == 1
    assert f"damage   shards/lumid-000000.tar: 1 of 6 samples are damaged (1 × image): {row['key']}" in result.stdout
    assert f"{copy}: DAMAGED" in result.stdout
    assert run("verify", copy, "--json").exit_code == 1
    values = asked("verify", copy)
    assert values["damaged"] == [{"name": "lumid-000000.tar", "keys": [row["key"]], "framing": "intact"}]
    assert {finding["code"] for finding in values["findings"]} == {"shard_hash", "sample_damaged"}


def test_a_warning_is_no_damage(copy: Path) -> None:
    (copy / "report.html").unlink()
    result = run("verify", copy)
    assert result.exit_code == 0
    assert result.stdout.startswith("warning  report.html: missing")


def test_a_long_list_is_cut_and_cannot_drive_the_terminal(copy: Path) -> None:
    for number in range(40):
        (copy / "shards" / f"\x1b[2J{number}.tar").write_bytes(b"")
    result = run("verify", copy)
    assert "and 10 more; --json lists all" in result.stdout
    assert "\x1b" not in result.stdout
    assert len(asked("verify", copy)["findings"]) == 40


def test_what_is_no_data_set_is_one_line(tmp_path: Path) -> None:
    for arguments in (("verify", tmp_path), ("diff", tmp_path, tmp_path)):
        result = run(*arguments)
        assert isinstance(result.exception, DatasetError)
        assert "\n" not in str(result.exception)


def test_progress_on_a_terminal_goes_to_stderr(sound: Path) -> None:
    """The bar is for eyes: standard output stays JSON."""
    main, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lumid", "verify", str(sound), "--deep", "--json"],
            stdout=subprocess.PIPE, stderr=follower, timeout=60, check=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )  # fmt: skip
        os.close(follower)
        shown = os.read(main, 1 << 16).decode(errors="replace")  # a read can end within a character
    finally:
        os.close(main)
    assert json.loads(done.stdout)["sound"] is True
    assert "verify" in shown


# ---- diff


def test_diff_of_equal_ones(sound: Path, copy: Path) -> None:
    result = run("diff", sound, copy)
    assert result.exit_code == 0
    assert "equal: the same samples with the same descriptions" in result.stdout
    assert "lock      the same" in result.stdout
    assert asked("diff", sound, copy)["equal"] is True


def test_diff_says_what_and_why(sound: Path, tmp_path: Path) -> None:
    larger = make_sound(tmp_path / "larger", n=30)
    change_manifest(larger, recipe={"name": "synthetic", "pixels": {"profile": "paper"}}, lumid_version="0.2.0")
    change_cell(catalog_files(larger)[0], "split", lambda _: "benchmark")
    result = run("diff", sound, larger)
    assert result.exit_code == 1
    text = result.stdout
    assert "  pixels.profile: lumid → paper\n" in text
    assert "  lumid: 0.1.0 → 0.2.0\n" in text
    assert "lock      4 series in both, 0 in another version, 0 only in A, 6 only in B" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line[:3] in ("all", "CT ", "US ")}
    assert lines["all"] == ["12", "0", "0", "0", "0", "18"]
    assert lines["CT"] == ["4", "0", "0", "0", "0", "6"]
    values = asked("diff", sound, larger)
    assert values["total"]["only_b"] == 18
    assert values["recipe"][1] == {"key": "pixels.profile", "a": "lumid", "b": "paper"}
    assert len(values["locks"]["only_b"]) == 6


def test_diff_of_descriptions(sound: Path, copy: Path) -> None:
    change_cell(catalog_files(copy)[0], "split", lambda _: "benchmark")
    result = run("diff", sound, copy)
    assert result.exit_code == 1
    assert "1 shared samples are described differently; of the first 1 in: split (1)" in result.stdout


def test_diff_writes_keys(sound: Path, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "keys.parquet"
    assert run("diff", sound, copy, "--keys", out).exit_code == 0
    table = pq.read_table(out)
    assert table["key"].to_pylist() == read_catalog(sound)["key"].to_pylist()
    assert set(table["status"].to_pylist()) == {"same"}
    for bad in (tmp_path, tmp_path / "none" / "keys.parquet"):
        assert isinstance(run("diff", sound, copy, "--keys", bad).exception, UsageError)


# ---- cite


def test_cite_in_every_format(copy: Path) -> None:
    assert run("cite", copy).stdout == (copy / "CITATION.bib").read_text()
    assert run("cite", copy, "--format", "markdown").stdout == (copy / "LICENSES.md").read_text()
    assert "lung_trial: 4 samples, licence CC BY 4.0" in run("cite", copy, "--format", "text").stdout
    rows = json.loads(run("cite", copy, "--format", "json").stdout)
    assert {row["collection"]: row["citation"] for row in rows} == dict.fromkeys(
        ("lung_trial", "clinic", "prostate_trial")
    )
    assert run("cite", copy, "--format", "ris").exit_code == 2


# ---- the whole way


def test_what_a_build_makes_is_sound_and_equal_to_itself(tmp_path: Path) -> None:
    out = tmp_path / "built"

    def lumid(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lumid", *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    source = tmp_path / "source"
    source.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_padded.dcm"):
        shutil.copy(TEST_FILES / name, source)
    assert lumid("build", "--source", str(source), "--out", str(out), "--workers", "1").returncode == 0
    found = lumid("verify", str(out), "--deep", "--json")
    assert json.loads(found.stdout)["findings"] == []
    assert found.returncode == 0
    assert lumid("diff", str(out), str(out)).returncode == 0
    row = first_sample(out)
    flip(out / "shards" / row["shard"], row["offset"])
    found = lumid("verify", str(out), "--json")
    assert found.returncode == 1
    assert [one["keys"] for one in json.loads(found.stdout)["damaged"]] == [[row["key"]]]
