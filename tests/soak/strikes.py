"""What befalls a build: each strike begins one, or goes on with it, lets something happen, and says how it ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq

import lumid
from lumid.catalog.layout import Layout
from lumid.catalog.verify import verify
from tests.dags.command import content
from tests.fake_idc import s3_client, s3_server
from tests.servers import before
from tests.soak.site import LONGEST_S, ROOT, Running, Site, promise

LOST_AT_MOST = 4
Strike = Callable[[Site, random.Random, str, Path], str]
"""Begins a build of a kind into a folder; returns what came of it."""


def _moment(running: Running, rng: random.Random) -> bool:
    """Wait for a moment of a build, drawn; false when it ended before."""
    work, root = Layout(running.out).work, running.out
    kind = rng.choice(("begun", "part", "part", "part", "packing", "committing"))
    parts = rng.randrange(1, 8)
    wanted: dict[str, Callable[[], bool]] = {
        "begun": lambda: (work / "running").is_file(),
        "part": lambda: running.parts() >= parts,
        "packing": lambda: any(work.glob("packed-*/shards/*")),
        "committing": lambda: (root / "shards").is_dir(),
    }
    if not running.reached(wanted[kind]):
        return False
    time.sleep(rng.choice((0.0, 0.0, rng.random())))
    return running.process.poll() is None


def _workers(rng: random.Random) -> tuple[str, str]:
    return "--workers", rng.choice("112")


def worker(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """Workers are killed, one to three; the build goes on by itself."""
    running = site.start(kind, out, "--workers", "2")
    killed = 0
    for _ in range(rng.randrange(1, 4)):
        if _moment(running, rng) and (there := running.workers()):
            os.kill(rng.choice(there), signal.SIGKILL)
            killed += 1
    running.ended_politely(running.wait(), {0})
    return "went on" if killed else "too late"


def head(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """The process that leads is killed alone; its workers end by themselves."""
    running = site.start(kind, out, *_workers(rng))
    if hit := _moment(running, rng):
        running.process.kill()
    running.wait()
    return "killed" if hit else "too late"


def machine(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """Every process ends at once, and the last of what was written is lost, as when the power fails."""
    running = site.start(kind, out, *_workers(rng))
    hit = _moment(running, rng)
    running.kill()
    _lose_the_last(Layout(out).work, rng)
    return "killed" if hit else "too late"


def _lose_the_last(work: Path, rng: random.Random) -> None:
    """Files that are not renamed yet are cut anywhere; of those that are, the last renames did not reach the disk."""
    files = sorted((path for path in work.rglob("*") if path.is_file()), key=lambda path: path.stat().st_ctime_ns)
    for path in files:
        if path.name.endswith(".tmp"):
            os.truncate(path, rng.randrange(path.stat().st_size + 1))
    # build.json and the lock were there before with other content: to lose a rename is not to lose them
    renamed = [one for one in files if one.parent != work and not one.name.endswith(".tmp")]
    for path in renamed[len(renamed) - rng.randrange(LOST_AT_MOST + 1) :]:
        path.unlink()


def interrupted(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """Ctrl-C, which a terminal sends to every process."""
    return _signalled(site, rng, kind, out, lambda running: os.killpg(running.process.pid, signal.SIGINT), 130)


def terminated(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """A polite kill of the process that leads."""
    return _signalled(site, rng, kind, out, lambda running: running.process.terminate(), 143)


def _signalled(site: Site, rng: random.Random, kind: str, out: Path, send: Callable[[Running], None], code: int) -> str:
    running = site.start(kind, out, *_workers(rng))
    hit = _moment(running, rng)
    began = bool(running.workers())
    if hit:
        send(running)
    ended = running.wait()
    if hit and not began:  # what an earlier run left was taken for a moment of this one: Python itself may just begin
        return "too early"
    running.ended_politely(ended, {0, code})
    return "stopped in a line" if ended else "ended first" if hit else "too late"


def scheduler(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """The build runs on a cluster of others, whose scheduler is killed."""
    with _cluster(site.folder) as (address, leader):
        running = site.start(kind, out, "--scheduler", address)
        hit = _moment(running, rng)
        if hit:
            os.kill(leader, signal.SIGKILL)
        code = running.wait()
        running.ended_politely(code, {0, 1})
        return "too late" if not hit else "failed in a line" if code else "ended first"


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[str, int]]:
    """A scheduler and two workers; the address and the scheduler's process."""
    where = folder / f"scheduler-{uuid4().hex}.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    leader = subprocess.Popen(
        [*begin, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(where)],
        cwd=folder, env=environment, **quiet,  # type: ignore[call-overload]
    )  # fmt: skip
    workers = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", "--host", "127.0.0.1", "--scheduler-file", str(where),
         "--nworkers", "2", "--nthreads", "2", "--no-dashboard", "--death-timeout", "20", "--local-directory", str(folder / "dask")],
        cwd=folder, env=environment, **quiet,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        end = time.monotonic() + 60
        while not where.is_file() or not where.stat().st_size:
            promise(time.monotonic() < end, "no Dask scheduler begins")
            time.sleep(0.05)
        yield json.loads(where.read_text())["address"], leader.pid
    finally:
        for process in (workers, leader):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        where.unlink(missing_ok=True)


def disk(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """The disk is full after some bytes more; then it has room again."""
    mount = out.parent
    if not os.path.ismount(mount):
        return "not mounted"
    used = sum(path.stat().st_size for path in mount.rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in site.reference(kind).rglob("*") if path.is_file())
    remount(mount, used + rng.randrange(1 << 16, 3 * whole))
    try:
        running = site.start(kind, out, *_workers(rng))
        code = running.wait()
        running.ended_politely(code, {0, 1})
        if code:
            promise("no space left" in running.text(), f"a full disk is called: {running.text()[-300:]}")
            promise(not list(mount.rglob("*.tmp")), "half a file is left on the full disk")
    finally:
        remount(mount, 1 << 28)
    return "failed in a line" if code else "had room"


def remount(mount: Path, size: int) -> None:
    """Give a disk in memory another size, in bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(mount)], check=True, capture_output=True)


def storm(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """The archive answers a tenth of the requests with 503 or worse, and is away now and then."""
    return _storm(site, rng, out, ())


def _storm(site: Site, rng: random.Random, out: Path, more: tuple[str, ...]) -> str:
    site.weather.stormy, site.weather.flapping, site.weather.rng = True, rng.random() < 0.4, rng
    met = site.weather.met
    try:
        running = site.start("archive", out, *_workers(rng), *more)
        running.ended_politely(running.wait(), {0, 1})
    finally:
        site.weather.stormy = False
    return "came through" if site.weather.met > met else "calm"


def rotten_cache(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """A cache is filled in a storm; files of it are flipped, cut or lost; then a build reads it, killed or not."""
    cache = site.folder / "cache"
    _storm(site, rng, out, ("--cache", str(cache)))
    files = [path for path in cache.rglob("*") if path.is_file()]
    for path in rng.sample(files, min(len(files), rng.randrange(1, 6))):
        _damage(path, rng)
    shutil.rmtree(out, ignore_errors=True)
    running = site.start("archive", out, *_workers(rng), "--cache", str(cache))
    if rng.random() < 0.5 and _moment(running, rng):
        running.kill()
    else:
        running.ended_politely(running.wait(), {0})
    shutil.rmtree(cache, ignore_errors=True)
    return f"{'' if files else 'nothing '}damaged"


def _damage(path: Path, rng: random.Random) -> None:
    """Flip a byte, cut, empty or remove a file."""
    data = path.read_bytes()
    at = rng.randrange(max(1, len(data)))
    match rng.randrange(4):
        case 0:
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else b"x")
        case 1:
            path.write_bytes(data[:at])
        case 2:
            path.write_bytes(b"")
        case _:
            path.unlink()


def mutated(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """Files of the source change while a build reads them; afterwards they are as they were.

    A build that has ended must not hold a byte of what they were in between.
    """
    finished_before = Layout(out).manifest.exists()
    running = site.start("folder", out, *_workers(rng))
    hit = running.reached(lambda: bool(running.workers()))  # by then it has listed the files
    chosen = rng.sample(sorted(site.study.iterdir()), 6)
    kept = {path: (path.read_bytes(), path.stat()) for path in chosen}
    try:
        for path in chosen:
            time.sleep(0.4 * rng.random())
            _damage(path, rng)
        code = running.wait()
    finally:
        for path, (data, about) in kept.items():
            path.write_bytes(data)
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    running.ended_politely(code, {0, 1})
    if not hit or finished_before:
        return "too late"
    if not Layout(out).manifest.exists():
        shutil.rmtree(out)  # its parts say what is missing; that files get their old times back is of this soak alone
        return "refused in a line"
    promise(verify(out, deep=True).sound, "a data set from files that changed is damaged")
    promise(_as_in(out, site.reference("folder")), "an image of a file that changed after it was listed")
    whole = _images(out) == _images(site.reference("folder"))
    if not whole:
        shutil.rmtree(out)  # it says what is missing, and that it is to be built anew
    return "read before" if whole else "rejected"


def _as_in(out: Path, reference: Path) -> bool:
    """Whether the reference has every image of ``out``, to a step: a series that lost a slice is stored in other steps."""
    columns = ("key", "store_slope", "store_intercept")
    with lumid.open(reference) as whole, lumid.open(out) as some:
        wanted = {row["key"]: (image, row) for image, row in whole.images(columns)}
        for image, row in some.images(columns):
            if row["key"] not in wanted:
                return False
            other, its = wanted[row["key"]]
            lowest = max(one["store_intercept"] for one in (row, its))
            highest = min(one["store_intercept"] + 65535 * one["store_slope"] for one in (row, its))
            off = np.abs(np.clip(image, lowest, highest) - np.clip(other, lowest, highest))
            if off.max() > row["store_slope"] + its["store_slope"]:
                return False
    return True


def _images(root: Path) -> set[tuple[str, str]]:
    tables = [pq.read_table(path, columns=["key", "sha256"]) for path in Layout(root).catalog.rglob("*.parquet")]
    return {pair for table in tables for pair in zip(*(column.to_pylist() for column in table.columns), strict=True)}


def bucket(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """A finished data set is published into a bucket that refuses, answers 503, or does and says that it did not."""
    built = site.reference(kind)
    with _bucket() as (url, objects):
        came = _into(site, rng, url, lambda url, env: site.run(("publish", str(built), url), out, env))
        here = {str(path.relative_to(built)): path.read_bytes() for path in built.rglob("*") if path.is_file()}
        promise(objects() == here, "the bucket holds something else than the data set")
    return came


def store(site: Site, rng: random.Random, kind: str, out: Path) -> str:
    """A build writes into such a bucket; the next one takes over from it."""
    with _bucket() as (url, objects), tempfile.TemporaryDirectory(dir=site.folder) as folder:
        came = _into(site, rng, url, lambda url, env: site.start(kind, url, *_workers(rng), **env))
        for name, data in objects().items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        promise(verify(Path(folder), deep=True).sound, "lumid verify --deep finds damage in the bucket's data set")
        same = content(Path(folder)) == content(site.reference(kind))
        promise(
            same and not (Path(folder) / ".build").exists(), "the bucket holds other bytes than the undisturbed build"
        )
    return came


def _into(site: Site, rng: random.Random, url: str, start: Callable[[str, dict[str, str]], Running]) -> str:
    """A command that writes to a bucket that refuses, killed or not; then again, with a bucket that does not."""
    refusal, share = rng.choice((403, 503, 507)), rng.choice((0.1, 0.3, 1.0))

    def status(command: str) -> int | None:
        return refusal if command == "PUT" and rng.random() < share else None

    with before(s3_server(), status, answered=rng.random() < 0.3) as refusing:
        running = start(url, {"AWS_ENDPOINT_URL": refusing})
        if rng.random() < 0.4:
            time.sleep(1 + 5 * rng.random())
            running.kill()
            came = "killed"
        else:
            code = running.wait()
            running.ended_politely(code, {0, 1})
            came = "refused in a line" if code else "came through"
    running = start(url, {"AWS_ENDPOINT_URL": s3_server()})
    running.ended_politely(running.wait(), {0})
    return came


@contextmanager
def _bucket() -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    """A new bucket's address, and what gives its objects by name."""
    name, client = f"soak{uuid4().hex}", s3_client(s3_server())
    client.create_bucket(Bucket=name)

    def keys() -> list[str]:
        return [one["Key"] for one in client.list_objects_v2(Bucket=name).get("Contents", [])]

    try:
        yield (
            f"s3://{name}/p",
            lambda: {key.removeprefix("p/"): client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys()},
        )
    finally:
        for key in keys():
            client.delete_object(Bucket=name, Key=key)
        client.delete_bucket(Bucket=name)


STRIKES: dict[str, tuple[Strike, tuple[str, ...]]] = {
    "worker killed": (worker, ("archive", "folder", "poisoned")),
    "head killed": (head, ("archive", "folder", "poisoned")),
    "power lost": (machine, ("archive", "folder", "poisoned")),
    "Ctrl-C": (interrupted, ("archive", "folder", "poisoned")),
    "terminated": (terminated, ("archive", "folder")),
    "scheduler lost": (scheduler, ("archive", "folder")),
    "disk full": (disk, ("archive", "folder")),
    "archive fails": (storm, ("archive",)),
    "cache damaged": (rotten_cache, ("archive",)),
    "source changed": (mutated, ("folder",)),
    "bucket refuses": (bucket, ("archive", "folder")),
    "build in a bucket": (store, ("archive", "folder")),
}
"""By name: the strike, and the kinds of build that it can befall."""


__all__ = ["LONGEST_S", "STRIKES", "remount"]
