"""De-identification by construction: what leaves the header is what the functions here let through, nothing else.

Every field has a sanitiser: a closed vocabulary, a number with a range, or a keyed pseudonym. Free text is mapped to
a vocabulary or dropped, so a name in a description has no way out; that it was dropped is counted, so that vocabularies
can be improved without a look at the text. What the standard asks of each attribute: PS3.15 Table E.1-1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lumid.catalog.keys import Keyer
from lumid.catalog.schema import MODALITIES
from lumid.pipeline.burned_in import Risk
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.reject import Reject
from lumid.pipeline.vocabularies import (
    IMAGE_TYPE_THIRD,
    PHOTOMETRIC,
    SEQUENCES,
    VIEW_OF_CODE,
    VIEWS,
    body_part_of_code,
    body_part_term,
    in_range,
    kernel_term,
    manufacturer_term,
    model_term,
    one_of,
)

POLICY_VERSION = 2
MAX_AGE_YEARS = 90
T = TypeVar("T")
RISKY_MODALITIES = frozenset({"US", "SC", "OT"})
SEARCHED_MODALITIES = RISKY_MODALITIES | {"XA", "RF"}
"""Those of which many images are searched for text under any policy, for their kind or as secondary captures."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

MODALITY_OF_CLASS = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "MG",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.3.1": "US",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.6.1": "US",
    "1.2.840.10008.5.1.4.1.1.7": "SC",
    "1.2.840.10008.5.1.4.1.1.7.1": "SC",
    "1.2.840.10008.5.1.4.1.1.7.2": "SC",
    "1.2.840.10008.5.1.4.1.1.7.3": "SC",
    "1.2.840.10008.5.1.4.1.1.7.4": "SC",
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "RF",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
}
"""Modality of a storage class (PS3.4 B.5), for headers that state none."""

IN_THE_ROUND = frozenset({"CT", "MR", "PT"})
"""Modalities whose slices, stacked, are a surface: of a head, a face that can be recognised."""
WITH_A_FACE = frozenset(
    {"3RDVENTRICLE", "4THVENTRICLE", "ACA", "ANTCOMMA", "BASILARA", "BRAIN", "BULB", "CAROTID", "CCA", "CEREBELLUM",
     "CEREBHEMISPHERE", "CEREBRALA", "CHEEK", "CHOROIDPLEXUS", "CIRCLEOFWILLIS", "CORNEA", "CSPINE", "CTSPINE", "EAC", "EAR",
     "ECA", "ENDONASAL", "ENDONASOPHARYNX", "EXTJUGV", "EYE", "EYELID", "FACE", "FACIALA", "FONTANEL", "HEAD", "HEADNECK",
     "HYPOPHARYNX", "IAC", "ICA", "INTJUGULARV", "INTRACRANIAL", "JAW", "LACRIMALA", "LARYNX", "LATVENTRICLE", "LINGUALA",
     "MANDIBLE", "MASTOID", "MAXILLA", "MCA", "MOUTH", "NASOPHARYNX", "NECK", "NECKCHEST", "NECKCHESTABDOMEN",
     "NECKCHESTABDPELV", "NOSE", "OCCIPTALV", "OCCPITALA", "OPHTHALMICA", "OPTICCANAL", "PARANASALSINUS", "PARATHYROID",
     "PAROTID", "PCA", "PHARYNX", "PHARYNXLARYNX", "POSCOMMA", "SCALP", "SCLERA", "SELLA", "SKULL", "SPINALCORD", "SPINE",
     "SUBMANDIBULAR", "SUPRACLAVICULAR", "SUPTHYROIDA", "THALAMUS", "THYROID", "TMJ", "TONGUE", "VERTEBRALA", "WHOLEBODY",
     "ZYGOMA"}
)  # fmt: skip
"""Body parts whose slices can hold a face or a part of one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Pseudonyms of what a frame belongs to, and the uid that its key is made of (which stays in the pipeline)."""

    patient: str
    study: str
    series: str
    instance: str
    frame_of_reference: str | None
    instance_uid: str


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What the allow-list lets through of how an image was made; each as the catalog column of the same name.

    ``unknown``: columns for which the header states something that their vocabulary or range does not know.
    """

    modality: str
    body_part: str | None
    laterality: str | None
    view_position: str | None
    image_type: str | None
    contrast: bool | None
    photometric: str | None
    manufacturer: str | None
    model_name: str | None
    kvp: float | None
    exposure: float | None
    kernel: str | None
    field_strength: float | None
    sequence: str | None
    sex: str | None
    age_years: int | None
    unknown: tuple[str, ...] = ()


def policy_name(policy: str) -> str:
    """The policy as every row names it."""
    return f"lumid-{policy}-{POLICY_VERSION}"


def modality_of(header: FrameHeader) -> str | None:
    """The modality: the stated one when it is one of ours, else that of the storage class, else None.

    A secondary capture that says CT, MR, PT or NM is a picture of such images, not one of them, and becomes SC,
    unless it says to be primary: archives hold primary images that were converted to that class.
    """
    stated = header.term("Modality")
    if (
        stated in ("CT", "MR", "PT", "NM")
        and is_secondary_capture(header)
        and header.terms("ImageType")[1:2] != ["PRIMARY"]
    ):
        return "SC"
    if stated in MODALITIES:
        return stated
    if not stated:
        return MODALITY_OF_CLASS.get(header.term("SOPClassUID"))
    return None


def is_secondary_capture(header: FrameHeader) -> bool:
    """Whether the storage class is one of the secondary captures (PS3.4 B.5)."""
    return header.term("SOPClassUID").startswith(SECONDARY_CAPTURE)


def identify(header: FrameHeader, keyer: Keyer, *, collection: str, policy: str, source_id: str) -> Identity:
    """The pseudonyms of an object. What has no identifier of its own is told apart by what it does have.

    Archives reuse patient numbers between collections, so under ``public`` the collection is part of the patient's
    identity; a hospital's number means the same patient everywhere, so under ``private`` its issuer is.
    """
    study_uid, series_uid = _text(header, "StudyInstanceUID"), _text(header, "SeriesInstanceUID")
    instance_uid = _text(header, "SOPInstanceUID") or f"{collection}/{source_id}"
    series_uid = series_uid or f"instance {instance_uid}"
    study_uid = study_uid or f"series {series_uid}"
    patient_id = _text(header, "PatientID")
    issuer = _text(header, "IssuerOfPatientID") if policy == "private" else collection
    patient = (
        keyer.pseudonym("patient", issuer, patient_id) if patient_id else keyer.pseudonym("patient", "study", study_uid)
    )
    space = _text(header, "FrameOfReferenceUID")
    return Identity(
        patient=patient,
        study=keyer.pseudonym("study", study_uid),
        series=keyer.pseudonym("series", series_uid),
        instance=keyer.pseudonym("instance", instance_uid),
        frame_of_reference=keyer.pseudonym("frame_of_reference", space) if space else None,
        instance_uid=instance_uid,
    )


def _text(header: FrameHeader, keyword: str) -> str:
    value = header.get(keyword)
    return str(value).strip().strip("\0") if value is not None else ""


def acquisition(header: FrameHeader, modality: str) -> Acquisition:
    """Everything the allow-list lets through of how the image was made."""
    unknown: list[str] = []

    def told(column: str, stated: Any, sanitise: Callable[[], T | None]) -> T | None:
        """The sanitised value; a stated one that gives none is counted, and not kept."""
        value = sanitise()
        if value is None and stated not in (None, "", []):
            unknown.append(column)
        return value

    def number(keyword: str, low: float, high: float, macro: str | None = None) -> float | None:
        return told(
            keyword.lower(), header.get(keyword, macro), lambda: in_range(header.number(keyword, macro), low, high)
        )

    def term(column: str, stated: str, allowed: frozenset[str]) -> str | None:
        return told(column, stated, lambda: one_of(stated, allowed))

    maker, model, kernel = header.term("Manufacturer"), _text(header, "ManufacturerModelName"), _kernel(header)
    part, kind = _body_part(header), header.terms("ImageType")
    strength, sequence, age = (
        header.get("MagneticFieldStrength"),
        header.terms("ScanningSequence"),
        header.term("PatientAge"),
    )
    found = Acquisition(
        modality=modality,
        body_part=told("body_part", part, lambda: next(filter(None, map(_body_part_term, part)), None)),
        laterality=term("laterality", _laterality(header), frozenset({"L", "R", "B"})),
        view_position=told(
            "view_position", view := _view(header), lambda: VIEW_OF_CODE.get(view) or one_of(view, VIEWS)
        ),
        image_type=told("image_type", kind, lambda: _image_type(kind)),
        contrast=_contrast(header),
        photometric=term("photometric", header.term("PhotometricInterpretation"), PHOTOMETRIC),
        manufacturer=told("manufacturer", maker, lambda: manufacturer_term(maker)),
        model_name=told("model_name", model, lambda: model_term(model)),
        kvp=number("KVP", 1, 500, "CTXRayDetailsSequence"),
        exposure=number("Exposure", 0, 10_000),
        kernel=told("kernel", kernel, lambda: kernel_term(kernel)),
        field_strength=told(
            "field_strength", strength, lambda: _field_strength(header.number("MagneticFieldStrength"))
        ),
        sequence=told("sequence", sequence, lambda: _sequence(header)),
        sex=term("sex", header.term("PatientSex"), frozenset({"F", "M", "O"})),
        age_years=told("age_years", age, lambda: _age(header)),
    )
    if found.image_type is not None and any(kind[2:3]) and found.image_type.count("\\") < 2:
        unknown.append("image_type")
    return replace(found, unknown=tuple(unknown))


def with_a_face(acquired: Acquisition, exclude: bool) -> Reject | None:
    """``face`` for a slice that can hold a part of a face, where the recipe leaves such out.

    A body part that is not stated, or that the vocabulary does not know, can be a head.
    """
    if not exclude or acquired.modality not in IN_THE_ROUND:
        return None
    if acquired.body_part is None:
        return Reject("deidentify", "face", "its body part is not known")
    return Reject("deidentify", "face") if acquired.body_part in WITH_A_FACE else None


def text_risk(header: FrameHeader, acquired: Acquisition, policy: str, *, marked: bool = False) -> Risk:
    """What is to be done about text in the pixels: ``search`` or ``stated`` where they are searched.

    Under ``private`` all pixels are. Under ``public`` those of kinds that commonly carry text, of collections that a
    recipe marks, and where the header says that something is burned in; else ``none`` where it says that nothing is,
    and ``unknown`` where it says nothing.
    """
    stated = header.term("BurnedInAnnotation")
    if stated == "YES":
        return "stated"
    colour = acquired.photometric not in ("MONOCHROME1", "MONOCHROME2")
    secondary = acquired.modality in ("XA", "RF") and (acquired.image_type or "").find("SECONDARY") >= 0
    risky = acquired.modality in RISKY_MODALITIES or colour or secondary or is_secondary_capture(header)
    if risky or marked or policy == "private":
        return "search"
    return "none" if stated == "NO" else "unknown"


def _body_part(header: FrameHeader) -> list[str]:
    """What the header says of the body part: Body Part Examined, else the code and the meaning of the region."""
    stated = header.get("BodyPartExamined")
    if isinstance(stated, str) and stated.strip():
        return [stated]
    coded = _code(header, "AnatomicRegionSequence", "FrameAnatomySequence")
    return [text for text in coded if text]


def _body_part_term(stated: str) -> str | None:
    return body_part_of_code(stated) or body_part_term(stated)


def _code(header: FrameHeader, keyword: str, macro: str | None = None) -> tuple[str, str]:
    """Code value and meaning of the first item of a sequence of codes (PS3.3 8.8); empty where there is none."""
    try:
        item = FrameHeader(header.get(keyword, macro)[0], 0)
    except (TypeError, IndexError, KeyError):
        return "", ""
    return _text(item, "CodeValue"), _text(item, "CodeMeaning")


def _laterality(header: FrameHeader) -> str:
    return (
        header.term("ImageLaterality")
        or header.term("FrameLaterality", "FrameAnatomySequence")
        or header.term("Laterality")
    )


def _view(header: FrameHeader) -> str:
    """View Position, else the code of the view, which mammography and newer radiography state instead."""
    return header.term("ViewPosition") or _code(header, "ViewCodeSequence")[0]


def _image_type(values: list[str]) -> str | None:
    if (
        len(values) < 2
        or values[0] not in ("ORIGINAL", "DERIVED", "MIXED")
        or values[1] not in ("PRIMARY", "SECONDARY")
    ):
        return None
    third = [value for value in values[2:3] if value in IMAGE_TYPE_THIRD]
    return "\\".join(values[:2] + third)


def _contrast(header: FrameHeader) -> bool | None:
    agent = header.get("ContrastBolusAgent")
    if agent is None:
        return True if header.get("ContrastBolusAgentSequence") else None
    # "NONE" and "NO" are written as agents by some scanners
    return str(agent).strip().upper() not in ("", "NONE", "NO", "N", "0", "WITHOUT")


def _kernel(header: FrameHeader) -> str:
    value = header.get("ConvolutionKernel", "CTReconstructionSequence")
    values = [value] if isinstance(value, str) else list(value or ())
    return "\\".join(str(item).strip() for item in values)


def _sequence(header: FrameHeader) -> str | None:
    stated = set(header.terms("ScanningSequence"))
    known = [value for value in SEQUENCES if value in stated]
    if not known and header.term("EchoPulseSequence") in ("SPIN", "GRADIENT", "BOTH"):
        known = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}[header.term("EchoPulseSequence")]
    return "\\".join(known) or None


def _field_strength(value: float | None) -> float | None:
    if value is not None and 1_000 <= value <= 250_000:  # some write gauss
        value /= 10_000
    return in_range(value, 0.01, 25)


def _age(header: FrameHeader) -> int | None:
    """Whole years, 90 for everybody above; from PatientAge (PS3.5 AS), else from birth and study dates."""
    years: int | None = None
    match = re.fullmatch(r"([0-9]{1,3})([DWMY])", header.term("PatientAge"))
    if match:
        per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
        years = int(int(match[1]) / per_year)
    else:
        birth, study = header.term("PatientBirthDate"), header.term("StudyDate")
        if re.fullmatch(r"[0-9]{8}", birth) and re.fullmatch(r"[0-9]{8}", study):
            years = int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:])
    if years is None or not 0 <= years <= 120:
        return None
    return min(years, MAX_AGE_YEARS)
