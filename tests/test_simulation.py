"""The simulation of benchmarks/simulate.py: what can be worked out by hand comes out, and real builds are foretold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("simpy", reason="pip install simpy")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from simulate import (  # noqa: E402
    COSTS,
    Chunk,
    Held,
    Machine,
    Work,
    archived,
    held,
    ingest_s,
    join_s,
    pack_s,
)

FREE: dict[str, Any] = {
    "dask": {"head_ms": 0.0, "worker_ms": 0.0},
    "fetch": {"client_ms": 0.0, "server_ms": 0.0},
    "pack": [{"disk_mb_s": 1e9}],
}
"""Nothing costs anything but what a test says."""


def works(
    batches: int, *, chunks: int = 10, mb: float = 0.0, compute_s: float = 0.0, out_mb: float = 0.0
) -> list[Work]:
    """Batches of chunks of ten objects."""
    return [Work(tuple(Chunk(10, mb, compute_s) for _ in range(chunks)), out_mb) for _ in range(batches)]


def machine(**given: Any) -> Machine:
    calm = {
        "cores": 4,
        "mb_per_s": 1e9,
        "latency_s": 0.0,
        "requests_per_s": 1e9,
        "failing": 0.0,
        "lost_per_core_hour": 0.0,
    }
    return Machine(**(calm | given))


@pytest.mark.parametrize(
    ("work", "where", "seconds", "bound"),
    [
        (works(40, compute_s=0.5), {}, 40 * 10 * 0.5 / 4, "processor"),
        (works(40, mb=5.0), {"mb_per_s": 100.0}, 40 * 10 * 5 / 100, "network"),
        (works(40), {"requests_per_s": 200.0}, 40 * 10 * 10 / 200, "requests"),
        (works(40, chunks=100), {"latency_s": 0.32}, 40 * 100 * 10 * 0.32 / 32 / 4, "latency"),
        (works(40, out_mb=100.0), {}, 40 * 100 / 50, "disk"),
        (works(3, compute_s=0.5) + works(1, compute_s=4.0), {}, 40.0, "the longest task"),
    ],
)
def test_a_build_with_one_bound_takes_what_that_bound_says(
    work: list[Work], where: dict[str, Any], seconds: float, bound: str
) -> None:
    costs = FREE | ({"pack": [{"disk_mb_s": 50.0}]} if bound == "disk" else {})
    found = ingest_s(work, machine(**where), costs)
    assert found.ingest_s == pytest.approx(seconds, rel=0.06)
    assert found.bound == bound


def test_fetching_hides_behind_computing() -> None:
    both = works(40, mb=5.0, compute_s=0.5)
    found = ingest_s(both, machine(mb_per_s=50.0), FREE).ingest_s
    assert found == pytest.approx(50.0, rel=0.1)  # each alone takes 50 s and 40 s


def test_the_head_serves_one_batch_at_a_time() -> None:
    slow = FREE | {"dask": {"head_ms": 100.0, "worker_ms": 0.0}}
    found = ingest_s(works(200, compute_s=0.001), machine(cores=64), slow)
    assert found.ingest_s == pytest.approx(20.0, rel=0.05)
    assert found.bound == "scheduler"


def test_lost_workers_and_failed_requests_cost_what_they_lose() -> None:
    calm, stormy = machine(), machine(lost_per_core_hour=720.0, failing=0.05, retry_s=2.0)
    work = works(200, compute_s=0.1)
    quiet, rough = ingest_s(work, calm, FREE), ingest_s(work, stormy, FREE)
    assert 20 < rough.redone < 90, "a fifth of the batches, and of those a fifth again"
    assert rough.gets > 1.02 * quiet.gets
    assert rough.ingest_s > 1.1 * quiet.ingest_s


def test_the_archive_is_all_there() -> None:
    costs, series = json.loads(COSTS.read_text()), held(None)
    batches = archived(series, costs, machine(), 1000)
    objects = sum(chunk.objects for work in batches for chunk in work.chunks)
    assert objects == sum(one.objects for one in series) > 3_000_000
    assert sum(chunk.mb for work in batches for chunk in work.chunks) == pytest.approx(sum(one.mb for one in series))
    assert 3_200 < len(batches) < 4_500
    assert max(work.compute_s for work in batches) < 600, "no worker is at one for long"
    without = held(None, ("US", "OT"))
    assert {one.modality for one in series} - {one.modality for one in without} == {"US", "OT"}


def test_long_series_that_are_searched_are_shared() -> None:
    costs = json.loads(COSTS.read_text())
    long = [Held("US", 100, 6400.0), *[Held("CT", 100, 53.0)] * 9]
    shared = archived(long, costs, machine(), 1000)
    assert len(shared) == 1 + 95
    assert sum(chunk.objects for work in shared for chunk in work.chunks) == 1000
    one = archived([replace(long[0], modality="MR"), *long[1:]], costs, machine(), 1000)
    assert len(one) == 1
    assert join_s(long, machine(), costs, 1000) == pytest.approx(costs["join_ms"])
    assert join_s(long * 8, machine(cores=4), costs, 1000) == pytest.approx(2 * costs["join_ms"])
    assert join_s(long[1:], machine(), costs, 1000) == 0


def test_more_cores_are_quicker_and_packing_grows_with_what_is_packed() -> None:
    costs = json.loads(COSTS.read_text())
    some = archived([Held("CT", 100, 53.0)] * 1000, costs, machine(), 1000)
    seconds = [ingest_s(some, machine(cores=cores), costs).ingest_s for cores in (2, 8)]
    assert seconds[0] > 1.5 * seconds[1]
    one, two = (pack_s(count, count * 1000, count * 0.055, machine(), costs) for count in (1000, 2000))
    assert 1.5 * one < two < 3 * one


@pytest.mark.slow
def test_real_builds_are_foretold(tmp_path: Path) -> None:
    """Costs are measured here and now, then builds by one and two workers, from servers quick and slow, are foretold."""
    costs = tmp_path / "costs.json"
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--only", "costs", "--json", str(costs)]
    subprocess.run(command, check=True, timeout=1800)
    command = [sys.executable, str(BENCHMARKS / "simulate.py"), "--check", "--costs", str(costs), "--slices", "2000"]
    said = subprocess.run(command, check=True, timeout=1800, capture_output=True, text=True).stdout
    assert int(said.split("largest error ")[1].split("%")[0]) <= 15, said
