"""Siemens mosaics: every slice of the sheet is a frame, and lies where an independent reader puts it."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.nicom.dicomwrappers import MosaicWrapper
from pydicom import Dataset

from lumid.pipeline.decode import ImageSize, Limits, decode_frames, image_size
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import arrange, geometry
from lumid.pipeline.mosaic import Sheet, sheet_of
from lumid.pipeline.recipe import SelectSettings
from lumid.pipeline.reject import Reject
from tests.pipeline.test_ingest import run

DATA = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
"""Nibabel's wheel (MIT) brings files of a real scanner."""


def real(name: str = "siemens_dwi_0.dcm.gz") -> Dataset:
    path = DATA / name
    if not path.is_file():
        pytest.skip("this release of nibabel comes without its test data")
    dataset = pydicom.dcmread(io.BytesIO(gzip.decompress(path.read_bytes())))
    # the scanner's pixels were blanked by those who published the file
    noise = np.random.default_rng(0).integers(0, 1000, (dataset.Rows, dataset.Columns), np.uint16)
    dataset.PixelData = (noise + 4 * np.arange(dataset.Columns, dtype=np.uint16)).tobytes()
    return dataset


def size_of(dataset: Dataset) -> ImageSize:
    size = image_size(dataset, Limits())
    assert isinstance(size, ImageSize)
    return size


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"])
def test_slices_and_positions_are_those_that_nibabel_finds(name: str) -> None:
    dataset = real(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = MosaicWrapper(dataset)
        volume, affine = other.get_unscaled_data(), other.affine
    size = size_of(dataset)
    assert (size.rows, size.columns, size.frames) == (128, 128, 48)
    frames = list(decode_frames(dataset, size))
    # this affine leads from (row, column, slice) to DICOM's own patient coordinates
    for index, pixels in enumerate(frames):
        assert isinstance(pixels, np.ndarray)
        assert np.array_equal(pixels, volume[..., index])
        found = geometry(FrameHeader(dataset, index), "MR", size.sheet)
        assert found.placed is not None
        corner = (affine @ [0, 0, index, 1])[:3]
        assert found.placed.position == pytest.approx(float(np.dot(found.placed.normal, corner)), abs=2e-3)
        assert found.plane == "axial"
        assert found.spacing_row == 1.796875


def test_only_wanted_slices_and_in_their_order() -> None:
    dataset = real()
    size = size_of(dataset)
    every = list(decode_frames(dataset, size))
    some = list(decode_frames(dataset, size, [40, 3]))
    assert np.array_equal(some[0], every[40])
    assert np.array_equal(some[1], every[3])


def test_a_series_of_a_mosaic_has_no_gaps() -> None:
    dataset = real()
    size = size_of(dataset)
    places = [geometry(FrameHeader(dataset, frame), "MR", size.sheet).placed for frame in range(size.frames)]
    arranged = arrange(places)
    assert [one.index for one in arranged] == list(range(48))
    assert {one.spacing for one in arranged} == {3.0}
    assert not any(one.gap for one in arranged)


def made(slices: int | None, side: int = 128, **elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.Modality, dataset.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.Rows = dataset.Columns = side
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-64, -64, 0]
    dataset.PixelSpacing, dataset.SpacingBetweenSlices = [1, 1], 4
    if slices is not None:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", slices)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(("slices", "across"), [(1, 1), (2, 2), (4, 2), (5, 3), (16, 4), (17, 5), (64, 8)])
def test_a_sheet_is_the_smallest_square_of_slices(slices: int, across: int) -> None:
    sheet = sheet_of(made(slices, side=120), 120, 120)
    assert isinstance(sheet, Sheet)
    assert (sheet.across, sheet.slices, sheet.rows) == (across, slices, 120 // across)


@pytest.mark.parametrize("slices", [None, 0, 17, 65535])
def test_what_cannot_be_divided_is_refused(slices: int | None) -> None:
    found = sheet_of(made(slices), 128, 128)
    assert isinstance(found, Reject)
    assert found.code == "missing_tag"


def test_without_the_direction_of_slices_there_are_no_positions_but_a_plane() -> None:
    dataset = made(16)
    sheet = sheet_of(dataset, 128, 128)
    assert isinstance(sheet, Sheet)
    found = geometry(FrameHeader(dataset, 3), "MR", sheet)
    assert (found.plane, found.placed) == ("axial", None)


@pytest.mark.parametrize(
    "data", [b"", b"SV10\4\3\2\1\xff\xff\xff\xff", b"SV10" + bytes(400), b"\xff" * 2000, b"4711 NAME"]
)
def test_a_private_header_that_does_not_parse_counts_as_absent(data: bytes) -> None:
    dataset = made(None)
    dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", data)
    found = sheet_of(dataset, 128, 128)
    assert isinstance(found, Reject)
    assert "4711" not in found.detail


def test_other_images_are_no_mosaics() -> None:
    assert sheet_of(made(16, ImageType=["ORIGINAL", "PRIMARY", "M", "ND"]), 128, 128) is None
    assert sheet_of(made(16, Modality="CT"), 128, 128) is None


def test_a_build_keeps_every_slice_under_a_key_of_its_own(tmp_path: Path) -> None:
    real().save_as(tmp_path / "a.dcm")
    result = run(tmp_path, select=SelectSettings(min_side=32))
    assert result.planned == 48
    assert len(result.samples) + sum(one.frames for one in result.rejects) == 48
    assert len(result.samples) > 40
    rows = [one.row for one in result.samples]
    assert {(row.width, row.height, row.orig_rows) for row in rows} == {(128, 128, 128)}
    assert len({row.key for row in rows}) == len(rows)
    assert len({row.slice_position for row in rows}) == len(rows)
