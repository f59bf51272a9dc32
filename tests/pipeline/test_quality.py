"""Quality columns against hand computation, other implementations, and noise of a known size."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lumid.pipeline.quality import clipped_fraction, measure, perceptual_hash

Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
sides = st.integers(3, 40)
images = st.one_of(
    hnp.arrays(np.uint8, st.tuples(sides, sides)),
    hnp.arrays(np.uint16, st.tuples(sides, sides)),
    hnp.arrays(np.uint16, st.tuples(sides, sides), elements=st.integers(0, 4095)),
)


def body(side: int = 256) -> npt.NDArray[np.float64]:
    """An ellipse with organs in it on nothing: edges and slow changes, and no noise."""
    row, column = np.mgrid[:side, :side] * (256 / side)
    slow = 1000 + 60 * np.cos(column / 19) * np.sin(row / 27)
    organs = 300 * (np.hypot(row - 100, column - 120) < 25) - 400 * (np.hypot(row - 150, column - 160) < 30)
    return np.where(np.hypot((row - 128) / 1.2, column - 128) < 90, slow + organs, 0)


@given(image=images)
@settings(deadline=None)
def test_percentiles_and_foreground_are_numpys(image: Image) -> None:
    found = measure(image)
    p01, p50, p99, top = np.percentile(image, [1, 50, 99, 99.9], method="lower")
    assert (found.p01, found.p50, found.p99) == (p01, p50, p99)
    assert found.constant == (image.min() == image.max())
    if not found.constant:
        threshold = image.min() + 0.05 * (float(top) - image.min())
        assert found.foreground_fraction == pytest.approx((image > threshold).mean(), abs=1e-6)


def test_sharpness_is_the_laplacians_share_and_falls_with_blur() -> None:
    image = np.clip(body() + np.random.default_rng(0).normal(0, 10, (256, 256)), 0, 4095).astype(np.uint16)
    values = image.astype(np.float64)
    expected = cv2.Laplacian(values, cv2.CV_64F).var() / values.var()
    assert measure(image).sharpness == pytest.approx(expected, rel=1e-3)
    assert measure(cv2.GaussianBlur(image, (0, 0), 2)).sharpness < 0.2 * measure(image).sharpness
    assert measure(image * 3).sharpness == pytest.approx(measure(image).sharpness, rel=1e-3)


@pytest.mark.parametrize("side", [160, 256, 600])
@pytest.mark.parametrize("sigma", [3.0, 10.0, 40.0, 120.0])
def test_noise_of_a_known_size_is_found_within_a_tenth(sigma: float, side: int) -> None:
    clean = body(side)
    rng = np.random.default_rng(int(sigma))
    noisy = np.where(clean > 0, clean + rng.normal(0, sigma, clean.shape), 0)
    image = np.clip(np.rint(noisy), 0, 4095).astype(np.uint16)
    assert measure(image).noise == pytest.approx(sigma, rel=0.1)
    assert measure(np.rint(clean).astype(np.uint16)).noise < 1.0


def test_noise_does_not_depend_on_how_much_is_background() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((256, 256), np.uint16)
    image[100:160, 100:160] = 2000 + rng.normal(0, 25, (60, 60))
    assert measure(image).noise == pytest.approx(25, rel=0.1)


def test_an_absolute_floor_tells_air_from_a_body() -> None:
    air = np.clip(np.random.default_rng(0).normal(24, 12, (64, 64)), 0, 4095).astype(np.uint16)
    assert measure(air).foreground_fraction > 0.9  # it fills its own range
    assert measure(air, floor=124.0).foreground_fraction == 0


def test_the_quality_of_small_and_odd_images() -> None:
    assert measure(np.array([[3, 4]], np.uint8)).noise == 0
    assert measure(np.zeros((9, 9), np.uint16)).constant
    colour = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    assert measure(colour) == measure(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))


def test_clipped_are_those_at_the_top_and_above() -> None:
    image = np.array([[0, 4094, 4095, 4096]], np.uint16)
    assert clipped_fraction(image, 4095.0) == 0.5
    assert clipped_fraction(image, 65535.0) == 0.0


def different(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_a_perceptual_hash_survives_what_does_not_change_the_picture() -> None:
    image = body().astype(np.uint16)
    noisy = np.clip(body() + np.random.default_rng(1).normal(0, 20, image.shape), 0, 4095).astype(np.uint16)
    look = perceptual_hash(image)
    assert 0 <= look < 1 << 64
    assert different(look, perceptual_hash(noisy)) <= 4
    assert different(look, perceptual_hash(image * 9)) <= 2
    assert different(look, perceptual_hash(cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA))) <= 4
    assert different(look, perceptual_hash(image[::-1])) > 12
    assert different(look, perceptual_hash(np.roll(image, 40, axis=1))) > 12
