"""The registry of collections agrees with the paper's table, with itself and with IDC's own index."""

from __future__ import annotations

import duckdb
import pytest

from lumid.catalog.cite import plain_doi
from lumid.catalog.collections import collections, did_you_mean, find_collection, of_source
from lumid.catalog.errors import UsageError
from lumid.pipeline.idc_index import index_folder


def test_all_of_the_papers_rows_are_there_and_add_up_to_its_subjects() -> None:
    every = collections()
    assert len(every) == 28
    assert {kind: len(of_source(kind)) for kind in ("idc", "nih", "tcia_package")} == {
        "idc": 25,
        "nih": 1,
        "tcia_package": 2,
    }
    rows = {one.paper_row: one.paper_subjects for one in every.values()}
    assert len(rows) == 27
    assert sum(rows.values()) == 36_665, "what the paper says of all of its data"


def test_two_collections_share_a_row() -> None:
    assert collections()["midrc_ricord_1a"].shares_row_with == ("midrc_ricord_1b",)
    assert [one.id for one in collections().values() if one.shares_row_with] == ["midrc_ricord_1a", "midrc_ricord_1b"]


def test_every_collection_can_be_cited_and_has_a_licence() -> None:
    for one in collections().values():
        assert plain_doi(one.doi) == one.doi, one.id
        assert one.doi.lower() in one.citation.lower(), one.id
        assert one.license
        assert sum(one.modalities.values()) == (one.images or 0) or one.source == "nih", one.id
    non_commercial = {one.id for one in collections().values() if not one.commercial_use}
    assert non_commercial == {"midrc_ricord_1a", "midrc_ricord_1b", "nsclc_radiomics_genomics"}


def test_counts_licences_and_dois_are_those_of_idc_version_25() -> None:
    sql = """
        SELECT collection_id, Modality, count(DISTINCT PatientID), count(*), sum(instanceCount), sum(series_size_MB) / 1e3,
            list(DISTINCT license_short_name), list(DISTINCT lower(source_DOI)), max(series_revised_idc_version)
        FROM read_parquet($index) WHERE analysis_result_id IS NULL AND collection_id IN (SELECT unnest($names))
            AND Modality IN ('CT', 'MR', 'PT', 'CR', 'DX', 'MG', 'XA', 'RF', 'NM', 'US', 'SC', 'OT')
        GROUP BY GROUPING SETS ((collection_id), (collection_id, Modality)) ORDER BY ALL
    """
    names = [one.source_id for one in of_source("idc")]
    bound = {"index": str(index_folder() / "idc_index.parquet"), "names": names}
    rows = duckdb.connect().execute(sql, bound).fetchall()
    checked = 0
    for name, modality, patients, series, images, gb, licenses, dois, revised in rows:
        if revised > 25:  # a newer index has another version of it
            continue
        one = collections()[name]
        checked += 1
        if modality is not None:
            assert one.modalities[modality] == images, name
        else:
            assert (one.patients, one.series, one.images) == (patients, series, images), name
            assert one.gb == pytest.approx(gb, abs=0.051)
            assert (licenses, dois) == ([one.license], [one.doi]), name
    assert checked > 25


def test_citations_are_the_archives_own() -> None:
    sql = "SELECT collection_id, unnest(sources, recursive := true) FROM read_parquet($file)"
    found = duckdb.connect().execute(sql, {"file": str(index_folder() / "collections_index.parquet")})
    names = [column[0] for column in found.description]
    rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    checked = 0
    for row in rows:
        one = collections().get(row["collection_id"])
        if one is None or row["source_doi"] != one.doi:
            continue
        checked += 1
        plain = row["citation"].replace("<i>", "").replace("</i>", "").replace("&amp;", "&")
        # a later version of the collection is another number in the same citation
        ours, theirs = (" ".join(text.split()).partition(" (Version")[0] for text in (one.citation, plain))
        assert ours == theirs, one.id
    assert checked == 25


@pytest.mark.parametrize("name", ["lidc_idri", "LIDC-IDRI", "lidc idri"])
def test_a_collection_is_found_however_it_is_written(name: str) -> None:
    assert find_collection(name).id == "lidc_idri"


def test_an_unknown_collection_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"lidc_idr: .*did you mean 'lidc_idri'\?"):
        find_collection("lidc_idr")
    with pytest.raises(UsageError, match="lumid collections"):
        find_collection("zzzzzz")
    assert did_you_mean("zzzzzz", collections()) == ""
