from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lumid.catalog.schema import CATALOG, REASONS, REJECTS, SAMPLE_FIELDS, CatalogRow, RejectRow, to_table
from lumid.catalog.schema_page import columns_of, schema_page
from tests.factory import make_image, make_rejects, make_sample

ROOT = Path(__file__).resolve().parents[2]


def test_schema_is_the_row_classes() -> None:
    assert CATALOG.names == [item.name for item in fields(CatalogRow)]
    assert REJECTS.names == [item.name for item in fields(RejectRow)]
    assert set(SAMPLE_FIELDS) <= set(CATALOG.names)


def test_every_column_says_what_it_means() -> None:
    for schema in (CATALOG, REJECTS):
        for field in schema:
            assert field.metadata[b"meaning"], field.name
    assert CATALOG.field("slice_thickness").metadata[b"unit"] == b"mm"
    assert CATALOG.field("kvp").metadata[b"dicom"] == b"KVP (0018,0060)"
    assert CATALOG.field("age_years").type == pa.int64()
    assert CATALOG.field("age_years").nullable
    assert not CATALOG.field("key").nullable


def test_rows_become_a_table_and_back() -> None:
    import numpy as np

    row, _ = make_sample("CT", 3, make_image(np.random.default_rng(0), "CT"))
    table = to_table([row], CATALOG)
    assert table.schema.equals(CATALOG, check_metadata=True)
    assert CatalogRow(**table.to_pylist()[0]) == row
    rejects = make_rejects()
    assert [RejectRow(**one) for one in to_table(rejects, REJECTS).to_pylist()] == rejects


def test_files_keep_the_meanings_and_hold_no_partition_column(built: Path) -> None:
    schema = pq.read_schema(built / "catalog" / "modality=CT" / "part-00000.parquet")
    assert "modality" not in schema.names
    assert schema.field("p99").metadata[b"meaning"] == CATALOG.field("p99").metadata[b"meaning"]


def test_committed_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "catalog.md").read_text("utf-8")
    assert page == schema_page(), "run: python -m lumid.catalog.schema_page > docs/catalog.md"


def test_page_names_every_column_and_reason() -> None:
    page = schema_page()
    assert all(f"| `{name}` |" in page for name in [*CATALOG.names, *REJECTS.names, *REASONS])
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("| `key`")}
    assert widths == {6}


def test_column_types_tell_null() -> None:
    types = {info.column: info.type for info in columns_of(CATALOG)}
    assert types["key"] == "string"
    assert types["contrast"] == "bool?"
    assert types["age_years"] == "int64?"
