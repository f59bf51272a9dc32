"""How much a build costs over reading the pixels, and what a second worker brings: ratios from one run.

Compares, on the same slices (a folder that you name, or synthetic 512 × 512 CT):
reading every pixel with pydicom alone · `lumid build` with one worker · with two.

    python benchmarks/build.py
    python benchmarks/build.py --source ~/dicom --workers 8
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from lumid.catalog.layout import Manifest, read_manifest


def write_slices(folder: Path, slices: int, in_series: int = 40) -> None:
    """CT-like slices: a smooth body with noise, 12 bits in 16."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(row**2 + column**2 < 0.7, 1000 + 150 * np.cos(6 * row) * np.sin(5 * column), 0)
    for number in range(slices):
        series, place = divmod(number, in_series)
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.{series}.{place}"
        data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID = (
            f"1.2.826.{series}",
            f"1.2.{series}",
            str(series),
        )
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows = data.Columns = 512
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, float(place)]
        data.PixelSpacing = [0.7, 0.7]
        pixels = np.clip(body + rng.normal(0, 20, body.shape), 0, 4095).astype(np.uint16)
        data.PixelData = pixels.tobytes()
        data.save_as(folder / f"{number:05}.dcm", enforce_file_format=True)


def read_with_pydicom(folder: Path) -> tuple[int, float]:
    """Frames and seconds of decoding every readable image, and doing nothing with it."""
    begin, frames = time.perf_counter(), 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(Exception):  # what pydicom alone cannot read is no part of the comparison
            pixels = pydicom.dcmread(path).pixel_array
            frames += len(pixels) if pixels.ndim == 4 or (pixels.ndim == 3 and pixels.shape[-1] > 4) else 1
    return frames, time.perf_counter() - begin


def build(folder: Path, out: Path, workers: int) -> Manifest:
    command = [
        sys.executable,
        "-m",
        "lumid",
        "build",
        "--source",
        str(folder),
        "--out",
        str(out),
        "--workers",
        str(workers),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return read_manifest(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder of DICOM; synthetic slices without it")
    parser.add_argument("--slices", type=int, default=800, help="how many synthetic slices (default 800)")
    parser.add_argument("--workers", type=int, default=2, help="workers of the parallel build (default 2)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.source or Path(scratch) / "source"
        if chosen.source is None:
            folder.mkdir()
            write_slices(folder, chosen.slices)
        read_with_pydicom(folder)  # so that the first to be timed does not pay for the disk
        frames, seconds = read_with_pydicom(folder)
        alone = frames / seconds
        one = build(folder, Path(scratch) / "one", 1)
        many = build(folder, Path(scratch) / "many", chosen.workers)
        assert one.catalog_hash == many.catalog_hash, "the number of workers changed the data set"
        print(f"{one.counts.planned:,} frames, {one.counts.kept:,} kept, {one.build['source_mb']:,} MB")
        print(f"{'':34}{'frames/s':>10}{'of pydicom alone':>18}{'of one worker':>15}")
        rates = {
            "pydicom, decoding only": alone,
            "lumid build, 1 worker": one.build["slices_per_second"],
            f"lumid build, {chosen.workers} workers": many.build["slices_per_second"],
        }
        for name, rate in rates.items():
            print(f"{name:34}{rate:10.0f}{rate / alone:17.2f}×{rate / one.build['slices_per_second']:14.2f}×")


if __name__ == "__main__":
    main()
