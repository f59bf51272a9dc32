from __future__ import annotations

from pathlib import Path

import pytest

from lumid.catalog.filters import Filters, condition_of, same_license
from lumid.catalog.query import connect, count_samples, why_empty

SPELLINGS = {
    "cc-by": ["CC BY 4.0", "CC BY 3.0", "cc by", "CC-BY-4.0", "Creative Commons Attribution 4.0 International License",
              "https://creativecommons.org/licenses/by/4.0/", "http://creativecommons.org/licenses/by/3.0/"],
    "cc-by-nc": ["CC BY-NC 4.0", "CC BY NC 3.0", "Creative Commons Attribution-NonCommercial 3.0 Unported",
                 "https://creativecommons.org/licenses/by-nc/4.0/"],
    "cc-by-sa": ["CC BY-SA 4.0", "Creative Commons Attribution-ShareAlike 4.0"],
    "cc0": ["CC0", "CC0 1.0", "CC Zero", "CC0 1.0 Universal"],
    "tcia restricted": ["TCIA Restricted", "TCIA-restricted"],
}  # fmt: skip


@pytest.mark.parametrize("wanted", SPELLINGS)
def test_a_family_is_its_spellings_and_no_others(wanted: str) -> None:
    for family, spellings in SPELLINGS.items():
        for found in spellings:
            assert same_license(wanted, found) == (family == wanted), (wanted, found)


def test_versions() -> None:
    assert same_license("cc-by-4.0", "CC BY 4.0")
    assert not same_license("cc-by-4.0", "CC BY 3.0")
    assert not same_license("CC BY 4.0", "CC BY")


@pytest.mark.parametrize(
    ("filters", "condition"),
    [
        (Filters(), None),
        (Filters(modality=("ct", "mr")), "modality IN ('CT', 'MR')"),
        (Filters(license=("cc-by",)), "license = 'CC BY 4.0'"),
        (Filters(license=("none",)), "license IS NULL"),
        (
            Filters(license=("cc-by", "none"), split=("VAL",)),
            "(license = 'CC BY 4.0' OR license IS NULL) AND (split = 'val')",
        ),
        (Filters(collection=("Lung-Trial",)), "collection = 'lung_trial'"),
        (Filters(body_part=("chest", "chest")), "body_part = 'CHEST'"),
        (Filters(collection=("l'x",)), "collection = 'l''x'"),
    ],
)
def test_conditions(built: Path, filters: Filters, condition: str | None) -> None:
    with connect(built) as connection:
        assert condition_of(connection, filters) == condition


def test_what_is_not_there_is_found_empty_and_explained(built: Path) -> None:
    with connect(built) as connection:
        condition = condition_of(connection, Filters(license=("cc-by-nd",)))
    assert count_samples(built, condition) == 0
    (line,) = why_empty(built, condition)
    assert line == "no sample has license = 'cc-by-nd'; license is CC BY 4.0 (14), CC BY-NC 4.0 (13)"
