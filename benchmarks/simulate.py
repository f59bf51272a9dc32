"""The whole of LUMID on machines that nobody has here: a simulation of events, by costs that were measured.

Workers with two threads take turns (one fetches while the other computes) over batches as a build makes them; requests
share a line and a bucket's rate; the head serves one batch at a time; some requests fail, some workers are lost; then
shards and catalog are packed. What is measured comes from ``benchmarks/costs.json``, which ``benchmarks/scale.py``
writes; what is taken from others stands in :data:`PRICES` and the options.

    pip install simpy matplotlib
    python benchmarks/simulate.py                                      # a table of cores × bandwidth
    python benchmarks/simulate.py --leave-out US OT RF XA              # without what is searched for text
    python benchmarks/simulate.py --image docs/images/scale.png
    python benchmarks/simulate.py --check --source ~/dicom             # against real builds, from a throttled server
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import simpy

from lumid.pipeline.batches import large_first
from lumid.pipeline.deidentify import SEARCHED_MODALITIES
from lumid.pipeline.pieces import PIECE_BYTES

GROUP_ROWS, GROUP_PARTS = 1 << 16, 256
COSTS = Path(__file__).with_name("costs.json")


@dataclass(frozen=True, slots=True)
class Price:
    """A price in US dollars, where it stands, and whether it was read there or is assumed."""

    usd: float
    unit: str
    source: str
    read: bool


PRICES = {
    "core": Price(0.34 / 8, "an hour of a vCPU", "AWS, EC2 Auto Scaling user guide, price table of an example: c5.2xlarge on demand, US East, 0.34 an hour (read 2026-11)", True),
    "get": Price(0.0004 / 1000, "a GET", "S3 Standard, US East, as Infracost reads Amazon's price list (its s3_bucket test, read 2026-11)", True),
    "put": Price(0.005 / 1000, "a PUT or LIST", "as above", True),
    "egress": Price(0.0, "a GB out of the archive", "IDC's documentation: the public buckets give without a fee", True),
}  # fmt: skip


LIKE = {
    "CT": "CT",
    "PT": "CT",
    "MR": "MR",
    "NM": "MR",
    "CR": "CR",
    "DX": "CR",
    "MG": "CR",
    "US": "US",
    "OT": "US",
    "RF": "US",
    "XA": "US",
}
"""The measured kind whose costs a modality is given, by its megabytes: those that are searched for text are like US."""


@dataclass(frozen=True, slots=True)
class Held:
    """A series of the archive: its modality, its objects, and their size."""

    modality: str
    objects: int
    mb: float


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a build runs, and from where it reads.

    ``busy``: all cores compute, so that each is slower, and whatever else runs takes from them.
    ``server_ms``: processor time of the archive's server for an object, when that runs on the same cores.
    """

    cores: int
    mb_per_s: float
    workers: int | None = None
    latency_s: float = 0.03
    requests: int = 32
    ahead_mb: float = 256.0
    requests_per_s: float = 5500.0
    cores_of_a_host: int = 16
    failing: float = 0.001
    retry_s: float = 0.75
    lost_per_core_hour: float = 0.01
    server_ms: float = 0.0

    @property
    def slots(self) -> int:
        """Worker processes."""
        return self.workers or self.cores

    @property
    def busy(self) -> bool:
        """Whether every core has a worker."""
        return self.slots >= self.cores


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some objects of a series, which are fetched and computed one after another."""

    objects: int
    mb: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """A batch: its chunks, and the megabytes of its part."""

    chunks: tuple[Chunk, ...]
    out_mb: float

    @property
    def compute_s(self) -> float:
        """Of its objects together."""
        return sum(chunk.compute_s for chunk in self.chunks)


@dataclass(slots=True)
class Outcome:
    """What a simulated build took, in seconds, and what each bound alone would have allowed."""

    ingest_s: float = 0.0
    pack_s: float = 0.0
    fixed_s: float = 0.0
    bounds: dict[str, float] = field(default_factory=dict)
    core_hours: float = 0.0
    gets: int = 0
    puts: int = 0
    redone: int = 0

    @property
    def wall_s(self) -> float:
        """All of it."""
        return self.fixed_s + self.ingest_s + self.pack_s

    @property
    def bound(self) -> str:
        """What takes the most of the time: packing, or the resource that alone would need the longest."""
        return "packing" if self.pack_s > self.ingest_s else max(self.bounds, key=lambda name: self.bounds[name])


class Line:
    """Something that all who use it share equally: of ``rate`` units a second, each of n has a part in n.

    A job of size s begun at virtual time v ends at v + s, where virtual time goes at the rate of one job's share.
    """

    def __init__(self, env: simpy.Environment, rate: float) -> None:
        self.env, self.rate = env, rate
        self.virtual, self.since = 0.0, 0.0
        self.jobs: list[tuple[float, int, simpy.Event]] = []
        self.number, self.alarm = itertools.count(), 0
        self.moved = 0.0

    def use(self, size: float) -> simpy.Event:
        """An event: so much has gone through."""
        self._advance()
        done = self.env.event()
        heapq.heappush(self.jobs, (self.virtual + size, next(self.number), done))
        self.moved += size
        self._arm()
        return done

    def _advance(self) -> None:
        if self.jobs:
            self.virtual += (self.env.now - self.since) * self.rate / len(self.jobs)
        self.since = self.env.now

    def _arm(self) -> None:
        self.alarm += 1
        if self.jobs:
            end = self.jobs[0][0]
            wait = max(0.0, end - self.virtual) * len(self.jobs) / self.rate
            number = self.alarm
            self.env.timeout(wait).callbacks.append(lambda _: self._ring(end, number))

    def _ring(self, end: float, alarm: int) -> None:
        if alarm == self.alarm:
            self._advance()
            self.virtual = max(self.virtual, end)  # however small the wait was for the clock
            while self.jobs and self.jobs[0][0] <= self.virtual:
                heapq.heappop(self.jobs)[2].succeed()
            self._arm()


@dataclass(slots=True)
class Build:
    """A build that is simulated: the resources that its workers share."""

    env: simpy.Environment
    machine: Machine
    costs: Mapping[str, Any]
    line: Line
    bucket: Line
    disk: Line
    head: simpy.Resource
    todo: simpy.Store
    rng: random.Random
    outcome: Outcome

    def thread(self, turns: simpy.Resource, requests: Line) -> Generator[simpy.Event, Any, None]:
        """One of a worker's two threads: batch after batch."""
        while self.todo.items:
            work = yield self.todo.get()
            yield from self.batch(work, turns, requests)
            hours = work.compute_s / 3600
            while self.rng.random() < hours * self.machine.lost_per_core_hour:  # the worker dies with it: once more
                self.outcome.redone += 1
                yield from self.batch(work, turns, requests)
            with self.head.request() as mine:
                yield mine
                yield self.env.timeout(self.costs["dask"]["head_ms"] / 1e3)

    def batch(self, work: Work, turns: simpy.Resource, requests: Line) -> Generator[simpy.Event, Any, None]:
        """Its bytes arrive from now on, as far ahead as they may, and are processed when it is its turn."""
        half = self.machine.ahead_mb / 2
        room = simpy.Container(self.env, 2 * half, init=half)  # sums of what comes back are a little off
        arrived = simpy.Store(self.env)
        self.env.process(self.fetch(work, room, arrived, requests))
        with turns.request() as turn:
            yield turn
            for chunk in work.chunks:
                held = yield arrived.get()
                yield self.env.timeout(chunk.compute_s)
                yield room.put(held)
            yield self.env.timeout(self.costs["dask"]["worker_ms"] / 1e3) & self.disk.use(work.out_mb)

    def fetch(
        self, work: Work, room: simpy.Container, arrived: simpy.Store, under_way: Line
    ) -> Generator[simpy.Event, Any, None]:
        """Chunk after chunk: none is quicker than its requests' latency, the line and the bucket allow."""
        machine = self.machine
        yield self.env.timeout(2 * machine.latency_s)  # the listing, and the first answer
        for chunk in work.chunks:
            held = min(max(chunk.mb, 1e-6), machine.ahead_mb / 2 - 1e-6)
            yield room.get(held)
            own = 0.0 if machine.busy else chunk.objects * self.costs["fetch"]["client_ms"] / 1e3
            failures = sum(self.rng.random() < machine.failing for _ in range(chunk.objects)) if machine.failing else 0
            requests = chunk.objects + failures
            self.outcome.gets += requests
            pause = machine.retry_s if failures else 0.0
            arrival = self.line.use(chunk.mb) & self.bucket.use(requests) & under_way.use(requests)
            yield self.env.timeout(own + pause) & arrival
            yield arrived.put(held)


def ingest_s(works: Sequence[Work], machine: Machine, costs: Mapping[str, Any], seed: int = 0) -> Outcome:
    """Simulate every batch; seconds until the last part is written."""
    env = simpy.Environment()
    hosts = max(1, -(-machine.cores // machine.cores_of_a_host))
    todo = simpy.Store(env)
    todo.items.extend(works)
    build = Build(
        env, machine, costs, Line(env, machine.mb_per_s), Line(env, machine.requests_per_s),
        Line(env, hosts * disk_mb_s(costs)), simpy.Resource(env), todo, random.Random(seed), Outcome(),
    )  # fmt: skip
    # a latency is a rate: so many requests under way, each for so long
    made = [
        (simpy.Resource(env), Line(env, machine.requests / max(machine.latency_s, 1e-9))) for _ in range(machine.slots)
    ]
    for turns, requests in made + made:  # first a batch for each worker, then one for its other thread
        env.process(build.thread(turns, requests))
    env.run()
    compute = sum(work.compute_s for work in works)
    found = build.outcome
    found.ingest_s = env.now
    found.bounds = {
        "network": build.line.moved / machine.mb_per_s,
        "processor": compute / machine.slots,
        "requests": build.bucket.moved / machine.requests_per_s,
        "latency": build.bucket.moved * machine.latency_s / machine.requests / machine.slots,
        "scheduler": len(works) * costs["dask"]["head_ms"] / 1e3,
        "disk": build.disk.moved / build.disk.rate,
        "the longest task": max(work.compute_s for work in works),
    }
    return found


# ---- what is to be done


def disk_mb_s(costs: Mapping[str, Any]) -> float:
    return statistics.median(one["disk_mb_s"] for one in costs["pack"])


def held(lock: Path | None, left_out: Sequence[str] = ()) -> list[Held]:
    """The series of the whole of LUMID that are in the Imaging Data Commons, in the order of a build.

    ``lock``: what `lumid plan lumid --out` has pinned; planned now without it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if lock is None:
            lock = Path(scratch) / "lock.parquet"
            subprocess.run(
                [sys.executable, "-m", "lumid", "plan", "lumid", "--out", str(lock)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        table = pq.read_table(lock, filters=[("source", "=", "idc")])
    rows = zip(*(table[name].to_pylist() for name in ("modality", "objects", "bytes")), strict=True)
    return [Held(name, int(objects), size / 1e6) for name, objects, size in rows if name not in left_out]


def archived(
    series: Sequence[Held], costs: Mapping[str, Any], machine: Machine, batch_slices: int, seed: int = 0
) -> list[Work]:
    """Batches of an archive's series, filled as a build fills them, taken apart where a series is long, and handed out
    as it does: large ones first."""
    rng = random.Random(seed)
    groups = list(_filled(series, batch_slices))
    mb = [sum(one.mb for one in group) for group in groups]
    pieces = [piece for number in large_first(mb) for piece in _taken_apart(groups[number])]
    return [make_work(piece, costs, machine, rng, per_chunk=200) for piece in pieces]


def _taken_apart(group: Sequence[Held]) -> list[list[Held]]:
    """As :func:`lumid.pipeline.pieces.divide` does it, of objects that are all as large."""
    pieces, rest = [], []
    for one in group:
        count = min(one.objects, int(one.mb * 1e6) // PIECE_BYTES)
        if one.modality not in SEARCHED_MODALITIES or count < 2:
            rest.append(one)
            continue
        ends = [one.objects * number // count for number in range(count + 1)]
        pieces += [
            [Held(one.modality, end - begin, one.mb / one.objects * (end - begin))]
            for begin, end in itertools.pairwise(ends)
        ]
    return [*pieces, rest] if rest else pieces


def join_s(series: Sequence[Held], machine: Machine, costs: Mapping[str, Any], batch_slices: int) -> float:
    """What follows when all pieces are there: each batch that was shared is put together by one worker."""
    shared = [group for group in _filled(series, batch_slices) if len(_taken_apart(group)) > 1]
    free = [0.0] * machine.slots
    for group in shared:
        heapq.heapreplace(free, free[0] + sum(one.objects for one in group) * costs["join_ms"] / 1e3)
    return max(free)


def _filled(series: Sequence[Held], batch_slices: int) -> Iterator[list[Held]]:
    """As :func:`lumid.pipeline.batches.make_batches` groups them."""
    group: list[Held] = []
    objects = 0
    for one in series:
        if group and objects + one.objects > batch_slices:
            yield group
            group, objects = [], 0
        group.append(one)
        objects += one.objects
    if group:
        yield group


def make_work(
    group: Sequence[Held], costs: Mapping[str, Any], machine: Machine, rng: random.Random, per_chunk: int = 50
) -> Work:
    """A batch of series; the cost of each is drawn from what was measured of its kind."""
    chunks, out = [], 0.0
    for one in group:
        of = costs["kinds"][LIKE[one.modality]]
        mb = one.mb / one.objects
        ms = (of["ms_busy"] if machine.busy else of["ms"]) * max(1.0, mb * 1e3 / of["kb_in"]) * rng.choice(of["spread"])
        ms = (ms + shared_ms(costs, machine)) * head_takes(costs, machine)
        out += one.objects * of["kb_out"] / 1e3
        for begin in range(0, one.objects, per_chunk):
            count = min(per_chunk, one.objects - begin)
            chunks.append(Chunk(count, count * mb, count * ms / 1e3))
    return Work(tuple(chunks), out)


def shared_ms(costs: Mapping[str, Any], machine: Machine) -> float:
    """What an object costs beside its worker where no core is left for that: at the server, where it runs here."""
    return machine.server_ms if machine.busy else 0.0


def head_takes(costs: Mapping[str, Any], machine: Machine) -> float:
    """How much longer everything takes where the head has no core of its own: it, too, wants its share of one."""
    return machine.cores / (machine.cores - costs["head_share"]) if machine.busy else 1.0


# ---- packing


@dataclass(frozen=True, slots=True)
class PackCosts:
    """Seconds of packing by what they grow with, from measurements of several shapes by least squares."""

    index_part: float
    index_row: float
    sort_row: float
    shard_gb: float
    shard_range: float
    cut_part: float
    cut_row: float
    catalog_row: float
    tell_part: float
    hear_part: float

    @classmethod
    def of(cls, costs: Mapping[str, Any]) -> PackCosts:
        """From what was measured."""
        runs = costs["pack"]
        parts, rows = [one["parts"] for one in runs], [one["rows"] for one in runs]
        ranges, gb = [one["parts"] * one["shards_made"] for one in runs], [one["gb"] for one in runs]
        index = _fit([parts, rows], [one["index"] for one in runs])
        sort = _fit([rows], [one["sort"] for one in runs])
        shards = _fit([gb, ranges], [one["shards"] for one in runs])
        cuts = _fit([parts, rows], [one["cuts"] for one in runs])
        catalog = _fit([rows], [one["catalog"] for one in runs])
        return cls(*index, *sort, *shards, *cuts, *catalog, costs["tell_s_per_part"], costs["hear_s_per_part"])


def _fit(columns: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Least squares without negative factors, every run weighing the same whatever its size."""
    weights = 1 / np.array(values)
    left, factors = np.array(columns).T * weights[:, None], None
    kept = list(range(len(columns)))
    while kept:
        found, *_ = np.linalg.lstsq(left[:, kept], np.ones(len(values)), rcond=None)
        if (found >= 0).all():
            factors = dict(zip(kept, found.tolist(), strict=True))
            break
        kept.pop(int(np.argmin(found)))
    return [(factors or {}).get(number, 0.0) for number in range(len(columns))]


def pack_s(
    parts: int, rows: int, out_gb: float, machine: Machine, costs: Mapping[str, Any], size_mb: float = 256.0
) -> float:
    """Groups of parts are read, sorted by the head, cut; then chunks of the catalog and shards. Workers do all but the
    sorting, and the head hands out one task at a time."""
    of = PackCosts.of(costs)
    shards, chunks = max(1, round(out_gb * 1e3 / size_mb)), max(1, -(-rows // 500_000))
    groups = max(1, -(-rows // GROUP_ROWS), -(-parts // GROUP_PARTS))
    shard = of.shard_gb * out_gb / shards + (of.shard_range + of.hear_part) * parts
    stages = (
        [((of.index_part * parts + of.index_row * rows) / groups, 0.0, 0.0)] * groups,
        [((of.cut_part * parts + of.cut_row * rows) / groups, 0.0, 0.0)] * groups,
        [(of.catalog_row * rows / chunks, 0.0, 0.0)] * chunks
        + [(shard, of.tell_part * parts, out_gb * 1e3 / shards)] * shards,
    )
    env = simpy.Environment()
    hosts = max(1, -(-machine.cores // machine.cores_of_a_host))
    disk, head, workers = Line(env, hosts * disk_mb_s(costs)), simpy.Resource(env), simpy.Resource(env, machine.slots)

    def task(compute_s: float, tell_s: float, mb: float) -> Generator[simpy.Event, Any, None]:
        with head.request() as mine:
            yield mine
            yield env.timeout(tell_s + costs["dask"]["head_ms"] / 1e3)
        with workers.request() as mine:
            yield mine
            yield env.timeout(compute_s) & disk.use(mb)

    for stage in stages:
        for one in stage:
            env.process(task(*one))
        env.run()
    return float(env.now) + of.sort_row * rows


def whole(series: Sequence[Held], machine: Machine, costs: Mapping[str, Any], batch_slices: int) -> Outcome:
    """All of these series."""
    works = archived(series, costs, machine, batch_slices)
    found = ingest_s(works, machine, costs)
    found.ingest_s += join_s(series, machine, costs, batch_slices)
    rows = sum(one.objects for one in series)
    parts = sum(1 for _ in _filled(series, batch_slices))
    found.pack_s = pack_s(parts, rows, sum(work.out_mb for work in works) / 1e3, machine, costs)
    found.fixed_s = costs["fixed_s"]
    found.puts = len(series)  # a listing for each
    found.core_hours = found.wall_s * machine.cores / 3600
    return found


def usd(outcome: Outcome, price_core: float) -> tuple[float, float]:
    """Of the cores, and of the requests at list prices (which the archive's sponsor pays, not the reader)."""
    return outcome.core_hours * price_core, outcome.gets * PRICES["get"].usd + outcome.puts * PRICES["put"].usd


# ---- the check


@dataclass(frozen=True, slots=True)
class Case:
    """A real build: workers, what the server gives, and after how long."""

    workers: int
    mb_per_s: float | None
    latency_s: float
    requests: int = 32


CASES = (Case(1, None, 0.0), Case(2, None, 0.0), Case(1, 25.0, 0.05), Case(2, 25.0, 0.05), Case(2, None, 0.4, 4))


def check(folder: Path | None, costs: Mapping[str, Any], slices: int, cases: Sequence[Case] = CASES) -> list[float]:
    """Real builds of one archive, each beside its prediction; the errors, as shares of what was seen.

    On a machine that others use as well, costs and builds have to be measured soon after each other.
    """
    from archive import Kind, make_archive, served
    from rich.console import Console
    from slices import templates

    from lumid.dags.build import build
    from lumid.dags.cluster import ClusterSettings
    from lumid.dags.progress import BuildProgress
    from lumid.pipeline.recipe import FetchSettings, IdcSettings, Recipe, ShardSettings
    from lumid.pipeline.sources.folder import pydicom_files

    in_series, errors = 50, []
    images = {kind: templates(kind, folder or pydicom_files()) for kind in ("CT", "MR")}
    kinds = [Kind(name, round(share * slices / in_series), in_series) for name, share in (("CT", 0.85), ("MR", 0.15))]
    cores = 2
    print("| workers | the server gives | after | seconds predicted | seen | error |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        lock = make_archive(Path(scratch) / "s3", kinds, images)
        columns = zip(*(lock[name].to_pylist() for name in ("modality", "objects", "bytes")), strict=True)
        groups = list(_filled([Held(name, objects, size / 1e6) for name, objects, size in columns], 100))
        for case in cases:
            with served(Path(scratch) / "s3", case.latency_s, case.mb_per_s) as server:
                recipe = Recipe(name="bench", sources=(IdcSettings(),), shards=ShardSettings(batch_slices=100),
                                fetch=FetchSettings(s3_endpoint=server.url, requests=case.requests))  # fmt: skip
                settings, progress = ClusterSettings(None, case.workers), BuildProgress(Console(quiet=True))
                made = build(recipe, Path(scratch) / "out", settings, progress, lock).manifest
                shutil.rmtree(Path(scratch) / "out")
            seen = float(made.build["seconds"])
            machine = Machine(
                cores, case.mb_per_s or 1e6, case.workers, case.latency_s, case.requests, requests_per_s=1e9, failing=0.0,
                lost_per_core_hour=0.0, server_ms=costs["fetch"]["server_ms"], cores_of_a_host=cores,
            )  # fmt: skip
            plain, rng = _without_spread(costs), random.Random(0)
            works = [make_work(group, plain, machine, rng, per_chunk=10) for group in groups]
            said = ingest_s(works, machine, costs).ingest_s + costs["fixed_s"]
            said += pack_s(len(works), made.counts.kept, sum(work.out_mb for work in works) / 1e3, machine, costs)
            errors.append(said / seen - 1)
            gives = f"{case.mb_per_s:.0f} MB/s" if case.mb_per_s else "all it can"
            print(
                f"| {case.workers} | {gives}, {case.requests} requests | {case.latency_s * 1e3:.0f} ms | {said:.1f} | {seen:.1f} | {errors[-1]:+.0%} |",
                flush=True,
            )
    return errors


def _without_spread(costs: Mapping[str, Any]) -> dict[str, Any]:
    """Every image costs what its kind does on average: so the check's archive is made."""
    return {**costs, "kinds": {name: {**kind, "spread": [1.0]} for name, kind in costs["kinds"].items()}}


# ---- what is shown


def table(
    series: Sequence[Held], costs: Mapping[str, Any], chosen: argparse.Namespace
) -> dict[tuple[int, float], Outcome]:
    found = {}
    mb = sum(one.mb for one in series)
    print(f"{len(series):,} series, {sum(one.objects for one in series):,} objects, {mb / 1e6:.2f} TB\n")
    print(
        "| cores | Gb/s | ingest | pack | all, hours | bound | core-hours | USD of cores | USD of requests |\n|---|---|---|---|---|---|---|---|---|"
    )
    for cores, gbit in itertools.product(chosen.cores, chosen.gbit):
        machine = Machine(
            cores, gbit * 125, latency_s=chosen.latency_ms / 1e3, requests_per_s=chosen.requests_per_s, failing=chosen.failing,
            lost_per_core_hour=chosen.lost,
        )  # fmt: skip
        one = found[cores, gbit] = whole(series, machine, costs, chosen.batch_slices)
        money, requests = usd(one, chosen.usd_core)
        print(f"| {cores:,} | {gbit:g} | {clock(one.ingest_s)} | {clock(one.pack_s)} | {one.wall_s / 3600:.2f} | {one.bound} | "
              f"{one.core_hours:,.0f} | {money:,.2f} | {requests:.2f} |", flush=True)  # fmt: skip
    return found


def clock(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.0f} min"
        if seconds >= 90
        else f"{seconds:.0f} s"
    )


def draw(found: Mapping[tuple[int, float], Outcome], title: str, path: Path) -> None:
    """Hours against cores, a line for each bandwidth."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
    cores, gbits = sorted({one for one, _ in found}), sorted({one for _, one in found})
    for gbit, marker, color in zip(gbits, "osD^", ("#9ecae1", "#4292c6", "#2171b5", "#08306b"), strict=False):
        hours = [found[one, gbit].wall_s / 3600 for one in cores]
        axes.plot(cores, hours, marker=marker, color=color, label=f"{gbit:g} Gb/s")
    first = found[cores[0], gbits[-1]].wall_s / 3600
    axes.plot(
        cores, [first * cores[0] / one for one in cores], ":", color="0.6", label="twice the cores, half the time"
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(cores, [f"{one:,}" for one in cores])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylim(bottom=0.05)
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("cores")
    axes.set_ylabel("hours, simulated")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", color="0.9")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, default=COSTS, help="what scale.py has measured")
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 16, 128, 1024])
    parser.add_argument("--gbit", type=float, nargs="+", default=[1.0, 10.0, 25.0, 100.0])
    parser.add_argument("--batch-slices", type=int, default=1000)
    parser.add_argument(
        "--latency-ms", type=float, default=30.0, help="until an answer begins (S3's advice: tens of ms)"
    )
    parser.add_argument(
        "--requests-per-s", type=float, default=5500.0, help="GETs of a bucket's prefix (S3's user guide)"
    )
    parser.add_argument("--failing", type=float, default=0.001, help="share of requests that have to be tried again")
    parser.add_argument("--lost", type=float, default=0.01, help="workers lost in a core-hour")
    parser.add_argument("--usd-core", type=float, default=PRICES["core"].usd, help="of a core for an hour")
    parser.add_argument("--lock", type=Path, help="what `lumid plan lumid --out` has written; planned without it")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="MODALITY", choices=sorted(LIKE))
    parser.add_argument("--image", type=Path, help="draw a picture, too")
    parser.add_argument("--check", action="store_true", help="against real builds on this machine")
    parser.add_argument(
        "--source", type=Path, help="with --check: a folder of DICOM; the files inside pydicom without it"
    )
    parser.add_argument("--slices", type=int, default=2000, help="with --check: slices of each build")
    chosen = parser.parse_args()
    costs = json.loads(chosen.costs.read_text())
    if chosen.check:
        errors = check(chosen.source, costs, chosen.slices)
        print(f"largest error {max(map(abs, errors)):.0%}")
        return
    series = held(chosen.lock, chosen.leave_out)
    found = table(series, costs, chosen)
    for name, price in PRICES.items():
        print(f"{name}: {price.usd:.3g} USD {price.unit}; {price.source}{'' if price.read else ' (assumed)'}")
    if chosen.image:
        without = f" without {', '.join(chosen.leave_out)}" if chosen.leave_out else ""
        objects, mb = sum(one.objects for one in series), sum(one.mb for one in series)
        title = f"LUMID's series in the IDC{without}: {objects / 1e6:.2f} million objects, {mb / 1e6:.2f} TB"
        draw(found, title, chosen.image)


if __name__ == "__main__":
    main()
