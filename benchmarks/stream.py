"""Images a second of the stream, beside the bare codec and beside what else streams images into PyTorch.

Stored images of real slices (256 pixels wide, 16 bits, HTJ2K), each turned round by some pixels so that no two are equal,
written once for everyone: shards (lumid and webdataset), MDS (MosaicML streaming), chunks (litdata), files in a folder
(torchvision). Everyone decodes with the same codec and gives shuffled batches of 64 as one int16 tensor: in the process
that asks, kept on one core and not, and with workers. Every way runs in a process of its own and takes its turn in
every round.

    python benchmarks/stream.py --source ~/dicom      # any folder of DICOM; without one, a synthetic body
    python benchmarks/stream.py --shuffle             # how good the order of a bucket's blocks is, at full size

Peers join in when they are installed: pip install litdata mosaicml-streaming. They run after a warm-up, without the end
of the epoch; processor time is that of the process and its children.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumid.catalog.codecs import decode
from lumid.catalog.query import read_catalog
from lumid.catalog.shards import read_samples

BATCH, WARM, SIDE, SHARDS = 64, 8, 256, 8
PEERS = {"webdataset": "webdataset", "ImageFolder": "torchvision", "litdata": "litdata", "MDS": "streaming"}
WAYS = ("one process on one core", "one process", "workers")
ONLY = {"the bare codec": WAYS[:1], "lumid, a thread": WAYS[1:2]}
Pixels = npt.NDArray[np.uint16]


def bodies(source: Path | None) -> list[Pixels]:
    """Stored CT of a folder, or a synthetic body with a scanner's noise."""
    if source is not None:
        from benchmarks.codecs import stored_images  # needs all of lumid, which a machine that only trains may lack

        found = stored_images(source, "lumid", (SIDE,), 40).get(("CT", SIDE), [])
        square = [np.asarray(one, np.uint16) for one in found if one.shape == (SIDE, SIDE)]
        if not square:
            sys.exit(f"{source}: no square CT of {SIDE} pixels or more; leave --source out for a synthetic body")
        return square
    rng, (row, column) = np.random.default_rng(0), np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    body = np.where(row**2 + column**2 < 0.7, 1000 + 150 * np.cos(6 * row) * np.sin(5 * column), 0)
    return [np.clip(body + rng.normal(0, 12, body.shape) * (body > 0), 0, 4095).astype(np.uint16) for _ in range(8)]


def write(root: Path, images: int, source: Path | None, *, peers: bool = True) -> None:
    """The same images for everyone, or for lumid alone, below ``root``."""
    from tests.factory import make_sample, write_dataset

    given = bodies(source)
    samples = []
    for number in range(images):
        turned = np.roll(given[number % len(given)], (3 * number, 5 * number), (0, 1))
        samples.append(make_sample("CT", number, np.ascontiguousarray(turned), "jhc"))
    write_dataset(root / "lumid", samples, SHARDS)
    encoded = [image for _, image in samples]
    size = sum(map(len, encoded)) / images / 1000
    kind = "real" if source else "synthetic"
    print(f"{images:,} images of {size:.1f} kB, made of {len(given)} {kind} ones", flush=True)
    if peers:
        write_for_peers(root, [(row.key, image) for row, image in samples])


def write_for_peers(root: Path, samples: list[tuple[str, bytes]]) -> None:
    """As the others want them."""
    folder = root / "folder" / "CT"
    folder.mkdir(parents=True)
    for key, image in samples:
        (folder / f"{key}.jhc").write_bytes(image)
    if find_spec("streaming"):
        from streaming import MDSWriter

        with MDSWriter(out=str(root / "mds"), columns={"image": "bytes"}) as writer:
            for _, image in samples:
                writer.write({"image": image})
    if find_spec("litdata"):
        # litdata's own writer wants workers and a cache of its own: this is what they run
        from litdata.streaming.writer import BinaryWriter

        (root / "litdata").mkdir()
        chunks = BinaryWriter(str(root / "litdata"), chunk_bytes="64MB")
        for number, (_, image) in enumerate(samples):
            chunks[number] = image
        chunks.done()
        chunks.merge()


def tensor(image: bytes) -> Any:
    """What a peer makes of an encoded image: ``int16 [256, 256]``."""
    import imagecodecs
    import torch

    return torch.from_numpy(imagecodecs.htj2k_decode(image).view(np.int16))


def loaded(dataset: Any, workers: int, **settings: Any) -> Iterator[int]:
    """A peer's data set through PyTorch's loader; the sizes of the batches."""
    from torch.utils.data import DataLoader

    for batch in DataLoader(dataset, batch_size=BATCH, num_workers=workers, **settings):
        yield len(batch)


def bare(root: Path, _workers: int) -> Iterator[int]:
    """The codec alone, of images in memory, one thread: the floor."""
    images = [image for path in sorted((root / "lumid/shards").iterdir()) for _, image, _ in read_samples(path)]
    out = np.empty((SIDE, SIDE), np.uint16)
    for first in range(0, len(images), BATCH):
        for image in images[first : first + BATCH]:
            decode(image, "jhc", out)
        yield len(images[first : first + BATCH])


def lumid(root: Path, workers: int, **settings: Any) -> Iterator[int]:
    """The stream; its workers are threads."""
    from lumid.model.stream import ImageStream, StreamSettings, select

    selection = select(root / "lumid")
    stream = ImageStream(selection, StreamSettings(BATCH, threads=workers, **settings))
    for batch in itertools.islice(stream, len(selection) // BATCH):
        yield len(batch.keys)


def lumid_thread(root: Path, _workers: int) -> Iterator[int]:
    """The stream with one thread beside the process's own, as litdata has in one process too."""
    return lumid(root, 1)


def lumid_blocks(root: Path, workers: int) -> Iterator[int]:
    """The stream as it reads a bucket, here from a disk: blocks of 2 MB, prefetched."""
    return lumid(root, workers, access="sequential", lanes=4, window_mb=64)


def webdataset(root: Path, workers: int) -> Iterator[int]:
    """Shards in random order, and a buffer of 1,000 samples."""
    import webdataset as wds

    shards = [str(path) for path in sorted((root / "lumid/shards").iterdir())]
    samples = wds.WebDataset(shards, shardshuffle=SHARDS).shuffle(1000).map(lambda sample: tensor(sample["jhc"]))
    return loaded(samples, workers)


def image_folder(root: Path, workers: int) -> Iterator[int]:
    """torchvision's folder of files."""
    from torchvision.datasets import DatasetFolder

    files = DatasetFolder(str(root / "folder"), lambda path: tensor(Path(path).read_bytes()), ("jhc",))
    for images, _ in loaded_pairs(files, workers):
        yield len(images)


def loaded_pairs(dataset: Any, workers: int) -> Iterator[Any]:
    """Images and labels."""
    from torch.utils.data import DataLoader

    yield from DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers)


def litdata(root: Path, workers: int) -> Iterator[int]:
    """litdata's chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return tensor(super().__getitem__(index))

    dataset = Images(str(root / "litdata"), shuffle=True)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers):
        yield len(batch)


def mds(root: Path, workers: int) -> Iterator[int]:
    """MosaicML's shards."""
    from streaming import StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return tensor(super().__getitem__(index)["image"])

    return loaded(Images(local=str(root / "mds"), shuffle=True, batch_size=BATCH), workers)


READERS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    "the bare codec": bare, "lumid": lumid, "lumid, a thread": lumid_thread, "lumid, blocks": lumid_blocks,
    "webdataset": webdataset, "ImageFolder": image_folder, "litdata": litdata, "MDS": mds,
}  # fmt: skip


def processor_s() -> float:
    """Of this process and its children, those that run."""
    me = psutil.Process()
    times = [one.cpu_times() for one in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def measure(batches: Iterator[int], images: int) -> dict[str, float]:
    """Seconds and processor seconds an image: from the eighth batch to nine tenths of the epoch."""
    for _ in range(WARM):
        next(batches)
    began, processor, seen = time.perf_counter(), processor_s(), 0
    while seen < 0.9 * images - WARM * BATCH:
        seen += next(batches)
    return {"s": (time.perf_counter() - began) / seen, "processor_s": (processor_s() - processor) / seen}


def in_a_process(name: str, way: str, root: Path, workers: int) -> dict[str, float]:
    """One measurement, alone."""
    command = [sys.executable, __file__, "--one", name, "--way", way, "--data", str(root), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}, {way}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(root: Path, rounds: int, workers: int) -> None:
    """Everyone against everyone, as a table."""
    names = [name for name in READERS if name not in PEERS or find_spec(PEERS[name])]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for way, name in itertools.product(WAYS, names):
            if way in ONLY.get(name, WAYS):
                found.setdefault((name, way), []).append(in_a_process(name, way, root, workers))

    def median(name: str, way: str, what: str) -> float:
        return statistics.median(one[what] for one in found[name, way])

    floor = median("the bare codec", WAYS[0], "processor_s")
    for way in WAYS:
        ours = median("lumid", way, "s")
        title = f"{workers} {way}" if way == WAYS[2] else way
        print(f"\n| {title} | images/s | × lumid | ms of processor an image | the codec's share of them |")
        print("|---|---|---|---|---|")
        for name in names:
            if (name, way) in found:
                wall, processor = median(name, way, "s"), median(name, way, "processor_s")
                print(
                    f"| {name} | {1 / wall:,.0f} | {ours / wall:.2f} | {1000 * processor:.3f} | {floor / processor:.0%} |"
                )


def buffered(shard_of: npt.NDArray[np.int64], buffer: int, seed: int) -> npt.NDArray[np.int64]:
    """webdataset's order: shards in random order, one after another through a buffer from which samples are drawn."""
    rng = np.random.default_rng(seed)
    turn = rng.permutation(int(shard_of.max()) + 1)
    line = np.argsort(turn[shard_of], kind="stable")
    held, order, picks = line[:buffer].tolist(), [], rng.integers(0, buffer, len(line)).tolist()
    for new, pick in zip(line[buffer:].tolist(), picks, strict=False):
        order.append(held[pick])
        held[pick] = new
    return np.array(order + rng.permutation(held).tolist())


def shuffles(samples: int, kilobytes: float, batch: int) -> None:
    """How much oftener two samples of a batch meet in the next epoch's too, than under permutations."""
    from lumid.model.stream.order import BlockShuffle, block_order, epoch_order, met_again

    rows = np.arange(samples, dtype=np.int64)
    print(f"{samples:,} samples of {kilobytes:g} kB, batches of {batch:,}\n")
    print("| order | two of a batch meet again, × chance | seconds an epoch to arrange |\n|---|---|---|")

    def line(name: str, order: Callable[[int], npt.NDArray[np.int64]]) -> None:
        began = time.perf_counter()
        orders = [order(epoch) for epoch in (0, 1)]
        took = (time.perf_counter() - began) / 2
        print(f"| {name} | {met_again(orders[0], orders[1], batch):.2f} | {took:.1f} |", flush=True)

    line("full permutation (local disks)", lambda epoch: epoch_order(0, epoch, samples))
    for block_mb, lanes, window_mb in ((2, 16, 64), (2, 16, 256), (2, 64, 256), (2, 16, 1024), (0.5, 16, 256)):
        block_of = (rows * kilobytes / (1000 * block_mb)).astype(np.int64)
        shuffle = BlockShuffle(lanes, max(1, round(window_mb / lanes / block_mb)))
        name = f"blocks of {block_mb:g} MB, {lanes} lanes, {window_mb} MB at hand"
        name += " (the default)" if (block_mb, lanes, window_mb) == (2, 16, 256) else ""
        line(name, lambda epoch, of=block_of, how=shuffle: block_order(0, epoch, rows, of, how).rows)  # type: ignore[misc]
    for buffer in (1_000, 10_000):
        held = f"{buffer * kilobytes / 1000:,.0f} MB"
        name = f"webdataset's: shards of 4,000 one by one, a buffer of {buffer:,} ({held})"
        line(name, lambda epoch, size=buffer: buffered(rows // 4_000, size, epoch))  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder of DICOM with CT of 256 pixels or more")
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="threads of lumid, processes of the others")
    parser.add_argument("--shuffle", action="store_true", help="the quality of orders instead of speed")
    parser.add_argument("--samples", type=int, default=2_000_000, help="of the orders")
    parser.add_argument("--kilobytes", type=float, default=40.0, help="of an image, for the orders")
    parser.add_argument("--batch", type=int, default=4_096, help="of the orders")
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.shuffle:
        shuffles(given.samples, given.kilobytes, given.batch)
    elif given.one:
        images = read_catalog(given.data / "lumid").num_rows
        if given.way == WAYS[0]:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        batches = READERS[given.one](given.data, given.workers if given.way == WAYS[2] else 0)
        print(json.dumps(measure(batches, images)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), given.images, given.source)
            compare(Path(folder), given.rounds, given.workers)


if __name__ == "__main__":
    main()
