"""Builds that are killed, stopped or in each other's way: the same bytes in the end, and a clear line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lumid.catalog.layout import Layout
from lumid.dags import build as building
from lumid.dags.claim import claimed
from lumid.dags.cluster import ClusterSettings
from lumid.dags.packing import Packed
from lumid.dags.progress import BuildProgress
from lumid.pipeline.recipe_files import load_recipe
from tests.dags.command import TIMEOUT_S, content, lumid, part_times, start, wait_for_parts

pytestmark = pytest.mark.whole


def test_kill_9_in_the_middle_and_again_gives_the_same_bytes(built_study: Path, recipe: Path, tmp_path: Path) -> None:
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
    assert content(out) == content(built_study)
    assert not Layout(out).work.exists()


def test_only_what_is_missing_is_made_again(built_study: Path, recipe: Path, tmp_path: Path) -> None:
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


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(built_study: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    process = start("build", recipe, "--out", out, "--workers", "2")
    wait_for_parts(out, 3, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert lumid("build", recipe, "--out", out).returncode == 0
    assert content(out) == content(built_study)


@pytest.mark.slow
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


def test_what_a_killed_worker_had_begun_is_no_part_of_the_data_set(
    built_study: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = building.pack

    def with_leftovers(*given: Any) -> Packed:
        packed = whole(*given)
        assert isinstance(packed.folder, Path)
        for name in ("shards/.lumid-000006.tar.04e30f03.tmp", "catalog/modality=CT/.part-00000.parquet.0f.tmp"):
            (packed.folder / name).write_bytes(b"half of it")
        return packed

    monkeypatch.setattr(building, "pack", with_leftovers)
    building.build(
        load_recipe(str(recipe)), tmp_path / "data", ClusterSettings(None, 1), BuildProgress(Console(quiet=True))
    )
    assert content(tmp_path / "data") == content(built_study)


def test_what_a_killed_build_had_begun_to_write_in_its_place_is_swept_away(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / ".dataset.json.0f3a.tmp").write_bytes(b"half of it")
    (tmp_path / "notes.tmp").write_bytes(b"my own")
    with claimed(Layout(tmp_path), load_recipe(str(recipe))):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".build", "notes.tmp"]


def test_what_was_being_removed_when_a_build_was_killed_is_removed_by_the_next(
    built_study: Path, recipe: Path, tmp_path: Path
) -> None:
    """A finished data set, whose work folder has its last name already; beside it a file that was never whole."""
    out = shutil.copytree(built_study, tmp_path / "data")
    (out / ".build.0123abcd.gone" / "parts").mkdir(parents=True)
    (out / ".dataset.json.0123abcd.tmp").write_text("{")
    done = lumid("build", recipe, "--out", out)
    assert (done.returncode, "is finished already" in done.stdout) == (0, True), done.stderr
    assert not list(out.glob(".*"))
