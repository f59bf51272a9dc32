"""Builds of a sampled recipe from an archive that fails at random, and builds that are killed: the same bytes, no byte twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lumid.catalog.layout import Layout, Manifest, read_manifest
from lumid.catalog.paths import sizes
from lumid.catalog.verify import verify
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import write_lock
from lumid.pipeline.parts import finished_parts, read_account
from lumid.pipeline.plan import pin
from lumid.pipeline.recipe import FetchSettings, IdcSettings, Recipe, SampleSettings, ShardSettings
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import Contents, FakeIdc, drawn, fake_idc
from tests.servers import Fault, status

pytestmark = pytest.mark.whole

OBJECT_FAULTS = (
    status(500), status(503), status(429, Retry_After="0"), Fault("reset", after=1500), Fault("truncate", after=1500),
    Fault("corrupt"), Fault("other"), Fault("cut_head"), Fault("page"),
)  # fmt: skip
LISTING_FAULTS = (status(500), status(503), Fault("reset", after=200), Fault("cut_head"), Fault("page"), Fault("fewer"))


@cache
def planned() -> tuple[Recipe, pa.Table]:
    """A small sample of four collections as they were at the paper's time, out of the archive's real index."""
    source = IdcSettings(
        collections=("tcga_kirc", "tcga_blca", "tcga_ov", "lidc_idri"), min_slices=3, max_slices=12, idc_version=20
    )
    recipe = Recipe(
        name="sampled",
        sources=(source,),
        sample=SampleSettings(fraction=0.05),
        shards=ShardSettings(size_mb=0.1, batch_slices=12),
    )
    lock = pin(recipe)
    assert 6 <= lock.num_rows <= 40
    return recipe, lock


@cache
def contents() -> Contents:
    """Slices of our own under the ids of the sampled series, as many of each as the index says."""
    rng = np.random.default_rng(5)
    made = {}
    for row in planned()[1].to_pylist():
        uid = f"1.2.826.{int(row['series'], 16)}"
        made[row["location"]] = {
            f"{number:08x}.dcm": as_bytes(
                image(
                    (gradient(64, 64, high=900) + rng.integers(0, 90, (64, 64))).astype(np.int16),
                    SeriesInstanceUID=uid, StudyInstanceUID=f"{uid}.1", SOPInstanceUID=f"{uid}.2.{number}",
                    PatientID=row["patient"], Modality="CT" if number % 2 else "MR",
                )
            )
            for number in range(row["objects"])
        }  # fmt: skip
    return made


def run(fake: FakeIdc, out: Path, workers: int, **fetch: object) -> Manifest:
    recipe, lock = planned()
    recipe = recipe.model_copy(update={"fetch": fake.settings(**fetch)})
    return build(recipe, out, ClusterSettings(None, workers), BuildProgress(Console(quiet=True)), lock).manifest


def identity(root: Path) -> tuple[object, ...]:
    manifest = read_manifest(root)
    return manifest.shards, manifest.catalog_hash, manifest.lock_hash, manifest.counts, manifest.rejects


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set from an archive without faults."""
    out = tmp_path_factory.mktemp("fine") / "ds"
    with fake_idc(contents()) as fake:
        manifest = run(fake, out, 2)
    assert manifest.counts.objects == sum(planned()[1]["objects"].to_pylist())
    assert manifest.rejects == {}
    assert len(manifest.shards) > 1
    return out


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_random_faults_change_nothing(workers: int, fine: Path, tmp_path: Path) -> None:
    with fake_idc(contents(), pick=drawn(7, 0.25, OBJECT_FAULTS, LISTING_FAULTS), mirror=contents()) as fake:
        run(fake, tmp_path / "ds", workers, attempts=4, timeout_s=5.0)
        asked = len(fake.first.log) + len(fake.mirror.log if fake.mirror else [])
        assert len(fake.first.log) > sum(planned()[1]["objects"].to_pylist()) + 20, "so many requests went wrong"
    assert identity(tmp_path / "ds") == identity(fine)
    assert verify(tmp_path / "ds", deep=True).sound
    counted = sum(one["requests"] for one in read_manifest(tmp_path / "ds").build["requests"])
    assert asked - 8 <= counted <= asked, "what was under way when a batch had ended is not told of"


@pytest.mark.slow
def test_an_archive_that_often_fails_is_built_from_in_the_end(fine: Path, tmp_path: Path) -> None:
    """With one attempt an object some are lost each time, and only their series are asked for again."""
    lost = []
    for seed in range(12):
        with fake_idc(contents(), pick=drawn(seed, 0.12, OBJECT_FAULTS, LISTING_FAULTS)) as fake:
            manifest = run(fake, tmp_path / "ds", 2, attempts=1, timeout_s=5.0)
            lost.append(manifest.rejects.get("fetch_failed", 0))
            assert manifest.counts.planned == sum(planned()[1]["objects"].to_pylist())
        if not lost[-1]:
            break
    assert lost[0] > 0
    assert lost == sorted(lost, reverse=True), "what is there is never given up"
    assert lost[-1] == 0
    assert identity(tmp_path / "ds") == identity(fine)
    assert verify(tmp_path / "ds", deep=True).sound


@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_build_does_not_fetch_again_what_it_has(cached: bool, fine: Path, tmp_path: Path) -> None:
    recipe, lock = planned()
    write_lock(tmp_path / "lock.parquet", lock, recipe)
    out = tmp_path / "ds"
    slow = lambda _: Fault("drip", step=2000, every_s=0.02)  # noqa: E731
    with fake_idc(contents(), pick=slow) as fake:
        fetch = fake.settings(requests=2, **({"cache": str(tmp_path / "raw")} if cached else {}))
        command = recipe_file(tmp_path, fetch)
        process = subprocess.Popen(
            [sys.executable, "-m", "lumid", "build", str(command), "--lock", str(tmp_path / "lock.parquet"), "--out", str(out)],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while len(part_names(out)) < 3:
                assert process.poll() is None, "the build ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        time.sleep(0.2)  # what the server is still sending to nobody
        had = {row for name in part_names(out) for files in finished_parts(Layout(out).parts, name, sizes(Layout(out).parts))
               for row in (one.lock_row for one in read_account(files).series)}  # fmt: skip
        pinned = pq.read_table(Layout(out).work / "lock.parquet")["location"].to_pylist()
        whole = {pinned[row] for row in had}
        if cached:
            whole |= {path.stem for path in (tmp_path / "raw" / "idc").glob("*.json")}
        assert 0 < len(whole) < len(pinned)
        before = fake.deliveries()
        assert run_command(command, tmp_path, out) == 0
        after = fake.deliveries()
    assert {key: after[key] for key in after if key.split("/")[0] in whole} == {
        key: before[key] for key in before if key.split("/")[0] in whole
    }
    assert all(after[key] > before[key] for key in after if before[key] == 0)
    assert identity(out) == identity(fine)


def part_names(out: Path) -> set[str]:
    parts = Layout(out).parts.glob("*.parquet")
    return {path.name.removesuffix(".parquet") for path in parts if "rejects" not in path.name and path.name[0] != "."}


def recipe_file(folder: Path, fetch: FetchSettings) -> Path:
    """The planned recipe as a file, with other ways of fetching."""
    recipe, _ = planned()
    values = recipe.model_copy(update={"fetch": fetch}).model_dump(mode="json", exclude_none=True)
    path = folder / "recipe.toml"
    path.write_text(toml(values), "utf-8")
    return path


def toml(values: dict[str, object], prefix: str = "") -> str:
    """Plain values, tables, and lists of tables as TOML."""
    lines, tables = [], []
    for name, value in values.items():
        if isinstance(value, dict):
            tables.append(f"[{prefix}{name}]\n{toml(value, f'{prefix}{name}.')}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            tables += [f"[[{prefix}{name}]]\n{toml(item, f'{prefix}{name}.')}" for item in value]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join([*lines, *tables, ""])


def run_command(recipe: Path, folder: Path, out: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "lumid", "build", str(recipe), "--lock", str(folder / "lock.parquet"), "--out", str(out)],
        capture_output=True, timeout=120, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.returncode
