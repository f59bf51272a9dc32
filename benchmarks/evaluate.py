"""Evaluation: images a second through an encoder beside plain timm and PyTorch's DataLoader, the linear grid on many cached
features, and the memory that it takes. `python benchmarks/evaluate.py [--images N] [--rows N N …]`"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from lumid.catalog.images import decode
from lumid.model.evaluate.encoders import Encoder, load_encoder
from lumid.model.evaluate.features import features
from lumid.model.evaluate.protocols import Sets, linear
from lumid.model.evaluate.rows import Rows
from lumid.model.evaluate.tasks import load_task
from tests.factory import make_image, make_sample, write_dataset

CLASSES, WIDTH = 14, 768


class Pictures(Dataset[Any]):
    """Files as a plain script reads them, with timm's own transform."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        found: torch.Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return found


def extraction(folder: Path, count: int, model: str, rounds: int) -> None:
    random = np.random.default_rng(0)
    samples = [make_sample("CT", number, make_image(random, "CT", 240), "jhc") for number in range(count)]
    write_dataset(folder / "data", samples)
    (folder / "files").mkdir()
    paths = []
    for row, image in samples:
        paths.append(folder / "files" / f"{row.key}.png")
        cv2.imwrite(str(paths[-1]), (decode(image, row.codec) // 16).astype(np.uint8))
    encoder = load_encoder(f"random:{model}")
    task = load_task(str(_task_file(folder)), folder / "data")
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(_timed(lambda n=number: features(encoder, task, folder / f"cache{n}", device=torch.device("cpu"))))
        theirs.append(_timed(lambda: _plain(encoder, paths)))
    best, other = min(ours), min(theirs)
    print(f"features of {count} images, {model}: lumid {count / best:.1f}/s, timm + DataLoader {count / other:.1f}/s")
    print(f"  ratio {other / best:.2f} (rounds {', '.join(f'{b / a:.2f}' for a, b in zip(ours, theirs, strict=True))})")


def _task_file(folder: Path) -> Path:
    path = folder / "sex.py"
    path.write_text(
        "from lumid.model.evaluate.tasks.catalog import of_column\n\n"
        "def task(data):\n    return of_column('sex', data, 'sex')\n"
    )
    return path


def _plain(encoder: Encoder, paths: list[Path]) -> None:
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder.model), is_training=False)
    loader = DataLoader(Pictures(paths, transform), batch_size=64, num_workers=2)
    with torch.inference_mode():
        for images in loader:
            encoder.model(images)


def grid(folder: Path, rows: int) -> None:
    """The linear grid on as many rows, of which seven tenths train; labels hard enough that it does not end early."""
    path = folder / f"{rows}.npy"
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, rows)
    centres = random.normal(0, 0.08, (CLASSES, WIDTH)).astype(np.float32)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    for begin in range(0, rows, 10_000):
        part = slice(begin, min(begin + 10_000, rows))
        values[part] = random.standard_normal((part.stop - begin, WIDTH), np.float32) + centres[labels[part]]
    values.flush()
    del values
    kept = np.load(path, mmap_mode="r")
    places = np.arange(rows)
    train, val, test = np.split(places, [7 * rows // 10, 8 * rows // 10])
    sets = Sets("multiclass", CLASSES, Rows(kept, train), labels[train], Rows(kept, val), labels[val], Rows(kept, test))
    peak = Peak()
    with peak:
        seconds = _timed(lambda: linear(sets, 0))
    chosen = linear.__name__
    print(
        f"{chosen} on {rows:,} × {WIDTH} ({path.stat().st_size / 1e6:,.0f} MB): {seconds:.1f} s, "
        f"own memory {peak.megabytes:,.0f} MB above the start"
    )
    path.unlink()


class Peak:
    """The most memory of one's own (RssAnon, which mapped files are no part of) while it runs, above what was held before."""

    def __enter__(self) -> Peak:
        self._start, self._most, self._done = _anonymous(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, _anonymous())

    @property
    def megabytes(self) -> float:
        return max(0, self._most - self._start) / 1024


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _timed(what: Any) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 400_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if given.images:
            extraction(Path(name), given.images, given.model, given.rounds)
        for rows in given.rows:
            grid(Path(name), rows)


if __name__ == "__main__":
    main()
