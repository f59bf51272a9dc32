from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.factory import make_dataset


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set of 40 samples in two shards; tests must not change it."""
    root = tmp_path_factory.mktemp("built") / "ds"
    make_dataset(root)
    return root


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(built, tmp_path / "ds"))
