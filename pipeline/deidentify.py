"""De-identification by construction: what leaves the header is what the functions here let through, nothing else.

Every field has a sanitiser: a closed vocabulary, a number with a range, or a keyed pseudonym. Free text is mapped to
a vocabulary or dropped, so a name in a description has no way out. What the standard asks of each attribute:
PS3.15 Table E.1-1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from lumid.catalog.keys import Keyer
from lumid.catalog.schema import MODALITIES
from lumid.pipeline.burned_in import Risk
from lumid.pipeline.decode import FrameHeader

POLICY_VERSION = 1
MAX_AGE_YEARS = 90
RISKY_MODALITIES = frozenset({"US", "SC", "OT"})

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

VIEWS = frozenset(
    {
        "AP",
        "PA",
        "LL",
        "RL",
        "RLD",
        "LLD",
        "RLO",
        "LLO",
        "CC",
        "MLO",
        "ML",
        "LM",
        "LMO",
        "XCC",
        "XCCL",
        "XCCM",
        "LAT",
        "LATERAL",
        "OBL",
        "FB",
    }
)
IMAGE_TYPE_THIRD = frozenset(
    {"AXIAL", "LOCALIZER", "MPR", "VOLUME", "PROJECTION IMAGE", "PROJECTION", "M", "P", "PHASE MAP", "DIFFUSION", "PERFUSION",
     "ANGIO", "T1", "T2", "WHOLE BODY", "STATIC", "DYNAMIC", "GATED", "TOMO", "RECON TOMO", "EMISSION", "TRANSMISSION",
     "SINGLE PLANE", "BIPLANE A", "BIPLANE B", "MIP", "MINIP", "SECONDARY", "SCREEN SAVE", "OTHER", "FM", "VELOCITY MAP",
     "PROPELLER", "ADC", "FA", "TRACEW", "SUB", "SUBTRACTION"}
)  # fmt: skip
SEQUENCES = ("SE", "IR", "GR", "EP", "RM")
KERNELS = frozenset(
    {"STANDARD", "SOFT", "BONE", "BONEPLUS", "LUNG", "DETAIL", "EDGE", "CHST", "ULTRA", "STND", "STANDARD+", "SMOOTH", "SHARP",
     "BODY", "BRAIN", "HEAD", "FBP", "A", "B", "C", "D", "E", "F", "L", "YA", "YB", "YC", "YD", "UA", "UB", "UC", "EB", "EC",
     "BODY_SHARP", "BODY_SOFT", "LUNG_ENHANCED", "ASIR", "H_SOFT_B"}
)  # fmt: skip
KERNEL_PATTERN = re.compile(r"(?:[ABCDHIQSTU][a-z]?\d{2,3}[a-z]?|FC\d{2})(?:\\\d)?")
PHOTOMETRIC = frozenset(
    {
        "MONOCHROME1",
        "MONOCHROME2",
        "RGB",
        "PALETTE COLOR",
        "YBR_FULL",
        "YBR_FULL_422",
        "YBR_PARTIAL_422",
        "YBR_PARTIAL_420",
        "YBR_ICT",
        "YBR_RCT",
    }
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Pseudonyms of what a frame belongs to, and the uid that its key is made of (which stays in the pipeline)."""

    patient: str
    study: str
    series: str
    instance: str
    instance_uid: str


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What the allow-list lets through of how an image was made; each as the catalog column of the same name."""

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
    return Identity(
        patient=patient,
        study=keyer.pseudonym("study", study_uid),
        series=keyer.pseudonym("series", series_uid),
        instance=keyer.pseudonym("instance", instance_uid),
        instance_uid=instance_uid,
    )


def _text(header: FrameHeader, keyword: str) -> str:
    value = header.get(keyword)
    return str(value).strip().strip("\0") if value is not None else ""


def acquisition(header: FrameHeader, modality: str) -> Acquisition:
    """Everything the allow-list lets through of how the image was made."""
    manufacturer = _manufacturer(header.term("Manufacturer"))
    return Acquisition(
        modality=modality,
        body_part=_body_part(header),
        laterality=_laterality(header),
        view_position=_one_of(header.term("ViewPosition"), VIEWS),
        image_type=_image_type(header),
        contrast=_contrast(header),
        photometric=_one_of(header.term("PhotometricInterpretation"), PHOTOMETRIC),
        manufacturer=manufacturer,
        model_name=_models().get(_squeeze(_text(header, "ManufacturerModelName"))),
        kvp=_in_range(header.number("KVP", "CTXRayDetailsSequence"), 1, 500),
        exposure=_in_range(header.number("Exposure"), 0, 100_000),
        kernel=_kernel(header),
        field_strength=_field_strength(header.number("MagneticFieldStrength")),
        sequence=_sequence(header),
        sex=_one_of(header.term("PatientSex"), frozenset({"F", "M", "O"})),
        age_years=_age(header),
    )


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


def _one_of(value: str, allowed: frozenset[str]) -> str | None:
    return value if value in allowed else None


def _in_range(value: float | None, low: float, high: float) -> float | None:
    return value if value is not None and low <= value <= high else None


def _squeeze(text: str) -> str:
    return re.sub(r"[\s_\-]+", "", text).lower()


def _lines(name: str) -> list[str]:
    text = (resources.files("lumid.pipeline") / "vocabulary" / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def _models() -> dict[str, str]:
    return {_squeeze(line): line for line in _lines("model_names.txt")}


@cache
def _body_parts() -> dict[str, str]:
    words: dict[str, str] = {}
    for line in _lines("body_parts.txt"):
        term, *synonyms = line.split()
        words |= dict.fromkeys((_squeeze(word) for word in (term, *synonyms)), term)
    return words


def body_part_term(stated: str) -> str | None:
    """The vocabulary's term for a body part as someone wrote it; None for what it does not know.

    >>> body_part_term("Left Breast")
    'BREAST'
    """
    return _body_parts().get(_squeeze(stated))


def body_part_terms() -> list[str]:
    """The terms of the vocabulary of body parts."""
    return sorted(set(_body_parts().values()))


@cache
def _manufacturers() -> list[tuple[str, str]]:
    pairs = []
    for line in _lines("manufacturers.txt"):
        name, beginnings = line.split("\t")
        pairs += [(beginning, name) for beginning in beginnings.split("|")]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def _manufacturer(stated: str) -> str | None:
    words = re.sub(r"[^a-z0-9]+", " ", stated.lower()).strip() + " "
    return next((name for beginning, name in _manufacturers() if words.startswith(beginning + " ")), None)


def _body_part(header: FrameHeader) -> str | None:
    stated = header.get("BodyPartExamined")
    if not isinstance(stated, str) or not stated.strip():
        region = header.get("AnatomicRegionSequence", "FrameAnatomySequence")
        try:
            stated = str(region[0].CodeMeaning)
        except Exception:
            return None
    return body_part_term(stated)


def _laterality(header: FrameHeader) -> str | None:
    stated = (
        header.term("ImageLaterality")
        or header.term("FrameLaterality", "FrameAnatomySequence")
        or header.term("Laterality")
    )
    return _one_of(stated, frozenset({"L", "R", "B"}))


def _image_type(header: FrameHeader) -> str | None:
    values = header.terms("ImageType")
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


def _kernel(header: FrameHeader) -> str | None:
    value = header.get("ConvolutionKernel", "CTReconstructionSequence")
    values = [value] if isinstance(value, str) else list(value or ())
    text = "\\".join(str(item).strip() for item in values)
    return text if text.upper() in KERNELS or KERNEL_PATTERN.fullmatch(text) else None


def _sequence(header: FrameHeader) -> str | None:
    stated = set(header.terms("ScanningSequence"))
    known = [value for value in SEQUENCES if value in stated]
    if not known and header.term("EchoPulseSequence") in ("SPIN", "GRADIENT", "BOTH"):
        known = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}[header.term("EchoPulseSequence")]
    return "\\".join(known) or None


def _field_strength(value: float | None) -> float | None:
    if value is not None and 1_000 <= value <= 120_000:  # some write gauss
        value /= 10_000
    return _in_range(value, 0.01, 12)


def _age(header: FrameHeader) -> int | None:
    """Whole years, 90 for everybody above; from PatientAge (PS3.5 AS), else from birth and study dates."""
    years: int | None = None
    match = re.fullmatch(r"(\d{1,3})([DWMY])", header.term("PatientAge"))
    if match:
        per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
        years = int(int(match[1]) / per_year)
    else:
        birth, study = header.term("PatientBirthDate"), header.term("StudyDate")
        if re.fullmatch(r"\d{8}", birth) and re.fullmatch(r"\d{8}", study):
            years = int(study[:4]) - int(birth[:4]) - (study[4:] < birth[4:])
    if years is None or not 0 <= years <= 120:
        return None
    return min(years, MAX_AGE_YEARS)
