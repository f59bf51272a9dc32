"""Whatever decoder is installed gives the same frame for the same lossless codestream as lumid's own choice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from lumid.pipeline.decode import quiet_libraries
from tests.dicom import as_bytes, encapsulated, image
from tests.pipeline.test_decode_encoded import jpeg_2000, lossless_jpeg, rle
from tests.pipeline.test_decode_native import gdcm, only, outcomes

quiet_libraries()


@st.composite
def pictures(draw: st.DrawFn, *, colour: bool = True) -> tuple[np.ndarray, int]:
    """Grey of 8 to 16 bits with or without a sign, or RGB of 8 bits, and the bits stored."""
    rows, columns = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    kind = draw(st.sampled_from(["grey 8", "grey", "signed", *(["colour"] if colour else [])]))
    bits = draw(st.integers(9, 16)) if kind in ("grey", "signed") else 8
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind == "signed" else (0, (1 << bits) - 1)
    dtype = {"grey": np.uint16, "signed": np.int16}.get(kind, np.uint8)
    shape = (rows, columns, 3) if kind == "colour" else (rows, columns)
    return draw(arrays.arrays(dtype, shape, elements=st.integers(low, high))), bits


def encode(syntax: uid.UID, pixels: np.ndarray, bits: int) -> bytes:
    unsigned = (pixels.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint16) if bits > 8 else pixels
    if syntax == uid.RLELossless:
        return rle(pixels)
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        return lossless_jpeg(unsigned, bits, 1 if syntax == uid.JPEGLosslessSV1 else 4)
    if syntax == uid.JPEGLSLossless:
        # always of 16 bits, with the sign in all of those above: plug-ins look for it at the codestream's top
        return bytes(imagecodecs.jpegls_encode(pixels.view(np.uint16) if bits > 8 else pixels))
    if syntax == uid.JPEG2000Lossless:
        return jpeg_2000(pixels, bitspersample=bits, resolutions=1)
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True, resolutions=1))


LOSSLESS = (
    uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
)  # fmt: skip


def by_plugin(plugin: str, syntax: uid.UID, stream: bytes, pixels: np.ndarray, bits: int, photometric: str) -> Any:
    decoded, _ = get_decoder(syntax).as_array(
        encapsulate([stream], has_bot=False), index=0, decoding_plugin=plugin, rows=pixels.shape[0],
        columns=pixels.shape[1], samples_per_pixel=3 if pixels.ndim == 3 else 1, number_of_frames=1,
        bits_allocated=pixels.dtype.itemsize * 8, bits_stored=bits, pixel_representation=int(pixels.dtype.kind == "i"),
        photometric_interpretation=photometric, planar_configuration=0,
    )  # fmt: skip
    return decoded


@pytest.mark.parametrize("syntax", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(picture=pictures())
def test_every_decoder_gives_what_was_encoded(syntax: uid.UID, picture: tuple[np.ndarray, int]) -> None:
    pixels, bits = picture
    stream = encode(syntax, pixels, bits)
    transformed = pixels.ndim == 3 and syntax in uid.JPEG2000TransferSyntaxes
    photometric = "MONOCHROME2" if pixels.ndim == 2 else "YBR_RCT" if transformed else "RGB"
    elements = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": photometric}
    ours = only(as_bytes(encapsulated([stream], syntax, pixels, **elements)))
    assert ours.dtype == pixels.dtype
    np.testing.assert_array_equal(ours, pixels)
    for plugin in get_decoder(syntax).available_plugins:
        try:
            theirs = by_plugin(plugin, syntax, stream, pixels, bits, photometric)
        except Exception:  # what a plug-in refuses (rare depths, tiny images) it does not get wrong
            continue
        np.testing.assert_array_equal(theirs, pixels, err_msg=plugin)


@pytest.mark.parametrize("syntax", [one for one in LOSSLESS if "HTJ2K" not in one.keyword])
def test_gdcm_gives_what_was_encoded(syntax: uid.UID, tmp_path: Any) -> None:
    """SimpleITK is always installed, so that there is always one other implementation."""
    rng = np.random.default_rng(3)
    for bits, dtype, signed in ((8, np.uint8, 0), (12, np.uint16, 0), (16, np.uint16, 0), (16, np.int16, 1)):
        low = -(1 << bits - 1) if signed else 0
        pixels = rng.integers(low, low + (1 << bits), (33, 27)).astype(dtype)
        stream = encode(syntax, pixels, bits)
        data = as_bytes(encapsulated([stream], syntax, pixels, BitsStored=bits, HighBit=bits - 1))
        np.testing.assert_array_equal(gdcm(data, tmp_path)[0], pixels)
        np.testing.assert_array_equal(only(data), pixels)


DCMTK = {
    "predictor 2": ("dcmcjpeg", "+el", "+sv", "2"),
    "predictor 7": ("dcmcjpeg", "+el", "+sv", "7"),
    "point transform": ("dcmcjpeg", "+el", "+sv", "4", "+pt", "1"),
    "selection value 1": ("dcmcjpeg", "+e1"),
    "RLE": ("dcmcrle",),
    "JPEG-LS": ("dcmcjpls",),
    "baseline": ("dcmcjpeg", "+eb"),
    "extended": ("dcmcjpeg", "+ee"),
}
"""What DCMTK's compressors are told; they write what no encoder of ours does."""


@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="needs DCMTK's programs (Debian: dcmtk)")
@pytest.mark.parametrize("how", DCMTK)
@pytest.mark.parametrize("content", ["u8", "u12", "s16", "rgb", "frames"])
def test_what_dcmtk_writes_is_what_dcmtk_reads(how: str, content: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    smooth = rng.normal(0, 30, (65, 43)).cumsum(1)
    twelve = {"BitsStored": 12, "HighBit": 11}
    made = {
        "u8": lambda: image(np.clip(smooth + 128, 0, 255).astype(np.uint8)),
        "u12": lambda: image(np.clip(smooth * 9 + 2048, 0, 4095).astype(np.uint16), **twelve),
        "s16": lambda: image(np.clip(smooth * 99, -32768, 32767).astype(np.int16)),
        "rgb": lambda: image(np.stack([np.clip(smooth + level, 0, 255).astype(np.uint8) for level in (80, 120, 160)], -1)),
        "frames": lambda: image(np.stack([np.clip(smooth * 9 + 2048, 0, 4095).astype(np.uint16)] * 3), **twelve),
    }[content]()  # fmt: skip
    plain, packed, unpacked = (tmp_path / name for name in ("plain", "packed", "unpacked"))
    plain.write_bytes(as_bytes(made))
    subprocess.run([*DCMTK[how], plain, packed], check=True, capture_output=True)
    reader = {"dcmcjpeg": "dcmdjpeg", "dcmcrle": "dcmdrle", "dcmcjpls": "dcmdjpls"}[DCMTK[how][0]]
    subprocess.run([reader, packed, unpacked], check=True, capture_output=True)
    ours, theirs = (np.stack(outcomes(path.read_bytes())).astype(int) for path in (packed, unpacked))
    assert np.abs(ours - theirs).max() <= (1 if how in ("baseline", "extended") else 0)
