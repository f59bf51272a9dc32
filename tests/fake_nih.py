"""A small ChestX-ray14: two archives of PNGs, and tables of the form that the real ones have."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.download import Patience
from lumid.pipeline.lock import series_of
from lumid.pipeline.recipe import FetchSettings, NihSettings
from lumid.pipeline.sources import Series
from lumid.pipeline.sources.nih import NihArchive, NihSource, plan_nih
from tests.servers import Server

KEYER = Keyer(PUBLIC_SECRET)
QUICK = Patience(first_wait_s=0.01, longest_wait_s=0.02, progress_bytes=1 << 30)

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
TABLE = HEADER + (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143,\n"
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143,\n"
    "00000002_000.png,No Finding,0,2,80,F,AP,2500,2048,0.168,0.171,\n"
    "00000003_000.png,Pleural_Thickening|Hernia,0,3,412,F,PA,2582,2991,0.143,0.143,\n"
    "00000004_000.png,Mass,0,4,,X,LL,,,,,\n"
)
NAMES = [line.split(",")[0] for line in TABLE.splitlines()[1:]]


def grey(seed: int, rows: int = 32, columns: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def rgba(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, pixels, pixels, np.full_like(pixels, 255)])


def tar_gz(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(f"images/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


FIRST = tar_gz(
    ("00000001_000.png", png(grey(1))),
    ("00000001_001.png", png(rgba(grey(2)))),
    ("00000002_000.png", png(grey(3, rows=16))),
)
SECOND = tar_gz(
    ("00000004_000.png", png(grey(5))),
    ("00000003_000.png", png(grey(4))),
    ("00000099_000.png", png(grey(6))),
    ("README.txt", b"DOE^JANE"),
)


def described(name: str, file: str, data: bytes) -> NihArchive:
    return NihArchive(name, file, hashlib.md5(data).hexdigest(), len(data))


SMALL = (described("images_001.tar.gz", "aa.gz", FIRST), described("images_002.tar.gz", "bb.gz", SECOND))


def write_tables(folder: Path, table: str = TABLE) -> None:
    """The tables into a folder, that is made: patients 2 and 3 are those of the official test list."""
    folder.mkdir(exist_ok=True)
    (folder / "Data_Entry_2017_v2020.csv").write_text(table)
    (folder / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000004_000.png")
    (folder / "test_list.txt").write_text("00000002_000.png\n00000003_000.png\n")


@dataclass
class Nih:
    server: Server
    folder: Path
    archives: tuple[NihArchive, ...] = SMALL

    def settings(self, **values: object) -> NihSettings:
        return NihSettings.model_validate({"path": str(self.folder), "archives": (1, 2)} | values)

    def fetch(self, **values: object) -> FetchSettings:
        base = {"nih_url": self.server.url + "/static", "attempts": 3, "timeout_s": 0.5}
        return FetchSettings.model_validate(base | values)

    def series(self) -> list[Series]:
        """By the archives' names."""
        lock = plan_nih(self.settings(), self.fetch(), KEYER, self.archives)
        return sorted(series_of(lock, 0), key=lambda one: one.location)

    def source(self, **values: object) -> NihSource:
        return NihSource(self.settings(**values), self.fetch(), KEYER, patience=QUICK)
