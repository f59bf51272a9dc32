"""The closed vocabularies of de-identification: what a text of a header may become, and nothing else.

A text is looked up whole, without regard to case, spaces and hyphens. What is not found is None: a name beside a term
makes another text of it, which no vocabulary holds.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib import resources

REMEMBERED = 1024
"""Texts whose term is remembered: slices of a series all state the same."""
VIEWS = frozenset(
    {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM", "SIO", "ISO",
     "LAT", "LATERAL", "OBL", "FB"}
)  # fmt: skip
"""View Position (PS3.3 C.8.1.1, C.8.11.5), and what archives write there."""
VIEW_OF_CODE = {
    "399348003": "AP", "R-10206": "AP", "272479007": "PA", "R-40888": "PA", "399173006": "LL", "R-10236": "LL",
    "399198007": "RL", "R-10232": "RL", "399067008": "LATERAL", "R-102CD": "LATERAL", "399135007": "LLO", "R-10220": "LLO",
    "399356000": "RLO", "R-40985": "RLO", "399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML", "399352003": "LM", "R-10228": "LM", "399099002": "LMO", "R-10230": "LMO",
    "399192008": "XCCL", "R-1024A": "XCCL", "399101009": "XCCM", "R-1024B": "XCCM", "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO", "441555000": "ISO", "R-40AAA": "ISO",
}  # fmt: skip
"""The view position that a code of View Code Sequence stands for (PS3.16 CID 4010 and 4014)."""
IMAGE_TYPE_THIRD = frozenset(
    {"ADC", "ANGIO", "ANGIO_TIME", "ASL", "AXIAL", "BIPLANE A", "BIPLANE B", "CARDIAC", "CARDIAC_CTA", "CARDIAC_GATED",
     "CARDRESP_GATED", "CINE", "DENSITY MAP", "DIFFUSION", "DIFFUSION MAP", "DIXON", "DYNAMIC", "EMISSION", "FA", "FLOW_ENCODED",
     "FLUID_ATTENUATED", "FLUOROSCOPY", "FM", "FMRI", "GATED", "GATED TOMO", "IMAGE ADDITION", "LOCALIZER", "M", "MAX_IP",
     "METABOLITE_MAP", "MIN_IP", "MINIP", "MIP", "MODULUS SUBTRACT", "MOTION", "MPR", "MULTIECHO", "M_MODE", "NON_PARALLEL",
     "OTHER", "P", "PARALLEL", "PERFUSION", "PHASE MAP", "PHASE SUBTRACT", "POST_CONTRAST", "PRE_CONTRAST", "PROJECTION",
     "PROJECTION IMAGE", "PROPELLER", "PROTON_DENSITY", "REALTIME", "RECON GATED TOMO", "RECON TOMO", "RESP_GATED", "REST",
     "SCREEN SAVE", "SECONDARY", "SINGLE PLANE", "STATIC", "STIR", "STRESS", "SUB", "SUBTRACTION", "T1", "T1 MAP", "T2",
     "T2 MAP", "T2_STAR", "TAGGING", "TEMPERATURE", "TOF", "TOMO", "TOMOSYNTHESIS", "TRACEW", "TRANSMISSION", "VELOCITY",
     "VELOCITY MAP", "VOLUME", "WHOLE BODY", "WHOLE_BODY"}
)  # fmt: skip
"""Third values of Image Type: defined terms of the modalities' modules in PS3.3 C.8, and common ones of makers."""
SEQUENCES = ("SE", "IR", "GR", "EP", "RM")
KERNELS = frozenset(
    {"STANDARD", "SOFT", "BONE", "BONEPLUS", "LUNG", "DETAIL", "EDGE", "CHST", "ULTRA", "STND", "STANDARD+", "SMOOTH", "SHARP",
     "BODY", "BRAIN", "HEAD", "FBP", "A", "B", "C", "D", "E", "F", "L", "YA", "YB", "YC", "YD", "UA", "UB", "UC", "EB", "EC",
     "BODY_SHARP", "BODY_SOFT", "LUNG_ENHANCED", "ASIR", "H_SOFT_B", "ALL-PASS", "RAMP", "HANNING", "NONE"}
)  # fmt: skip
KERNEL_PATTERN = re.compile(
    r"(?:[ABCDHIQSTU][a-z]?[0-9]{2}[a-z]?|FC[0-9]{2})(?:\\[0-9])?|[BHKL]_(?:V?SHARP|V?SOFT|SMOOTH|STANDARD)_[A-E]"
    r"|XYZ ?(?:G|Gauss|GAUSSIAN) ?=?[0-9]{1,2}\.[0-9]{1,2}"
)
"""Kernels as Siemens, Canon, United Imaging (CT) and Siemens (PET: the filter's width in mm) name them."""
PHOTOMETRIC = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420",
     "YBR_ICT", "YBR_RCT"}
)  # fmt: skip


def squeeze(text: str) -> str:
    """What texts are compared by: lower case without spaces, hyphens and underscores."""
    return re.sub(r"[\s_\-]+", "", text).lower()


def _lines(name: str) -> list[str]:
    text = (resources.files("lumid.pipeline") / "vocabulary" / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def _models() -> dict[str, str]:
    return {squeeze(line): line for line in _lines("model_names.txt")}


@cache
def _body_parts() -> dict[str, str]:
    words: dict[str, str] = {}
    for line in _lines("body_parts.txt"):
        term, *synonyms = line.split()
        words |= dict.fromkeys((squeeze(word) for word in (term, *synonyms)), term)
    return words


@cache
def _anatomic_codes() -> dict[str, str]:
    rows = [line.split("\t") for line in _lines("anatomic_codes.txt")]
    return {code: term for term, *codes in rows for code in codes}


@cache
def _manufacturers() -> list[tuple[str, str]]:
    pairs = []
    for line in _lines("manufacturers.txt"):
        name, beginnings = line.split("\t")
        pairs += [(beginning, name) for beginning in beginnings.split("|")]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


@lru_cache(maxsize=REMEMBERED)
def body_part_term(stated: str) -> str | None:
    """The vocabulary's term for a body part as someone wrote it; None for what it does not know.

    >>> body_part_term("Left Breast")
    'BREAST'
    """
    return _body_parts().get(squeeze(stated))


def body_part_of_code(code: str) -> str | None:
    """The term for a code of Anatomic Region Sequence, SNOMED CT or its older form; None for what is not known.

    >>> body_part_of_code("41216001")
    'PROSTATE'
    """
    return _anatomic_codes().get(code)


def body_part_terms() -> list[str]:
    """The terms of the vocabulary of body parts."""
    return sorted(set(_body_parts().values()))


@lru_cache(maxsize=REMEMBERED)
def model_term(stated: str) -> str | None:
    """A model's name as the vocabulary writes it; None for what it does not know."""
    return _models().get(squeeze(stated))


@lru_cache(maxsize=REMEMBERED)
def manufacturer_term(stated: str) -> str | None:
    """A maker's name, by how the stated one begins; None for what is not known.

    >>> manufacturer_term("GE MEDICAL SYSTEMS")
    'GE'
    """
    words = re.sub(r"[^a-z0-9]+", " ", stated.lower()).strip() + " "
    return next((name for beginning, name in _manufacturers() if words.startswith(beginning + " ")), None)


@cache
def manufacturer_names() -> frozenset[str]:
    """The names of makers in the vocabulary."""
    return frozenset(name for _, name in _manufacturers())


@lru_cache(maxsize=REMEMBERED)
def kernel_term(stated: str) -> str | None:
    """A reconstruction kernel, where it is a known word (in upper case) or has the form of a maker's; else None.

    >>> kernel_term("B30f"), kernel_term("bone"), kernel_term("SMITH")
    ('B30f', 'BONE', None)
    """
    if stated.upper() in KERNELS:
        return stated.upper()
    return stated if KERNEL_PATTERN.fullmatch(stated) else None


def one_of(value: str, allowed: frozenset[str]) -> str | None:
    """The value where it is allowed, else None."""
    return value if value in allowed else None


def in_range(value: float | None, low: float, high: float) -> float | None:
    """The value, to four decimals, where it lies from ``low`` to ``high``, else None."""
    return round(value, 4) if value is not None and low <= value <= high else None
