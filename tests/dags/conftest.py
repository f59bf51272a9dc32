from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lumid.dags.cluster import ClusterSettings, open_cluster
from tests.dags.command import Command, lumid
from tests.dicom import as_bytes, gradient, image


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSettings]:
    """A cluster of two workers for many builds: to start one takes longer than what most tests build."""
    scratch: Path = tmp_path_factory.mktemp("cluster")
    with open_cluster(ClusterSettings(None, 2, ahead=True), scratch) as client:
        yield ClusterSettings(scheduler=client.scheduler.address)


@pytest.fixture
def on_cluster(shared_cluster: ClusterSettings) -> Command:
    """The command line with the shared cluster: for builds of which nothing depends on who starts the workers."""
    assert shared_cluster.scheduler is not None
    return lambda *arguments: lumid(*arguments, "--scheduler", shared_cluster.scheduler or "")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 slices in 24 series: enough for many batches."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(1)
    for series in range(24):
        for number in range(10):
            pixels = (gradient(128, 128, high=1500) + rng.integers(0, 60, (128, 128))).astype(np.int16)
            data = image(
                pixels, SOPInstanceUID=f"1.2.{series}.{number}", SeriesInstanceUID=f"1.2.{series}", StudyInstanceUID=f"1.{series}",
                PatientID=f"P{series // 3}", RescaleSlope=1, RescaleIntercept=-1024, Modality="CT" if series % 3 else "MR",
                PatientName="Doe^Jane",
            )  # fmt: skip
            (folder / f"{series:02}-{number:02}.dcm").write_bytes(as_bytes(data))
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def recipe(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "study.toml"
    path.write_text(
        f'name = "study"\n[[sources]]\nkind = "folder"\npath = "{study}"\ncollection = "study"\nlicense = "CC BY 4.0"\n'
        "[shards]\nsize_mb = 0.5\nbatch_slices = 10\n[splits]\nval = 0.2\n"
    )
    return path


@pytest.fixture(scope="session")
def built_study(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    done = lumid("build", recipe, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    return out
