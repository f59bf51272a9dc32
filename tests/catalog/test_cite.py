from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lumid.catalog.cite import (
    COMMERCIAL,
    CollectionUse,
    citation_bib,
    collections_in,
    is_non_commercial,
    licenses_md,
    non_commercial_line,
    plain_doi,
    unstated_line,
    write_citations,
)
from lumid.catalog.layout import read_manifest
from lumid.catalog.query import connect, count_samples

USE = CollectionUse(
    collection="lung_trial", source="idc", source_version="v22", license="CC BY 4.0", doi="10.7937/abc", samples=10,
    patients=2, series=3,
)  # fmt: skip


def test_collections_and_their_counts(built: Path) -> None:
    with connect(built) as connection:
        uses = collections_in(connection)
    assert [(use.collection, use.license, use.samples) for use in uses] == [
        ("lung_trial", "CC BY 4.0", 14),
        ("clinic", None, 13),
        ("prostate_trial", "CC BY-NC 4.0", 13),
    ]
    assert [use.non_commercial for use in uses] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CC BY-NC 4.0", True), ("CC BY-NC-SA 3.0", True), ("cc-by-nc", True), ("Non-Commercial use only", True),
        ("Attribution NonCommercial", True), ("CC BY 4.0", False), ("CC0", False), ("Princeton licence", False), (None, False),
    ],
)  # fmt: skip
def test_non_commercial(name: str | None, expected: bool) -> None:
    assert is_non_commercial(name) is expected


@pytest.mark.parametrize(
    ("doi", "expected"),
    [
        ("10.7937/K9/TCIA.2015.X", "10.7937/K9/TCIA.2015.X"),
        ("https://doi.org/10.1000/a_b", "10.1000/a_b"),
        ("doi: 10.1000/1", "10.1000/1"),
        ("javascript:alert(1)", None),
        ('10.1000/"><script>', None),
        ("10.1000/a}, evil={", None),
        ("", None),
        (None, None),
    ],
)
def test_dois(doi: str | None, expected: str | None) -> None:
    assert plain_doi(doi) == expected


def test_licences_say_what_is_not_stated_and_the_share_of_nc() -> None:
    uses = [
        USE,
        replace(USE, collection="nc", license="CC BY-NC 4.0", samples=30),
        replace(USE, collection="x", license=None, doi=None, samples=60),
    ]
    page = licenses_md(uses)
    assert "30 of 100 samples (30.0 %) are under a licence that excludes commercial use" in page
    assert "For 60 of 100 samples (60.0 %) the licence is not stated by the source" in page
    assert re.search(r"\| x \| not stated by the source; check before you use it \| not stated", page)
    assert "[10.7937/abc](https://doi.org/10.7937/abc)" in page
    assert non_commercial_line([USE]) is None
    assert unstated_line([USE]) is None
    assert "commercial" not in licenses_md([USE])


def test_the_condition_selects_the_others(built: Path) -> None:
    with connect(built) as connection:
        assert f"`{COMMERCIAL}`" in licenses_md(collections_in(connection))
    assert count_samples(built, COMMERCIAL) == 14
    assert count_samples(built, f"{COMMERCIAL} AND license LIKE '%NC%'") == 0


def test_markdown_cannot_be_broken_out_of() -> None:
    page = licenses_md([replace(USE, license="evil | <script>\n# h")])
    assert "evil \\| \\<script\\> # h" in page
    assert len({line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("| ")}) == 1


def test_bib_is_balanced_and_complete(built: Path) -> None:
    manifest = read_manifest(built)
    hostile = replace(USE, collection="a}b{c%$_&", license="50% {", doi=None)
    bib = citation_bib([USE, replace(USE, license="MIT", samples=5), hostile], manifest)
    bare = re.sub(r"\\[{}]", "", bib)
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    keys = re.findall(r"@\w+\{([^,]+),", bib)
    assert len(keys) == len(set(keys)) == 4  # the data set, the paper, two collections
    assert "10.3390/computation13040088" in bib
    assert manifest.recipe_hash[:16] in bib
    assert "15 samples; licence: CC BY 4.0, MIT" in bib
    assert "DOI: not stated by the source; check before you use it" in bib


def test_files_are_written(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    (dataset / "dataset.json").unlink()  # a build writes them before it
    citation, licenses = write_citations(dataset, manifest)
    assert (citation.name, licenses.name) == ("CITATION.bib", "LICENSES.md")
    assert "lung\\_trial" in citation.read_text()
    assert "13 of 40 samples (32.5 %)" in licenses.read_text()
