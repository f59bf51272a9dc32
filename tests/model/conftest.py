"""A small data set for the model's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factory import make_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "data"
    make_dataset(root, n=50, seed=3)
    return root
