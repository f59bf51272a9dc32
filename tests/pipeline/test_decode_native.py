"""Uncompressed frames: every way that values can lie in the bytes, against GDCM, pydicom, or values known by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from lumid.pipeline.decode import Limits, Stored, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.colour import normalize_colour
from lumid.pipeline.normalize.intensity import padding_range
from lumid.pipeline.reject import Reject
from lumid.pipeline.ybr import ybr_to_rgb
from tests.dicom import TEST_FILES, as_bytes, gradient, image, real_file

quiet_libraries()
rng = np.random.default_rng(7)


def outcomes(data: bytes) -> list[Stored | Reject]:
    """What becomes of a file: its frames, or the one reason for all."""
    dataset = parse(data)
    if isinstance(dataset, Reject):
        return [dataset]
    size = image_size(dataset, Limits())
    if isinstance(size, Reject):
        return [size]
    found = list(decode_frames(dataset, size))
    assert len(found) in (1, size.frames)
    return found


def only(data: bytes) -> np.ndarray:
    (frame,) = outcomes(data)
    assert not isinstance(frame, Reject), frame
    return frame


def refusal(data: bytes) -> tuple[str, str]:
    (frame,) = outcomes(data)
    assert isinstance(frame, Reject)
    return frame.code, frame.detail


def gdcm(data: bytes, folder: Path) -> np.ndarray:
    """The stored values that SimpleITK's GDCM reads."""
    path = folder / "image.dcm"
    path.write_bytes(data)
    read: np.ndarray = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    return read


def as_syntax(dataset: pydicom.FileDataset, syntax: str, *, implicit: bool, little: bool = True) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return buffer.getvalue()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stored", [1, 5, 8, 10, 12, 15, 16])
def test_junk_above_the_stored_bits_is_not_pixels(stored: int, signed: bool, tmp_path: Path) -> None:
    low, high = (-(1 << stored - 1), 1 << stored - 1) if signed else (0, 1 << stored)
    pixels = rng.integers(low, high, (40, 30))
    bits = (pixels & ((1 << stored) - 1)).astype(np.uint16)
    junk = (rng.integers(0, 1 << 16, bits.shape) << stored & 0xFFFF).astype(np.uint16)
    data = as_bytes(image(bits | junk, BitsStored=stored, HighBit=stored - 1, PixelRepresentation=int(signed)))
    np.testing.assert_array_equal(only(data), pixels)
    if not signed and stored > 1:  # GDCM calls one bit stored in 16 another type, and leaves junk above signed values
        np.testing.assert_array_equal(gdcm(data, tmp_path)[0], pixels)


def test_overlays_of_old_in_the_high_bits_are_not_pixels() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    overlay = (rng.integers(0, 2, pixels.shape) << 15).astype(np.uint16)
    dataset = image(pixels | overlay, BitsStored=12, HighBit=11)
    dataset.add_new(0x60000102, "US", 15)
    dataset.add_new(0x60000100, "US", 16)
    np.testing.assert_array_equal(only(as_bytes(dataset)), pixels)


def test_values_at_the_top_of_the_word_are_shifted_down() -> None:
    """HighBit 15 of 12 bits stored: as ACR-NEMA allowed and PS3.5 still defines; the low bits hold nothing."""
    pixels = gradient(dtype=np.uint16, high=4095)
    np.testing.assert_array_equal(only(as_bytes(image(pixels << 4, BitsStored=12, HighBit=15))), pixels)
    signed = pixels.astype(np.int16) - 2048
    found = only(as_bytes(image((signed << 4).astype(np.int16), BitsStored=12, HighBit=15)))
    np.testing.assert_array_equal(found, signed)
    overlay = pixels << 4 | 1
    dataset = image(overlay, BitsStored=12, HighBit=15)
    dataset.add_new(0x60000102, "US", 0)
    np.testing.assert_array_equal(only(as_bytes(dataset)), pixels)


def test_a_high_bit_that_the_pixels_contradict_is_refused() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    assert refusal(as_bytes(image(pixels, BitsStored=12, HighBit=15)))[0] == "missing_tag"
    assert refusal(as_bytes(image(pixels, BitsStored=12, HighBit=7)))[0] == "missing_tag"
    assert refusal(as_bytes(image(pixels, BitsStored=12, HighBit=16)))[0] == "missing_tag"


def test_signed_pixels_with_padding_that_was_written_unsigned() -> None:
    pixels = gradient(high=900) - np.int16(100)
    pixels[:5] = -2000
    dataset = image(pixels)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
    parsed = parse(as_bytes(dataset))
    assert not isinstance(parsed, Reject)
    stored = only(as_bytes(dataset))
    np.testing.assert_array_equal(stored, pixels)
    assert padding_range(stored, FrameHeader(parsed, 0)) == (-2000, -2000)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
@pytest.mark.parametrize("syntax", ["little", "implicit", "big"])
def test_whole_words_of_every_size(kind: type[Any], syntax: str) -> None:
    info = np.iinfo(kind)
    pixels = rng.integers(info.min, info.max, (3, 11, 7), dtype=kind, endpoint=True)
    dataset = image(pixels)
    dataset["PixelData"].VR = "OW"
    if syntax == "little":
        data = as_bytes(dataset)
    elif syntax == "implicit":
        data = as_syntax(dataset, ImplicitVRLittleEndian, implicit=True)
    else:
        big = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        if kind in (np.uint8, np.int8):  # as OW: each two bytes the other way round, padding too
            padded = np.frombuffer(big + b"\0" * (len(big) % 2), np.uint8)
            big = padded.reshape(-1, 2)[:, ::-1].tobytes()
        dataset.PixelData = big
        data = as_syntax(dataset, ExplicitVRBigEndian, implicit=False, little=False)
    for found, expected in zip(outcomes(data), pixels, strict=True):
        assert isinstance(found, np.ndarray)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, expected)


def test_big_endian_bytes_as_ob_are_not_swapped() -> None:
    pixels = rng.integers(0, 256, (2, 5, 7), dtype=np.uint8)
    dataset = image(pixels)
    dataset["PixelData"].VR = "OB"
    found = outcomes(as_syntax(dataset, ExplicitVRBigEndian, implicit=False, little=False))
    np.testing.assert_array_equal(np.stack(found), pixels)


def test_single_bits_run_on_over_the_frames() -> None:
    bits = rng.integers(0, 2, (5, 7, 9), dtype=np.uint8)
    packed = np.packbits(bits, bitorder="little").tobytes()
    data = as_bytes(image(bits, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed + b"\0" * (len(packed) % 2)))
    np.testing.assert_array_equal(np.stack(outcomes(data)), bits)
    np.testing.assert_array_equal(pixel_array(parse(data)), bits)


@pytest.mark.parametrize("signed", [False, True])
def test_twelve_bits_without_gaps(signed: bool, tmp_path: Path) -> None:
    """Two values in three bytes: the low byte of the first, then four bits of each, then the rest of the second."""
    pixels = rng.integers(-2048 if signed else 0, 2048 if signed else 4096, (16, 10))
    first, second = (pixels & 0xFFF).reshape(-1, 2).T
    packed = np.stack([first & 0xFF, first >> 8 | (second & 0xF) << 4, second >> 4], axis=1).astype(np.uint8)
    shape = pixels.astype(np.int16 if signed else np.uint16)
    data = as_bytes(image(shape, BitsAllocated=12, BitsStored=12, HighBit=11, PixelData=packed.tobytes()))
    np.testing.assert_array_equal(only(data), pixels)
    if not signed:
        np.testing.assert_array_equal(gdcm(data, tmp_path)[0], pixels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_colour_by_pixel_and_by_plane(kind: type[Any]) -> None:
    pixels = rng.integers(0, np.iinfo(kind).max, (2, 9, 5, 3), dtype=kind)
    by_plane = pixels.transpose(0, 3, 1, 2).tobytes()
    for data in (image(pixels), image(pixels, PlanarConfiguration=1, PixelData=by_plane + b"\0" * (len(by_plane) % 2))):
        np.testing.assert_array_equal(np.stack(outcomes(as_bytes(data))), pixels)


def test_full_range_colour_differences_are_what_pydicom_makes_of_them() -> None:
    values = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3), -1).reshape(52, -1, 3).astype(np.uint8)
    data = as_bytes(image(values, PhotometricInterpretation="YBR_FULL"))
    found = only(data).astype(int)
    assert np.abs(found - pixel_array(parse(data)).astype(int)).max() <= 1
    exact = np.clip(
        values[..., :1] + (values[..., 1:].astype(float) - 128) @ np.array([[0, -0.344136286, 1.772], [1.402, -0.714136286, 0]]),
        0, 255,
    )  # fmt: skip
    assert np.abs(found - exact).max() <= 0.5 + 1e-3


def test_wide_colour_differences() -> None:
    values = rng.integers(0, 65536, (8, 6, 3), dtype=np.uint16)
    found = only(as_bytes(image(values, PhotometricInterpretation="YBR_FULL"))).astype(float)
    y, _, cr = (values[..., channel].astype(float) for channel in range(3))
    red = np.clip(y + 1.402 * (cr - 32768), 0, 65535)
    assert np.abs(found[..., 0] - red).max() <= 1


def test_studio_range_colour_differences() -> None:
    """Reference black is 16, white 235; pure colours of ITU-R BT.601."""
    bars = np.array([[[16, 128, 128], [235, 128, 128], [81, 90, 240], [145, 54, 34], [41, 240, 110], [126, 128, 128]]])
    expected = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]])
    quads = np.array([[[16, 235, 128, 128], [126, 16, 128, 128]]], np.uint8)
    data = as_bytes(
        image(np.zeros((1, 4, 3), np.uint8), PhotometricInterpretation="YBR_PARTIAL_422", PixelData=quads.tobytes())
    )
    np.testing.assert_array_equal(only(data)[0], [[0] * 3, [255] * 3, [128] * 3, [0] * 3])
    assert np.abs(ybr_to_rgb(bars.astype(np.uint8), partial=True)[0].astype(int) - expected).max() <= 1


def test_colour_that_two_pixels_share() -> None:
    real = (TEST_FILES / "SC_ybr_full_422_uncompressed.dcm").read_bytes()
    ours, theirs = only(real).astype(int), pixel_array(parse(real)).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    pixels = np.zeros((2, 2, 3), np.uint8)
    wide = image(pixels, PhotometricInterpretation="YBR_FULL_422", PixelData=bytes(12))
    assert refusal(as_bytes(wide))[0] == "wrong_length"  # as long as colour that is not subsampled
    odd = image(np.zeros((2, 3, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422", PixelData=bytes(12))
    assert refusal(as_bytes(odd))[0] == "wrong_length"


@pytest.mark.parametrize("name", ["OT-PAL-8-face.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm", "OBXXXX1A.dcm"])
def test_palettes_of_real_files(name: str, tmp_path: Path) -> None:
    """8 and 16 bits deep, plain and segmented: against GDCM's RGB."""
    data = real_file(name)
    dataset = parse(data)
    assert not isinstance(dataset, Reject)
    shown = normalize_colour(only(data), FrameHeader(dataset, 0), grey=False).pixels
    theirs = gdcm(data, tmp_path)[0]
    theirs = theirs >> 8 if theirs.dtype == np.uint16 else theirs
    np.testing.assert_array_equal(shown if shown.ndim == 3 else np.stack([shown] * 3, -1), theirs)


def test_a_supplemental_palette_leaves_grey_values_alone() -> None:
    """PixelPresentation COLOR: the palette colours values above a threshold; the image stays MONOCHROME2 (C.7.6.19)."""
    pixels = gradient(dtype=np.uint16, high=1000)
    palette = np.arange(256, dtype=np.uint16).tobytes()
    luts: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        luts[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 700, 16]
        luts[f"{colour}PaletteColorLookupTableData"] = palette + palette[:0]
    found = only(as_bytes(image(pixels, PixelPresentation="COLOR", BitsStored=16, **luts)))
    np.testing.assert_array_equal(found, pixels)


def test_floats_come_as_they_are() -> None:
    for keyword, kind in (("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)):
        pixels = rng.normal(size=(2, 6, 4)).astype(kind)
        elements = {"PixelData": None, "BitsStored": None, "HighBit": None, "PixelRepresentation": None}
        data = as_bytes(image(pixels, **elements, **{keyword: pixels.tobytes()}))
        found = outcomes(data)
        np.testing.assert_array_equal(np.stack(found), pixels)
        assert found[0].dtype == kind
        colour = image(rng.normal(size=(6, 4, 3)).astype(kind), **elements, **{keyword: bytes(72 * kind().itemsize)})
        assert refusal(as_bytes(colour))[0] == "unsupported_format"
        assert refusal(as_bytes(image(pixels, **elements, **{keyword: pixels.tobytes(), "BitsAllocated": 16})))[0] == (
            "missing_tag"
        )


INFERRED: dict[str, dict[str, Any]] = {
    "HighBit": {"HighBit": None},
    "BitsStored, by HighBit": {"BitsStored": None},
    "NumberOfFrames": {"NumberOfFrames": None},
    "SamplesPerPixel": {"SamplesPerPixel": None},
    "NumberOfFrames 0": {"NumberOfFrames": 0},
}
REFUSED: dict[str, dict[str, Any]] = {
    "BitsStored and HighBit": {"BitsStored": None, "HighBit": None},
    "BitsAllocated": {"BitsAllocated": None},
    "PixelRepresentation": {"PixelRepresentation": None},
    "PhotometricInterpretation": {"PhotometricInterpretation": None},
    "a colour model of our own": {"PhotometricInterpretation": "GREYISH"},
    "BitsStored beyond BitsAllocated": {"BitsStored": 17},
    "BitsStored of nothing": {"BitsStored": 0},
    "PixelRepresentation 2": {"PixelRepresentation": 2},
    "samples of colour, one of grey": {"PhotometricInterpretation": "RGB"},
    "NumberOfFrames below zero": {"NumberOfFrames": -1},
    "24 bits allocated": {"BitsAllocated": 24},
}


@pytest.mark.parametrize("name", INFERRED)
def test_what_only_one_value_is_possible_for_is_inferred(name: str) -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    np.testing.assert_array_equal(
        only(as_bytes(image(pixels, **({"BitsStored": 12, "HighBit": 11} | INFERRED[name])))), pixels
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_refused(name: str) -> None:
    assert refusal(as_bytes(image(gradient(), **REFUSED[name])))[0] == "missing_tag"


@pytest.mark.parametrize("keyword", ["BitsStored", "BitsAllocated", "PixelRepresentation", "Rows", "Columns"])
def test_elements_of_zero_length_are_missing(keyword: str) -> None:
    dataset = image(gradient(), HighBit=None)
    dataset[keyword].value = None
    assert refusal(as_bytes(dataset))[0] == "missing_tag"


def test_colour_infers_its_sign_but_not_its_planes() -> None:
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(only(as_bytes(image(pixels, PixelRepresentation=None))), pixels)
    assert refusal(as_bytes(image(pixels, PlanarConfiguration=None))) == ("missing_tag", "PlanarConfiguration")


@pytest.mark.parametrize("retired", ["HSV", "ARGB", "CMYK"])
def test_retired_colour_models_are_refused_by_name(retired: str) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert refusal(as_bytes(image(pixels, PhotometricInterpretation=retired))) == ("unsupported_format", retired)


def test_the_whole_frames_of_a_short_object_are_kept() -> None:
    pixels = rng.integers(0, 4096, (5, 8, 6), dtype=np.uint16)
    short = image(pixels, PixelData=pixels.tobytes()[: 3 * 96])
    found = outcomes(as_bytes(short))
    np.testing.assert_array_equal(np.stack(found[:3]), pixels[:3])
    assert [one.code for one in found[3:]] == ["wrong_length"] * 2
    found = outcomes(as_bytes(image(pixels))[: -96 - 10])  # the file itself was cut
    np.testing.assert_array_equal(np.stack(found[:3]), pixels[:3])
    assert [one.code for one in found[3:]] == ["truncated"] * 2


@pytest.mark.parametrize("wrong", [{"Rows": 7}, {"Rows": 9}, {"Columns": 7}])
def test_frames_of_another_size_than_the_headers_are_refused(wrong: dict[str, int]) -> None:
    """The first frame would lack a row, and every further one begin in the wrong place."""
    pixels = rng.integers(0, 4096, (5, 8, 6), dtype=np.uint16)
    assert refusal(as_bytes(image(pixels, **wrong)))[0] == "wrong_length"


def test_odd_and_overlong_pixel_data() -> None:
    pixels = rng.integers(0, 256, (3, 5), dtype=np.uint8)
    whole = as_bytes(image(pixels))
    np.testing.assert_array_equal(only(whole), pixels)
    at = whole.rindex(struct.pack("<I", 16))
    np.testing.assert_array_equal(only(whole[:at] + struct.pack("<I", 15) + whole[at + 4 : -1]), pixels)
    np.testing.assert_array_equal(only(as_bytes(image(pixels, PixelData=pixels.tobytes() + bytes(5)))), pixels)
    # twice as long as it should be: what a wrong number of bits looks like
    wide = gradient(dtype=np.uint16)
    wrong = image(wide, BitsAllocated=8, BitsStored=8, HighBit=7)
    assert refusal(as_bytes(wrong))[0] == "wrong_length"


def test_each_object_of_a_concatenation_has_its_own_frames() -> None:
    pixels = rng.integers(0, 4096, (5, 8, 6), dtype=np.uint16)
    found: list[Any] = []
    for number, part in enumerate((pixels[:3], pixels[3:]), 1):
        elements = {"InConcatenationNumber": number, "InConcatenationTotalNumber": 2, "ConcatenationUID": "1.2.9"}
        offset = {"ConcatenationFrameOffsetNumber": 3 * (number - 1)}
        found += outcomes(as_bytes(image(part, SOPInstanceUID=f"1.2.3.{number}", **elements, **offset)))
    np.testing.assert_array_equal(np.stack(found), pixels)


def test_without_meta_information() -> None:
    pixels = gradient()
    whole = as_bytes(image(pixels))
    start = whole.index(b"\x08\x00\x16\x00UI")
    np.testing.assert_array_equal(only(whole[start:]), pixels)
    implicit = as_syntax(image(pixels), ImplicitVRLittleEndian, implicit=True)
    np.testing.assert_array_equal(only(implicit[implicit.index(b"\x08\x00\x16\x00\x1a") :]), pixels)
    big = image(pixels)
    big.PixelData = pixels.astype(">i2").tobytes()
    swapped = as_syntax(big, ExplicitVRBigEndian, implicit=False, little=False)
    np.testing.assert_array_equal(only(swapped[swapped.index(b"\x00\x08\x00\x16UI") :]), pixels)


def test_deflated_and_its_cuts() -> None:
    pixels = gradient()
    dataset = image(pixels)
    data = as_syntax(dataset, DeflatedExplicitVRLittleEndian, implicit=False)
    parsed = parse(data)
    assert not isinstance(parsed, Reject)
    assert parsed.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(only(data), pixels)
    assert refusal(data[:-40])[0] == "truncated"
    real = (TEST_FILES / "image_dfl.dcm").read_bytes()  # with the length of its meta information, as it should be
    start = 144 + int.from_bytes(real[140:144], "little")
    assert only(real).tobytes() in zlib.decompress(real[start:], -zlib.MAX_WBITS)


def test_frames_are_views_of_the_bytes() -> None:
    """What makes an object of 2 GB need no more than its 2 GB."""
    data = as_bytes(image(rng.integers(0, 65536, (4, 8, 6), dtype=np.uint16)))
    for frame in outcomes(data):
        base: Any = frame
        while isinstance(base, np.ndarray):
            base = base.base
        assert memoryview(base).obj is data
