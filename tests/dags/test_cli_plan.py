"""``lumid plan`` and ``lumid collections``, run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lumid.pipeline.lock import lock_hash, read_lock
from lumid.pipeline.recipe_files import load_recipe, with_overrides

SMALL = """
name = "small"
[[sources]]
kind = "idc"
collections = ["tcga_sarc", "tcga_read", "midrc_ricord_1b"]
idc_version = 25
"""


def lumid(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lumid", *words],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])} | environment,
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_a_table_with_totals_licences_and_notes(recipe: Path, tmp_path: Path) -> None:
    done = lumid("plan", str(recipe), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert lines["tcga_sarc"][1:4] == ["5", "33", "5,653"]
    assert lines["all"][1:4] == ["125", "187", "28,669"]
    assert "21,220 slices (74.0%) are under licences that exclude commercial use (NC)" in done.stdout
    assert "estimates assume 53 kB a stored slice" in done.stdout
    assert "IDC version 25 of 2026-09-26" in done.stdout


def test_json_and_a_lock_that_can_be_read_back(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "small.lock.parquet"
    done = lumid("plan", str(recipe), "--sample", "50%", "--max-gb", "2", "--out", str(out), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    chosen = with_overrides(load_recipe(str(recipe)), sample=0.5, max_gb=2.0)
    lock, made_from = read_lock(out)
    assert made_from == chosen
    assert values["recipe_hash"] == chosen.hash()
    assert values["lock"] == {"path": str(out), "series": lock.num_rows, "hash": lock_hash(lock)}
    assert values["totals"]["series"] == lock.num_rows > 0
    assert values["totals"]["gb"] == pytest.approx(sum(lock["bytes"].to_pylist()) / 1e9)
    assert values["totals"]["gb"] <= 2
    by_name = {one["collection"]: one for one in values["collections"]}
    assert by_name["midrc_ricord_1b"]["commercial"] is False
    assert by_name["midrc_ricord_1b"]["drift"]["paper_subjects"] == 227


def test_only_one_collection(recipe: Path, tmp_path: Path) -> None:
    done = lumid("plan", str(recipe), "--collection", "TCGA-READ", "--json", cwd=tmp_path)
    assert [one["collection"] for one in json.loads(done.stdout)["collections"]] == ["tcga_read"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--collection", "tcga_rea"], "did you mean 'tcga_read'?"),
        (["--sample", "5"], "write it as 0.1%"),
        (["--max-gb", "0"], "greater than 0"),
        (["--out", "."], "is a folder"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(recipe: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = lumid("plan", str(recipe), *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_recipe_lumid_plans_on_an_empty_machine(tmp_path: Path) -> None:
    done = lumid("plan", "lumid", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert len(values["collections"]) == 27, "without the set of planted identifiers"
    by_hand = {one["collection"] for one in values["collections"] if one["source"] == "by hand"}
    assert by_hand == {"ct_org", "ct_images_in_covid_19"}
    assert sum("by hand: fetch" in note for note in values["notes"]) == 2
    assert list(tmp_path.iterdir()) == [], "a plan without --out writes nothing"


def test_planning_brings_in_nothing_heavy(recipe: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from lumid.dags.cli import main\n"
        f"sys.argv = ['lumid', 'plan', {str(recipe)!r}, '--json']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'dask', 'distributed', 'SimpleITK', 'pydicom', 'tcia_utils', 'idc_index_data'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.stderr.strip() == "[]"


def test_collections_as_a_table(tmp_path: Path) -> None:
    done = lumid("collections", cwd=tmp_path)
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert sum(line[0] in ("lidc_idri", "ct_org", "nih_chest_xray") for line in lines) == 3
    [ricord] = [line for line in lines if line[0] == "midrc_ricord_1a"]
    assert ricord[1:] == ["IDC", "CT", "227*", "110", "31,856", "11.7", "CC", "BY-NC", "4.0", "NC", "10.7937/vtw4-x588"]
    [total] = [line for line in lines if line[0] == "all"]
    assert total[1] == "36,665", "subjects as the paper counts them, a shared row once"


def test_collections_as_json(tmp_path: Path) -> None:
    every = json.loads(lumid("collections", "--json", cwd=tmp_path).stdout)
    assert len(every) == 28
    one = json.loads(lumid("collections", "LIDC-IDRI", "--json", cwd=tmp_path).stdout)
    assert one in every
    assert (one["id"], one["commercial_use"], one["patients"]) == ("lidc_idri", True, 1010)


def test_one_collection_whole(tmp_path: Path) -> None:
    said = lumid("collections", "tcga_ucec", cwd=tmp_path).stdout
    for words in (
        "Erickson, B. J.",
        "cites TCGA-LUAD",
        "65 subjects",
        "https://doi.org/10.7937/k9/tcia.2016.gkj0zwac",
        "77,214 images",
    ):
        assert words in said
    wrong = lumid("collections", "tcga_uce", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "did you mean 'tcga_ucec'?" in wrong.stderr
