"""What a machine does to a build: a disk that fills up, a decoder that takes its process with it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.crash import CRASH, crash_at
from tests.dags.command import content, lumid
from tests.dicom import as_bytes, gradient, image

pytestmark = pytest.mark.whole


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(recipe: Path, built_study: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "lumid-test", str(mount)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode != 0:
        pytest.skip("needs root and leave to mount a small disk")
    try:
        done = lumid("build", recipe, "--out", mount / "data", "--log", tmp_path / "log")
        assert done.returncode == 1
        told = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
        assert told[-2:] == ["disk_full", "build_failed"]
        assert "no space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(mount.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(mount)], check=True)
        assert lumid("build", recipe, "--out", mount / "data").returncode == 0
        assert content(mount / "data") == content(built_study)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


ROOT = Path(__file__).resolve().parents[2]


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
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    log = tmp_path / "log"
    done = lumid("build", tmp_path / "r.toml", "--out", tmp_path / "data", "--json", "--log", log, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["rejects"] == {"decoder_crash": 2}
    assert facts["counts"]["kept"] == 10
    rejected = duckdb.sql(f"select source_id from '{tmp_path}/data/rejects/*.parquet' order by 1").fetchall()
    assert rejected == [("poison",), ("poison too",)]
    told = [json.loads(line) for line in log.read_text().splitlines()]
    lost = [line for line in told if line["event"] == "worker_lost"]
    assert len(lost) >= 3
    assert all(line["level"] == "warning" for line in lost)
    suspected = {line["batch"] for line in told if line["event"] == "batch_suspected"}
    assert suspected
    assert suspected <= {task for line in lost for task in line["tasks"]}
    assert [line["objects"] for line in told if line["event"] == "objects_poisoned"] == [2]
    assert "poison" not in log.read_text().replace("objects_poisoned", "")


@pytest.mark.slow
def test_what_runs_beside_an_object_that_kills_its_worker_is_not_blamed(study: Path, tmp_path: Path) -> None:
    """With a worker all that waits on it dies, so several such objects at once kill many an innocent batch, too."""
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(study.glob("0[0-7]-0[0-2].dcm")):
        (source / path.name).write_bytes(path.read_bytes())
    for number in range(3):
        data = image(
            gradient(), SOPInstanceUID=f"1.9.{number}", SeriesInstanceUID=f"1.8.{number}", StudyDescription="POISON"
        )
        (source / f"poison {number}").write_bytes(as_bytes(data))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[[sources]]\nkind = "folder"\npath = "source"\nnames = "plain"\n[shards]\nbatch_slices = 3\n'
    )
    arguments = ("build", tmp_path / "r.toml", "--out", tmp_path / "data", "--workers", "2", "--json")
    done = lumid(*arguments, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["rejects"] == {"decoder_crash": 3}
    assert facts["counts"]["kept"] == 24


@pytest.mark.slow
def test_an_object_that_kills_whoever_scans_it_is_rejected(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(study.glob("0[01]-00.dcm")):
        (source / path.name).write_bytes(path.read_bytes())
    (source / "poison").write_bytes(as_bytes(image(gradient(), SOPInstanceUID="1.9.1", StudyDescription="POISON")))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(crash_at("scan", "sniff"))
    (tmp_path / "r.toml").write_text('name = "r"\n[[sources]]\nkind = "folder"\npath = "source"\nnames = "plain"\n')
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    done = lumid("build", tmp_path / "r.toml", "--out", tmp_path / "data", "--json", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["rejects"] == {"decoder_crash": 1}
    assert facts["counts"]["kept"] == 2
