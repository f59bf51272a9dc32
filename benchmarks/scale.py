"""How a build grows: with workers, batches, slices and finished parts, and what packing takes. Each in one run.

Seconds are the clock's where it says so, else the processor's. Real images (:mod:`slices`) are written again and again
under fresh UIDs; parts are synthetic (:mod:`synthetic_parts`).

    python benchmarks/scale.py --source ~/dicom                       # all of it: half an hour
    python benchmarks/scale.py --only resume                          # one of: workers dask memory resume pack pieces costs
    python benchmarks/scale.py --only costs --json benchmarks/costs.json      # what benchmarks/simulate.py goes by
    python benchmarks/scale.py --small                                # everything in small, to see that it runs
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import psutil
import pydicom
from archive import Kind, copies, make_archive, make_long_series, served
from build import build
from distributed import Client
from pydicom import FileDataset
from rich.console import Console
from slices import Given, Template, listed, run_lumid, templates
from synthetic_parts import Sizes, idc_recipe, noop_task, synthetic_lock, synthetic_rows, write_parts

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Layout
from lumid.dags import ingesting
from lumid.dags.build import build as run_build
from lumid.dags.claim import claimed
from lumid.dags.cluster import ClusterSettings, open_cluster
from lumid.dags.ingest_tasks import Ingested, join_task, piece_file
from lumid.dags.ingesting import built_parts, ingest_batches
from lumid.dags.journal import noting
from lumid.dags.packing import Tars, pack
from lumid.dags.planning import pin_series, plan_build
from lumid.dags.progress import BuildProgress
from lumid.dags.tasks import run_tasks
from lumid.pipeline.batches import Batch, make_batches
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.lock import series_of
from lumid.pipeline.pack import build_index, group_parts, pack_shard, plan_shards, read_index
from lumid.pipeline.pack_catalog import plan_catalog, plan_cuts, write_catalog_chunk, write_cut
from lumid.pipeline.parts import PartAccount, PartFiles, SeriesAccount, choose, read_account, write_rows
from lumid.pipeline.pieces import divide, ingest_piece, write_piece
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.sources import open_source
from lumid.pipeline.sources.folder import pydicom_files
from lumid.pipeline.sources.idc import IdcSource

Images = Mapping[str, Sequence[Template]]
SHARES = {"CT": 0.8, "MR": 0.18, "CR": 0.02}
IN_SERIES = 50
MOST_FRAMES = 12
ROUNDS = 3
"""How often real builds are measured for their costs."""


def quiet() -> BuildProgress:
    return BuildProgress(Console(quiet=True))


@contextmanager
def clocked(spent: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Seconds of the clock and of this process's processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    spent[name] = time.perf_counter() - wall, time.process_time() - processor


def write_folder(folder: Path, images: Images, objects: int) -> None:
    """Files of series in the shares of :data:`SHARES`, each series of one image."""
    folder.mkdir(parents=True)
    series = itertools.count()  # what has one number has the same UIDs
    for kind, share in SHARES.items():
        for template in itertools.islice(itertools.cycle(images[kind]), max(1, round(objects * share / IN_SERIES))):
            number = next(series)
            for place, data in enumerate(copies(template, number, IN_SERIES)):
                (folder / f"{kind}{number:04}-{place:03}.dcm").write_bytes(data)


# ---- workers


def workers(images: Images, objects: int, rounds: int) -> None:
    """The same folder built with one worker and with two, in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "source"
        write_folder(folder, images, objects)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        spent: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for number in (1, 2):
                before = children_s()
                made = build(folder, Path(scratch) / "out", number)
                spent[number].append(children_s() - before)
                seconds[number].append(float(made.build["seconds"]))
                shutil.rmtree(Path(scratch) / "out")
    print(
        f"\n{made.counts.planned:,} frames, {made.counts.kept:,} kept, {made.build['source_mb']:,.0f} MB; medians of {rounds}"
    )
    print("| workers | seconds | frames/s | × one worker's | processor seconds, all processes |\n|---|---|---|---|---|")
    one = statistics.median(seconds[1])
    for number in (1, 2):
        took = statistics.median(seconds[number])
        print(
            f"| {number} | {took:.1f} | {made.counts.planned / took:.0f} | {one / took:.2f} | {statistics.median(spent[number]):.1f} |"
        )


def children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


# ---- Dask's share


def dask(batches: int) -> dict[str, float]:
    """Batches that do nothing, handed out as a build hands out its own: what is left is Dask."""
    recipe = idc_recipe()
    todo = make_batches(series_of(synthetic_lock(11 * batches, 91), 0), 0, recipe.hash(), 1000)
    tasks = [(batch.id, noop_task, (recipe, batch, Path("parts"), Path("unpacked"))) for batch in todo]
    held, grown = [], []
    me = psutil.Process()
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        with open_cluster(ClusterSettings(workers=2, ahead=True), Path(scratch)) as client:
            client.wait_for_workers(2)
            start_s = time.perf_counter() - begin
            scheduler = client.cluster.scheduler
            helpers = [one for one in me.children(recursive=True) if one.is_running()]
            wall, before, theirs = time.perf_counter(), time.process_time(), sum(map(processor_s, helpers))
            for number, _ in enumerate(run_tasks(client, tasks)):
                held.append(len(scheduler.tasks))
                if number % (batches // 10 or 1) == 0:
                    grown.append(me.memory_info().rss / 1e6)
            count = len(tasks)
            head_ms = (time.process_time() - before) / count * 1e3
            worker_ms = (sum(map(processor_s, helpers)) - theirs) / count * 1e3
            wall_ms = (time.perf_counter() - wall) / count * 1e3
    print(
        f"\n{count:,} batches of nothing: head and scheduler {head_ms:.1f} ms of processor a batch, workers {worker_ms:.1f} ms; {wall_ms:.1f} ms by the clock"
    )
    print(
        f"tasks that the scheduler holds: {max(held[: count // 10])} at most in the first tenth, {max(held[-count // 10 :])} in the last"
    )
    print("MB of the head, each tenth: " + " ".join(f"{one:.0f}" for one in grown))
    return {"head_ms": head_ms, "worker_ms": worker_ms, "start_s": start_s}


def processor_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


# ---- memory


def memory(images: Images, counts: Sequence[int], batch_slices: int) -> None:
    """Peaks of the head and of the largest worker of builds that differ in size alone."""
    print(
        f"\nbatches of {batch_slices}, two workers\n| slices | batches | head, MB | largest worker, MB |\n|---|---|---|---|"
    )
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder, recipe = Path(scratch) / "source", Path(scratch) / "recipe.toml"
            write_folder(folder, {"CT": images["CT"], "MR": images["MR"], "CR": images["CR"]}, count)
            recipe.write_text(
                f'name = "bench"\n[[sources]]\nkind = "folder"\npath = "{folder}"\ncollection = "bench"\n'
                f"[shards]\nbatch_slices = {batch_slices}\n"
            )
            command = [sys.executable, "-m", "lumid", "build", str(recipe), "--out", f"{scratch}/out", "--workers", "2"]
            head, worker = peaks(command)
            files = len(list(folder.iterdir()))
            print(f"| {files:,} | {-(-files // batch_slices)} | {head:.0f} | {worker:.0f} |", flush=True)


def peaks(command: list[str]) -> tuple[float, float]:
    """Peak resident MB of a command's own process, and of the largest of those that it starts."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        root, most = psutil.Process(process.pid), [0.0, 0.0]
        while process.poll() is None:
            for number, group in enumerate(([root], children_of(root))):
                most[number] = max([most[number], *map(resident_mb, group)])
            time.sleep(0.05)
        assert process.returncode == 0, command
    return most[0], most[1]


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


# ---- resuming


def resume(counts: Sequence[int]) -> None:
    """A build all of whose batches are done, from reading its state to knowing all parts."""
    print(
        "\n| finished parts | seconds | processor | × a part | without the journal, processor |\n|---|---|---|---|---|"
    )
    first = None
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            layout, recipe, lock = Layout(Path(scratch)), idc_recipe(), synthetic_lock(10 * count, 100)
            rows = synthetic_rows(1000).slice(0, 20).combine_chunks()
            with noting_in(layout) as note:
                for batch in make_batches(series_of(lock, 0), 0, recipe.hash(), 1000):
                    files, mine = PartFiles(layout.parts, batch.id), [one.lock_row for one in batch.series]
                    series = tuple(SeriesAccount(one.lock_row, one.frames, one.frames, 0) for one in batch.series)
                    account = PartAccount(series, batch.bytes, 0, 4.0)
                    write_rows(files, rows, list(itertools.islice(itertools.cycle(mine), rows.num_rows)), account)
                    note(files, account)
            wall, processor = in_fresh_process(resumed, layout.root, lock)
            (layout.work / "accounts.jsonl").unlink()
            _, without = in_fresh_process(resumed, layout.root, lock)
            first = first or processor / count
            print(
                f"| {count:,} | {wall:.2f} | {processor:.2f} | {processor / count / first:.2f} | {without:.2f} |",
                flush=True,
            )


@contextmanager
def noting_in(layout: Layout) -> Iterator[Callable[..., None]]:
    layout.parts.mkdir(parents=True)
    with noting(layout) as note:
        yield note


def resumed(root: Path, lock: Any) -> tuple[float, float]:
    layout, recipe = Layout(root), idc_recipe()
    spent: dict[str, tuple[float, float]] = {}
    with (
        Client(processes=False, n_workers=1, dashboard_address=None) as client,
        clocked(spent, "all"),
        claimed(layout, recipe),
    ):
        plan = plan_build(recipe, pin_series(client, recipe, {}, {}, lock, layout, quiet()), layout)
        ingest_batches(client, recipe, plan, layout, quiet())
        found = choose(built_parts(plan, layout))
    assert len(found) == len(plan.batches)
    return spent["all"]


def in_fresh_process(work: Callable[..., Any], *given: Any) -> Any:
    """What a process gives that has read nothing yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


# ---- packing


def packing(sizes: Sequence[Sizes], shard_mb: float) -> None:
    """The pack phase on two workers, and each of its pieces in one process, against `cp` of the same bytes."""
    print(
        "\n| parts × samples, MB | `cp`, fsynced: MB/s | pack phase: MB/s | × `cp` | shards alone, one process, × `cp` |"
    )
    print("|---|---|---|---|---|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            layout = Layout(Path(scratch) / "out")
            parts = list(write_parts(layout.parts, size))
            whole = sum(files.samples.stat().st_size for files in parts) / 1e6
            copied, packed, alone = [], [], []
            for _ in range(3):
                copied.append(copy_s(parts, Path(scratch) / "copy"))
                packed.append(phase_s(layout, parts, shard_mb))
                spent: dict[str, tuple[float, float]] = {}
                pieces = [read_index(group) for group in group_parts(parts)]
                plans, tars = plan_shards(build_index(pieces, parts)[0], shard_mb), [files.samples for files in parts]
                with clocked(spent, "shards"):
                    for plan in plans:
                        pack_shard(plan, tars, Path(scratch) / "shards", Path(scratch) / "receipts")
                shutil.rmtree(Path(scratch) / "shards")
                shutil.rmtree(Path(scratch) / "receipts")
                alone.append(spent["shards"][0])
            cp, phase, shards = (statistics.median(one) for one in (copied, packed, alone))
            print(f"| {size.parts:,} × {size.samples:,}, {whole:,.0f} | {whole / cp:.0f} | {whole / phase:.0f} | "
                  f"{cp / phase:.2f} | {cp / shards:.2f} |", flush=True)  # fmt: skip


def copy_s(parts: Sequence[PartFiles], folder: Path) -> float:
    """Seconds of copying the parts' samples one after another, each on the disk before the next begins."""
    folder.mkdir()
    begin = time.perf_counter()
    for files in parts:
        target = folder / files.samples.name
        subprocess.run(["cp", files.samples, target], check=True)
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    took = time.perf_counter() - begin
    shutil.rmtree(folder)
    return took


def phase_s(layout: Layout, parts: Sequence[PartFiles], shard_mb: float) -> float:
    """Seconds of the whole phase: index, shards, catalog, rejects, lock."""
    recipe = idc_recipe()
    recipe = recipe.model_copy(update={"shards": recipe.shards.model_copy(update={"size_mb": shard_mb})})
    lock = synthetic_lock(len(parts), parts and read_account(parts[0]).objects)
    with claimed(layout, recipe), open_cluster(ClusterSettings(workers=2), layout.work / "scratch") as client:
        client.wait_for_workers(2)
        begin = time.perf_counter()
        folder = pack(client, recipe, lock, layout, quiet(), parts).folder
        took = time.perf_counter() - begin
    shutil.rmtree(folder)
    return took


# ---- costs of stages, for the simulation


@dataclass(frozen=True, slots=True)
class KindCost:
    """A slice of a modality: milliseconds of a worker's clock where a core is left for all else, and processor
    milliseconds of a worker, fetching and all, where every core computes; kilobytes in and out; and of each series of
    one image, its cost over the mean."""

    ms: float
    ms_busy: float
    kb_in: float
    kb_out: float
    spread: list[float]


def costs(images: Images, source: Path, slices: int, part_sizes: Sequence[Sizes]) -> dict[str, Any]:
    """Everything that benchmarks/simulate.py goes by."""
    kinds, others = {}, []
    for kind, found in images.items():
        few = max(4, slices // 6) if kind == "CR" else slices
        alone = [ingest_ms(one, few) for one in found]
        mean = statistics.mean(ms for ms, *_ in alone)
        rounds = [[in_a_build(kind, found, few * 20, workers) for workers in (1, 2)] for _ in range(ROUNDS)]
        one, two = (InBuild.median(seen) for seen in zip(*rounds, strict=True))
        others.append(two)
        kinds[kind] = KindCost(
            one.clock_ms, two.worker_ms, statistics.mean(kb for _, kb, _ in alone), statistics.mean(kb for *_, kb in alone),
            sorted(round(ms / mean, 3) for ms, *_ in alone),
        )  # fmt: skip
        print(
            f"{kind}, ms a slice: {mean:.2f} of processor in a loop; in a build {one.clock_ms:.2f} by the clock with one worker "
            f"(workers' processor {one.worker_ms:.2f}), {two.clock_ms:.2f} with two ({two.worker_ms:.2f}); "
            f"the head {one.head_share:.0%}, {two.head_share:.0%} of a core, the server {two.server_ms:.2f} ms",
            flush=True,
        )
    kinds["US"] = searched(source)
    fetch = {"server_ms": others[0].server_ms, "client_ms": fetch_ms(images["CT"])}
    packs = [pack_cost(size) for size in part_sizes]
    return {
        "kinds": {name: {field: getattr(one, field) for field in one.__slots__} for name, one in kinds.items()},
        "fetch": fetch, "dask": dask(400), "head_share": statistics.mean(one.head_share for one in others), "pack": packs, "fixed_s": fixed_s(images["CT"]),
        "join_ms": join_ms(images["CT"][0], 40 * slices), **task_costs(),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class InBuild:
    """What a slice took in a real build: by the clock, and of processor at the workers and at the server; and of how
    much of a core the head made use meanwhile."""

    clock_ms: float
    worker_ms: float
    server_ms: float
    head_share: float

    @classmethod
    def median(cls, seen: Sequence[InBuild]) -> InBuild:
        """The middle of each: a machine that others use is quick in one run and slow in the next."""
        return cls(*(statistics.median(getattr(one, name) for one in seen) for name in cls.__slots__))


class Between(BuildProgress):
    """Takes measure when ingesting begins and when it ends."""

    def __init__(self, measure: Callable[[], tuple[float, ...]]) -> None:
        super().__init__(Console(quiet=True))
        self.measure = measure
        self.taken: list[tuple[float, ...]] = []

    def begin_ingest(self, *given: Any, **named: Any) -> None:
        super().begin_ingest(*given, **named)
        self.taken.append(self.measure())

    def begin_index(self, groups: int) -> None:
        self.taken.append(self.measure())
        super().begin_index(groups)


def in_a_build(kind: str, images: Sequence[Template], slices: int, workers: int) -> InBuild:
    """Series of a modality, built from a server that gives all it can; the workers have built something before."""
    series = max(2 * workers, slices // IN_SERIES)
    each, recipe = slices // series, idc_recipe(max(10, slices // 20))
    with tempfile.TemporaryDirectory() as scratch:
        lock = make_archive(Path(scratch) / "s3", [Kind(kind, series, each)], {kind: images})
        with (
            served(Path(scratch) / "s3") as server,
            open_cluster(ClusterSettings(workers=workers, ahead=True), Path(scratch) / "dask") as client,
        ):
            client.wait_for_workers(workers)
            recipe = recipe.model_copy(update={"fetch": FetchSettings(s3_endpoint=server.url)})
            where = ClusterSettings(scheduler=client.scheduler.address, ahead=True)
            run_build(recipe, Path(scratch) / "warm", where, quiet(), lock.slice(0, 2 * workers))
            processes = [psutil.Process(pid) for pid in client.run(os.getpid).values()]

            def measure() -> tuple[float, ...]:
                return time.perf_counter(), sum(map(processor_s, processes)), server.processor_s(), time.process_time()

            progress = Between(measure)
            run_build(recipe, Path(scratch) / "out", where, progress, lock)
    begin, end = progress.taken
    clock, worker, at_server, head = (after - before for before, after in zip(begin, end, strict=True))
    count = series * each / 1e3
    return InBuild(clock / count, worker / count, at_server / count, head / clock)


def ingest_ms(image: Template, slices: int) -> tuple[float, float, float]:
    """A slice of a series of this image, as a worker ingests and writes it: milliseconds, kilobytes in and out."""
    quiet_libraries()
    cv2.setNumThreads(1)
    made = list(copies(image, 0, slices))
    run_lumid(Given(made[:2]).batch("warm"))
    begin = time.process_time()
    result, _ = run_lumid(Given(made).batch("one"))
    spent = time.process_time() - begin
    assert len(result.samples) == slices
    out = sum(len(sample.image) for sample in result.samples)
    return spent / slices * 1e3, sum(map(len, made)) / len(made) / 1e3, out / slices / 1e3 + 2.5


def searched(folder: Path) -> KindCost:
    """Real ultrasound, whose frames are searched for text: by the frame, and by its bytes before compression."""
    with tempfile.TemporaryDirectory() as scratch:
        size = frames = 0
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with contextlib.suppress(Exception):  # what pydicom does not read is no image here
                data = pydicom.dcmread(path, stop_before_pixels=True)
                if data.get("Modality") == "US" and "Rows" in data and frames < MOST_FRAMES:
                    count = int(data.get("NumberOfFrames") or 1)
                    size += count * data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
                    frames += count
                    shutil.copy(path, scratch)
        work = listed(Path(scratch))
        begin = time.process_time()
        result, _ = run_lumid(work)
        spent = time.process_time() - begin
    kept = len(result.samples)
    print(f"US: {spent / result.planned * 1e3:.0f} ms a frame, of {result.planned} real ones, {kept} kept", flush=True)
    ms, out = spent / result.planned * 1e3, sum(len(sample.image) for sample in result.samples)
    return KindCost(ms, ms, size / frames / 1e3, out / max(1, kept) / 1e3 + 2.5, [1.0])


def ultrasound(folder: Path) -> FileDataset:
    """A real object of ultrasound, the first in a folder that gives samples and has a few frames at the most."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(Exception):  # what pydicom does not read is no image here
            data = pydicom.dcmread(path)
            if data.get("Modality") == "US" and int(data.get("NumberOfFrames") or 1) <= 4:
                with tempfile.TemporaryDirectory() as alone:
                    shutil.copy(path, alone)
                    if run_lumid(listed(Path(alone)))[0].samples:
                        return data
    raise SystemExit(f"{folder}: no ultrasound in it; --source names a folder of DICOM")


def pieces(data: FileDataset, objects: int) -> None:
    """A series of real ultrasound on two workers, which is one batch or is shared by them."""
    seen: dict[bool, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        lock = make_long_series(Path(scratch) / "s3", data, objects)
        each = lock["bytes"][0].as_py() / objects
        for cut in (False, True):
            before, ingesting.PIECE_BYTES = ingesting.PIECE_BYTES, int(2 * each) if cut else 1 << 60
            try:
                with served(Path(scratch) / "s3") as server:
                    recipe = idc_recipe(2).model_copy(update={"fetch": FetchSettings(s3_endpoint=server.url)})
                    out = Path(scratch) / "out"
                    made = run_build(recipe, out, ClusterSettings(workers=2), quiet(), lock).manifest
                    shutil.rmtree(out)
            finally:
                ingesting.PIECE_BYTES = before
            seconds = float(made.build["seconds"])
            seen[cut] = seconds
            what = f"{objects // 2} pieces" if cut else "one batch"
            print(f"a series of {objects} objects of US, two workers, {what}: {seconds:.1f} s", flush=True)
    print(f"one batch / pieces: {seen[False] / seen[True]:.2f}")


def join_ms(image: Template, samples: int) -> float:
    """Milliseconds of putting a sample of a piece into its batch's part: what a shared batch costs beyond the others."""
    keyer, recipe = Keyer(PUBLIC_SECRET), idc_recipe(samples)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lock = make_archive(folder / "s3", [Kind("CT", 1, samples)], {"CT": [image]})
        with served(folder / "s3") as server:
            recipe = recipe.model_copy(update={"fetch": FetchSettings(s3_endpoint=server.url)})
            batch = Batch("0" * 24, 0, tuple(series_of(lock, 0)))
            source = open_source(recipe, 0, keyer)
            cut = divide(batch, {0: 4})
            for piece in cut:
                write_piece(piece_file(folder, piece), piece, ingest_piece(piece, source, recipe, keyer))
            source.close()
        begin = time.perf_counter()
        joined = join_task(recipe, cut, folder, folder)
        spent = time.perf_counter() - begin
    assert isinstance(joined, Ingested)
    return spent / joined.account.kept * 1e3


def fixed_s(images: Sequence[Template]) -> float:
    """What a build takes that has next to nothing to do: imports of the workers, plan, files that every data set has."""
    with tempfile.TemporaryDirectory() as scratch:
        lock = make_archive(Path(scratch) / "s3", [Kind("CT", 2, 2)], {"CT": images})
        recipe = idc_recipe(2)
        with served(Path(scratch) / "s3") as server:
            recipe = recipe.model_copy(update={"fetch": FetchSettings(s3_endpoint=server.url)})
            made = run_build(recipe, Path(scratch) / "out", ClusterSettings(workers=2), quiet(), lock).manifest
    return float(made.build["seconds"])


def task_costs() -> dict[str, float]:
    """Processor seconds of telling a shard's task about a part, at the head and at the worker."""
    parts = [PartFiles(Path("/data/out/.build/parts"), f"{number:024x}") for number in range(3000)]
    tars, spent = Tars.of(parts), {}
    with clocked(spent, "tell"):
        told = pickle.dumps(tars)
    with clocked(spent, "hear"):
        pickle.loads(told).paths()
    return {"tell_s_per_part": spent["tell"][1] / 3000, "hear_s_per_part": spent["hear"][1] / 3000}


def fetch_ms(images: Sequence[Template]) -> float:
    """Processor milliseconds of fetching an object and doing nothing with it."""
    with tempfile.TemporaryDirectory() as scratch:
        lock = make_archive(Path(scratch), [Kind("CT", 10, IN_SERIES)], {"CT": images})
        with served(Path(scratch)) as server:
            in_fresh_process(fetched, server.url, lock)
            spent = in_fresh_process(fetched, server.url, lock)
    print(f"fetching alone: {spent / 10 / IN_SERIES * 1e3:.2f} ms an object")
    return float(spent / 10 / IN_SERIES * 1e3)


def fetched(url: str, lock: Any) -> float:
    source, series = IdcSource(FetchSettings(s3_endpoint=url)), series_of(lock, 0)
    begin = time.process_time()
    source.prefetch(series)
    for one in series:
        assert all(isinstance(blob.data, bytes) for blob in source.blobs(one))
    spent = time.process_time() - begin
    source.close()
    return spent


def pack_cost(size: Sizes) -> dict[str, float]:
    """Processor seconds of each piece of packing parts of a size; and megabytes a second of copying them."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = list(write_parts(Path(scratch) / "parts", size))
        spent: dict[str, tuple[float, float]] = {}
        whole = sum(files.samples.stat().st_size for files in parts)
        groups = group_parts(parts)
        with clocked(spent, "index"):
            pieces = [read_index(group) for group in groups]
        with clocked(spent, "sort"):
            plans = plan_shards(build_index(pieces, parts)[0], 64.0)
            chunks = plan_catalog(plans)
        tars = [files.samples for files in parts]
        with clocked(spent, "shards"):
            for plan in plans:
                pack_shard(plan, tars, Path(scratch) / "shards", Path(scratch) / "receipts")
        with clocked(spent, "cuts"):
            for cut in plan_cuts(groups, chunks):
                write_cut(cut, Path(scratch) / "cuts")
        with clocked(spent, "catalog"):
            for chunk in chunks:
                write_catalog_chunk(
                    chunk, [group.first for group in groups], Path(scratch) / "cuts", Path(scratch) / "catalog"
                )
        disk = whole / 1e6 / copy_s(parts, Path(scratch) / "copy")
    found = {name: processor for name, (_, processor) in spent.items()}
    print(
        f"packing {size.parts:,} × {size.samples:,}: "
        + ", ".join(f"{name} {one:.2f} s" for name, one in found.items()),
        flush=True,
    )
    return found | {
        "parts": size.parts,
        "rows": size.parts * size.samples,
        "gb": whole / 1e9,
        "shards_made": len(plans),
        "disk_mb_s": disk,
    }


def main() -> None:
    names = ("workers", "dask", "memory", "resume", "pack", "pieces", "costs")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder of DICOM; the files inside pydicom without it")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--small", action="store_true", help="everything in small")
    parser.add_argument("--json", type=Path, help="where the costs are written to")
    chosen = parser.parse_args()
    quiet_libraries()
    cv2.setNumThreads(1)
    small = chosen.small
    images: Images = {}
    if {"workers", "memory", "costs"} & set(chosen.only):
        images = {kind: templates(kind, chosen.source or pydicom_files()) for kind in SHARES}
        print(
            "; ".join(
                f"{kind}: {len(found)} {'real' if found[0].real else 'synthetic'}" for kind, found in images.items()
            )
        )
    if "workers" in chosen.only:
        workers(images, 150 if small else 3000, 1 if small else 3)
    if "dask" in chosen.only:
        dask(60 if small else 3200)
    if "memory" in chosen.only:
        memory(images, [150] if small else [500, 1000, 2000, 4000], 50 if small else 250)
    if "resume" in chosen.only:
        resume([20, 40] if small else [100, 1000, 10_000])
    if "pack" in chosen.only:
        packing(
            [Sizes(4, 50, 20_000)] if small else [Sizes(20, 1000, 52_000), Sizes(400, 50, 52_000)],
            2.0 if small else 64.0,
        )
    if "pieces" in chosen.only:
        pieces(ultrasound(chosen.source or pydicom_files()), 6 if small else 40)
    if "costs" in chosen.only:
        sizes = (
            [Sizes(4, 50, 20_000)]
            if small
            else [Sizes(5, 1000, 52_000), Sizes(100, 50, 52_000), Sizes(20, 1000, 2_000)]
        )
        found = costs(images, chosen.source or pydicom_files(), 12 if small else 40, sizes)
        if chosen.json:
            chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
