"""Images in other formats: what becomes of them, against hand-made files and against ITK's own reading of real ones."""

from __future__ import annotations

import bz2
import gzip
import struct
import tempfile
import zlib
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import FileDataset

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.convert import claimed_frames, is_label_map, sniff, to_dataset
from lumid.pipeline.decode import Limits, decode_frames, image_size
from lumid.pipeline.deidentify import acquisition, identify, modality_of, text_risk
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import geometry
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.ct import has_hounsfield_units
from lumid.pipeline.normalize.intensity import rescale
from lumid.pipeline.reject import Reject
from lumid.pipeline.select import is_image
from tests.dicom import SHARED, TEST_FILES, as_bytes, gradient, image

RNG = np.random.default_rng(5)
NOISE = RNG.integers(-1000, 2000, (4, 5, 6)).astype(np.int16)  # slices, rows, columns
NRRD_IMAGE = SHARED / "AIM-Harvard__pyradiomics" / "data" / "brain1_image.nrrd"
needs_shared = pytest.mark.skipif(not NRRD_IMAGE.exists(), reason="../shared/data is not there")


def png(pixels: np.ndarray) -> bytes:
    """``pixels`` in RGB(A) order; cv2 wants it the other way round."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()


def chunked(columns: int, rows: int, depth: int, colour: int, data: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand: scan lines in ``data``, each with its filter byte."""
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def written(pixels: np.ndarray, suffix: str, *, compress: bool = False, **geometry: Any) -> bytes:
    """A volume as ITK writes it; ``pixels``: ``[(time,) z, y, x]``."""
    volume = sitk.GetImageFromArray(pixels, isVector=geometry.pop("rgb", False))
    for name, value in geometry.items():
        getattr(volume, f"Set{name.capitalize()}")(value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        sitk.WriteImage(volume, str(path), compress)
        return path.read_bytes()


def convert(data: bytes, modality: str | None = "MR", **options: Any) -> FileDataset | Reject:
    kind = sniff(data[:16384])
    assert kind is not None
    return to_dataset(data, kind, modality=modality, **options)


def converted(data: bytes, modality: str = "MR", **options: Any) -> tuple[FileDataset, np.ndarray]:
    """The object and its frames, as the rest of the pipeline gets them."""
    dataset = convert(data, modality, **options)
    assert isinstance(dataset, FileDataset), dataset
    size = image_size(dataset, Limits())
    assert not isinstance(size, Reject), size
    frames = list(decode_frames(dataset, size))
    assert len(frames) == size.frames
    assert not any(isinstance(frame, Reject) for frame in frames), frames
    return dataset, np.stack(frames)


def code(data: bytes, modality: str | None = "MR", **options: Any) -> str:
    result = convert(data, modality, **options)
    return f"{result.code}: {result.detail}" if isinstance(result, Reject) else "an image"


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files go to a folder of the test's own, and none may stay there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


# what a file is


def test_kinds_are_told_by_content() -> None:
    nifti = written(NOISE, ".nii")
    assert sniff(nifti[:512]) == "nifti"
    assert sniff(gzip.compress(nifti)[:512]) == "nifti"
    assert sniff(written(NOISE, ".nrrd")[:512]) == "nrrd"
    assert sniff(written(NOISE, ".mha")[:512]) == "mha"
    assert sniff(png(gradient(dtype=np.uint8, high=255))[:512]) == "png"
    assert sniff(as_bytes(image(gradient()))[:512]) == "dicom"


def test_what_is_something_else_is_not_told_as_ours() -> None:
    for head in (b"", b"\x1f\x8b", b"\x1f\x8b\x08\0garbage", gzip.compress(b"text"), b"NRRD", b"PK\3\4", b"%PDF-1.7",
                 bz2.compress(b"x"), b"\x5c\x01\0\0" + bytes(600), b"GIF89a", b"\xff\xd8\xff\xe0"):  # fmt: skip
        assert sniff(head) is None, head[:10]


def test_every_file_of_pydicom_is_dicom_or_nothing() -> None:
    kinds = {sniff(path.read_bytes()[:512]) for path in TEST_FILES.iterdir() if path.is_file()}
    assert kinds <= {"dicom", None}


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"NRRD0004\n", b"ObjectType = Image\n", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08"]),
)
def test_no_bytes_make_it_fail(junk: bytes, start: bytes) -> None:
    data = start + junk
    kind = sniff(data)
    if kind not in (None, "dicom"):
        assert claimed_frames(data, kind) >= 1
        assert isinstance(to_dataset(data, kind, modality="MR"), Reject)


# PNG


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_png_keeps_its_values(dtype: Any) -> None:
    pixels = gradient(dtype=dtype, high=np.iinfo(dtype).max)
    dataset, frames = converted(png(pixels), "DX")
    np.testing.assert_array_equal(frames[0], pixels)
    assert frames.dtype == dtype
    assert "WindowCenter" not in dataset
    assert "NumberOfFrames" not in dataset


def test_odd_sides_and_one_bit_and_palette() -> None:
    pixels = RNG.integers(0, 256, (33, 35), np.uint8)
    np.testing.assert_array_equal(converted(png(pixels), "DX")[1][0], pixels)
    noise = RNG.integers(0, 256, (40, 5), np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in noise)
    np.testing.assert_array_equal(
        converted(chunked(40, 40, 1, 0, lines), "OT")[1][0], np.unpackbits(noise, axis=1) * 255
    )
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    indices = RNG.integers(0, 256, (40, 40), np.uint8)
    data = chunked(40, 40, 8, 3, b"".join(b"\0" + row.tobytes() for row in indices), chunk(b"PLTE", palette.tobytes()))
    np.testing.assert_array_equal(converted(data, "OT")[1][0], palette[indices])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_stay_in_order_and_transparency_is_black(dtype: Any) -> None:
    white = np.iinfo(dtype).max
    pixels = RNG.integers(0, white, (40, 50, 3)).astype(dtype)
    dataset, frames = converted(png(pixels), "OT")
    np.testing.assert_array_equal(frames[0], pixels)
    assert dataset.PhotometricInterpretation == "RGB"
    opaque = np.dstack([pixels, np.full((40, 50), white, dtype)])
    np.testing.assert_array_equal(converted(png(opaque), "OT")[1][0], pixels)
    opaque[:20, :, 3] = 0
    blended = converted(png(opaque), "OT")[1][0]
    assert not blended[:20].any()
    np.testing.assert_array_equal(blended[20:], pixels[20:])


def test_grey_in_colour_takes_the_path_of_grey() -> None:
    pixels = RNG.integers(0, 256, (40, 50), np.uint8)
    for channels in (3, 4):
        colours = np.dstack([pixels] * 3 + [np.full_like(pixels, 255)])[..., :channels]
        dataset, frames = converted(png(colours), "DX")
        np.testing.assert_array_equal(frames[0], pixels)
        assert dataset.SamplesPerPixel == 1


def test_a_gamma_chunk_changes_nothing() -> None:
    pixels = RNG.integers(0, 256, (40, 40), np.uint8)
    data = png(pixels)
    with_gamma = data[:33] + chunk(b"gAMA", struct.pack(">I", 45455 * 2)) + data[33:]
    np.testing.assert_array_equal(converted(with_gamma, "DX")[1][0], pixels)


def test_damaged_pngs_are_rejected() -> None:
    whole = png(RNG.integers(0, 256, (64, 64), np.uint8))
    assert code(whole[:-20]).startswith("truncated")
    assert code(whole[:40]).startswith("truncated")
    assert code(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]).startswith("decode_failed")
    assert code(chunked(64, 64, 8, 7, b"")).startswith("broken_header")
    assert code(chunked(0, 64, 8, 0, b"")).startswith("decode_failed")
    assert code(chunked(1 << 15, 1 << 15, 8, 0, bytes(100))) == "absurd_size: 32768 × 32768 × 1"
    assert code(whole, limits=Limits(max_pixels=1000)).startswith("absurd_size")


def test_a_png_goes_through_every_later_stage() -> None:
    dataset, frames = converted(png(gradient(dtype=np.uint8, high=255)), "DX")
    header = FrameHeader(dataset, 0)
    assert is_image(header) is None
    assert modality_of(header) == "DX"
    acquired = acquisition(header, "DX")
    assert (acquired.sex, acquired.age_years, acquired.manufacturer) == (None, None, None)
    assert text_risk(header, acquired, "public") == text_risk(header, acquired, "private") == "search"
    shown = normalize(frames[0], header, "DX", None, "lumid")
    assert not isinstance(shown, Reject)
    assert (shown.pixels.dtype, shown.pixels.min(), shown.pixels.max()) == (np.uint8, 0, 255)


def test_each_file_is_a_patient_of_its_own() -> None:
    dataset, _ = converted(written(NOISE, ".nii"))
    one, other = (
        identify(FrameHeader(dataset, 0), Keyer(PUBLIC_SECRET), collection="c", policy="public", source_id=name)
        for name in ("a.nii", "b.nii")
    )
    assert one.patient != other.patient
    assert one.series != other.series
    assert one.instance_uid == "c/a.nii"


def test_without_a_modality_nothing_is_guessed() -> None:
    for data in (png(gradient(dtype=np.uint8, high=255)), written(NOISE, ".nrrd")):
        reject = convert(data, None)
        assert isinstance(reject, Reject)
        assert reject.code == "unsupported_modality"
        assert "give `modality` in the recipe" in reject.message


# volumes


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_slices_spacing_and_positions_by_hand(suffix: str, compress: bool) -> None:
    compress = compress and suffix != ".nii"
    data = written(NOISE, suffix, compress=compress, spacing=(0.5, 0.75, 2.5), origin=(-10.0, -20.0, 30.0))
    dataset, frames = converted(data)
    np.testing.assert_array_equal(frames, NOISE)
    assert frames.dtype == np.int16
    assert claimed_frames(data[:16384], sniff(data)) == 4  # type: ignore[arg-type]
    for number in range(4):
        header = FrameHeader(dataset, number)
        placed = geometry(header, "MR")
        assert (placed.plane, placed.spacing_row, placed.spacing_column) == ("axial", 0.75, 0.5)
        assert (placed.slice_position, placed.slice_thickness) == (30 + 2.5 * number, 2.5)
        position = header.numbers("ImagePositionPatient", "PlanePositionSequence")
        assert position == [-10, -20, 30 + 2.5 * number]
        assert header.numbers("ImageOrientationPatient", "PlaneOrientationSequence") == [1, 0, 0, 0, 1, 0]


TURNS = [
    tuple(
        np.array(
            [[s * (axis == place) for place in range(3)] for axis, s in zip(order, signs, strict=True)], float
        ).ravel()
    )
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
RIGHT_HANDED = [turn for turn in TURNS if np.linalg.det(np.reshape(turn, (3, 3))) > 0]


def axis_turn(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    i, j = [other for other in range(3) if other != axis]
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TURNS),
    st.tuples(*[st.floats(-20, 20)] * 3),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
    st.sampled_from([".nii", ".nrrd", ".mha"]),
)
def test_orientation_is_that_of_itk(turn: Any, tilt: Any, shape: Any, spacing: Any, origin: Any, suffix: str) -> None:
    """Every voxel keeps its value and its place in the patient; slices come as ITK's own LPS filter gives them."""
    direction = axis_turn(0, tilt[0]) @ axis_turn(1, tilt[1]) @ axis_turn(2, tilt[2]) @ np.reshape(turn, (3, 3))
    if np.prod(shape) < 2:
        shape = (2, 2, 2)
    pixels = np.arange(-3, np.prod(shape) * 300 - 3, 300)[: np.prod(shape)].reshape(shape).astype(np.int16)
    data = written(pixels, suffix, direction=direction.ravel().tolist(), spacing=spacing, origin=origin)
    dataset, frames = converted(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"v{suffix}"
        path.write_bytes(data)
        reference = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(frames, sitk.GetArrayFromImage(reference))
    first = FrameHeader(dataset, 0)
    cosines = np.reshape(reference.GetDirection(), (3, 3))
    np.testing.assert_allclose(
        first.numbers("ImageOrientationPatient", "PlaneOrientationSequence"), cosines[:, :2].T.ravel(), atol=1e-6
    )
    np.testing.assert_allclose(
        first.numbers("PixelSpacing", "PixelMeasuresSequence"), [reference.GetSpacing()[1], reference.GetSpacing()[0]]
    )
    for number in range(len(frames)):
        np.testing.assert_allclose(
            FrameHeader(dataset, number).numbers("ImagePositionPatient", "PlanePositionSequence"),
            reference.TransformIndexToPhysicalPoint((0, 0, number)),
            atol=1e-4,
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_every_type_keeps_its_values(dtype: Any, suffix: str) -> None:
    if np.dtype(dtype).kind == "f":
        pixels = RNG.normal(0, 100, (3, 8, 9)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        pixels = RNG.integers(info.min, info.max, (3, 8, 9), dtype, endpoint=True)
    _, frames = converted(written(pixels, suffix), "MR")
    np.testing.assert_array_equal(frames, pixels)


def test_whole_numbers_in_floats_become_integers() -> None:
    _, frames = converted(written(NOISE.astype(np.float32), ".nrrd"))
    assert frames.dtype == np.int16
    np.testing.assert_array_equal(frames, NOISE)
    holes = NOISE.astype(np.float32)
    holes[0, 0, 0] = np.nan
    _, frames = converted(written(holes, ".nrrd"))
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, holes)


def patched(data: bytes, at: int, form: str, *values: float) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def test_a_nifti_scale_is_a_rescale_and_stored_values_stay() -> None:
    data = patched(written(NOISE, ".nii"), 112, "<ff", 0.5, -1024.0)
    dataset, frames = converted(data, "CT")
    np.testing.assert_array_equal(frames, NOISE)
    header = FrameHeader(dataset, 0)
    np.testing.assert_allclose(rescale(frames[0], header), NOISE[0] * 0.5 - 1024)
    assert has_hounsfield_units(header)


def test_hounsfield_units_need_evidence() -> None:
    for pixels, expected in ((NOISE, True), (np.abs(NOISE), False), (np.clip(NOISE, -40, 300), False)):
        dataset, frames = converted(written(pixels, ".nii"), "CT")
        header = FrameHeader(dataset, 0)
        assert has_hounsfield_units(header) is expected
        assert uses_series_range(header, "CT") is not expected
        if expected:
            stored = normalize(frames[0], header, "CT", None, "lumid")
            assert not isinstance(stored, Reject)
            assert stored.unit == "HU"
            np.testing.assert_array_equal(stored.pixels, np.clip(NOISE[0].astype(int), -1024, 3071) + 1024)
    scaled = patched(written(np.abs(NOISE), ".nii"), 112, "<ff", 2.0, 0.0)
    assert not has_hounsfield_units(FrameHeader(converted(scaled, "CT")[0], 0))


def big_endian(pixels: np.ndarray) -> bytes:
    """A NIfTI-1 by hand in the other byte order, RAS axes: x to the right, y to the front (nifti1.h)."""
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, *pixels.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(">hh", header, 70, 4, 16)
    struct.pack_into(">8f", header, 76, 1, 1, 1, 3, 0, 0, 0, 0)
    struct.pack_into(">f", header, 108, 352)
    struct.pack_into(">hh", header, 252, 0, 1)
    struct.pack_into(">12f", header, 280, 1, 0, 0, 5, 0, 1, 0, 6, 0, 0, 3, 7)
    header[344:348] = b"n+1\0"
    return bytes(header) + pixels.astype(">i2").tobytes()


def test_a_nifti_written_by_hand() -> None:
    dataset, frames = converted(big_endian(NOISE))
    # its x runs to the left-to-right, y to the front: both are turned for rows to the back and columns to the left
    np.testing.assert_array_equal(frames, NOISE[:, ::-1, ::-1])
    position = FrameHeader(dataset, 1).numbers("ImagePositionPatient", "PlanePositionSequence")
    # last column: RAS x = 5 + 5, last row: y = 6 + 4; LPS has the opposite signs
    assert position == [-10, -10, 10]


def test_without_an_orientation_none_is_stated() -> None:
    data = patched(written(NOISE, ".nii"), 252, "<hh", 0, 0)
    dataset, frames = converted(data)
    np.testing.assert_array_equal(frames, NOISE)
    assert geometry(FrameHeader(dataset, 0), "MR").plane is None
    plain = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n\n" + NOISE.tobytes()
    dataset, frames = converted(plain)
    np.testing.assert_array_equal(frames, NOISE)
    assert geometry(FrameHeader(dataset, 0), "MR").plane is None


def test_directions_in_a_space_of_no_patient_are_no_orientation() -> None:
    data = written(NOISE, ".nrrd", direction=(0, 1, 0, 1, 0, 0, 0, 0, 1))
    assert b"space: left-posterior-superior" in data
    turned, _ = converted(data)
    assert geometry(FrameHeader(turned, 0), "MR").plane == "axial"
    elsewhere, frames = converted(data.replace(b"space: left-posterior-superior", b"space: scanner-xyz"))
    assert geometry(FrameHeader(elsewhere, 0), "MR").plane is None
    np.testing.assert_array_equal(frames, NOISE)


def test_time_points_follow_one_another() -> None:
    pixels = RNG.integers(0, 2000, (3, 4, 5, 6)).astype(np.int16)
    data = written(pixels, ".nii", spacing=(1, 1, 2, 1))
    dataset, frames = converted(data)
    np.testing.assert_array_equal(frames, pixels.reshape(12, 5, 6))
    assert claimed_frames(data, "nifti") == 12
    places = [geometry(FrameHeader(dataset, number), "MR").slice_position for number in range(12)]
    assert places == [0, 2, 4, 6] * 3


def test_flat_and_coloured_volumes() -> None:
    flat = RNG.integers(0, 2000, (40, 50)).astype(np.int16)
    dataset, frames = converted(written(flat, ".nii", spacing=(0.5, 0.25)), "CR")
    np.testing.assert_array_equal(frames[0], flat)
    assert FrameHeader(dataset, 0).numbers("PixelSpacing", "PixelMeasuresSequence") == [0.25, 0.5]
    colours = RNG.integers(0, 256, (3, 40, 50, 3)).astype(np.uint8)
    for suffix in (".nii", ".nrrd", ".mha"):
        dataset, frames = converted(written(colours, suffix, rgb=True), "US")
        np.testing.assert_array_equal(frames, colours)
        assert dataset.PhotometricInterpretation == "RGB"
    vectors = RNG.normal(size=(3, 4, 5, 3)).astype(np.float32)
    assert code(written(vectors, ".nrrd", rgb=True)).startswith("unsupported_format")


def test_gzip_of_several_members_is_read_to_its_end() -> None:
    data = written(NOISE, ".nii")
    pieces = b"".join(gzip.compress(data[at : at + 100]) for at in range(0, len(data), 100))
    np.testing.assert_array_equal(converted(gzip.compress(data))[1], NOISE)
    # the header is in four members: what a file is has to be told all the same
    np.testing.assert_array_equal(converted(pieces)[1], NOISE)


# what may not be read


def test_short_volumes_are_found_out() -> None:
    for suffix in (".nii", ".nrrd", ".mha"):
        data = written(NOISE, suffix)
        assert code(data[:-1]).partition(":")[0] in ("truncated", "decode_failed"), suffix
    packed = gzip.compress(written(NOISE, ".nii"))
    assert code(packed[:-40]).startswith("truncated")
    for suffix in (".nrrd", ".mha"):
        cut = written(RNG.integers(0, 2000, (9, 40, 50)).astype(np.int16), suffix, compress=True)[:-500]
        assert code(cut).partition(":")[0] in ("truncated", "decode_failed")


def test_damaged_gzip_is_found_out() -> None:
    packed = bytearray(gzip.compress(written(RNG.integers(0, 2000, (9, 40, 50)).astype(np.int16), ".nii")))
    packed[len(packed) // 2] ^= 0xFF
    packed[len(packed) // 2 + 1] ^= 0xFF
    assert code(bytes(packed)).partition(":")[0] in ("decode_failed", "truncated")


def test_a_header_that_claims_too_much_is_rejected_before_anything_is_inflated() -> None:
    huge = patched(written(NOISE, ".nii"), 40, "<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    assert code(huge) == "absurd_size: 30000 × 30000 × 30000"
    assert code(patched(written(NOISE, ".nii"), 40, "<8h", 3, 9, 9, 30000, 1, 1, 1, 1)).startswith("absurd_size")
    many = patched(written(NOISE, ".nii"), 40, "<8h", 3, 2000, 2000, 1000, 1, 1, 1, 1)
    assert code(gzip.compress(many)) == "absurd_size: 2000 × 2000 × 1000"


def test_a_gzip_bomb_is_inflated_as_far_as_its_header_says() -> None:
    header = written(NOISE, ".nii")[:352]
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    bomb = packer.compress(header) + b"".join(packer.compress(zeros) for _ in range(512)) + packer.flush()
    _, frames = converted(bomb)
    assert frames.shape == (4, 5, 6)
    assert not frames.any()


def test_no_header_can_name_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(240)))
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n{}: {}\n\n"
    for field in ("data file", "datafile", "Data File", "DATAFILE"):
        assert code(nrrd.format(field, secret).encode()).startswith("unsupported_format")
    mha = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 6 5 4\nElementType = MET_SHORT\n{}"
    for end in (f"ElementDataFile = {secret}\n", f"ElementDataFile: {secret}\n", "ElementDataFile = LIST\n", "",
                f"Comment = ElementDataFile = LOCAL\nElementDataFile = {secret}\n",
                f"ElementDataFile={secret}\nElementDataFile = LOCAL\n"):  # fmt: skip
        assert code(mha.format(end).encode()).startswith("unsupported_format"), end
    pair = patched(written(NOISE, ".nii"), 344, "4s", b"ni1\0")  # type: ignore[arg-type]
    assert code(pair).startswith("unsupported_format")


def test_shear_and_odd_types_are_named() -> None:
    data = written(NOISE, ".nii")
    sheared = patched(patched(data, 252, "<hh", 0, 1), 280, "<12f", -1, 0.3, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)
    assert code(sheared) == "unsupported_format: an affine with shear"
    wave = written(RNG.normal(size=(3, 4, 5)).astype(np.complex64), ".nii")
    assert code(wave).startswith("unsupported_format")
    assert code(patched(data, 70, "<h", 9999)).partition(":")[0] in ("broken_header", "unsupported_format")
    assert code(patched(data, 280, "<f", float("nan"))).partition(":")[0] in ("broken_header", "unsupported_format")


# label maps


def blobs(labels: int, shape: tuple[int, int, int] = (6, 60, 60)) -> np.ndarray:
    """Balls of labels on nothing."""
    z, y, x = np.indices(shape)
    volume = np.zeros(shape, np.int16)
    for label in range(1, labels + 1):
        centre = RNG.integers(0, shape)
        volume[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 60] = label
    return volume


def test_labels_are_no_image_whatever_the_file_is_called() -> None:
    for pixels in (blobs(1), blobs(12), blobs(3).astype(np.float32)):
        assert code(written(pixels, ".nii"), "CT") == "not_an_image: a label map"
    assert code(png(blobs(1)[3].astype(np.uint8) * 255), "DX") == "not_an_image: a label map"


def test_a_name_is_believed_only_where_the_content_agrees() -> None:
    scan = np.clip(RNG.normal(100, 30, (4, 40, 40)), 0, 255).astype(np.uint8)
    for name in ("labels-7.nii.gz", "/data/seg/mask.nii"):
        assert code(written(scan, ".nii"), name=name) == "an image"
        assert code(written(NOISE, ".nii"), name=name) == "an image"
    many = blobs(100)
    assert code(written(many, ".nii"), name="volume-7.nii.gz") == "an image"
    for name in ("labels-7.nii.gz", "case_seg.nii.gz", "labelsTr/x.nii.gz", "a.zip\0zip\0000\0lung_mask.nii"):
        assert code(written(many, ".nii"), name=name) == "not_an_image: a label map", name
    for name in ("segovia.nii", "masked.nii", "unlabelled.nii"):
        assert code(written(many, ".nii"), name=name) == "an image", name


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 255), st.integers(0, 2**32 - 1))
def test_noise_is_never_a_label_map(levels: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, max(levels, 4), (3, 40, 40)).astype(np.uint8)
    assert not is_label_map(noise, hinted=False)
    assert not is_label_map(noise, hinted=True)


def test_a_real_volume_is_an_image_and_its_label_map_is_none() -> None:
    folder = Path(__file__).parents[1] / "data"
    label = (folder / "breast1_label.nrrd").read_bytes()
    for name in ("breast1_label.nrrd", "anything.nrrd"):
        assert code(label, "MR", name=name) == "not_an_image: a label map"
    for name in ("breast1_image.nrrd", "breast1_label.nrrd"):
        dataset, frames = converted((folder / "breast1_image.nrrd").read_bytes(), "MR", name=name)
        np.testing.assert_array_equal(
            frames, sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "breast1_image.nrrd")))
        )
        placed = geometry(FrameHeader(dataset, 20), "MR")
        assert (placed.plane, placed.spacing_row, placed.slice_thickness) == ("axial", 0.664062, 2.1)


@needs_shared
def test_real_volumes_and_their_labels_are_told_apart() -> None:
    folders = ("AIM-Harvard__pyradiomics", "SimpleITK__SimpleITK", "fepegar__torchio-data", "neurolabusc__dcm_qa_enh")
    paths = [
        path
        for folder in folders
        for path in sorted((SHARED / folder).rglob("*"))
        if path.name.endswith((".nrrd", ".nii", ".nii.gz"))
    ]
    assert len(paths) >= 17
    for path in paths:
        data = path.read_bytes()
        expected = "not_an_image: a label map" if "label" in path.name or "seg" in path.name else "an image"
        assert code(data, "MR", name=path.name) == expected, path
        kind = sniff(data[:16384])
        assert kind in ("nifti", "nrrd")
        if expected == "an image":
            dataset, frames = converted(data)
            assert claimed_frames(data[:16384], kind) == len(frames)
            reference = sitk.ReadImage(str(path))
            assert frames.size == np.prod(reference.GetSize())
            values = np.stack([rescale(frame, FrameHeader(dataset, 0)) for frame in frames])
            wanted = sitk.GetArrayFromImage(reference).astype(np.float32)
            np.testing.assert_allclose(np.sort(values, axis=None), np.sort(wanted, axis=None), rtol=1e-6)


@needs_shared
def test_real_chest_x_rays_are_images() -> None:
    paths = sorted((SHARED / "ml-workgroup__covid-19-image-repository").glob("*.png"))
    assert paths
    for path in paths:
        dataset, frames = converted(path.read_bytes(), "CR", name=path.name)
        shown = normalize(frames[0], FrameHeader(dataset, 0), "CR", None, "lumid")
        assert not isinstance(shown, Reject)
        assert shown.pixels.ndim == 2


def test_scratch_is_where_the_temporary_file_lies(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert code(written(NOISE, ".nii"), scratch=scratch) == "an image"
    assert list(scratch.iterdir()) == []
