"""Short forms of common conditions: a modality, a body part, a licence by its family."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb

from lumid.catalog.connect import ask
from lumid.catalog.mistakes import text
from lumid.catalog.query import all_of

WORDS = (
    (r"https?://creativecommons\.org/(licenses|publicdomain)/", "cc "), (r"creative\s*commons", "cc"), (r"attribution", "by"),
    (r"non[\s-]?commercial", "nc"), (r"no[\s-]?deriv\w*", "nd"), (r"share[\s-]?alike", "sa"), (r"\bcc[\s-]?(0|zero)\b", "cc0"),
    (r"licen[cs]es?|international|unported|universal|generic|public domain dedication", " "),
)  # fmt: skip
"""Spellings of the same licence, and what they become."""
NOT_STATED = "none"
"""What asks for the samples that have no value."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Values of some columns, any of which a sample may have; no values: any."""

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    collection: tuple[str, ...] = ()
    license: tuple[str, ...] = ()
    split: tuple[str, ...] = ()


def condition_of(connection: duckdb.DuckDBPyConnection, filters: Filters) -> str | None:
    """The SQL condition that the filters stand for, None for none.

    Modalities and body parts are upper case in the catalog, splits lower. A collection is found however its letters and
    separators are written; a licence by its family (``cc-by``: every version of CC BY, not CC BY-NC), or with its version.
    """
    return all_of(
        one_of("modality", [value.upper() for value in filters.modality]),
        one_of("body_part", [value.upper() for value in filters.body_part]),
        one_of("collection", _meant(connection, "collection", filters.collection, _same_name)),
        one_of("license", _meant(connection, "license", filters.license, same_license)),
        one_of("split", [value.lower() for value in filters.split]),
    )


def one_of(column: str, values: Sequence[str]) -> str | None:
    """``column = …`` or ``column IN (…)``; ``none`` asks for those without a value. None when there are no values.

    >>> one_of("modality", ["CT", "MR"])
    "modality IN ('CT', 'MR')"
    """
    stated = list(dict.fromkeys(value for value in values if value.lower() != NOT_STATED))
    conditions = []
    if len(stated) == 1:
        conditions.append(f"{column} = {text(stated[0])}")
    elif stated:
        conditions.append(f"{column} IN ({', '.join(map(text, stated))})")
    if len(stated) < len(values) and any(value.lower() == NOT_STATED for value in values):
        conditions.append(f"{column} IS NULL")
    return " OR ".join(conditions) or None


def same_license(wanted: str, found: str) -> bool:
    """Whether a licence is the one that is asked for, by family and, where it is given, version.

    >>> same_license("cc-by", "CC BY 4.0"), same_license("cc-by", "CC BY-NC 4.0"), same_license("cc by 3.0", "CC BY 4.0")
    (True, False, False)
    >>> same_license("cc-by-nc", "Creative Commons Attribution-NonCommercial 4.0 International License")
    True
    """
    family, version = license_parts(wanted)
    other, its_version = license_parts(found)
    return family == other and version in (None, its_version)


def license_parts(name: str) -> tuple[tuple[str, ...], str | None]:
    """The words that make the family of a licence, and its version.

    >>> license_parts("CC BY-NC 4.0")
    (('cc', 'by', 'nc'), '4.0')
    """
    lowered = name.lower()
    for pattern, word in WORDS:
        lowered = re.sub(pattern, word, lowered)
    version = re.search(r"(?<![a-z\d])v?(\d+(?:\.\d+)?)", lowered)
    words = re.findall(r"[a-z]+\d*", re.sub(r"(?<![a-z\d])v?\d+(?:\.\d+)?", " ", lowered))
    return tuple(words), version[1] if version else None


def _same_name(wanted: str, found: str) -> bool:
    return re.sub(r"[^a-z0-9]", "", wanted.lower()) == re.sub(r"[^a-z0-9]", "", found.lower())


def _meant(
    connection: duckdb.DuckDBPyConnection, column: str, wanted: Sequence[str], same: Callable[[str, str], bool]
) -> list[str]:
    """The values in the catalog that are meant; what none of them is stays as it was given, and will be found empty."""
    if not wanted:
        return []
    found = ask(connection, f"SELECT DISTINCT {column} AS value FROM catalog WHERE value IS NOT NULL ORDER BY 1")
    values = [str(value) for value in found["value"].to_pylist()]
    return [one for name in wanted for one in ([value for value in values if same(name, value)] or [name])]
