"""The rules of selection, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import Range
from lumid.pipeline.quality import Quality, measure
from lumid.pipeline.recipe import SelectSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.select import background, select_frame, select_object, select_values
from tests.dicom import gradient, image

STRICT = SelectSettings(derived="drop", secondary="drop")


def outcome(settings: SelectSettings = STRICT, stated: bool = True, **elements: Any) -> str:
    found = select_object(FrameHeader(image(gradient(), **elements), 0), settings, stated=stated)
    return found.code if isinstance(found, Reject) else "taken"


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, "taken"),
        ({"ImageType": None}, "taken"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "Modality": "MR", "SeriesDescription": "3-plane loc"}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"], "Modality": "MR", "ProtocolName": "AAHead_Scout_64ch"}, "localizer"),
        ({"Modality": "MR", "SeriesDescription": "Survey"}, "localizer"),
        ({"Modality": "MR", "SeriesDescription": "T1 ax local shim"}, "taken"),
        ({"Modality": "CT", "SeriesDescription": "Scouting lesion follow up"}, "taken"),
        ({"Modality": "CR", "SeriesDescription": "scout view of the abdomen"}, "taken"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "report_page"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, "report_page"),
        ({"ImageType": ["DERIVED", "SECONDARY", "RESULTS"], "SeriesDescription": "Exam Summary"}, "report_page"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"],
          "SeriesDescription": "Dose Report"}, "report_page"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"], "SeriesDescription": "Exam Summary"}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDescription": "low dose info thorax"}, "taken"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY"]}, "secondary_capture"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": None, "Modality": "US"}, "secondary_capture"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["ORIGINAL", "PRIMARY"]}, "taken"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION"]}, "derived"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"], "Modality": "MR"}, "derived"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "LossyImageCompression": "01"}, "taken"),
        ({"ImageType": ["DERIVED", "PRIMARY"], "Modality": "DX"}, "taken"),
        ({"ImageType": ["DERIVED", "PRIMARY"], "Modality": "US"}, "taken"),
        ({"ImageType": ["DERIVED", "SECONDARY"], "Modality": "DX"}, "derived"),
    ],
)  # fmt: skip
def test_objects(elements: dict[str, Any], expected: str) -> None:
    assert outcome(**elements) == expected
    if expected in ("derived", "secondary_capture"):
        assert outcome(SelectSettings(), **elements) == "taken"
    if expected == "localizer":
        assert outcome(SelectSettings(localizers=True), **elements) == "taken"


def test_an_image_in_another_format_says_nothing_of_what_it_is() -> None:
    elements = {"SOPClassUID": SecondaryCaptureImageStorage, "ImageType": ["DERIVED", "SECONDARY"]}
    assert outcome(stated=False, **elements) == "taken"


def test_values_that_nothing_can_have() -> None:
    def reason(unit: str, p01: float, p50: float, **settings: Any) -> str | None:
        found = select_values(unit, p01, p50, SelectSettings(**settings))
        return found.code if found else None

    assert reason("HU", -1024, 40) is None
    assert reason("HU", 35, 45) is None  # a crop of the liver
    assert reason("HU", 0, 1064) is None  # raw values without an intercept may be a dense phantom: conservative
    assert reason("HU", 900, 1100) == "implausible"
    assert reason("HU", -1024, 3071) == "implausible"
    assert reason("HU", 900, 1100, implausible="take") is None
    assert reason("SUVbw", 0, 3.0) is None
    assert reason("SUVbw", 0, 65.5) == "implausible"
    assert reason("a.u.", 900, 3000) is None


def test_blank_is_what_only_has_a_background() -> None:
    rng = np.random.default_rng(0)

    def reason(pixels: np.ndarray, floor: float | None, **settings: Any) -> str | None:
        found = select_frame(measure(pixels, floor or 0.0), SelectSettings(**settings))
        return found.code if found else None

    air = np.clip(rng.normal(24, 15, (64, 64)), 0, 4095).astype(np.uint16)
    hu = background("HU", None)
    assert hu is not None
    assert reason(air, hu + 1024) == "blank"
    lungs = np.clip(rng.normal(174, 30, (64, 64)), 0, 4095).astype(np.uint16)  # -850 HU
    assert reason(lungs, hu + 1024) is None
    noise = rng.integers(0, 900, (64, 64)).astype(np.uint16)  # of a series whose brightest is 65535
    assert reason(noise, background("a.u.", Range(0, 65535))) == "blank"
    assert reason(noise, background("display", None)) is None
    white = np.full((64, 64), 255, np.uint8)
    white[0, :3] = 0
    assert reason(white, None) == "blank"
    assert reason(white, None, min_foreground=0.0) is None
    assert select_frame(Quality(0, 0, 0, 0, 0, 0, constant=True), SelectSettings()) == Reject("select", "constant")
