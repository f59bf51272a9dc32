from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pybtex.database import BibliographyData, parse_string
from pybtex.plugin import find_plugin

from lumid.catalog.bibtex import citation_fields
from lumid.catalog.cite import (
    COMMERCIAL,
    NIH_ATTRIBUTION,
    CollectionUse,
    archive_citation,
    citation_bib,
    citation_confirmed,
    citation_text,
    collections_in,
    is_non_commercial,
    licenses_md,
    non_commercial_line,
    plain_doi,
    unstated_line,
    write_citations,
)
from lumid.catalog.collections import Collection, collections
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
    assert non_commercial_line([]) is None
    assert unstated_line([USE]) is None
    assert f"0 of {USE.samples} samples (0.0 %) are under a licence that excludes" in licenses_md([USE])


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


# ---- the archives' own citations

KNOWN = list(collections().values())


def use_of(one: Collection, **values: object) -> CollectionUse:
    """Samples of a collection of LUMID, as a catalog has them."""
    source = {"idc": "idc", "nih": "nih", "tcia_package": "folder"}[one.source]
    return replace(USE, **{"collection": one.id, "source": source, "license": one.license, "doi": one.doi} | values)


def parsed(built: Path, *uses: CollectionUse) -> BibliographyData:
    """The bibliography as pybtex reads it, each entry formatted once in BibTeX's plain style."""
    data = parse_string(citation_bib(uses, read_manifest(built)), "bibtex")
    style, backend = find_plugin("pybtex.style.formatting", "plain")(), find_plugin("pybtex.backends", "text")()
    for entry in style.format_entries(data.entries.values()):
        assert entry.text.render(backend)
    return data


def plain(value: str) -> str:
    return re.sub(r"\\([%&_#$])", r"\1", value).replace("\\textasciitilde{}", "~")


def test_every_collection_is_cited_in_the_words_of_its_archive(built: Path) -> None:
    data = parsed(built, *(use_of(one) for one in KNOWN))
    assert len(data.entries) == 2 + len(KNOWN)
    for one in KNOWN:
        entry = data.entries[f"collection_{one.id}"]
        assert entry.type == "misc"
        assert one.citation in plain(entry.fields["note"])
        assert entry.fields["doi"].lower() == one.doi.lower()
        assert f"licence: {one.license}" in plain(entry.fields["note"])
        assert ("not checked at the archive" in entry.fields["note"]) == ("citation" in one.unconfirmed)
        if "year" in entry.fields:
            assert f"({entry.fields['year']})" in one.citation
            assert plain(entry.fields["title"]).strip("{}") in one.citation


def test_authors_are_taken_apart_only_where_that_is_safe(built: Path) -> None:
    data = parsed(built, *(use_of(one) for one in KNOWN))
    people = {name: data.entries[f"collection_{name}"].persons.get("author", []) for name in collections()}
    assert [(str(one)) for one in people["stageii_colorectal_ct"]] == ["Tong, T.", "Li, M."]
    assert people["ctpred_sunitinib_pannet"][8].first_names == ["S.-ting"]
    assert people["nsclc_radiomics_genomics"][1].last_names == ["Rios", "Velazquez"]
    assert [one.last_names for one in people["cmb_lca"]] == [["{Cancer Moonshot Biobank}"]]
    assert people["lidc_idri"] == []  # a first name among the initials
    assert people["midrc_ricord_1a"] == []  # names left out
    assert people["nih_chest_xray"] == []
    assert sum(not one for one in people.values()) == 4
    for name, found in people.items():
        for person in found:
            assert " ".join(person.last_names).strip("{}") in collections()[name].citation


@pytest.mark.parametrize(
    "citation",
    [
        "",
        "Doe, J. (2020). No data set. The Cancer Imaging Archive. https://doi.org/10.1/x",
        "Doe, J. (20). T [Data set]. The Cancer Imaging Archive. https://doi.org/10.1/x",
        "Doe, J. (2020). T [Data set]. Another Archive. https://doi.org/10.1/x",
        "Doe, J. (2020). T [Data set]. The Cancer Imaging Archive. https://doi.org/10.1/x. And more",
    ],
)
def test_citations_of_another_form_stay_whole(citation: str) -> None:
    assert citation_fields(citation) == {}


@pytest.mark.parametrize("names", ["Doe, Jane", "Doe, J., Roe", "Doe, J., … Roe, R.", "Doe, J., & Roe, R. and Poe, P."])
def test_names_that_are_not_safe(names: str) -> None:
    citation = f"{names} (2020). T [Data set]. The Cancer Imaging Archive. https://doi.org/10.1/x"
    assert citation_fields(citation) == {"title": "{T}", "year": "2020", "publisher": "The Cancer Imaging Archive"}


def test_a_doi_of_its_own_has_an_entry_of_its_own(built: Path) -> None:
    lidc = collections()["lidc_idri"]
    other = use_of(lidc, doi="10.7937/tcia.2018.h7umfurq")
    assert archive_citation(other) is None
    data = parsed(built, use_of(lidc), other)
    assert len(data.entries) == 4
    assert {entry.fields.get("doi") for entry in data.entries.values()} >= {lidc.doi, other.doi}
    assert other.doi in citation_text([other], read_manifest(built))


def test_collections_are_known_by_doi_and_by_name() -> None:
    lidc = collections()["lidc_idri"]
    for use in (
        use_of(lidc, collection="mine"),
        use_of(lidc, doi=f"https://doi.org/{lidc.doi.upper()}"),
        use_of(lidc, collection="LIDC-IDRI", doi=None),
    ):
        assert archive_citation(use) == lidc.citation
    assert archive_citation(use_of(lidc, collection="mine", doi=None)) is None
    assert archive_citation(USE) is None
    assert citation_confirmed(use_of(lidc))
    assert not citation_confirmed(use_of(collections()["ct_org"]))


def test_the_nih_is_credited(built: Path) -> None:
    for part in ("NIH Clinical Center", "https://nihcc.app.box.com/v/ChestXray-NIHCC", "CVPR 2017"):
        assert part in NIH_ATTRIBUTION
    nih = use_of(collections()["nih_chest_xray"], collection="my_x_rays", doi=None)
    assert NIH_ATTRIBUTION in licenses_md([USE, nih])
    assert NIH_ATTRIBUTION in citation_text([nih], read_manifest(built))
    assert NIH_ATTRIBUTION in plain(parsed(built, nih).entries["collection_my_x_rays"].fields["note"])
    assert "NIH" not in licenses_md([USE])
    assert "NIH" not in citation_bib([USE], read_manifest(built))


def test_licences_list_the_citations() -> None:
    lidc = collections()["lidc_idri"]
    page = licenses_md([use_of(lidc), use_of(lidc, license="CC BY-NC 4.0"), USE])
    assert re.sub(r"\\(.)", r"\1", page).count(lidc.citation) == 1
    assert "## How the archives ask to be cited" not in licenses_md([USE])


def test_hostile_names_stay_inside_their_fields(built: Path) -> None:
    hostile = replace(
        USE, collection='a}, evil = {x" @b{c', license="50% {\\input{x}", source_version="v#1 ~^$", doi=None
    )
    data = parsed(built, hostile)
    (entry,) = (entry for key, entry in data.entries.items() if key.startswith("collection_"))
    assert set(entry.fields) == {"title", "howpublished", "note"}
    assert "\x1b" not in citation_text([replace(USE, collection="x\x1b[2J")], read_manifest(built))


def test_text_says_licence_and_share(built: Path) -> None:
    lidc, nc = collections()["lidc_idri"], collections()["midrc_ricord_1a"]
    page = citation_text([use_of(lidc), use_of(nc, samples=30)], read_manifest(built))
    assert f"lidc_idri: 10 samples, licence {lidc.license}\n  {lidc.citation}\n" in page
    assert "30 of 40 samples (75.0 %) are under a licence that excludes commercial use." in page
    assert "10.3390/computation13040088" in page
