"""The page's own task runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from lumid.model.evaluate.baselines import BASELINES
from lumid.model.evaluate.jobs import ALL_PROTOCOLS, Job, run_job
from lumid.model.evaluate.predictions import read_prediction
from lumid.model.evaluate.tasks import OF_FILES, TASKS, load_task
from tests.factory import make_dataset

PAGE = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text("utf-8")


def test_the_pages_task_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code.count("\n") < 40
    monkeypatch.chdir(tmp_path)
    Path("pictures.py").write_text(code)
    random = np.random.default_rng(0)
    for number in range(40):
        folder = Path("pictures", "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 100, (40, 40), np.uint8) + np.uint8(120 * (number % 2))
        cv2.imwrite(str(folder / f"P{number // 4}_{number}.png"), image)
    (path,) = run_job(Job("random:test_vit", "pictures.py", None, ("knn",), (0,)), tmp_path / "out")
    found = read_prediction(path)
    assert found.about.classes == ("a", "b")
    assert (found.scores.argmax(1) == found.labels).mean() > 0.8


def test_a_column_of_the_catalog_is_one_call(tmp_path: Path) -> None:
    call = re.search(r"`(return of_column\(.*?\))`", PAGE)
    assert call
    (tmp_path / "sex.py").write_text(
        f"from lumid.model.evaluate.tasks.catalog import of_column\n\n\ndef task(data):\n    {call[1]}\n"
    )
    make_dataset(tmp_path / "data", n=120, seed=3)
    assert load_task(str(tmp_path / "sex.py"), tmp_path / "data").classes == ("F", "M")


def test_what_the_page_names_exists() -> None:
    for name in (*TASKS, *OF_FILES, *ALL_PROTOCOLS, *(one.timm for one in BASELINES)):
        assert f"`{name}" in PAGE
    for one in BASELINES:
        assert re.search(rf"`{re.escape(one.timm)}` \| {re.escape(one.licence)} \|", PAGE)
