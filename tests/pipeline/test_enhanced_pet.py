"""SUV of multi-frame PET, by hand: the enhanced object, which says things its own way, and the one made of old images."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset

from lumid.catalog.codecs import decode
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize import uses_series_range
from lumid.pipeline.normalize.pet import suv_scale
from tests.dicom import as_bytes, gradient, image
from tests.pipeline.test_ingest import reasons, run
from tests.pipeline.test_intensities import pet

quiet_libraries()
ENHANCED, LEGACY = "1.2.840.10008.5.1.4.1.1.130", "1.2.840.10008.5.1.4.1.1.128.1"
SLOPES = (0.5, 2.0, 8.0)
"""Bq/ml a stored value, frame by frame."""
PIXELS = np.stack([gradient(dtype=np.int16, high=high) for high in (30_000, 20_000, 10_000)])


def per_becquerel(elapsed_s: float, dose_mbq: float = 350, half_life_s: float = 6586.2) -> float:
    """SUVbw of 1 Bq/ml in 70 kg: weight in g / (dose in Bq × 2^(-elapsed / half-life))."""
    return 70_000 / (dose_mbq * 1e6 * 2 ** (-elapsed_s / half_life_s))


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def mapping(slope: float, unit: str = "Bq/ml", intercept: float = 0.0, **elements: Any) -> Dataset:
    code = item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning="a unit")
    return item(
        RealWorldValueSlope=slope, RealWorldValueIntercept=intercept, RealWorldValueFirstValueMapped=0,
        RealWorldValueLastValueMapped=32767, MeasurementUnitsCodeSequence=[code], **elements,
    )  # fmt: skip


def agent(number: int = 1, **elements: Any) -> Dataset:
    """350 MBq at 10:00."""
    return item(
        **{"RadiopharmaceuticalAgentNumber": number, "RadiopharmaceuticalStartDateTime": "20200101100000",
           "RadionuclideTotalDose": 350, "RadionuclideHalfLife": 6586.2} | elements
    )  # fmt: skip


def enhanced(**elements: Any) -> FileDataset:
    """Three frames of Bq/ml, corrected to 10:50. Their rescale (100 a step) is not what they are measured in."""
    groups = [
        item(
            PixelValueTransformationSequence=[item(RescaleSlope=100, RescaleIntercept=0, RescaleType="US")],
            RealWorldValueMappingSequence=[mapping(slope)],
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3.0 * number])],
        )
        for number, slope in enumerate(SLOPES)
    ]
    shared = item(
        RadiopharmaceuticalUsageSequence=[item(RadiopharmaceuticalAgentNumber=1)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[2, 2], SliceThickness=3)],
    )
    values = {
        "SOPClassUID": ENHANCED, "Modality": "PT", "PatientWeight": 70, "DecayCorrected": "YES", "AttenuationCorrected": "YES",
        "DecayCorrectionDateTime": "20200101105000", "RadiopharmaceuticalInformationSequence": [agent()],
        "PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": [shared],
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
    }  # fmt: skip
    return image(PIXELS, **(values | elements))


def scales(dataset: FileDataset) -> list[float | None]:
    """SUVbw of one stored step of each frame; None where there is no SUV."""
    found = [suv_scale(FrameHeader(dataset, frame)) for frame in range(3)]
    assert all(one is None or one.units.intercept == 0 for one in found)
    return [one and one.units.slope * one.factor for one in found]


def test_frames_become_suv_by_their_own_mapping(tmp_path: Path) -> None:
    """From the file to the stored sample: half a step of 0.001 SUV away from the hand's value, at most."""
    (tmp_path / "a").write_bytes(as_bytes(enhanced()))
    result = run(tmp_path)
    assert len(result.samples) == 3
    for sample in result.samples:
        row, frame = sample.row, sample.row.frame
        assert (row.intensity_unit, row.store_slope, row.store_intercept) == ("SUVbw", 0.001, 0.0)
        expected = PIXELS[frame] * SLOPES[frame] * per_becquerel(3000)
        assert 1 < expected.max() < 65
        away = decode(sample.image, row.codec) * row.store_slope + row.store_intercept - expected
        assert np.abs(away).max() <= 0.0005 + 1e-9
        assert row.slice_index == frame


def change(frame: int | None, **elements: Any) -> Callable[[FileDataset], None]:
    """Set elements of a frame's functional groups, of the shared ones (-1), or of the object (None); None removes."""

    def apply(dataset: FileDataset) -> None:
        groups: Any = dataset
        if frame is not None:
            shared = dataset.SharedFunctionalGroupsSequence[0]
            groups = shared if frame < 0 else dataset.PerFrameFunctionalGroupsSequence[frame]
        for keyword, value in elements.items():
            if value is None:
                delattr(groups, keyword)
            else:
                setattr(groups, keyword, value)

    return apply


def of(agents: list[Dataset], *used: int) -> Callable[[FileDataset], None]:
    """Several agents, and which of them the frames show."""

    def apply(dataset: FileDataset) -> None:
        dataset.RadiopharmaceuticalInformationSequence = agents
        dataset.SharedFunctionalGroupsSequence[0].RadiopharmaceuticalUsageSequence = [
            item(RadiopharmaceuticalAgentNumber=number) for number in used
        ]

    return apply


TWO = [agent(), agent(2, RadionuclideTotalDose=700, RadionuclideHalfLife=1223.4, RadiopharmaceuticalStartDateTime="20200101104000")]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (change(None), per_becquerel(3000)),
        (change(None, DecayCorrectionDateTime="20200101100000"), per_becquerel(0)),
        (change(None, DecayCorrectionDateTime="20200102000000.5"), per_becquerel(14 * 3600 + 0.5)),
        (of([agent(RadiopharmaceuticalStartDateTime="20200101100000+0100")], 1), per_becquerel(3000)),  # one zone alone
        (change(None, DecayCorrectionDateTime="20200101105000+0000",
                RadiopharmaceuticalInformationSequence=[agent(RadiopharmaceuticalStartDateTime="20200101100000-0030")]),
         per_becquerel(1200)),
        (change(None, DecayCorrectionDateTime="20200101095959"), None),  # before the injection
        (change(None, DecayCorrectionDateTime="20250101105000"), None),  # one of the two dates was shifted
        (change(None, DecayCorrectionDateTime="20200101"), None),
        (change(None, DecayCorrectionDateTime=None), None),
        (change(None, DecayCorrected="NO"), None),
        (change(None, AttenuationCorrected=None), None),
        (change(None, PatientWeight=None), None),
        (of([agent(RadionuclideTotalDose=350e6)], 1), None),  # the standard says MBq
        (of([agent(RadionuclideTotalDose=None)], 1), None),
        (of([agent(RadionuclideHalfLife=None)], 1), None),
        (of([agent(RadiopharmaceuticalStartDateTime=None)], 1), None),
        (of(TWO, 1), per_becquerel(3000)),
        (of(TWO, 2), per_becquerel(600, 700, 1223.4)),
        (of(TWO, 1, 2), None),
        (of(TWO, 3), None),
        (of(TWO), None),  # of two agents, and no word of which
        (change(-1, RadiopharmaceuticalUsageSequence=None), per_becquerel(3000)),  # there is only one
    ],
)  # fmt: skip
def test_suv_of_activity_by_hand(changed: Callable[[FileDataset], None], expected: float | None) -> None:
    dataset = enhanced()
    changed(dataset)
    wanted = [None if expected is None else pytest.approx(slope * expected, rel=1e-12) for slope in SLOPES]
    assert scales(dataset) == wanted
    assert uses_series_range(FrameHeader(dataset, 0), "PT") == (expected is None)


@pytest.mark.parametrize(
    ("mappings", "expected"),
    [
        ([mapping(0.01, "g/ml{SUVbw}")], 0.01),  # needs neither dose nor weight
        ([mapping(0.01, "{SUVbw}g/ml")], 0.01),
        ([mapping(3.0), mapping(0.01, "g/ml{SUVbw}"), mapping(0.02, "g/ml{SUVlbm}")], 0.01),
        ([mapping(0.02, "g/ml{SUVlbm}"), mapping(3.0)], 3.0 * per_becquerel(3000)),
        ([mapping(0.02, "g/ml{SUVlbm}")], None),
        ([mapping(0.01, "g/ml")], None),  # by which weight?
        ([mapping(1.0, "{counts}/s")], None),
        ([mapping(3.0), mapping(4.0)], None),  # a mapping for each of two ranges is not affine
        ([item(MeasurementUnitsCodeSequence=mapping(1).MeasurementUnitsCodeSequence, RealWorldValueLUTData=[0.0, 1.0])], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_unit_is_that_of_the_mapping(mappings: list[Dataset], expected: float | None) -> None:
    dataset = enhanced()
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.RealWorldValueMappingSequence = mappings
    assert scales(dataset) == [None if expected is None else pytest.approx(expected, rel=1e-12)] * 3
    if expected == 0.01:
        del dataset.PatientWeight, dataset.RadiopharmaceuticalInformationSequence
        assert scales(dataset) == [0.01] * 3


def test_an_intercept_of_the_mapping_counts() -> None:
    dataset = enhanced()
    dataset.PerFrameFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping(2.0, intercept=-5.0)]
    scale = suv_scale(FrameHeader(dataset, 0))
    assert scale is not None
    assert scale.units(np.array([10.0])) * scale.factor == pytest.approx(15 * per_becquerel(3000))


@pytest.mark.parametrize(
    ("kind", "expected"), [("BQML", 100 * per_becquerel(3000)), ("US", None), ("GML", None), ("PROPCNTS", None)]
)
def test_without_a_mapping_the_rescale_type_may_say_it(kind: str, expected: float | None) -> None:
    dataset = enhanced()
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.RealWorldValueMappingSequence
        group.PixelValueTransformationSequence[0].RescaleType = kind
    assert scales(dataset) == [None if expected is None else pytest.approx(expected, rel=1e-12)] * 3


def test_an_object_has_one_scale(tmp_path: Path) -> None:
    """One frame has no SUV: all are relative to the series, and none is lost."""
    dataset = enhanced()
    del dataset.PerFrameFunctionalGroupsSequence[1].RealWorldValueMappingSequence
    (tmp_path / "a").write_bytes(as_bytes(dataset))
    result = run(tmp_path)
    assert [sample.row.intensity_unit for sample in result.samples] == ["a.u."] * 3
    assert len({sample.row.store_slope for sample in result.samples}) == 1
    assert reasons(result) == {}


# ---- legacy converted


CLASSIC = (
    "Units", "CorrectedImage", "DecayCorrection", "RadiopharmaceuticalInformationSequence", "SUVType",
)  # fmt: skip
OF_A_FRAME = ("FrameReferenceTime",)


def converted(*images: FileDataset) -> FileDataset:
    """Single images as one legacy converted object; what it has no place for goes where the standard sends it.

    Acquisition date, time and duration become those of the frames; private elements go with the unassigned.
    """
    first = images[0]
    shared, groups = Dataset(), []
    for keyword in CLASSIC:
        if keyword in first:
            shared[keyword] = first[keyword]
    for element in first:
        if element.tag.is_private:
            shared.add(element)
    for one in images:
        frame = item(
            PixelValueTransformationSequence=[item(RescaleSlope=one.get("RescaleSlope", 1), RescaleIntercept=0, RescaleType="US")],
            FrameContentSequence=[item(FrameAcquisitionDateTime=one.AcquisitionDate + one.AcquisitionTime)],
        )  # fmt: skip
        if "ActualFrameDuration" in one:
            frame.FrameContentSequence[0].FrameAcquisitionDuration = float(one.ActualFrameDuration)
        unassigned = Dataset()
        for keyword in OF_A_FRAME:
            if keyword in one:
                unassigned[keyword] = one[keyword]
        frame.UnassignedPerFrameConvertedAttributesSequence = [unassigned]
        groups.append(frame)
    return image(
        np.stack([one.pixel_array for one in images]), SOPClassUID=LEGACY, Modality="PT", SeriesDate=first.SeriesDate,
        SeriesTime=first.SeriesTime, PatientWeight=first.get("PatientWeight"), PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[item(UnassignedSharedConvertedAttributesSequence=[shared])],
    )  # fmt: skip


def with_private(dataset: FileDataset, group: int, creator: str, element: int, vr: str, value: str) -> FileDataset:
    dataset.private_block(group, creator, create=True).add_new(element, vr, value)
    return dataset


LATER = {"SeriesTime": "123000", "AcquisitionTime": "112000"}


@pytest.mark.parametrize(
    "one",
    [
        pet(RescaleSlope=2.5),
        pet(RescaleSlope=2.5, DecayCorrection="ADMIN"),
        pet(Units="GML"),
        pet(Units="GML", SUVType="LBM"),
        pet(**LATER, FrameReferenceTime=1_300_000, ActualFrameDuration=200_000),
        pet(**LATER),
        with_private(pet(**LATER), 0x0009, "GEMS_PETD_01", 0x0D, "DT", "20200101110000.00"),
        with_private(pet(Units="CNTS"), 0x7053, "Philips PET Private Group", 0x00, "DS", "0.000581"),
        pet(Units="CNTS"),
        pet(PatientWeight=None),
    ],
    ids=["start", "admin", "suv", "lean", "derived later", "unknown start", "GE", "Philips", "counts", "no weight"],
)
def test_a_converted_object_has_the_suv_of_its_images(one: FileDataset) -> None:
    other = deepcopy(one)
    other.RescaleSlope = 7
    made = converted(one, other)
    for frame, single in enumerate((one, other)):
        assert suv_scale(FrameHeader(made, frame)) == suv_scale(FrameHeader(single, 0))


def test_the_cases_of_converted_objects_are_not_all_the_same() -> None:
    """What the test above compares: an absent SUV would be equal too."""
    assert (
        suv_scale(FrameHeader(pet(**LATER, FrameReferenceTime=1_300_000, ActualFrameDuration=200_000), 0)) is not None
    )
    assert suv_scale(FrameHeader(pet(**LATER), 0)) is None
    assert suv_scale(FrameHeader(converted(pet(**LATER)), 0)) is None
    made = with_private(pet(Units="CNTS"), 0x7053, "Philips PET Private Group", 0x00, "DS", "0.000581")
    scale = suv_scale(FrameHeader(converted(made), 0))
    assert scale is not None
    assert scale.factor == 0.000581
