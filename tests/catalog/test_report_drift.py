"""The report's table beside the paper."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from lumid.catalog.collections import collections
from lumid.catalog.layout import read_manifest
from lumid.catalog.report import render_report
from lumid.catalog.report_drift import drift
from tests.factory import make_dataset


def test_patients_and_modalities_of_each_collection_that_the_paper_names() -> None:
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE catalog AS SELECT * FROM (VALUES ('rider_lung_ct', 'a', 'CT'), ('rider_lung_ct', 'a', 'CT'), "
        "('rider_lung_ct', 'b', 'SR'), ('mine', 'c', 'MR'), ('nih_chest_xray', 'd', 'CR')) AS t(collection, patient, modality)"
    )
    known = collections()
    assert "rider_lung_ct" in known
    found = {one.collection: one for one in drift(connection)}
    assert list(found) == ["nih_chest_xray", "rider_lung_ct"]
    rider = found["rider_lung_ct"]
    assert (rider.patients, rider.modalities) == (2, "CT, SR")
    assert rider.paper_patients == known["rider_lung_ct"].paper_subjects
    assert rider.share == pytest.approx(2 / (known["rider_lung_ct"].patients or 0))
    assert found["nih_chest_xray"].share == pytest.approx(1 / 30805)


def test_the_page_shows_it_only_where_there_is_something_to_compare(tmp_path: Path) -> None:
    make_dataset(tmp_path / "ds", n=20)
    manifest = read_manifest(tmp_path / "ds")
    assert "Beside the paper" not in render_report(tmp_path / "ds", manifest)
    for path in (tmp_path / "ds" / "catalog").rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        at = table.schema.get_field_index("collection")
        renamed = [next(iter(collections()))] * table.num_rows
        pq.write_table(table.set_column(at, table.schema.field(at), [renamed]), path)
    page = render_report(tmp_path / "ds", manifest)
    assert page.count("Beside the paper") == 2
    assert "30,805" in page
