"""Evaluations by the command line: what a user sees, resuming after a kill, and jobs that fail alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumid.dags.cli import evaluate as registered
from lumid.dags.cli.app import app
from tests.factory import make_dataset
from tests.model.runs import here

pytestmark = pytest.mark.whole

MODELS = ("random:test_vit", "random:test_resnet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate") / "data"
    make_dataset(root, n=150, seed=3)
    return root


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "lumid", "evaluate", *map(str, words)]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("done") / "out"
    words = (
        "--data",
        data,
        "--task",
        "modality",
        "--task",
        "csv:absent.csv",
        "--protocol",
        "linear",
        "--protocol",
        "knn",
    )
    return out, run(*MODELS, *words, "--draws", "50", "--baseline", "test_vit (random)", "--out", out, "--json")


def test_what_can_be_done_is_done_and_what_fails_is_named(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, finished = done
    assert finished.returncode == 1, finished.stderr
    facts = json.loads(finished.stdout)
    assert [one["why"] for one in facts["failures"]] == ["absent.csv: no such file"] * 2
    assert {(line["model"], line["protocol"]) for line in facts["lines"]} == {
        (f"{model.removeprefix('random:')} (random)", protocol) for model in MODELS for protocol in ("linear", "knn")
    }
    for name in ("tables.md", "tables.csv", "tables.json", "tables.tex", "classes.csv", "evaluation.html"):
        assert (out / name).stat().st_size > 200
    rows = list(csv.DictReader((out / "tables.csv").read_text().splitlines()))
    assert all(0 <= float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"]) <= 1 for row in rows)
    assert "Traceback" not in finished.stderr


def test_tables_are_made_again_from_predictions_alone(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = done
    before = {path.name: path.read_bytes() for path in out.glob("tables.*")}
    for path in (*out.glob("tables.*"), *(out / "features").iterdir()):
        path.unlink()
    again = run("--tables-only", "--out", out, "--draws", "50", "--baseline", "test_vit (random)")
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in out.glob("tables.*")} == before
    wrong = run("--tables-only", "--out", out, "--baseline", "nobody")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "there are test_resnet (random), test_vit (random)" in wrong.stderr


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(
    data: Path, done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    whole, _ = done
    words = (*MODELS, "--data", data, "--task", "modality", "--protocol", "linear", "--protocol", "knn")
    words = (*words, "--draws", "50", "--baseline", "test_vit (random)", "--out", tmp_path)
    with subprocess.Popen(
        command(*words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and not list(tmp_path.rglob("*-seed0.parquet")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-seed0.parquet")}
    assert kept
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "what was there was not made again"
    assert (tmp_path / "tables.csv").read_bytes() == (whole / "tables.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["random:test_vit"], "name a model and a --task"),
        (["test_vit.r160_in1k", "--task", "modality", "--weights", "other=x"], "is none of the models"),
        (["random:test_vit", "--task", "modality", "--baseline", "nobody"], "is none of test_vit (random)"),
        (["random:test_vit", "--task", "modality", "--tune", "epoch=3"], "did you mean epochs"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], why: str, tmp_path: Path) -> None:
    assert registered.app is app
    failed = here("evaluate", *words, "--out", tmp_path / "out")
    assert failed.returncode == 2
    assert why in failed.stderr
    assert failed.stderr.count("\n") == 1
