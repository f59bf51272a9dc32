"""Intensities, against values computed by hand and against independent readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels.processing import apply_voi_lut

from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.colour import normalize_colour
from lumid.pipeline.normalize.intensity import (
    Histogram,
    Intensities,
    Range,
    frame_histogram,
    histogram,
    quantize,
    robust_range,
)
from lumid.pipeline.normalize.pet import suv_factor, suv_scale
from lumid.pipeline.normalize.projection import window
from lumid.pipeline.reject import Reject
from tests.dicom import TEST_FILES, gradient, image

quiet_libraries()


def in_unit(stored: Intensities) -> np.ndarray:
    return stored.pixels.astype(np.float64) * stored.slope + stored.intercept


def run(pixels: np.ndarray, modality: str, profile: str = "lumid", **elements: Any) -> Intensities:
    dataset = image(pixels, Modality=modality, **elements)
    header = FrameHeader(dataset, 0)
    span = robust_range([frame_histogram(pixels, header)]) if uses_series_range(header, modality) else None
    result = normalize(pixels, header, modality, span, profile)
    assert not isinstance(result, Reject)
    return result


def test_ct_is_stored_as_hounsfield_plus_1024() -> None:
    pixels = np.array([[0, 1024, 2048, 5000]], np.int16)
    stored = run(pixels, "CT", RescaleSlope=1, RescaleIntercept=-1024)
    assert stored.pixels.tolist() == [[0, 1024, 2048, 4095]]  # 5000 - 1024 = 3976 HU is clipped to 3071
    assert (stored.slope, stored.intercept, stored.unit) == (1.0, -1024.0, "HU")
    assert in_unit(stored).tolist() == [[-1024, 0, 1024, 3071]]


def test_ct_with_a_fractional_slope_agrees_with_the_integer_way() -> None:
    pixels = gradient(high=2000)
    whole = run(pixels, "CT", RescaleSlope=2, RescaleIntercept=-1000)
    fractional = run(pixels, "CT", RescaleSlope=2.0000001, RescaleIntercept=-1000)
    np.testing.assert_allclose(in_unit(fractional), in_unit(whole), atol=0.51)


def test_ct_padding_becomes_air() -> None:
    pixels = np.array([[-2000, -1500, 0, 40]], np.int16)
    stored = run(
        pixels, "CT", RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1400
    )
    assert in_unit(stored).tolist() == [[-1024, -1024, 0, 40]]


def test_ct_padding_written_with_the_wrong_sign() -> None:
    """63536 as unsigned is -2000 as the signed value that the pixels have."""
    pixels = np.array([[-2000, 100]], np.int16)
    stored = run(pixels, "CT", RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=63536)
    assert in_unit(stored).tolist() == [[-1024, 100]]


def test_ct_of_the_paper_profile() -> None:
    pixels = np.array([[-1024, 0, 1024, 3071]], np.int16)
    stored = run(pixels, "CT", "paper", RescaleSlope=1, RescaleIntercept=0)
    expected = [round((value + 1024) / 4096 * 255) for value in (-1024, 0, 1024, 3071)]
    assert stored.pixels.dtype == np.uint8
    assert stored.pixels.tolist() == [expected]


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm"])
def test_ct_agrees_with_simpleitk(name: str) -> None:
    dataset = pydicom.dcmread(TEST_FILES / name)
    header = FrameHeader(dataset, 0)
    stored = normalize(dataset.pixel_array, header, "CT", None, "lumid")
    assert not isinstance(stored, Reject)
    other = sitk.GetArrayFromImage(sitk.ReadImage(str(TEST_FILES / name)))[0].astype(float)
    padding = dataset.get("PixelPaddingValue")
    mask = np.ones(other.shape, bool) if padding is None else dataset.pixel_array != padding
    np.testing.assert_array_equal(in_unit(stored)[mask], np.clip(other, -1024, 3071)[mask])


def test_mr_is_linear_between_percentiles_of_the_series() -> None:
    pixels = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    stored = run(pixels, "MR")
    assert stored.unit == "a.u."
    np.testing.assert_allclose(in_unit(stored)[1:-1], pixels[1:-1], atol=0.51 * stored.slope)
    assert stored.pixels.min() == 0
    assert stored.pixels.max() == 65535


@given(st.permutations(range(5)))
def test_the_range_of_a_series_does_not_depend_on_order(order: list[int]) -> None:
    rng = np.random.default_rng(7)
    parts = [histogram(rng.integers(0, 500, 400)) for _ in range(5)]
    assert robust_range([parts[place] for place in order]) == robust_range(parts)


def test_the_range_of_a_series_is_that_of_numpy_on_all_values() -> None:
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 3000, (40, 50)) for _ in range(6)]
    found = robust_range([histogram(frame) for frame in frames])
    assert found is not None
    low, high = np.percentile(np.concatenate([frame.ravel() for frame in frames]), [0.1, 99.9])
    assert abs(found.low - low) <= 1
    assert abs(found.high - high) <= 1


def test_a_series_of_one_value_has_no_range() -> None:
    assert robust_range([Histogram(np.array([5.0]), np.array([100]))]) is None
    assert robust_range([]) is None


@settings(deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5), st.sampled_from([8, 16]))
def test_storing_and_undoing_is_within_half_a_step(low: float, width: float, bits: int) -> None:
    values = np.linspace(low, low + width, 97, dtype=np.float32)
    stored = quantize(values, Range(low, low + width), bits, "a.u.")
    tolerance = 0.5 * stored.slope + 4 * np.spacing(np.float32(max(abs(low), abs(low + width)))) + width * 1e-6
    assert np.abs(in_unit(stored) - values).max() <= tolerance


def pet(**changes: Any) -> pydicom.Dataset:
    injection = pydicom.Dataset()
    injection.RadionuclideTotalDose = 400e6
    injection.RadionuclideHalfLife = 6586.2
    injection.RadiopharmaceuticalStartTime = "100000"
    elements = {
        "Modality": "PT", "Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START",
        "PatientWeight": 80, "SeriesDate": "20200101", "SeriesTime": "110000", "AcquisitionDate": "20200101",
        "AcquisitionTime": "110000", "RadiopharmaceuticalInformationSequence": [injection],
        "RescaleSlope": 1, "RescaleIntercept": 0,
    }  # fmt: skip
    return image(gradient(dtype=np.uint16), **(elements | changes))


def test_suv_by_hand() -> None:
    """400 MBq, one hour before the scan, half-life 6586.2 s, 80 kg: 1 Bq/ml is 80000 / (400e6 × 2^(-3600/6586.2)) SUV."""
    expected = 80_000 / (400e6 * 2 ** (-3600 / 6586.2))
    factor = suv_factor(FrameHeader(pet(), 0))
    assert factor is not None
    assert factor == pytest.approx(expected, rel=1e-12)
    assert suv_factor(FrameHeader(pet(DecayCorrection="ADMIN"), 0)) == pytest.approx(80_000 / 400e6)
    assert suv_factor(FrameHeader(pet(Units="GML"), 0)) == 1.0


def test_suv_over_midnight() -> None:
    late = pet(SeriesTime="003000", AcquisitionTime="003000")
    late.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "233000"
    assert suv_factor(FrameHeader(late, 0)) == suv_factor(FrameHeader(pet(), 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientWeight": None},
        {"PatientWeight": 0},
        {"DecayCorrection": "NONE"},
        {"Units": "CNTS"},
        {"CorrectedImage": ["ATTN"]},
        {"RadiopharmaceuticalInformationSequence": None},
    ],
)
def test_no_suv_without_what_it_needs(changes: dict[str, Any]) -> None:
    header = FrameHeader(pet(**changes), 0)
    assert suv_factor(header) is None
    assert uses_series_range(header, "PT")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str) -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    dataset = image(
        pixels, BitsStored=12, HighBit=11, WindowCenter=1800, WindowWidth=900, VOILUTFunction=function, Modality="DX"
    )
    theirs = apply_voi_lut(pixels, dataset) / 4095
    ours = window(pixels.astype(np.float32), 1800, 900, function)
    assert ours is not None
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_first_of_several_windows_is_taken() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    one = run(pixels, "DX", WindowCenter=1800, WindowWidth=900)
    several = run(pixels, "DX", WindowCenter=[1800, 40], WindowWidth=[900, 80])
    np.testing.assert_array_equal(one.pixels, several.pixels)


def test_monochrome1_is_inverted_in_projections_only() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    assert run(pixels, "CR", PhotometricInterpretation="MONOCHROME1").pixels[0, 0] == 65535
    assert run(pixels, "CR").pixels[0, 0] == 0
    assert run(pixels, "MR", PhotometricInterpretation="MONOCHROME1").pixels[0, 0] == 0


def test_colour_stays_and_grey_colour_becomes_grey() -> None:
    rgb = np.zeros((40, 40, 3), np.uint8)
    rgb[..., 0] = 200
    header = FrameHeader(image(rgb, Modality="US"), 0)
    np.testing.assert_array_equal(normalize_colour(rgb, header, grey=False).pixels, rgb)
    assert normalize_colour(rgb, header, grey=True).pixels.shape == (40, 40)
    same = np.repeat(gradient(dtype=np.uint8, high=255)[..., None], 3, axis=2)
    np.testing.assert_array_equal(normalize_colour(same, header, grey=False).pixels, same[..., 0])


def test_no_suv_of_stored_values_without_their_slope() -> None:
    """It differs from slice to slice; taken as 1 where it is lost, stored counts were called SUV."""
    assert suv_scale(FrameHeader(pet(), 0)) is not None
    for slope in (None, 0):
        header = FrameHeader(pet(RescaleSlope=slope), 0)
        assert suv_factor(header) is not None
        assert suv_scale(header) is None


def test_colour_without_its_number_of_samples_is_colour() -> None:
    rgb = np.zeros((40, 40, 3), np.uint8)
    rgb[..., 0] = 200
    for modality in ("MR", "US", "CR"):
        header = FrameHeader(image(rgb, Modality=modality, SamplesPerPixel=None), 0)
        assert not uses_series_range(header, modality)
        kept = normalize(rgb, header, modality, None, "lumid")
        assert not isinstance(kept, Reject)
        np.testing.assert_array_equal(kept.pixels, rgb)
        assert kept.unit == "display"


@pytest.mark.parametrize("colour", ["Red", "Green", "Blue"])
@pytest.mark.parametrize("value", [None, b""])
def test_a_palette_without_one_of_its_tables_is_refused(colour: str, value: bytes | None) -> None:
    dataset = pydicom.dcmread(TEST_FILES / "examples_palette.dcm")
    pixels = dataset.pixel_array
    dataset[f"{colour}PaletteColorLookupTableData"].value = value
    refused = normalize(pixels, FrameHeader(dataset, 0), "US", None, "lumid")
    assert refused == Reject("normalize", "missing_tag", "palette")


def test_palette_colour_agrees_with_pydicom() -> None:
    dataset = pydicom.dcmread(TEST_FILES / "examples_palette.dcm")
    stored = normalize(dataset.pixel_array, FrameHeader(dataset, 0), "US", None, "lumid")
    assert not isinstance(stored, Reject)
    expected = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(stored.pixels, (expected[..., :3] >> 8).astype(np.uint8))


def test_values_that_are_no_numbers_are_stored_as_the_darkest() -> None:
    values = np.array([[np.nan, 1.0]], np.float32)
    assert quantize(values, Range(0, 1), 16, "a.u.").pixels.tolist() == [[0, 65535]]


@pytest.mark.parametrize(
    ("elements", "unit"),
    [
        ({}, "a.u."),
        ({"RescaleSlope": 1, "RescaleIntercept": 0}, "HU"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}, "HU"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US", "ImageType": ["ORIGINAL", "PRIMARY"]}, "HU"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US", "ImageType": ["DERIVED", "PRIMARY"]}, "a.u."),
        ({"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "ED", "ImageType": ["ORIGINAL", "PRIMARY"]}, "a.u."),
    ],
)
def test_only_what_is_in_hounsfield_units_says_so(elements: dict[str, Any], unit: str) -> None:
    assert run(gradient(), "CT", **elements).unit == unit
