"""Geometry and de-identification: what a header may say in a catalog, and that nothing else gets through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.deidentify import acquisition, identify, modality_of, text_risk
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import geometry, plane_of
from tests.dicom import TEST_FILES, gradient, image

KEYER = Keyer(PUBLIC_SECRET)


def header(**elements: Any) -> FrameHeader:
    return FrameHeader(image(gradient(), **elements), 0)


def test_planes() -> None:
    assert plane_of([1, 0, 0, 0, 1, 0]) == "axial"
    assert plane_of([1, 0, 0, 0, 0, -1]) == "coronal"
    assert plane_of([0, 1, 0, 0, 0, -1]) == "sagittal"
    half = float(np.sqrt(0.5))
    assert plane_of([1, 0, 0, 0, half, half]) == "oblique"
    assert plane_of([0, 0, 0, 0, 0, 0]) is None
    assert plane_of([1, 0, 0]) is None


def test_position_is_along_the_normal() -> None:
    found = geometry(
        header(
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[5, 6, -120.5],
            PixelSpacing=[0.7, 0.8],
            SliceThickness=2.5,
        ),
        "CT",
    )
    assert (found.plane, found.slice_position, found.spacing_row, found.spacing_column, found.slice_thickness) == (
        "axial",
        -120.5,
        0.7,
        0.8,
        2.5,
    )


def test_spacing_of_a_projection_comes_from_the_detector_when_that_is_all_there_is() -> None:
    assert geometry(header(ImagerPixelSpacing=[0.15, 0.15]), "DX").spacing_row == 0.15
    assert geometry(header(ImagerPixelSpacing=[0.15, 0.15], PixelSpacing=[0.1, 0.1]), "DX").spacing_row == 0.1
    assert geometry(header(ImagerPixelSpacing=[0.15, 0.15]), "CT").spacing_row is None
    assert geometry(header(PixelSpacing=[0, 0]), "CT").spacing_row is None


@pytest.mark.parametrize(
    ("elements", "column", "value"),
    [
        ({"BodyPartExamined": "Thorax"}, "body_part", "CHEST"),
        ({"BodyPartExamined": "head_neck"}, "body_part", "HEADNECK"),
        ({"BodyPartExamined": "CHEST J.SMITH 12/03/1961"}, "body_part", None),
        ({"Manufacturer": "GE MEDICAL SYSTEMS / MIM Software"}, "manufacturer", "GE"),
        ({"Manufacturer": "GENERAL HOSPITAL OF SMITHTOWN"}, "manufacturer", None),
        ({"Manufacturer": "Philips Medical Systems"}, "manufacturer", "Philips"),
        ({"ManufacturerModelName": "SOMATOM DEFINITION"}, "model_name", "SOMATOM Definition"),
        ({"ManufacturerModelName": "Dr Smith's scanner"}, "model_name", None),
        ({"ConvolutionKernel": "B30f"}, "kernel", "B30f"),
        ({"ConvolutionKernel": ["Br40d", "3"]}, "kernel", "Br40d\\3"),
        ({"ConvolutionKernel": "STANDARD"}, "kernel", "STANDARD"),
        ({"ConvolutionKernel": "SMITH"}, "kernel", None),
        ({"ScanningSequence": ["SE", "IR"]}, "sequence", "SE\\IR"),
        ({"EchoPulseSequence": "GRADIENT"}, "sequence", "GR"),
        ({"PatientAge": "045Y"}, "age_years", 45),
        ({"PatientAge": "095Y"}, "age_years", 90),
        ({"PatientAge": "018M"}, "age_years", 1),
        ({"PatientAge": "200Y"}, "age_years", None),
        ({"PatientBirthDate": "19600615", "StudyDate": "20200614"}, "age_years", 59),
        ({"PatientBirthDate": "19600615", "StudyDate": "20200615"}, "age_years", 60),
        ({"PatientSex": "f"}, "sex", "F"),
        ({"PatientSex": "unknown"}, "sex", None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "DR SMITH"]}, "image_type", "ORIGINAL\\PRIMARY\\AXIAL"),
        ({"ImageType": ["SMITH", "PRIMARY"]}, "image_type", None),
        ({"ContrastBolusAgent": "OMNIPAQUE for J Smith"}, "contrast", True),
        ({"ContrastBolusAgent": "NONE"}, "contrast", False),
        ({}, "contrast", None),
        ({"MagneticFieldStrength": 15000}, "field_strength", 1.5),
        ({"KVP": 120}, "kvp", 120.0),
        ({"KVP": 1e9}, "kvp", None),
        ({"ViewPosition": "PA"}, "view_position", "PA"),
        ({"ViewPosition": "PA SMITH"}, "view_position", None),
    ],
)  # fmt: skip
def test_each_column_has_its_sanitiser(elements: dict[str, Any], column: str, value: object) -> None:
    assert getattr(acquisition(header(**elements), "CT"), column) == value


FREE_TEXT = ("BodyPartExamined", "Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "ScanningSequence", "PatientAge", "PatientSex", "ImageType", "ViewPosition", "ImageLaterality", "PhotometricInterpretation", "PatientBirthDate", "StudyDate")  # fmt: skip


@given(
    st.text(st.characters(blacklist_categories=("Cs",)), min_size=4, max_size=30).map(lambda text: "Zq" + text),
    st.sampled_from(FREE_TEXT),
)
def test_no_free_text_gets_through(text: str, keyword: str) -> None:
    found = acquisition(header(**{keyword: text}), "CT")
    for name in found.__slots__:
        assert text not in str(getattr(found, name))


def test_modality_from_the_storage_class_when_it_is_not_stated() -> None:
    assert modality_of(header(Modality=None)) == "CT"
    assert modality_of(header(Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")) == "SC"
    assert modality_of(header(Modality="SMITH")) is None


def test_patients_are_told_apart_by_collection_or_by_issuer() -> None:
    def patient(collection: str, policy: str, **elements: Any) -> str:
        return identify(header(**elements), KEYER, collection=collection, policy=policy, source_id="x").patient

    assert patient("a", "public") != patient("b", "public")
    assert patient("a", "private") == patient("b", "private")
    assert patient("a", "private", IssuerOfPatientID="one") != patient("a", "private", IssuerOfPatientID="two")
    assert patient("a", "public", PatientID=None) == patient("b", "public", PatientID=None)  # by study then


def test_pseudonyms_hold_nothing_of_what_they_stand_for() -> None:
    found = identify(header(PatientID="4711"), KEYER, collection="c", policy="public", source_id="x")
    assert "4711" not in found.patient
    assert len({found.patient, found.study, found.series, found.instance}) == 4


@pytest.mark.parametrize(
    ("policy", "elements", "expected"),
    [
        ("public", {"BurnedInAnnotation": "YES"}, "stated"),
        ("public", {"BurnedInAnnotation": "NO"}, "none"),
        ("public", {}, "unknown"),
        ("public", {"Modality": "US", "BurnedInAnnotation": "NO"}, "search"),
        ("public", {"Modality": "SC"}, "search"),
        ("public", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "MG"}, "search"),
        ("private", {}, "search"),
        ("private", {"BurnedInAnnotation": "NO"}, "search"),
        ("private", {"Modality": "US"}, "search"),
        ("public", {"PhotometricInterpretation": "RGB"}, "search"),
        ("public", {"Modality": "XA", "ImageType": ["DERIVED", "SECONDARY"]}, "search"),
        ("public", {"Modality": "XA", "ImageType": ["ORIGINAL", "PRIMARY"]}, "unknown"),
    ],
)  # fmt: skip
def test_what_is_done_about_text_in_pixels(policy: str, elements: dict[str, Any], expected: str) -> None:
    one = header(**elements)
    acquired = acquisition(one, elements.get("Modality", "CT"))
    assert text_risk(one, acquired, policy) == expected
    assert text_risk(one, acquired, policy, marked=True) == ("stated" if expected == "stated" else "search")


def test_a_real_header() -> None:
    dataset = pydicom.dcmread(TEST_FILES / "CT_small.dcm")
    found = acquisition(FrameHeader(dataset, 0), "CT")
    assert (found.manufacturer, found.model_name, found.kvp, found.sex, found.image_type) == (
        "GE",
        "RHAPSODE",
        120.0,
        "O",
        "ORIGINAL\\PRIMARY\\AXIAL",
    )


def test_a_secondary_capture_of_ct_is_not_ct() -> None:
    capture = "1.2.840.10008.5.1.4.1.1.7"
    assert modality_of(header(SOPClassUID=capture)) == "SC"
    assert modality_of(header(SOPClassUID=capture, ImageType=["DERIVED", "PRIMARY"])) == "CT"
    assert modality_of(header(SOPClassUID=capture, Modality="MG")) == "MG"  # films that were scanned
