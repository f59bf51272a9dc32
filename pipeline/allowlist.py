"""The gate before a catalog row leaves the pipeline: every column has a rule, and a value that breaks it does not pass.

The sanitisers of :mod:`lumid.pipeline.deidentify` make values that pass; the gate is for the day when one of them, or
what computes a number from pixels, has a defect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lumid.catalog.keys import KEY_DIGITS, PSEUDONYM_DIGITS
from lumid.catalog.schema import CATALOG, LABELS, MODALITIES, SPLITS, CatalogRow
from lumid.pipeline.decoders import ENCAPSULATED
from lumid.pipeline.geometry import MAX_POSITION_MM, MAX_SPACING_MM, SPACING_KINDS
from lumid.pipeline.vocabularies import (
    IMAGE_TYPE_THIRD,
    PHOTOMETRIC,
    SEQUENCES,
    VIEWS,
    body_part_terms,
    kernel_term,
    manufacturer_names,
    model_term,
)

Rule = Callable[[Any], bool]
BURNED_IN = frozenset({"checked", "removed", "none", "unknown"})
UNITS = frozenset({"HU", "SUVbw", "a.u.", "P-value", "display"})
PLANES = frozenset({"axial", "coronal", "sagittal", "oblique", "projection"})
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
MAX_TEXT = 4096


def _hexadecimal(digits: int) -> Rule:
    pattern = re.compile(f"[0-9a-f]{{{digits}}}")
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _whole(low: int, high: int) -> Rule:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float = -math.inf, high: float = math.inf) -> Rule:
    return lambda value: isinstance(value, int | float) and math.isfinite(value) and low <= value <= high


def _one_of(*allowed: str) -> Rule:
    known = frozenset(allowed)
    return lambda value: value in known


def _never(_value: Any) -> bool:
    return False


def _truth(value: Any) -> bool:
    return type(value) is bool


def _of_the_source(value: Any) -> bool:
    """Text that the recipe or the archive's index gives, not a header."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and "\n" not in value


def _words(allowed: frozenset[str]) -> Rule:
    return lambda value: isinstance(value, str) and all(part in allowed for part in value.split("\\"))


_IMAGE_TYPE = IMAGE_TYPE_THIRD | {"ORIGINAL", "DERIVED", "MIXED", "PRIMARY", "SECONDARY"}
_PSEUDONYM, _SHA256, _SIDE = _hexadecimal(PSEUDONYM_DIGITS), _hexadecimal(64), _whole(1, 65_535)
RULES: dict[str, Rule] = {
    "key": _hexadecimal(KEY_DIGITS), "shard": _never, "offset": _whole(0, 0), "length": _whole(1, 1 << 40),
    "codec": _one_of("jhc", "png"), "sha256": _SHA256, "pixel_hash": _SHA256, "width": _SIDE, "height": _SIDE,
    "bits": lambda value: value in (8, 16), "channels": lambda value: value in (1, 3),
    "modality": _one_of(*MODALITIES), "body_part": _one_of(*body_part_terms()), "laterality": _one_of("L", "R", "B"),
    "view_position": _one_of(*VIEWS), "plane": _one_of(*PLANES), "image_type": _words(_IMAGE_TYPE), "contrast": _truth,
    "collection": _of_the_source, "source": _one_of("idc", "tcia", "nih", "folder", "pydicom"), "license": _of_the_source,
    "doi": _of_the_source, "source_version": _of_the_source, "source_id": _of_the_source,
    "patient": _PSEUDONYM, "study": _PSEUDONYM, "series": _PSEUDONYM, "instance": _PSEUDONYM, "frame_of_reference": _PSEUDONYM,
    "frame": _whole(0, 1 << 31), "slice_position": _number(-MAX_POSITION_MM, MAX_POSITION_MM), "slice_count": _whole(0, 1 << 31),
    "slice_index": _whole(0, 1 << 31), "slice_spacing": _number(0, 2 * MAX_POSITION_MM), "slice_gap": _truth,
    "slice_repeats": _whole(0, 1 << 31), "orig_rows": _SIDE, "orig_columns": _SIDE,
    # as much larger than a header's as the image was made smaller
    "pixel_spacing_row": _number(0, 65_535 * MAX_SPACING_MM), "pixel_spacing_column": _number(0, 65_535 * MAX_SPACING_MM),
    "spacing_kind": _one_of(*SPACING_KINDS), "slice_thickness": _number(0, MAX_SPACING_MM),
    "transfer_syntax": _one_of(*NATIVE, *ENCAPSULATED), "photometric": _one_of(*PHOTOMETRIC),
    "manufacturer": lambda value: value in manufacturer_names(), "model_name": lambda value: model_term(value) == value,
    "kvp": _number(1, 500), "exposure": _number(0, 10_000), "kernel": lambda value: kernel_term(value) == value,
    "field_strength": _number(0.01, 25), "sequence": _words(frozenset(SEQUENCES)), "sex": _one_of("F", "M", "O"),
    "age_years": _whole(0, 90), "intensity_unit": _one_of(*UNITS), "store_slope": _number(), "store_intercept": _number(),
    "p01": _number(), "p50": _number(), "p99": _number(), "foreground_fraction": _number(0, 1), "sharpness": _number(),
    "noise": _number(), "clipped_fraction": _number(0, 1), "duplicate_of": _never,
    "near_duplicate_of": _hexadecimal(KEY_DIGITS), "burned_in_text": _one_of(*BURNED_IN),
    "labels": lambda value: all(one in LABELS for one in value), "split": _one_of(*SPLITS),
    "deid_policy": _one_of(*(f"lumid-{policy}-{version}" for policy in ("public", "private") for version in range(1, 100))),
}  # fmt: skip
"""For each column of the catalog, whether a value may stand there; null may stand wherever the schema allows it.

What only packing can know (shard, offset, the first of exact duplicates) must still be empty.
"""
_NULLABLE = frozenset(field.name for field in CATALOG if field.nullable)
_CHECKS = tuple((name, RULES[name]) for name in CATALOG.names)


def checked(row: CatalogRow) -> CatalogRow:
    """The row, null in each column whose value breaks its rule.

    Raises ``ValueError`` with the columns' names, and no value, when one of them has to have a value.
    """
    wrong = [name for name, allowed in _CHECKS if (value := getattr(row, name)) is not None and not allowed(value)]
    if not wrong:
        return row
    if needed := [name for name in wrong if name not in _NULLABLE]:
        raise ValueError(f"not allowed in the catalog: the value of {', '.join(needed)}")
    nothing: dict[str, Any] = dict.fromkeys(wrong)
    return replace(row, **nothing)
