"""Compressed frames: what codestream and header say of each other, and which fragments are which frame."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
import simplejpeg
from pydicom import uid
from pydicom.encaps import encapsulate_extended
from pydicom.pixels import pixel_array
from pydicom.pixels.decoders.rle import _rle_decode_frame

from lumid.pipeline.codestream import read_codestream
from lumid.pipeline.reject import Reject
from tests.dicom import as_bytes, encapsulated, gradient, image, real_file
from tests.pipeline.test_decode_native import gdcm, only, outcomes, refusal

rng = np.random.default_rng(11)
GREY = gradient(32, 24, np.uint16, 4095)
COLOUR = np.stack([gradient(32, 24, np.uint8, 255)] * 3, -1) // np.array([1, 2, 3], np.uint8)
TWELVE = {"BitsStored": 12, "HighBit": 11}


def rle(pixels: np.ndarray) -> bytes:
    """One RLE frame: a segment for each byte of each sample, the most significant first (PS3.5 annex G)."""
    size = pixels.dtype.itemsize
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., channel] for channel in range(3)]
    segments = []
    for plane in planes:
        parts = np.ascontiguousarray(plane).view(np.uint8).reshape(*plane.shape, size)
        for byte in reversed(range(size)):
            packed = bytes(imagecodecs.packbits_encode(np.ascontiguousarray(parts[..., byte])))
            segments.append(packed + b"\0" * (len(packed) % 2))
    starts = np.cumsum([64, *(len(one) for one in segments)])[:-1]
    return struct.pack(f"<{1 + len(starts)}I", len(starts), *starts).ljust(64, b"\0") + b"".join(segments)


def lossless_jpeg(pixels: np.ndarray, bits: int, predictor: int = 1) -> bytes:
    space = {"colorspace": "RGB", "outcolorspace": "RGB"} if pixels.ndim == 3 else {}
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits, **space))


def jpeg_2000(pixels: np.ndarray, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", **({"reversible": True} | options)))


ENCODERS = {
    uid.RLELossless: rle,
    uid.JPEGLossless: lambda pixels: lossless_jpeg(pixels, pixels.dtype.itemsize * 8, 6),
    uid.JPEGLosslessSV1: lambda pixels: lossless_jpeg(pixels, pixels.dtype.itemsize * 8),
    uid.JPEGLSLossless: lambda pixels: bytes(imagecodecs.jpegls_encode(pixels)),
    uid.JPEG2000Lossless: jpeg_2000,
    uid.HTJ2KLossless: lambda pixels: bytes(imagecodecs.htj2k_encode(pixels, reversible=True)),
}
"""An encoder a lossless syntax whose codestream is as deep as the pixels are allocated."""


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", ENCODERS)
def test_junk_above_the_stored_bits_is_not_pixels_in_any_syntax(syntax: uid.UID, signed: bool) -> None:
    """12 bits stored in codestreams of 16: with overlays of old, or the sign, in the bits above."""
    pixels = GREY.astype(np.int16) - 2048 if signed else GREY
    junk = (rng.integers(0, 16, GREY.shape) << 12).astype(np.uint16)
    encoded = ENCODERS[syntax]((pixels.astype(np.uint16) & 0xFFF) | junk)
    found = only(as_bytes(encapsulated([encoded], syntax, pixels, **TWELVE)))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_codestream_may_be_shallower_than_stored_bits(syntax: uid.UID) -> None:
    shallow = GREY >> 4
    encoders = {
        uid.JPEGLosslessSV1: lambda: lossless_jpeg(shallow.astype(np.uint8), 8),
        uid.JPEGLSLossless: lambda: imagecodecs.jpegls_encode(shallow.astype(np.uint8)),
        uid.JPEG2000Lossless: lambda: jpeg_2000(shallow, bitspersample=9),
    }
    found = only(as_bytes(encapsulated([bytes(encoders[syntax]())], syntax, GREY, **TWELVE)))
    np.testing.assert_array_equal(found, shallow)


def test_a_codestream_deeper_than_what_is_allocated_is_refused() -> None:
    encoded = jpeg_2000(GREY << 4)
    eight = encapsulated([encoded], uid.JPEG2000Lossless, GREY.astype(np.uint8))
    assert refusal(as_bytes(eight))[0] == "decode_failed"


def test_twelve_bits_squeezed_into_a_baseline_jpeg_are_refused() -> None:
    encoded = bytes(imagecodecs.jpeg8_encode((GREY >> 4).astype(np.uint8), 95))
    wide = encapsulated([encoded], uid.JPEGBaseline8Bit, GREY, **TWELVE)
    assert refusal(as_bytes(wide)) == ("decode_failed", "8 bits encoded with loss, 12 stored")
    narrow = encapsulated([encoded], uid.JPEGBaseline8Bit, (GREY >> 4).astype(np.uint8))
    assert np.abs(only(as_bytes(narrow)).astype(int) - (GREY >> 4)).max() <= 4


@pytest.mark.parametrize("encoded_signed", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_the_sign_is_the_header_s_whatever_the_codestream_says(signed: bool, encoded_signed: bool) -> None:
    """A wrong sign in JPEG 2000 leaves the bits as they were: 13 of them, of 16."""
    values = rng.integers(-4096 if signed else 0, 4096 if signed else 8192, (32, 24))
    bits = values & 0x1FFF
    coded = np.where(bits >= 4096, bits - 8192, bits) if encoded_signed else bits
    stream = jpeg_2000(coded.astype(np.int16 if encoded_signed else np.uint16), bitspersample=13)
    assert (found := read_codestream(stream)) is not None
    assert (found.signed, found.precision) == (encoded_signed, 13)
    pixels = values.astype(np.int16 if signed else np.uint16)
    data = as_bytes(encapsulated([stream], uid.JPEG2000Lossless, pixels, BitsStored=13, HighBit=12))
    np.testing.assert_array_equal(only(data), pixels)
    np.testing.assert_array_equal(pixel_array(parse_whole(data)), pixels)


def parse_whole(data: bytes) -> Any:
    """As pydicom itself reads it."""
    return pydicom.dcmread(io.BytesIO(data), force=True)


def test_a_real_sign_mismatch() -> None:
    data = real_file("J2K_pixelrep_mismatch.dcm")
    np.testing.assert_array_equal(only(data), pixel_array(parse_whole(data)))


def test_bits_beyond_the_range_after_loss_are_clipped_not_wrapped() -> None:
    bright = np.where(rng.random((64, 64)) < 0.3, 3000, 4095).astype(np.uint16)
    stream = bytes(imagecodecs.jpeg2k_encode(bright, 60, codecformat="j2k", reversible=False))
    decoded_alone = imagecodecs.jpeg2k_decode(stream)
    assert int(decoded_alone.max()) > 4095  # loss has gone beyond 12 bits
    found = only(as_bytes(encapsulated([stream], uid.JPEG2000, bright, **TWELVE)))
    np.testing.assert_array_equal(found, np.minimum(decoded_alone, 4095))


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("markers", ["adobe", "jfif", "ids", "none", "none, subsampled"])
@pytest.mark.parametrize("inside", ["RGB", "YBR"])
def test_a_jpeg_s_own_markers_name_its_colours(stated: str, markers: str, inside: str) -> None:
    """Where they say nothing, subsampled chroma does, and only then the header."""
    if (markers in ("jfif", "none, subsampled") and inside == "RGB") or (markers == "ids" and inside == "YBR"):
        pytest.skip("a contradiction in itself")
    stream = jpeg(COLOUR, inside, markers)
    right = inside == "YBR" if markers != "none" else (stated != "RGB")
    found = only(as_bytes(encapsulated([stream], uid.JPEGBaseline8Bit, COLOUR, PhotometricInterpretation=stated)))
    away = np.abs(found.astype(int) - COLOUR).max()
    if markers == "none" and right != (inside == "YBR"):
        assert away > 40  # header and codestream agree about nothing here: no reader can know
    else:
        assert away <= 8


def jpeg(pixels: np.ndarray, inside: str, markers: str) -> bytes:
    """A JPEG whose components are RGB or YCbCr, with the markers that say so or without."""
    subsampling = "422" if "subsampled" in markers else "444"
    space = "RGB" if inside == "RGB" else "YCBCR"
    stream = bytes(imagecodecs.jpeg8_encode(pixels, 97, colorspace="RGB", outcolorspace=space, subsampling=subsampling))
    kept, at, ids = [b"\xff\xd8"], 2, b"RGB" if markers == "ids" else b"\1\2\3"
    if markers == "adobe":
        kept.append(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\1" if inside == "YBR" else b"\0"))
    if markers == "jfif":
        kept.append(b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00")
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = bytearray(stream[at:end])
        if segment[1] == 0xC0:
            for number in range(3):
                segment[10 + 3 * number] = ids[number]
        if segment[1] not in (0xE0, 0xEE):
            kept.append(bytes(segment))
        at = end
    scan = bytearray(stream[at:])
    for number in range(3):
        scan[5 + 2 * number] = ids[number]
    return b"".join(kept) + bytes(scan)


def test_studio_range_colours_in_a_jpeg() -> None:
    black = np.full((16, 16, 3), (16, 128, 128), np.uint8)  # components as they are: nothing converts them
    stream = bytes(imagecodecs.jpeg8_encode(black, 100, colorspace="YCBCR", outcolorspace="YCBCR"))
    data = encapsulated([stream], uid.JPEGBaseline8Bit, black, PhotometricInterpretation="YBR_PARTIAL_422")
    assert only(as_bytes(data)).max() <= 2


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_jpeg.dcm",
     "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_jpeg_no_color_transform.dcm",
     "SC_rgb_jpeg_app14_dcmd.dcm", "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_jpeg_gdcm.dcm",
     "SC_rgb_gdcm_KY.dcm", "examples_jpeg2k.dcm", "JLSL_RGB_ILV0.dcm", "JLSL_RGB_ILV1.dcm", "HTJ2K_08_RGB.dcm"],
)  # fmt: skip
def test_colours_of_real_files(name: str) -> None:
    """Of many writers, against pydicom and its own choice of plug-ins; the colours of the test card by eye."""
    data = real_file(name)
    theirs = pixel_array(parse_whole(data))
    ours = np.stack(outcomes(data)).reshape(theirs.shape)
    # chroma is interpolated where pydicom's plug-ins may repeat it
    assert np.percentile(np.abs(ours.astype(int) - theirs), 99) <= 3
    if name.startswith("SC_rgb") and theirs.shape[-3:-1] == (100, 100) and "_KY" not in name:
        card = ours.reshape(-1, *theirs.shape[-3:])[0]
        np.testing.assert_allclose(card[5, 50], [255, 0, 0], atol=30)
        np.testing.assert_allclose(card[25, 50], [0, 255, 0], atol=30)


def test_lossless_colour_differences_become_rgb() -> None:
    ybr = cv2.cvtColor(COLOUR, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    for syntax in (uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        stream = ENCODERS[syntax](np.ascontiguousarray(ybr))
        found = only(as_bytes(encapsulated([stream], syntax, COLOUR, PhotometricInterpretation="YBR_FULL")))
        assert np.abs(found.astype(int) - COLOUR).max() <= 2, syntax


@pytest.mark.parametrize(("reversible", "stated"), [(True, "YBR_RCT"), (False, "YBR_ICT"), (True, "RGB")])
def test_the_component_transform_is_undone(reversible: bool, stated: str) -> None:
    stream = jpeg_2000(COLOUR, mct=True, reversible=reversible)
    syntax = uid.JPEG2000Lossless if reversible else uid.JPEG2000
    found = only(as_bytes(encapsulated([stream], syntax, COLOUR, PhotometricInterpretation=stated)))
    assert np.abs(found.astype(int) - COLOUR).max() <= (0 if reversible else 3)


def test_palettes_do_not_survive_loss() -> None:
    indices = gradient(dtype=np.uint8, high=200)
    stream = bytes(imagecodecs.jpeg8_encode(indices, 90))
    palette = encapsulated([stream], uid.JPEGBaseline8Bit, indices, PhotometricInterpretation="PALETTE COLOR")
    assert refusal(as_bytes(palette))[0] == "unsupported_format"
    stream = jpeg_2000(indices, reversible=False)
    palette = encapsulated([stream], uid.JPEG2000, indices, PhotometricInterpretation="PALETTE COLOR")
    assert refusal(as_bytes(palette))[0] == "unsupported_format"


def test_a_codestream_of_another_size_or_kind_is_refused() -> None:
    stream = ENCODERS[uid.JPEGLSLossless](GREY)
    for elements in ({"Rows": 31}, {"Columns": 25}):
        assert refusal(as_bytes(encapsulated([stream], uid.JPEGLSLossless, GREY, **elements)))[0] == "decode_failed"
    assert refusal(as_bytes(encapsulated([stream], uid.JPEG2000Lossless, GREY)))[0] == "decode_failed"
    three = encapsulated([ENCODERS[uid.JPEGLSLossless](COLOUR)], uid.JPEGLSLossless, COLOUR[..., 0])
    assert refusal(as_bytes(three))[0] == "decode_failed"


def test_depth_and_sign_that_only_the_codestream_tells() -> None:
    missing = {"BitsStored": None, "HighBit": None, "PixelRepresentation": None}
    signed = GREY.astype(np.int16) - 2048
    stream = jpeg_2000(signed, bitspersample=12)
    np.testing.assert_array_equal(
        only(as_bytes(encapsulated([stream], uid.JPEG2000Lossless, signed, **missing))), signed
    )
    assert refusal(as_bytes(encapsulated([rle(GREY)], uid.RLELossless, GREY, **missing)))[0] == "missing_tag"


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_a_frame_that_ends_early_is_never_filled_up(syntax: uid.UID, share: float) -> None:
    noise = rng.integers(0, 65536, (64, 64), dtype=np.uint16)
    stream = ENCODERS[syntax](noise)
    cut = stream[: int(len(stream) * share)]
    frames = outcomes(as_bytes(encapsulated([cut, stream], syntax, np.stack([noise] * 2))))
    assert isinstance(frames[0], Reject)
    np.testing.assert_array_equal(frames[1], noise)


def test_damage_inside_a_baseline_jpeg_is_told() -> None:
    """libjpeg goes on after a broken segment and fills; what it has to say about it is not lost."""
    noise = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    stream = bytes(imagecodecs.jpeg8_encode(noise, 90))
    middle = len(stream) // 2
    broken = stream[:middle] + b"\xff\xd9" + stream[middle + 300 :]
    assert refusal(as_bytes(encapsulated([broken], uid.JPEGBaseline8Bit, noise)))[0] == "decode_failed"
    astray = stream[:-2] + rng.integers(1, 255, 40, dtype=np.uint8).tobytes() + stream[-2:]
    assert refusal(as_bytes(encapsulated([astray], uid.JPEGBaseline8Bit, noise)))[0] == "decode_failed"
    harmless = stream[:-2] + bytes(5) + stream[-2:]
    np.testing.assert_array_equal(
        only(as_bytes(encapsulated([harmless], uid.JPEGBaseline8Bit, noise))), imagecodecs.jpeg8_decode(stream)
    )


def fragmented(streams: list[list[bytes]], table: list[int] | None) -> bytes:
    """Encapsulated pixel data of given fragments and offset table, without a delimiter."""
    offsets = b"" if table is None else struct.pack(f"<{len(table)}I", *table)
    items = [offsets, *(part for stream in streams for part in stream)]
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(one)) + one for one in items)


FRAMES = np.stack([np.roll(GREY, number, 0) for number in range(3)])
STREAMS = [stream + b"\0" * (len(stream) % 2) for stream in map(ENCODERS[uid.JPEGLSLossless], FRAMES)]
HALVES = [[one[: len(one) // 4 * 2], one[len(one) // 4 * 2 :]] for one in STREAMS]
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def starts(streams: list[list[bytes]]) -> list[int]:
    sizes = [sum(len(part) + 8 for part in stream) for stream in streams]
    return [sum(sizes[:number]) for number in range(len(sizes))]


def decoded(data: bytes, **elements: Any) -> list[Any]:
    return outcomes(as_bytes(encapsulated([], uid.JPEGLSLossless, FRAMES, PixelData=data, **elements)))


@pytest.mark.parametrize("table", ["right", "empty", "of another object", "of one entry"])
@pytest.mark.parametrize("parts", ["one", "two", "two of one"])
def test_frames_are_found_with_and_without_a_right_table(table: str, parts: str) -> None:
    whole = [[one] for one in STREAMS]
    streams = {"one": whole, "two": HALVES, "two of one": [whole[0], HALVES[1], whole[2]]}[parts]
    right = starts(streams)
    tables = {"right": right, "empty": None, "of another object": [0, 100, 333], "of one entry": [0]}
    np.testing.assert_array_equal(np.stack(decoded(fragmented(streams, tables[table]) + END)), FRAMES)


def test_the_extended_offset_table() -> None:
    data, offsets, lengths = encapsulate_extended(STREAMS)
    elements = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    np.testing.assert_array_equal(np.stack(decoded(data, **elements)), FRAMES)
    wrong = {"ExtendedOffsetTable": struct.pack("<3Q", 0, 8, 1 << 40), "ExtendedOffsetTableLengths": lengths}
    np.testing.assert_array_equal(np.stack(decoded(data, **wrong)), FRAMES)


def test_fragments_beyond_the_frames_and_frames_beyond_the_fragments() -> None:
    more = fragmented([[one] for one in [*STREAMS, STREAMS[0]]], None) + END
    np.testing.assert_array_equal(np.stack(decoded(more)), FRAMES)
    fewer = decoded(fragmented([[one] for one in STREAMS[:2]], None) + END)
    np.testing.assert_array_equal(np.stack(fewer[:2]), FRAMES[:2])
    assert fewer[2].code == "wrong_length"
    one = outcomes(as_bytes(encapsulated([], uid.JPEGLSLossless, FRAMES[0], PixelData=more)))
    np.testing.assert_array_equal(one[0], FRAMES[0])


def test_an_empty_frame_and_a_cut_file() -> None:
    empty = decoded(fragmented([[STREAMS[0]], [b""], [STREAMS[2]]], None) + END)
    assert empty[1].code == "no_pixel_data"
    np.testing.assert_array_equal(np.stack([empty[0], empty[2]]), FRAMES[[0, 2]])
    whole = as_bytes(encapsulated(STREAMS, uid.JPEGLSLossless, FRAMES))
    cut = outcomes(whole[:-20])
    np.testing.assert_array_equal(np.stack(cut[:2]), FRAMES[:2])
    assert cut[2].code == "truncated"
    assert refusal(whole[: whole.rindex(STREAMS[0]) + 9])[0] == "truncated"


def test_frames_of_rle_are_told_by_fragments_alone() -> None:
    frames = [rle(one) for one in FRAMES]
    found = outcomes(as_bytes(encapsulated([*frames, frames[0]], uid.RLELossless, FRAMES)))
    np.testing.assert_array_equal(np.stack(found), FRAMES)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("more", [0, 1])
def test_frames_of_rle_that_are_split_against_the_standard(count: int, more: int) -> None:
    """As some writers do with one frame or several; a frame more than is claimed is left out."""
    frames = [rle(one) for one in FRAMES[:count]]
    split = [[one[:70], one[70:100], one[100:]] for one in [*frames, *frames[:more]]]
    pixels = FRAMES[0] if count == 1 else FRAMES
    data = as_bytes(encapsulated([], uid.RLELossless, pixels, PixelData=fragmented(split, None) + END))
    np.testing.assert_array_equal(np.stack(outcomes(data)), FRAMES[:count])


@pytest.mark.parametrize("padding", [b"\0", b"\x20", b"\x80", b"\xff"])
def test_rle_whose_padding_is_not_zero(padding: bytes) -> None:
    """Padding to an even length is zero by the standard; what else it is may look like the beginning of a run."""
    pixels = np.array([[1, 2, 3, 5]], np.uint8)
    stream = rle(pixels)
    assert stream[64:] == b"\x03\1\2\3\5\0"  # four different bytes in a run of literals, and padding
    np.testing.assert_array_equal(
        only(as_bytes(encapsulated([stream[:-1] + padding], uid.RLELossless, pixels))), pixels
    )


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.uint32])
@pytest.mark.parametrize("colour", [False, True])
def test_rle_of_every_depth(kind: type[Any], colour: bool) -> None:
    shape = (17, 13, 3) if colour else (17, 13)
    pixels = rng.integers(0, np.iinfo(kind).max, shape, dtype=kind)
    pixels[3:9] = 5
    stream = rle(pixels)
    np.testing.assert_array_equal(only(as_bytes(encapsulated([stream], uid.RLELossless, pixels))), pixels)
    planes = _rle_decode_frame(stream, 17, 13, 3 if colour else 1, kind().itemsize * 8)  # pydicom's own
    assert planes == (pixels.transpose(2, 0, 1) if colour else pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("break_it", ["offset", "count", "past the end", "short"])
def test_rle_segments_that_cannot_be(break_it: str) -> None:
    stream = bytearray(rle(GREY))
    if break_it == "offset":
        stream[4:8] = struct.pack("<I", 1 << 31)
    elif break_it == "count":
        stream[0] = 3
    elif break_it == "past the end":
        stream[8:12] = struct.pack("<I", len(stream) + 100)
    else:
        stream = stream[: len(stream) * 3 // 4]
    assert refusal(as_bytes(encapsulated([bytes(stream)], uid.RLELossless, GREY)))[0] == "decode_failed"


def test_jpeg_2000_in_its_file_format_or_without_its_end() -> None:
    boxed = bytes(imagecodecs.jpeg2k_encode(GREY, codecformat="jp2", reversible=True))
    assert boxed[4:8] == b"jP  "
    np.testing.assert_array_equal(only(as_bytes(encapsulated([boxed], uid.JPEG2000Lossless, GREY))), GREY)
    plain = jpeg_2000(GREY)
    assert plain.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(only(as_bytes(encapsulated([plain[:-2]], uid.JPEG2000Lossless, GREY))), GREY)


def test_lossy_frames_are_those_of_gdcm(tmp_path: Any) -> None:
    for name, intercept in (("JPGExtended.dcm", 0), ("JPEG-lossy.dcm", 0), ("JPEGLSNearLossless_16.dcm", 0),
                            ("693_J2KI.dcm", -1024), ("JPEG2000.dcm", 0)):  # fmt: skip
        data = real_file(name)
        theirs = gdcm(data, tmp_path)[0]
        assert np.abs(only(data).astype(int) + intercept - theirs).max() <= 1, name


@pytest.mark.parametrize(
    "name", ["emri_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm", "SC_rgb_rle_16bit_2frame.dcm"]
)
def test_frames_of_real_files_are_those_of_pydicom(name: str) -> None:
    data = real_file(name)
    np.testing.assert_array_equal(np.stack(outcomes(data)), pixel_array(parse_whole(data)))


def test_a_syntax_that_is_not_that_of_the_pixel_data() -> None:
    """Bytes of items are no pixels, though there may be enough of them; and pixels are no items."""
    noise = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    mislabelled = encapsulated([rle(noise)], uid.ExplicitVRLittleEndian, noise)
    assert len(mislabelled.PixelData) >= noise.nbytes
    assert refusal(as_bytes(mislabelled))[0] == "decode_failed"
    plain = as_bytes(image(noise))
    raw = plain.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)
    assert raw != plain
    assert refusal(raw)[0] in ("decode_failed", "truncated")


def test_items_of_zero_length_do_not_fill_the_memory() -> None:
    data = b"\xfe\xff\x00\xe0\0\0\0\0" * (1 << 21)
    assert refusal(as_bytes(encapsulated([], uid.JPEGLSLossless, GREY, PixelData=data)))[0] == "absurd_size"


def test_a_jpeg_whose_codes_went_astray_is_refused_where_its_decoder_notices() -> None:
    """What libjpeg calls extraneous bytes is the rest of data that was read wrongly: a wrong picture, not padding."""
    picture = gradient(96, 96, np.uint8, 255) ^ (rng.integers(0, 16, (96, 96)).astype(np.uint8))
    stream = bytes(imagecodecs.jpeg8_encode(picture, 92))
    start = stream.index(b"\xff\xda") + 20
    noticed = 0
    for place in range(start, len(stream) - 2, 41):
        broken = bytearray(stream)
        broken[place] ^= 0x10
        try:
            simplejpeg.decode_jpeg(bytes(broken), colorspace="GRAY")
        except ValueError:
            noticed += 1
            data = encapsulated([bytes(broken)], uid.JPEGBaseline8Bit, picture)
            assert refusal(as_bytes(data))[0] == "decode_failed"
    assert noticed >= 5
