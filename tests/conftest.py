from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.factory import make_dataset
from tests.fake_idc import s3_client, s3_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutants", type=int, default=300, help="hostile files of each kind in a campaign (slow)")


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


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A new bucket's name and a client that sees it, with credentials in the environment."""
    server = s3_server()
    client, name = s3_client(server), f"b{uuid4().hex}"
    client.create_bucket(Bucket=name)
    for key, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
    }.items():
        monkeypatch.setenv(key, value)
    return name, client
