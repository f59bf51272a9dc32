"""Resizing against an exact area filter, and what encoding hands on."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumid.catalog.codecs import CODECS, Codec, decode, pixel_hash
from lumid.pipeline.encode import encode_image, resize


def shares(before: int, after: int) -> npt.NDArray[np.float64]:
    """``[after, before]``: which share of each old pixel lies in each new one."""
    edges = np.linspace(0, before, after + 1)
    starts, ends = np.arange(before), np.arange(1, before + 1)
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], starts)
    return np.clip(overlap, 0, None) / (before / after)


@pytest.mark.parametrize("size", [16, 224, 256, 512])
@pytest.mark.parametrize("shape", [(512, 512), (700, 513), (1000, 999), (3000, 40), (7, 2000), (40_000, 3), (1, 9000)])
def test_every_pixel_is_the_mean_of_its_area(shape: tuple[int, int], size: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, shape).astype(np.uint16)
    pixels[: shape[0] // 2] |= 0xFF00  # bright: what wraps would turn dark
    found = resize(pixels, size)
    assert max(found.shape) == min(size, max(shape))
    assert min(found.shape) == max(1, round(min(shape) * max(found.shape) / max(shape)))
    expected = shares(shape[0], found.shape[0]) @ pixels @ shares(shape[1], found.shape[1]).T
    np.testing.assert_allclose(found, expected, atol=0.53)  # sums are of 32 bits


@pytest.mark.parametrize("shape", [(1955, 1841), (1024, 1025), (2500, 640), (1100, 1000, 3)])
def test_a_large_image_is_summed_exactly(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 65536 if len(shape) == 2 else 256, shape).astype(
        np.uint16 if len(shape) == 2 else np.uint8
    )
    found = resize(pixels, 256)
    assert found.dtype == pixels.dtype
    assert found.flags.c_contiguous
    height, width = found.shape[:2]
    for row, column in rng.integers(0, (height, width), (60, 2)):
        # in fractions: from row × rows / height to (row + 1) × rows / height, and the same across
        down, across = Fraction(shape[0], height), Fraction(shape[1], width)
        total = np.zeros(shape[2:], dtype=object)
        for y in range(int(row * down), math.ceil((row + 1) * down)):
            tall = min(y + 1, (row + 1) * down) - max(y, row * down)
            for x in range(int(column * across), math.ceil((column + 1) * across)):
                wide = min(x + 1, (column + 1) * across) - max(x, column * across)
                total = total + pixels[y, x].astype(object) * tall * wide
        expected = [round(value / (down * across)) for value in np.atleast_1d(total)]
        assert np.atleast_1d(found[row, column]).tolist() == expected


@given(rows=st.integers(1, 90), columns=st.integers(1, 90), size=st.one_of(st.integers(16, 128), st.just("native")))
@settings(deadline=None)
def test_nothing_is_enlarged_and_white_stays_white(rows: int, columns: int, size: int) -> None:
    for pixels in (np.full((rows, columns), 65535, np.uint16), np.full((rows, columns, 3), 255, np.uint8)):
        found = resize(pixels, size)
        assert found.dtype == pixels.dtype
        assert found.shape[0] <= rows
        assert found.shape[1] <= columns
        assert (found == pixels.max()).all()
        if size == "native":
            assert found.shape == pixels.shape


@pytest.mark.parametrize("codec", CODECS)
def test_hashes_are_those_of_the_bytes_and_of_the_pixels(codec: Codec) -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    encoded = encode_image(pixels, codec)
    assert encoded.sha256 == hashlib.sha256(encoded.data).hexdigest()
    assert encoded.pixel_hash == pixel_hash(decode(encoded.data, codec)) == pixel_hash(pixels)
