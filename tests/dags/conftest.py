from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lumid.dags.cluster import ClusterSettings, open_cluster


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSettings]:
    """A cluster of two workers for many builds: to start one takes longer than what most tests build."""
    scratch: Path = tmp_path_factory.mktemp("cluster")
    with open_cluster(ClusterSettings(None, 2, ahead=True), scratch) as client:
        yield ClusterSettings(scheduler=client.scheduler.address)
