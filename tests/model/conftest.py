"""A small data set for the model's tests, and one thread of PyTorch's: more of them wait for each other on small models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.factory import make_dataset
from tests.model.runs import RECIPE, lumid

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "data"
    make_dataset(root, n=50, seed=3)
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "test.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that was never interrupted; its recipe is ``test.toml`` beside it. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "test.toml").write_text(RECIPE)
    done = lumid("pretrain", "--data", data, "--recipe", folder / "test.toml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"
