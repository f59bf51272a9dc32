"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

import lumid
from lumid.catalog.query import read_catalog
from tests.catalog.sound import make_sound

ROOT = Path(__file__).resolve().parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("catalog", "pipeline", "model", "dags")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples take for given: a data set and a folder of one's own."""
    folder = tmp_path_factory.mktemp("examples")
    built = make_sound(folder / "ds", n=40)
    return {"DATASET": built, "FOLDER": folder, "lumid": lumid, "ds": lumid.open(built), "read_catalog": read_catalog}


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module: str, names: dict[str, Any]) -> None:
    done = doctest.testmod(importlib.import_module(f"lumid.{module}"), extraglobs=names, verbose=False)
    assert done.failed == 0
    assert done.attempted > 0
