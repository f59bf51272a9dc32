"""Which objects and frames are taken, and the reason for each that is not."""

from __future__ import annotations

import re

from lumid.pipeline.decode import ImageSize, pixel_element
from lumid.pipeline.deidentify import is_secondary_capture, modality_of
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import Range
from lumid.pipeline.quality import Quality
from lumid.pipeline.recipe import SelectSettings
from lumid.pipeline.reject import Reject

NON_IMAGES = frozenset(
    {"SR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "PR", "KO", "REG", "FID", "ECG", "HD", "EPS", "AU", "DOC", "PLAN",
     "RWV", "ANN", "M3D", "STAIN", "SMR", "TEXTUREMAP", "RESP", "EEG", "EMG", "EOG", "ASMT"}
)  # fmt: skip
"""Modalities of objects that hold no image of a patient (PS3.3 C.7.3.1.1.1)."""

NON_IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.9.",      # waveforms
    "1.2.840.10008.5.1.4.1.1.11.",     # presentation states
    "1.2.840.10008.5.1.4.1.1.66",      # raw data, registrations, segmentations
    "1.2.840.10008.5.1.4.1.1.67",      # real world value mapping
    "1.2.840.10008.5.1.4.1.1.88.",     # structured reports
    "1.2.840.10008.5.1.4.1.1.104.",    # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481.2",   # RT dose
    "1.2.840.10008.5.1.4.1.1.481.3",   # RT structure set
    "1.2.840.10008.5.1.4.1.1.481.5",   # RT plan
    "1.2.840.10008.5.1.4.39.",         # colour palettes
)  # fmt: skip
"""Storage classes, by how their UIDs begin, that hold no image of a patient (PS3.4 B.5)."""


LOCALIZERS = frozenset({"LOCALIZER", "SCOUT", "SCANOGRAM", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"})
LOCALIZER_NAMES = re.compile(
    r"(?:^|[^a-z])(?:locali[sz]ers?|scouts?|topograms?|surviews?|scanograms?|survey|(?:3|three)[ _-]?pl(?:ane)?[ _-]?loc)(?:[^a-z]|$)",
    re.IGNORECASE,
)
"""What makers call a localizer in the name of its series, where ImageType does not say it: most do so for MR."""
NAMES_OF_A_SERIES = "SeriesDescription", "ProtocolName"

REPORT_PAGES = frozenset({"PATIENT_INFO", "DOSE_INFO", "DOSE", "DOSE_REPORT", "DOSE REPORT", "PROTOCOL"})
"""Values of ImageType that makers give to screens of text; Siemens writes the name of the software before PROT."""
REPORT_NAMES = re.compile(
    r"(?:^|[^a-z])(?:dose[ _-]*(?:report|record|info|summary|sheet|page)|(?:patient|exam)[ _-]*protocol|exam[ _-]*summary)(?:[^a-z]|$)",
    re.IGNORECASE,
)

PROCESSED_BY_NATURE = frozenset({"CR", "DX", "MG", "XA", "RF", "US"})
AIR_HU, ALL_BONE_HU, DENSEST_HU = -900.0, 300.0, 2000.0
EMPTY_SUV, ABSURD_SUV = 0.05, 25.0
FAINTEST_SHARE = 0.02
MOST_SHOWN = 99_999.0


def is_image(header: FrameHeader) -> Reject | None:
    """None for an object that holds an image, else ``not_an_image`` or ``no_pixel_data``."""
    if header.term("Modality") in NON_IMAGES or header.term("SOPClassUID").startswith(NON_IMAGE_CLASSES):
        return Reject(
            "select", "not_an_image", header.term("Modality") if header.term("Modality") in NON_IMAGES else ""
        )
    return None if pixel_element(header.dataset) else Reject("decode", "no_pixel_data")


def select_object(header: FrameHeader, settings: SelectSettings, *, stated: bool = True) -> str | Reject:
    """The modality of an object that the recipe takes, or the reason why it does not.

    ``stated``: false of an image in another format, whose header says nothing of what it is.
    """
    modality = modality_of(header)
    if modality is None:
        return Reject("select", "unsupported_modality")
    if modality not in settings.modalities:
        return Reject("select", "modality_not_selected", modality)
    if is_report_page(header):
        return Reject("select", "report_page")
    if not settings.localizers and is_localizer(header):
        return Reject("select", "localizer")
    if stated and settings.secondary == "drop" and is_secondary(header):
        return Reject("select", "secondary_capture")
    if stated and settings.derived == "drop" and is_derived(header):
        return Reject("select", "derived")
    return modality


def is_report_page(header: FrameHeader) -> bool:
    """Whether an object is a screen of text: by ImageType, or a secondary image by the name of its series."""
    kinds = header.terms("ImageType")
    if any(kind in REPORT_PAGES or kind.endswith(" PROT") for kind in kinds):
        return True
    if any(kind in LOCALIZERS for kind in kinds):  # a summary of an examination holds its scout too
        return False
    return (is_secondary(header) or is_derived(header)) and REPORT_NAMES.search(
        header.term("SeriesDescription")
    ) is not None


def is_localizer(header: FrameHeader) -> bool:
    """Whether an object is a localizer or scout: by ImageType, or by the name of a tomographic series."""
    if any(kind in LOCALIZERS for kind in header.terms("ImageType")):
        return True
    if header.term("Modality") not in ("CT", "MR", "PT"):
        return False
    return any(LOCALIZER_NAMES.search(header.term(keyword)) for keyword in NAMES_OF_A_SERIES)


def is_secondary(header: FrameHeader) -> bool:
    """Whether an image is a secondary capture, of that class and not said to be primary (PS3.3 A.8, C.7.6.1.1.2)."""
    return is_secondary_capture(header) and header.terms("ImageType")[1:2] != ["PRIMARY"]


def is_derived(header: FrameHeader) -> bool:
    """Whether an image was computed from others, or made after the examination (PS3.3 C.7.6.1.1.2).

    A projection or ultrasound image that is called derived is mostly the one that there is, processed to be looked at;
    and every image must be called so once it is compressed with losses.
    """
    kinds = header.terms("ImageType")
    if kinds[1:2] == ["SECONDARY"]:
        return True
    usual = header.term("Modality") in PROCESSED_BY_NATURE or is_secondary_capture(header)
    return kinds[:1] == ["DERIVED"] and not usual and header.term("LossyImageCompression") != "01"


def select_size(size: ImageSize, settings: SelectSettings) -> Reject | None:
    """``too_small`` for an image whose short side is below the recipe's."""
    if min(size.rows, size.columns) < settings.min_side:
        return Reject("select", "too_small", f"{size.rows} × {size.columns}")
    return None


def background(unit: str, span: Range | None) -> float | None:
    """The value in ``unit`` up to which there is only background, whatever else is in the image; None where none is known.

    Air in CT; no uptake in PET; in units of a series' own, 2 % of the way along its range. A slice of nothing but air or
    noise fills its own range, so that only an absolute value can tell.
    """
    if unit == "HU":
        return AIR_HU
    if unit == "SUVbw":
        return EMPTY_SUV
    return None if span is None else span.low + FAINTEST_SHARE * (span.high - span.low)


def select_frame(quality: Quality, settings: SelectSettings) -> Reject | None:
    """``constant`` or ``blank`` for a frame with nothing in it."""
    if quality.constant:
        return Reject("select", "constant")
    if settings.min_foreground > 0 and quality.p01 == quality.p99:
        return Reject("select", "blank", "99 % of it is of one value")
    if quality.foreground_fraction < settings.min_foreground:
        return Reject("select", "blank", f"foreground {quality.foreground_fraction:.4f}")
    return None


def select_values(unit: str, p01: float, p50: float, settings: SelectSettings) -> Reject | None:
    """``implausible`` for values on an absolute scale that nothing which is imaged can have.

    ``p01``, ``p50``: percentiles in ``unit``. CT: 99 % of a slice denser than any soft tissue, with contrast or without,
    or half of it denser than compact bone. PET: half of a slice, which always holds air, above 25 SUV.
    """
    if settings.implausible == "take":
        return None
    if unit == "HU" and (p01 > ALL_BONE_HU or p50 > DENSEST_HU):
        return Reject("select", "implausible", f"median {_shown(p50):.0f} HU, 1 % below {_shown(p01):.0f}")
    if unit == "SUVbw" and p50 > ABSURD_SUV:
        return Reject("select", "implausible", f"median SUV {_shown(p50):.1f}")
    return None


def _shown(value: float) -> float:
    """A value for a message: what a header's scale makes of pixels can have as many digits as a date or a number of a patient."""
    return max(-MOST_SHOWN, min(MOST_SHOWN, value))
