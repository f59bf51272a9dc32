"""What is stored leads back to the unit, within half a step, and every transformation of the standard is applied once."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.pixels.processing import apply_color_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian

from lumid.pipeline.decode import parse
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.intensity import (
    Intensities,
    Range,
    by_value,
    frame_histogram,
    histogram,
    quantized,
    robust_range,
)
from lumid.pipeline.normalize.pet import suv_factor
from lumid.pipeline.reject import Reject
from tests.dicom import as_bytes, gradient, image

WHOLE = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32]
EXACT = np.longdouble


def in_unit(stored: Intensities) -> np.ndarray:
    return stored.pixels.astype(EXACT) * EXACT(stored.slope) + EXACT(stored.intercept)


def header(pixels: np.ndarray, **elements: Any) -> FrameHeader:
    if pixels.dtype.kind == "f":
        dataset = image(np.zeros(pixels.shape, np.uint16), **elements)
        del dataset.PixelData
        return FrameHeader(dataset, 0)
    return FrameHeader(image(pixels, **elements), 0)


def run(pixels: np.ndarray, modality: str, profile: str = "lumid", **elements: Any) -> Intensities:
    found = header(pixels, Modality=modality, **elements)
    span = robust_range([frame_histogram(pixels, found)]) if uses_series_range(found, modality) else None
    result = normalize(pixels, found, modality, span, profile)
    assert not isinstance(result, Reject)
    return result


@st.composite
def stored_pixels(draw: st.DrawFn) -> np.ndarray:
    """Small images of every type, the ends of its range among them, few and many different values."""
    kind = np.dtype(draw(st.sampled_from([*WHOLE, np.float32, np.float64])))
    if kind.kind == "f":
        bound = float(np.float32(1e9))
        values: Any = st.floats(-bound, bound, width=kind.itemsize * 8)
    else:
        info = np.iinfo(kind)
        values = st.integers(info.min, info.max) | st.sampled_from([info.min, info.max, 0]) | st.integers(0, 20)
    return draw(arrays(kind, st.tuples(st.integers(1, 6), st.integers(1, 60)), elements=values))


SLOPES = st.builds(lambda sign, power: sign * 10.0**power, st.sampled_from([1, -1]), st.floats(-6, 6)) | st.just(1.0)
INTERCEPTS = st.floats(-1e9, 1e9) | st.sampled_from([0.0, -1024.0, 1e9])


def half_a_step(kept: Intensities, *magnitudes: float) -> EXACT:
    """Half a step, and what the last bits of double precision are worth at the values met on the way."""
    return EXACT(kept.slope) * EXACT(0.5 + 1e-6) + 16 * EXACT(np.spacing(max(abs(one) for one in magnitudes)))


@settings(deadline=None, max_examples=300)
@given(stored_pixels(), SLOPES, INTERCEPTS, st.sampled_from(["lumid", "paper"]))
def test_arbitrary_units_lead_back_within_half_a_step(
    pixels: np.ndarray, slope: float, intercept: float, profile: str
) -> None:
    found = header(pixels, Modality="MR", RescaleSlope=slope, RescaleIntercept=intercept)
    span = robust_range([frame_histogram(pixels, found)])
    assume(span is not None)
    assert span is not None
    kept = normalize(pixels, found, "MR", span, profile)
    assert not isinstance(kept, Reject)
    # as the header has them: a decimal string holds 16 characters
    stated = float(found.dataset.RescaleSlope), float(found.dataset.RescaleIntercept)
    values = pixels.astype(EXACT) * EXACT(stated[0]) + EXACT(stated[1])
    expected = np.clip(values, EXACT(span.low), EXACT(span.high))
    allowed = half_a_step(kept, float(np.abs(values).max()), span.low, span.high, stated[1])
    assert np.abs(in_unit(kept) - expected).max() <= allowed
    assert kept.pixels.dtype == (np.uint16 if profile == "lumid" else np.uint8)


@settings(deadline=None, max_examples=300)
@given(stored_pixels(), SLOPES, st.floats(-70_000, 70_000) | st.integers(-70_000, 70_000).map(float))
def test_hounsfield_units_lead_back_within_half_a_unit(pixels: np.ndarray, slope: float, intercept: float) -> None:
    kept = run(pixels, "CT", RescaleSlope=slope, RescaleIntercept=intercept)
    dataset = image(np.zeros((1, 1), np.uint8), RescaleSlope=slope, RescaleIntercept=intercept)
    values = pixels.astype(EXACT) * EXACT(float(dataset.RescaleSlope)) + EXACT(float(dataset.RescaleIntercept))
    if pixels.dtype == np.uint16:  # what cannot be is a negative value whose sign was lost
        signed = pixels.astype(np.int16).astype(EXACT)
        signed = signed * EXACT(float(dataset.RescaleSlope)) + EXACT(float(dataset.RescaleIntercept))
        values = np.where((pixels >= 1 << 15) & (values > 31743), signed, values)
    assert (kept.slope, kept.intercept, kept.unit) == (1.0, -1024.0, "HU")
    assert np.abs(in_unit(kept) - np.clip(values, -1024, 3071)).max() <= half_a_step(kept, float(np.abs(values).max()))


@settings(deadline=None, max_examples=100)
@given(stored_pixels(), st.floats(1e-4, 1e3), st.floats(1, 200))
def test_suv_leads_back_within_half_a_step(pixels: np.ndarray, slope: float, weight: float) -> None:
    injection = pydicom.Dataset()
    injection.RadionuclideTotalDose = 370e6
    kept = run(
        pixels, "PT", RescaleSlope=slope, RescaleIntercept=0, Units="BQML", CorrectedImage=["ATTN", "DECY"],
        DecayCorrection="ADMIN", PatientWeight=weight, RadiopharmaceuticalInformationSequence=[injection],
    )  # fmt: skip
    dataset = image(np.zeros((1, 1), np.uint8), RescaleSlope=slope, PatientWeight=weight)
    factor = EXACT(float(dataset.PatientWeight)) * 1000 / EXACT(370e6)
    values = pixels.astype(EXACT) * EXACT(float(dataset.RescaleSlope)) * factor
    assert kept.unit == "SUVbw"
    assert np.abs(in_unit(kept) - np.clip(values, 0, EXACT(65.535))).max() <= half_a_step(kept, 65.535)


@settings(deadline=None, max_examples=100)
@given(stored_pixels(), st.floats(-5e4, 5e4), st.floats(2, 1e5), st.sampled_from(["LINEAR", "LINEAR_EXACT"]))
def test_a_window_leads_back_within_half_a_step(pixels: np.ndarray, center: float, width: float, function: str) -> None:
    window = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    dataset = image(np.zeros((1, 1), np.uint8), WindowCenter=center, WindowWidth=width)
    shift = 0.5 if function == "LINEAR" else 0.0
    center, width = float(dataset.WindowCenter) - shift, float(dataset.WindowWidth) - 2 * shift
    shown = np.clip((pixels.astype(np.int32).astype(EXACT) - EXACT(center)) / EXACT(width) + EXACT(0.5), 0, 1)
    assume(shown.min() < shown.max() - 1e-4)  # else the window is not taken
    kept = run(pixels.astype(np.int32), "DX", **window)
    assert np.abs(in_unit(kept) - shown).max() <= half_a_step(kept, 1.0) + 1e-9


@settings(deadline=None)
@given(stored_pixels())
def test_a_table_of_values_is_the_function_itself(pixels: np.ndarray) -> None:
    def store(values: np.ndarray) -> np.ndarray:
        return quantized(np.sin(values), Range(-1, 1), 16)

    direct = store(pixels.astype(np.float64))
    many = np.repeat(pixels, 1200, axis=0)  # more pixels than values, so that a table is made
    np.testing.assert_array_equal(by_value(many, store), np.repeat(direct, 1200, axis=0))
    swapped = many.astype(many.dtype.newbyteorder(">"))
    np.testing.assert_array_equal(by_value(swapped[:, ::-1], store), np.repeat(direct, 1200, axis=0)[:, ::-1])


@settings(deadline=None)
@given(stored_pixels())
def test_a_histogram_counts_every_value(pixels: np.ndarray) -> None:
    found = histogram(pixels)
    values, counts = np.unique(pixels, return_counts=True)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.counts, counts)


@settings(deadline=None)
@given(st.lists(st.tuples(stored_pixels(), SLOPES, INTERCEPTS), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_range_of_a_series_is_that_of_all_its_values(frames: list[Any], seed: int) -> None:
    """Frames of several types and slopes; whatever their order, exactly two of the values."""
    found = [
        frame_histogram(pixels, header(pixels, Modality="MR", RescaleSlope=slope, RescaleIntercept=intercept))
        for pixels, slope, intercept in frames
    ]
    values = np.sort(np.concatenate([np.repeat(*one.in_units()) for one in found]))
    expected: Range | None = Range(*np.percentile(values, [0.1, 99.9], method="inverted_cdf").tolist())
    assert expected is not None
    if expected.low == expected.high:
        expected = Range(float(values[0]), float(values[-1])) if values[0] < values[-1] else None
    if expected is not None and expected.high - expected.low < 1e-300:
        expected = None
    ranges = [
        robust_range(found),
        robust_range(np.random.default_rng(seed).permutation(np.array(found, object)).tolist()),
    ]
    assert ranges[0] == ranges[1]
    assert ranges[0] == expected


def test_a_long_series_takes_little_memory() -> None:
    """2,000 PET slices, each with a slope of its own and thousands of values of its own."""
    pixels = np.random.default_rng(0).integers(0, 32768, (128, 128)).astype(np.int16)
    frames = [
        frame_histogram(pixels, header(pixels, Modality="PT", RescaleSlope=1 + number / 7, RescaleIntercept=0))
        for number in range(2000)
    ]
    assert sum(one.values.nbytes + one.counts.nbytes for one in frames) < 160e6
    tracemalloc.start()
    span = robust_range(frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert span is not None
    assert peak < 30e6


def test_a_narrow_range_far_from_zero_keeps_all_its_steps() -> None:
    """In single precision, 1e8 and 1e8 + 1 are the same number."""
    pixels = np.array([[0, 1, 2, 3]], np.int32)
    kept = run(pixels, "MR", RescaleSlope=1, RescaleIntercept=1e8)
    np.testing.assert_allclose(in_unit(kept).astype(float), 1e8 + pixels, atol=1e-4)
    assert len(np.unique(kept.pixels)) == 4


def test_whole_numbers_of_32_bits_keep_their_differences() -> None:
    pixels = np.array([[2_000_000_000, 2_000_000_001, 2_000_000_002]], np.uint32)
    kept = run(pixels, "NM")
    assert np.diff(in_unit(kept).astype(float)[0]).tolist() == pytest.approx([1, 1], abs=1e-4)


# ---- CT


def test_corners_outside_the_field_of_view_are_air() -> None:
    """-2000 and -3024 in HU, stated as padding or not, signed or written without a sign."""
    pixels = np.array([[-2000, -976, 1024, 4095]], np.int16)
    for stated in ({}, {"PixelPaddingValue": -2000}):
        kept = run(pixels, "CT", RescaleSlope=1, RescaleIntercept=-1024, **stated)
        assert in_unit(kept).tolist() == [[-1024, -1024, 0, 3071]]
    unsigned = run(pixels.astype(np.uint16), "CT", RescaleSlope=1, RescaleIntercept=-1024)
    assert in_unit(unsigned).tolist() == [[-1024, -1024, 0, 3071]]


def test_padding_of_zero_is_air_even_where_zero_would_be_water() -> None:
    kept = run(np.array([[0, 40, 50]], np.uint16), "CT", RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=0)
    assert in_unit(kept).tolist() == [[-1024, 40, 50]]


def test_metal_on_an_extended_scale_stays_metal() -> None:
    pixels = np.array([[0, 1024, 4095]], np.uint16)
    kept = run(pixels, "CT", RescaleSlope=10, RescaleIntercept=-10240)
    assert in_unit(kept).tolist() == [[-1024, 0, 3071]]


def test_frames_of_an_enhanced_object_have_a_rescale_each() -> None:
    pixels = np.stack([gradient(dtype=np.uint16)] * 2)
    dataset = image(pixels, Modality="CT")
    groups = []
    for intercept in (-1024, -512):
        scale, group = pydicom.Dataset(), pydicom.Dataset()
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, intercept, "HU"
        group.PixelValueTransformationSequence = [scale]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    for frame, intercept in enumerate((-1024, -512)):
        kept = normalize(pixels[frame], FrameHeader(dataset, frame), "CT", None, "lumid")
        assert not isinstance(kept, Reject)
        np.testing.assert_array_equal(in_unit(kept), pixels[frame].astype(int) + intercept)


# ---- lookup tables


def lut(values: Any, first: int, bits: int, **elements: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values) % (1 << 16), first, bits])
    item.add_new("LUTData", "OW", np.asarray(values, "<u2").tobytes())
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def test_a_modality_lut_to_hounsfield_units() -> None:
    pixels = gradient(dtype=np.uint16, high=99)
    table = lut(np.arange(100) * 3, 0, 16, ModalityLUTType="HU")
    assert in_unit(run(pixels, "CT", ModalityLUTSequence=[table])).tolist() == (pixels * 3).tolist()
    other = lut(np.arange(100) * 3, 0, 16, ModalityLUTType="MGML")
    assert run(pixels, "CT", ModalityLUTSequence=[other]).unit == "a.u."
    broken = pydicom.Dataset()
    broken.ModalityLUTType = "HU"
    assert run(pixels, "CT", ModalityLUTSequence=[broken]).unit == "a.u."


def test_the_modality_lut_of_fluoroscopy_is_not_for_display() -> None:
    pixels = gradient(dtype=np.uint16, high=255)
    elements: dict[str, Any] = {
        "ModalityLUTSequence": [lut((np.arange(256) ** 2).astype(np.uint16), 0, 16)], "PixelIntensityRelationship": "LOG",
        "WindowCenter": 128, "WindowWidth": 256,
    }  # fmt: skip
    np.testing.assert_array_equal(
        run(pixels, "XA", **elements).pixels, run(pixels, "XA", WindowCenter=128, WindowWidth=256).pixels
    )
    assert not np.array_equal(run(pixels, "CR", **elements).pixels, run(pixels, "XA", **elements).pixels)


@pytest.mark.parametrize("signed", [True, False])
def test_a_voi_lut_agrees_with_pydicom(signed: bool) -> None:
    pixels = gradient(dtype=np.int16 if signed else np.uint16, high=1500) - (700 if signed else 0)
    pixels = pixels.astype(np.int16 if signed else np.uint16)
    curve = (4095 / (1 + np.exp(-(np.arange(1000) - 500) / 120))).astype(np.uint16)
    dataset = image(
        pixels, Modality="DX", VOILUTSequence=[lut(curve, -600 if signed else 200, 12)], WindowCenter=3, WindowWidth=9
    )
    dataset = parse(as_bytes(dataset))
    assert not isinstance(dataset, Reject)
    kept = normalize(pixels, FrameHeader(dataset, 0), "DX", None, "lumid")
    assert not isinstance(kept, Reject)
    np.testing.assert_allclose(in_unit(kept).astype(float), apply_voi_lut(pixels, dataset) / 4095, atol=1e-5)


def test_a_voi_lut_takes_values_after_the_modality_lut() -> None:
    pixels = gradient(dtype=np.uint16, high=400)
    table = lut(np.arange(401), (1 << 16) - 200, 16)  # its first input is -200, written without a sign
    kept = run(pixels, "DX", RescaleSlope=1, RescaleIntercept=-200, VOILUTSequence=[table])
    np.testing.assert_allclose(in_unit(kept).astype(float), pixels / 511, atol=1e-5)


def test_a_lut_that_overstates_its_depth_is_not_dark() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    kept = run(pixels, "CR", VOILUTSequence=[lut(np.arange(4096), 0, 16)])
    np.testing.assert_allclose(in_unit(kept).astype(float), pixels / 4095, atol=1e-5)


def test_a_broken_voi_lut_gives_way_to_the_window() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    broken = pydicom.Dataset()
    broken.LUTExplanation = "nothing else"
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    np.testing.assert_array_equal(
        run(pixels, "CR", VOILUTSequence=[broken], **window).pixels, run(pixels, "CR", **window).pixels
    )


# ---- projections


def test_a_window_that_leaves_nothing_to_be_seen_is_not_taken() -> None:
    pixels = gradient(dtype=np.uint16, high=900)
    kept = run(pixels, "DX", WindowCenter=50_000, WindowWidth=100)
    np.testing.assert_array_equal(kept.pixels, run(pixels, "DX").pixels)
    assert kept.pixels.max() == 65535


def test_padding_is_black_in_both_photometric_interpretations() -> None:
    pixels = gradient(dtype=np.uint16, high=4000) + 10
    pixels[:10] = 0
    for interpretation in ("MONOCHROME1", "MONOCHROME2"):
        kept = run(
            pixels, "MG", PixelPaddingValue=0, PhotometricInterpretation=interpretation, WindowCenter=2000, WindowWidth=4000
        )  # fmt: skip
        assert not kept.pixels[:10].any()
        assert kept.pixels[10:].any()


def test_one_inversion_where_two_are_stated() -> None:
    pixels = gradient(dtype=np.uint16, high=4095)
    once = run(pixels, "DX", PhotometricInterpretation="MONOCHROME1")
    twice = run(pixels, "DX", PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    alone = run(pixels, "DX", PresentationLUTShape="INVERSE")
    np.testing.assert_array_equal(once.pixels, twice.pixels)
    np.testing.assert_array_equal(once.pixels, alone.pixels)
    assert (once.unit, twice.unit) == ("display", "P-value")


def test_images_of_8_bits_stay_what_they_are() -> None:
    pixels = gradient(dtype=np.uint8, high=200)
    for modality in ("US", "SC", "OT", "CR", "DX"):
        np.testing.assert_array_equal(run(pixels, modality).pixels, pixels)
    np.testing.assert_array_equal(run(pixels, "CR", PhotometricInterpretation="MONOCHROME1").pixels, 255 - pixels)
    kept = run(pixels, "US", WindowCenter=100, WindowWidth=201)
    assert kept.pixels.dtype == np.uint8
    assert kept.pixels.max() == 255


def test_a_window_of_real_numbers_is_exact() -> None:
    pixels = gradient(dtype=np.float32, high=1000) / np.float32(1000)
    kept = run(pixels, "OT", WindowCenter=0.5, WindowWidth=1)
    np.testing.assert_allclose(in_unit(kept).astype(float), pixels, atol=1e-5)


def test_a_palette_in_big_endian_words() -> None:
    rng = np.random.default_rng(1)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    little = image(pixels, Modality="US", PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        little.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        little.add_new(
            f"{colour}PaletteColorLookupTableData", "OW", rng.integers(0, 65536, 256).astype("<u2").tobytes()
        )
    big = parse(as_bytes(little))
    assert not isinstance(big, Reject)
    for colour in ("Red", "Green", "Blue"):
        element = big[f"{colour}PaletteColorLookupTableData"]
        element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()
    big.set_original_encoding(False, False, "iso8859")
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    kept = normalize(pixels, FrameHeader(big, 0), "US", None, "lumid")
    assert not isinstance(kept, Reject)
    expected = apply_color_lut(pixels, little)[..., :3] >> 8
    np.testing.assert_array_equal(kept.pixels, expected.astype(np.uint8))


# ---- PET


def pet(injection: dict[str, Any] | None = None, **changes: Any) -> pydicom.FileDataset:
    """400 MBq for 80 kg, injected at 10:00:00, series and acquisition at 11:00:00, half-life 6586.2 s."""
    given_ = {
        "RadionuclideTotalDose": 400e6, "RadionuclideHalfLife": 6586.2, "RadiopharmaceuticalStartTime": "100000",
    } | (injection or {})  # fmt: skip
    item = pydicom.Dataset()
    for keyword, value in given_.items():
        if value is not None:
            setattr(item, keyword, value)
    elements = {
        "Modality": "PT", "Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START",
        "PatientWeight": 80, "SeriesDate": "20200101", "SeriesTime": "110000", "AcquisitionDate": "20200101",
        "AcquisitionTime": "110000", "RadiopharmaceuticalInformationSequence": [item],
        "RescaleSlope": 1, "RescaleIntercept": 0,
    }  # fmt: skip
    return image(gradient(dtype=np.uint16), **(elements | changes))


def factor(seconds: float) -> float:
    return float(80_000 / (400e6 * 2 ** (-seconds / 6586.2)))


@pytest.mark.parametrize(
    ("injection", "changes", "expected"),
    [
        ({}, {}, factor(3600)),
        ({}, {"AcquisitionTime": "112000"}, factor(3600)),  # a later bed: corrected to the series' time all the same
        ({}, {"SeriesTime": "110000.500000"}, None),  # series after the acquisition, and nothing to go back by
        ({"RadiopharmaceuticalStartDateTime": "20200101103000"}, {}, factor(1800)),
        ({"RadiopharmaceuticalStartDateTime": "20200101103000.5+0100"}, {}, factor(1799.5)),
        ({"RadiopharmaceuticalStartDateTime": "19990101103000"}, {}, factor(3600)),  # its date was not shifted
        ({"RadiopharmaceuticalStartDateTime": "20191231233000", "RadiopharmaceuticalStartTime": None},
         {"SeriesTime": "003000", "AcquisitionTime": "003000"}, factor(3600)),
        ({"RadiopharmaceuticalStartTime": "233000"}, {"SeriesTime": "003000", "AcquisitionTime": "003000"}, factor(3600)),
        ({"RadiopharmaceuticalStartTime": None}, {}, None),
        ({"RadiopharmaceuticalStartTime": None}, {"DecayCorrection": "ADMIN"}, factor(0)),
        ({"RadionuclideHalfLife": None}, {}, None),
        ({"RadionuclideTotalDose": 400}, {}, None),  # in MBq, which nothing says
        ({"RadionuclideTotalDose": 0}, {}, None),
        ({}, {"SeriesDate": None}, None),
        ({}, {"DecayCorrection": "NONE"}, None),
        ({}, {"CorrectedImage": ["DECY"]}, None),
        ({}, {"PatientWeight": None}, None),
        ({}, {"Units": "GML"}, 1.0),
        ({}, {"Units": "GML", "SUVType": "BW"}, 1.0),
        ({}, {"Units": "GML", "SUVType": "LBM"}, None),
        ({}, {"Units": "CM2ML"}, None),
        ({}, {"Units": "CNTS"}, None),
    ],
)  # fmt: skip
def test_suv_by_hand(injection: dict[str, Any], changes: dict[str, Any], expected: float | None) -> None:
    found = suv_factor(FrameHeader(pet(injection, **changes), 0))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_a_series_that_was_derived_later_goes_back_by_the_frame_reference_time() -> None:
    """A 200 s frame that began at 11:20:00, 20 minutes into a scan from 11:00:00; the series is of the next hour.

    The reference time is that of the mean activity of the frame. By the decay law, with 200 s of 6586.2 s half-life,
    the mean (1 - 2^(-200/6586.2)) / (ln 2 × 200/6586.2) = 0.989549 is reached after 99.824591 s.
    """
    mean = (1 - 2 ** (-200 / 6586.2)) / (np.log(2) * 200 / 6586.2)
    into_frame = -np.log2(mean) * 6586.2
    assert (mean, into_frame) == (pytest.approx(0.989549, abs=1e-6), pytest.approx(99.8246, abs=1e-4))
    late = pet(
        SeriesTime="123000", AcquisitionTime="112000", FrameReferenceTime=(1200 + into_frame) * 1000, ActualFrameDuration=200_000
    )  # fmt: skip
    assert suv_factor(FrameHeader(late, 0)) == pytest.approx(factor(3600), rel=1e-7)


def test_the_scan_time_of_ge_comes_before_that() -> None:
    late = pet(SeriesTime="123000", AcquisitionTime="112000")
    block = late.private_block(0x0009, "GEMS_PETD_01", create=True)
    block.add_new(0x0D, "DT", "20200101110000.00")
    assert suv_factor(FrameHeader(late, 0)) == pytest.approx(factor(3600), rel=1e-9)


@pytest.mark.parametrize(
    ("suv", "activity", "expected"),
    [
        ("0.000581", "2.5", 0.000581),
        ("0", "2.5", 2.5 * factor(3600)),
        (None, "2.5", 2.5 * factor(3600)),
        ("0", None, None),
    ],
)
@pytest.mark.parametrize("vr", ["DS", "UN"])
def test_counts_of_philips(suv: str | None, activity: str | None, expected: float | None, vr: str) -> None:
    dataset = pet(Units="CNTS")
    block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    for element, value in ((0x00, suv), (0x09, activity)):
        if value is not None:
            block.add_new(element, vr, value if vr == "DS" else value.encode() + b" " * (len(value) % 2))
    found = suv_factor(FrameHeader(dataset, 0))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-9))


def test_slices_without_suv_share_the_range_of_their_series() -> None:
    """Every PET slice has a slope of its own; in arbitrary units they must still compare."""
    pixels = gradient(dtype=np.int16, high=32767)
    frames = [
        header(pixels, Modality="PT", Units="CNTS", RescaleSlope=slope, RescaleIntercept=0) for slope in (0.5, 2.0)
    ]
    span = robust_range([frame_histogram(pixels, frame) for frame in frames])
    assert span is not None
    dim, bright = (normalize(pixels, frame, "PT", span, "lumid") for frame in frames)
    assert not isinstance(dim, Reject)
    assert not isinstance(bright, Reject)
    inside = (pixels > 1000) & (pixels < 30_000)
    np.testing.assert_allclose(in_unit(bright)[inside].astype(float), 4 * in_unit(dim)[inside].astype(float), rtol=2e-3)
