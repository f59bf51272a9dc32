"""Which objects and frames are taken, and the reason for each that is not."""

from __future__ import annotations

from lumid.pipeline.decode import FrameHeader, ImageSize, pixel_element
from lumid.pipeline.deidentify import modality_of
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
REPORT_PAGES = frozenset({"PATIENT_INFO", "DOSE_INFO", "DOSE", "DOSE_REPORT", "DOSE REPORT", "PROTOCOL"})
"""Values of ImageType that makers give to screens of text."""


def is_image(header: FrameHeader) -> Reject | None:
    """None for an object that holds an image, else ``not_an_image`` or ``no_pixel_data``."""
    if header.term("Modality") in NON_IMAGES or header.term("SOPClassUID").startswith(NON_IMAGE_CLASSES):
        return Reject(
            "select", "not_an_image", header.term("Modality") if header.term("Modality") in NON_IMAGES else ""
        )
    return None if pixel_element(header.dataset) else Reject("decode", "no_pixel_data")


def select_object(header: FrameHeader, settings: SelectSettings) -> str | Reject:
    """The modality of an object that the recipe takes, or the reason why it does not."""
    modality = modality_of(header)
    if modality is None:
        return Reject("select", "unsupported_modality")
    if modality not in settings.modalities:
        return Reject("select", "modality_not_selected", modality)
    kinds = header.terms("ImageType")
    if any(kind in REPORT_PAGES for kind in kinds):
        return Reject("select", "report_page")
    if not settings.localizers and any(kind in LOCALIZERS for kind in kinds):
        return Reject("select", "localizer")
    return modality


def select_size(size: ImageSize, settings: SelectSettings) -> Reject | None:
    """``too_small`` for an image whose short side is below the recipe's."""
    if min(size.rows, size.columns) < settings.min_side:
        return Reject("select", "too_small", f"{size.rows} × {size.columns}")
    return None


def select_frame(quality: Quality, settings: SelectSettings) -> Reject | None:
    """``constant`` or ``blank`` for a frame with nothing in it."""
    if quality.constant:
        return Reject("select", "constant")
    if quality.foreground_fraction < settings.min_foreground:
        return Reject("select", "blank", f"foreground {quality.foreground_fraction:.4f}")
    return None
