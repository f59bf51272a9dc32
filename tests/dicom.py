"""DICOM files for tests: pydicom's own, and small ones made from scratch with values known by hand."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SHARED = Path(os.environ.get("LUMID_REAL_IMAGES") or Path(__file__).resolve().parents[2] / "shared" / "data")


def image(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """A CT-like object around the pixels (uint8/16, int16, or uint8 RGB); ``elements`` are set last, None removes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = elements.get("SOPInstanceUID", "1.2.3.4.5")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    frames = pixels.ndim == 4 or (pixels.ndim == 3 and pixels.shape[-1] != 3)
    shape = pixels.shape[1:] if frames else pixels.shape
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3.4.5",
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "PatientID": "P1",
        "Modality": "CT",
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": 3 if len(shape) == 3 else 1,
        "PhotometricInterpretation": "RGB" if len(shape) == 3 else "MONOCHROME2",
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "HighBit": pixels.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }
    if len(shape) == 3:
        values["PlanarConfiguration"] = 0
    if frames:
        values["NumberOfFrames"] = pixels.shape[0]
    for keyword, value in (values | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def as_bytes(dataset: FileDataset) -> bytes:
    """The object as a DICOM file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def gradient(rows: int = 64, columns: int = 48, dtype: Any = np.int16, high: int = 1000) -> np.ndarray:
    """Every row a ramp from 0 to ``high``, each row a little later."""
    ramp = (np.arange(columns)[None, :] + np.arange(rows)[:, None]) * high // (rows + columns - 2)
    return ramp.astype(dtype)


def encapsulated(frames: list[bytes], syntax: str, pixels: np.ndarray, **elements: Any) -> FileDataset:
    """The object of :func:`image` with its pixels replaced by encoded frames, one fragment each, with an offset table.

    ``PixelData`` among the elements is taken as it is: fragments and table of the caller's own.
    """
    own = elements.pop("PixelData", None)
    dataset = image(pixels, **elements)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames) if own is None else own
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def real_file(name: str) -> bytes:
    """A file of pydicom's, or of its larger collection where that is at hand; else the test is skipped."""
    for folder in (TEST_FILES, SHARED / "pydicom__pydicom-data" / "data_store" / "data"):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    pytest.skip("needs the shared folder of real images, which is not part of the project")
