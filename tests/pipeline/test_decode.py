"""Parsing and decoding: every real file of pydicom, and every way a file can be broken."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate

from lumid.pipeline.decode import ImageSize, Limits, decode_frames, image_size, looks_like_dicom, parse, quiet_libraries
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.reject import Reject
from tests.dicom import SHARED, TEST_FILES, as_bytes, gradient, image

quiet_libraries()
LIMITS = Limits()


def reason(data: bytes) -> str:
    """The code that stops this object before or while it is decoded; ``ok`` when all frames come out."""
    dataset = parse(data)
    if isinstance(dataset, Reject):
        return dataset.code
    size = image_size(dataset, LIMITS)
    if isinstance(size, Reject):
        return size.code
    frames = list(decode_frames(dataset, size))
    refused = [frame for frame in frames if isinstance(frame, Reject)]
    if refused:
        return refused[0].code
    assert len(frames) == size.frames
    assert all(frame.shape[:2] == (size.rows, size.columns) for frame in frames)
    return "ok"


PYDICOM = {
    "CT_small.dcm": "ok", "MR_small.dcm": "ok", "MR_small_bigendian.dcm": "ok", "MR_small_implicit.dcm": "ok",
    "MR_small_RLE.dcm": "ok", "MR_small_jp2klossless.dcm": "ok", "MR_small_jpeg_ls_lossless.dcm": "ok",
    "MR_small_padded.dcm": "ok", "MR_truncated.dcm": "truncated", "693_J2KI.dcm": "ok", "J2K_pixelrep_mismatch.dcm": "ok",
    "JPEG-lossy.dcm": "ok", "JPGExtended.dcm": "ok", "JPEG2000.dcm": "ok",
    "JPEG2000-embedded-sequence-delimiter.dcm": "decode_failed", "JPEGLSNearLossless_08.dcm": "ok",
    "JPEGLSNearLossless_16.dcm": "ok", "SC_rgb_jpeg_gdcm.dcm": "ok", "SC_rgb_rle_2frame.dcm": "ok",
    "SC_rgb_small_odd.dcm": "ok", "SC_ybr_full_422_uncompressed.dcm": "ok", "examples_palette.dcm": "ok",
    "examples_ybr_color.dcm": "ok", "image_dfl.dcm": "ok", "ExplVR_BigEnd.dcm": "ok", "badVR.dcm": "missing_tag",
    "rtplan_truncated.dcm": "truncated", "rtplan.dcm": "no_pixel_data", "reportsi.dcm": "no_pixel_data", "README.txt": "not_dicom", "zipMR.gz": "not_dicom",
    "dicomdirtests/DICOMDIR": "dicomdir", "rtdose_rle.dcm": "ok",
}  # fmt: skip


def sized(dataset: pydicom.Dataset) -> ImageSize:
    """The image's shape, of an object that has one."""
    size = image_size(dataset, Limits())
    assert isinstance(size, ImageSize)
    return size


@pytest.mark.parametrize("name", PYDICOM)
def test_pydicom_files(name: str) -> None:
    assert reason((TEST_FILES / name).read_bytes()) == PYDICOM[name]


def test_lossless_syntaxes_give_the_same_pixels() -> None:
    """pydicom has one MR slice in seven syntaxes: what each decoder gives must be the native pixels."""
    names = ("", "_RLE", "_bigendian", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    frames = []
    for name in names:
        dataset = parse((TEST_FILES / f"MR_small{name}.dcm").read_bytes())
        assert not isinstance(dataset, Reject)
        size = image_size(dataset, LIMITS)
        assert isinstance(size, ImageSize)
        frames.append(next(iter(decode_frames(dataset, size))))
    for frame in frames[1:]:
        np.testing.assert_array_equal(frame, frames[0])


def test_12_bit_jpeg_decodes_to_what_an_independent_decoder_gives() -> None:
    dataset = parse((TEST_FILES / "JPGExtended.dcm").read_bytes())
    assert not isinstance(dataset, Reject)
    frame = next(iter(decode_frames(dataset, sized(dataset))))
    # libjpeg (pylibjpeg-libjpeg 2.5) decodes this file to a maximum of 264 and a mean of 14.383
    assert frame.max() == 264
    assert abs(float(frame.mean()) - 14.383) < 0.05


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_an_explicit_object_that_is_called_implicit_is_not_shifted(kind: type[Any]) -> None:
    """Its VR, read as a length, would be one of 16,975 or 22,351 bytes: the image four bytes late, where it is no larger."""
    pixels = np.random.default_rng(5).integers(0, 255, (3, 64, 48)).astype(kind)
    data = as_bytes(image(pixels))
    explicit = b"\x02\0\x10\0UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
    assert data.count(explicit) == 1
    called = data.replace(explicit, b"\x02\0\x10\0UI\x14\x00" + b"1.2.840.10008.1.2\0\0\0")
    dataset = parse(called)
    assert not isinstance(dataset, Reject)
    size = image_size(dataset, Limits())
    assert not isinstance(size, Reject)
    np.testing.assert_array_equal(np.stack(list(decode_frames(dataset, size))), pixels)


def broken() -> dict[str, tuple[bytes, str]]:
    whole = as_bytes(image(gradient()))
    encapsulated = image(gradient(), NumberOfFrames=5)
    encapsulated.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    encapsulated.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    encapsulated["PixelData"].is_undefined_length = True
    video = image(gradient())
    video.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    video.PixelData = encapsulate([bytes(64)])
    video["PixelData"].is_undefined_length = True
    return {
        "empty": (b"", "not_dicom"),
        "text": (b"hello world, this is no image at all", "not_dicom"),
        "preamble only": (bytes(128) + b"DICM", "truncated"),
        "cut in the meta information": (whole[:200], "truncated"),
        "cut in the header": (whole[:600], "truncated"),
        "cut in the pixels": (whole[:-100], "truncated"),
        "absurd": (as_bytes(image(gradient(), Rows=65535, Columns=65535, NumberOfFrames=10_000)), "absurd_size"),
        "too many frames": (as_bytes(image(gradient(), NumberOfFrames=10_000)), "wrong_length"),
        "absurdly many frames": (as_bytes(image(gradient(), NumberOfFrames=2**31 - 1)), "absurd_size"),
        "more rows than pixels": (as_bytes(image(gradient(), Rows=65)), "wrong_length"),
        "a fragment that is no codestream": (as_bytes(encapsulated), "decode_failed"),
        "no pixels": (as_bytes(image(gradient(), PixelData=None)), "no_pixel_data"),
        "pixels of zero length": (as_bytes(image(gradient(), PixelData=b"")), "no_pixel_data"),
        "no rows": (as_bytes(image(gradient(), Rows=None)), "missing_tag"),
        "zero columns": (as_bytes(image(gradient(), Columns=0)), "missing_tag"),
        "no photometric interpretation": (as_bytes(image(gradient(), PhotometricInterpretation=None)), "missing_tag"),
        "two samples": (as_bytes(image(gradient(), SamplesPerPixel=2)), "missing_tag"),
        "12 bits allocated": (as_bytes(image(gradient(), BitsAllocated=12)), "missing_tag"),
        "video": (as_bytes(video), "unsupported_syntax"),
    }


@pytest.mark.parametrize("name", broken())
def test_broken_objects_have_a_reason(name: str) -> None:
    data, expected = broken()[name]
    assert reason(data) == expected


def test_padding_after_the_pixels_is_not_an_error() -> None:
    assert reason(as_bytes(image(gradient())) + bytes(7)) == "ok"


def test_a_deflated_bomb_is_refused_without_inflating_it() -> None:
    whole = (TEST_FILES / "image_dfl.dcm").read_bytes()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(1100)) + deflater.flush()
    refused = parse(whole[:334] + bomb)
    assert isinstance(refused, Reject)
    assert refused.code == "absurd_size"


def test_bits_above_bits_stored_are_not_pixels() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    dirty = pixels | 0xF000
    dataset = parse(as_bytes(image(dirty, BitsStored=12, HighBit=11)))
    assert not isinstance(dataset, Reject)
    frame = next(iter(decode_frames(dataset, sized(dataset))))
    np.testing.assert_array_equal(frame, pixels)


def test_signed_12_bit_values_are_sign_extended() -> None:
    pixels = (gradient(high=4000) - 2000).astype(np.int16)
    stored = (pixels.astype(np.int32) & 0x0FFF).astype(np.uint16)
    dataset = parse(as_bytes(image(stored, BitsStored=12, HighBit=11, PixelRepresentation=1)))
    assert not isinstance(dataset, Reject)
    frame = next(iter(decode_frames(dataset, sized(dataset))))
    np.testing.assert_array_equal(frame, pixels)


def test_functional_groups_are_read_frame_first_then_shared_then_the_object() -> None:
    dataset = pydicom.Dataset()
    dataset.SliceThickness = 1
    shared, first = pydicom.Dataset(), pydicom.Dataset()
    for group, value in ((shared, 2), (first, 3)):
        measures = pydicom.Dataset()
        measures.SliceThickness = value
        group.PixelMeasuresSequence = [measures]
    dataset.PerFrameFunctionalGroupsSequence = [first, pydicom.Dataset()]
    dataset.SharedFunctionalGroupsSequence = [shared]
    macro = "PixelMeasuresSequence"
    assert FrameHeader(dataset, 0).number("SliceThickness", macro) == 3
    assert FrameHeader(dataset, 1).number("SliceThickness", macro) == 2
    assert FrameHeader(dataset, 1).number("SliceThickness") == 1


@pytest.mark.parametrize(
    ("head", "is_dicom"),
    [
        (b"\x08\x00\x05\x00CS", False),
        (b"\x08\x00\x05\x00CS\x0a\x00", True),
        (b"\x00\x08\x00\x05CS\x00\x0a", True),
        (b"GIF89a..", False),
    ],
)
def test_files_without_a_preamble(head: bytes, is_dicom: bool) -> None:
    assert looks_like_dicom(head) is is_dicom


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(128, 4000), st.integers(0, 255)), min_size=1, max_size=30), st.integers(100, 40_000)
)
def test_mutated_files_never_raise(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray((TEST_FILES / "CT_small.dcm").read_bytes()[:length])
    for position, value in changes:
        if position < len(data):
            data[position] = value
    assert isinstance(reason(bytes(data)), str)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the shared folder of real images, which is not part of the project"
)
def test_real_files_of_many_vendors_decode() -> None:
    refused = {}
    for path in sorted(SHARED.rglob("*")):
        if path.is_file() and looks_like_dicom(path.open("rb").read(132)):
            found = reason(path.read_bytes())
            if found not in ("ok", "no_pixel_data"):
                refused[path.name] = found
    assert refused == {
        "liver_deflate.dcm": "unsupported_syntax",  # deflated frames, a syntax of 2025, segmentations only
        "liver_nonbyte_aligned_deflate.dcm": "unsupported_syntax",
        "liver_nonbyte_aligned_rle.dcm": "unsupported_format",  # one bit a pixel in RLE
        "liver_rle.dcm": "unsupported_format",
    }


def test_reading_prints_nothing_of_the_header(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dataset = image(
        gradient(), PatientName="Doe^Jane", PatientBirthDate="31121961", Modality="SMITH^JOHN  WITH A LONG NAME"
    )
    parsed = parse(as_bytes(dataset))
    assert not isinstance(parsed, Reject)
    header = FrameHeader(parsed, 0)
    assert header.term("Modality").startswith("SMITH")
    assert header.numbers("PatientBirthDate") == [31121961.0]
    assert list(decode_frames(parsed, sized(parsed)))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
