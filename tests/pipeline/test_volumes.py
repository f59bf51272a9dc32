"""Volumes against nibabel, which shares no code with ITK: values, left and right, and where the first voxel lies."""

from __future__ import annotations

import gzip
import itertools
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumid.pipeline.convert import to_dataset
from lumid.pipeline.decode import Limits, decode_frames, image_size
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import geometry
from lumid.pipeline.reject import Reject
from lumid.pipeline.volumes import Volume, read_volume
from tests.dicom import SHARED

nib = pytest.importorskip("nibabel", reason="nibabel is not installed")

FILES = sorted(path for path in SHARED.rglob("*") if path.name.endswith((".nii", ".nii.gz")))
TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def canonical(file: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[frames, rows, columns]`` with columns to the left, rows to the back, slices to the head; the affine in LPS."""
    turned = nib.as_closest_canonical(file)  # columns to the right, rows to the front
    values = np.asanyarray(turned.dataobj)
    values = values.reshape(*values.shape, *(1,) * (4 - values.ndim))[::-1, ::-1]
    shape = values.shape
    to_lps = np.diag([-1, -1, 1, 1]).astype(float)
    reverse = np.diag([-1, -1, 1, 1]).astype(float)
    reverse[:2, 3] = shape[0] - 1, shape[1] - 1
    return values.transpose(3, 2, 1, 0).reshape(-1, shape[1], shape[0]), to_lps @ turned.affine @ reverse


def read(data: bytes) -> Volume:
    volume = read_volume(data, "nifti")
    assert not isinstance(volume, Reject), volume
    return volume


def check(data: bytes, file: Any, tolerance: float = 1e-3) -> None:
    values, affine = canonical(file)
    volume = read(data)
    ours = volume.pixels.astype(np.float64) * volume.header.slope + volume.header.intercept
    np.testing.assert_allclose(ours, values, rtol=1e-6, atol=1e-6)
    grid = volume.header.grid
    assert grid.directions is not None
    np.testing.assert_allclose(grid.origin, affine[:3, 3], atol=tolerance)
    for axis in range(3):
        np.testing.assert_allclose(grid.directions[axis] * grid.spacing[axis], affine[:3, axis], atol=tolerance)
    # and on, through the object that stands for it, to the catalog's columns
    dataset = to_dataset(data, "nifti", modality="MR")
    if isinstance(dataset, Reject):
        return  # labels
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    last = len(values) - 1
    place = affine[:3, 3] + affine[:3, 2] * (last % grid.size[2])
    found = geometry(FrameHeader(dataset, last), "MR")
    assert found.slice_position == pytest.approx(float(normal @ place), abs=10 * tolerance)
    assert found.spacing_row == pytest.approx(np.linalg.norm(affine[:3, 1]), abs=tolerance)
    assert found.spacing_column == pytest.approx(np.linalg.norm(affine[:3, 0]), abs=tolerance)


@pytest.mark.skipif(not FILES, reason="needs the folder of real images, which is not part of the project")
def test_real_files_agree_with_nibabel() -> None:
    checked = 0
    for path in FILES:
        file = nib.load(path)
        if len(file.shape) >= 3:
            check(path.read_bytes(), file)
            checked += 1
    assert checked >= 5


def made(
    values: np.ndarray, affine: np.ndarray, *, sform: int, qform: int, slope: float | None = None
) -> tuple[bytes, Any]:
    file = nib.Nifti1Image(values, affine)
    file.set_sform(affine if sform else None, sform)
    file.set_qform(affine, qform)
    if slope is not None:
        file.header.set_slope_inter(slope, -7.0)
    data = file.to_bytes()
    return data, nib.Nifti1Image.from_bytes(data)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TURNS), st.floats(-0.5, 0.5), st.sampled_from([(1, 0), (0, 1), (1, 1), (2, 1)]), st.booleans())
def test_every_turn_and_tilt_agrees_with_nibabel(turn: Any, tilt: float, forms: tuple[int, int], times: bool) -> None:
    order, signs = turn
    values = np.random.default_rng(0).integers(-900, 900, (3, 4, 5, 2) if times else (3, 4, 5)).astype(np.int16)
    cosine, sine = np.cos(tilt), np.sin(tilt)
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.eye(3)[:, list(order)] @ np.diag(np.array(signs) * [0.75, 1.5, 3.0])
    affine[:3, 3] = 10, -20, 30
    check(*made(values, affine, sform=forms[0], qform=forms[1]), tolerance=1e-2)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_scaled_values_agree_with_nibabel(kind: Any) -> None:
    values = np.random.default_rng(1).integers(0, 200, (4, 5, 6)).astype(kind)
    data, file = made(values, np.diag([-1.0, -1.0, 2.0, 1.0]), sform=1, qform=1, slope=0.25)
    volume = read(data)
    np.testing.assert_array_equal(np.sort(volume.pixels, axis=None), np.sort(values, axis=None))
    if kind not in (np.float32, np.float64):  # nibabel keeps no scale of floats when it writes
        assert (volume.header.slope, volume.header.intercept) == (0.25, -7.0)
        check(data, file)


def test_big_endian_and_rgb() -> None:
    values = np.random.default_rng(2).integers(-900, 900, (3, 4, 5)).astype(">i2")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    file = nib.Nifti1Image(values, np.eye(4), header)
    check(file.to_bytes(), file)
    colours = np.random.default_rng(3).integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    packed = colours.copy().view([("R", "u1"), ("G", "u1"), ("B", "u1")]).reshape(3, 4, 5)
    data = nib.Nifti1Image(packed, np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()
    np.testing.assert_array_equal(read(data).pixels, colours.transpose(2, 1, 0, 3))
    dataset = to_dataset(data, "nifti", modality="MR")
    assert not isinstance(dataset, Reject)
    size = image_size(dataset, Limits())
    assert not isinstance(size, Reject)
    np.testing.assert_array_equal(np.stack(list(decode_frames(dataset, size))), colours.transpose(2, 1, 0, 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_the_second_version_agrees_with_nibabel(form: str, packed: bool, order: str) -> None:
    """ITK reads no NIfTI-2: its header is rewritten, and its voxels are left as they are."""
    values = np.random.default_rng(4).integers(-900, 900, (6, 5, 4, 2)).astype(f"{order}i2")
    affine = np.array([[0, 0, -3.0, 40], [-0.75, 0, 0, 7], [0, 1.5, 0, -90], [0, 0, 0, 1]])
    header = nib.Nifti2Header(endianness=order)
    header.set_data_dtype(values.dtype)
    file = nib.Nifti2Image(values, affine, header)
    file.set_sform(affine, int(form == "sform"))
    file.set_qform(affine, int(form == "qform"))
    file.header.set_slope_inter(2.0, -3.0)
    file.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment of some length"))
    data = file.to_bytes()
    scaled = nib.Nifti2Image.from_bytes(data)
    check(gzip.compress(data) if packed else data, scaled)
    assert (read(data).header.slope, read(data).header.intercept) == (2.0, -3.0)
    cut = read_volume(data[:-1], "nifti")
    assert isinstance(cut, Reject)
    assert cut.code == "truncated"


def test_a_second_version_beyond_the_first_is_refused() -> None:
    data = nib.Nifti2Image(np.zeros((40_000, 2, 2), np.uint8), np.eye(4)).to_bytes()
    refused = read_volume(data, "nifti")
    assert isinstance(refused, Reject)
    assert (refused.code, "NIfTI-2" in refused.detail) == ("unsupported_format", True)


def test_left_is_left(tmp_path: Path) -> None:
    """The voxel that nibabel says is 40 mm to the patient's right comes first in its row, as a radiologist sees it."""
    values = np.zeros((9, 3, 2), np.int16)
    values[8] = 500
    file = nib.Nifti1Image(values, np.diag([10.0, 10, 10, 1]) - np.array([[0, 0, 0, 40], *[[0] * 4] * 3]))
    assert (file.affine @ [8, 0, 0, 1])[0] == 40  # RAS: to the right
    buffer = BytesIO(file.to_bytes())
    pixels = read(buffer.getvalue()).pixels
    assert (pixels[:, :, 0] == 500).all()
    assert not pixels[:, :, 1:].any()


@pytest.mark.parametrize(
    "told", ["NDims = -1", "NDims=-1", "NDims : 11", "NDims = 99999999999", "NDims = x", "NDims ="]
)
def test_dimensions_that_kill_itk_are_refused(told: str) -> None:
    head = f"ObjectType = Image\nNDims = 3\n{told}\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    found = read_volume(head.encode() + bytes(16), "mha")
    assert found == Reject("read", "broken_header", "NDims")
    sound = head.replace(f"{told}\n", "")
    assert isinstance(read_volume(sound.encode() + bytes(16), "mha"), Volume)
