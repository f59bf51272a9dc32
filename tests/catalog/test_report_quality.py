"""Geometry and quality in the report: counted by hand over rows made for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from lumid.catalog.layout import Layout, read_manifest, write_table
from lumid.catalog.report import render_report
from lumid.catalog.report_quality import ImageQuality, QualityView, SeriesGeometry, quality_view
from lumid.catalog.schema import CATALOG, CatalogRow, to_table
from tests.catalog.test_report import Page
from tests.factory import make_image, make_sample

ROW, _ = make_sample("CT", 0, make_image(np.random.default_rng(0), "CT"))


def rows(count: int, **elements: Any) -> list[CatalogRow]:
    """So many rows with keys of their own; an element that is a list has a value for each."""
    return [
        replace(
            ROW,
            key=hashlib.sha256(f"{number} {elements}".encode()).hexdigest()[:24],
            **{name: value[number] if isinstance(value, list) else value for name, value in elements.items()},
        )
        for number in range(count)
    ]


def view(*groups: Iterable[CatalogRow]) -> QualityView:
    connection = duckdb.connect()
    table = to_table([row for group in groups for row in group], CATALOG)
    connection.register("catalog", table)
    return quality_view(connection)


def test_series_are_counted_once_each() -> None:
    found = view(
        rows(4, series="a", slice_gap=[False, True, True, False], slice_repeats=1, slice_spacing=2.0),
        rows(3, series="b", slice_gap=False, slice_repeats=[1, 2, 2], slice_spacing=5.0),
        rows(2, series="c", slice_gap=False, slice_repeats=1, slice_spacing=2.5),
        rows(2, series="d", slice_position=None),
        rows(1, series="e", modality="CR", slice_position=None),
        rows(1, series="a", modality="MR", slice_position=1.0, slice_repeats=1),  # of one name, and another modality
    )
    assert found.series == (
        SeriesGeometry("CT", 4, 3, 1, 1, 2.5),
        SeriesGeometry("CR", 1, 0, 0, 0, None),
        SeriesGeometry("MR", 1, 1, 0, 0, None),
    )
    assert (found.with_gaps, found.placed) == (1, 4)


def test_outliers_are_far_from_the_quartiles_of_their_own_kind() -> None:
    """Noise of 8, 16 and 32 HU in equal shares: quartiles 8 and 32 = 2² apart, so that the threshold is 32 × 4³ = 2048.

    Of sharpness it is 0.1 / 4³ = 0.0015625.
    """
    usual = {"noise": [8.0, 16.0, 32.0] * 8, "sharpness": [0.1, 0.2, 0.4] * 8, "clipped_fraction": 0.01}
    far = {"noise": [2047.0, 2049.0], "sharpness": [0.0016, 0.0015], "clipped_fraction": [0.0101, 0.9]}
    (found,) = view(rows(24, **usual)).images
    assert found.noisy_above == pytest.approx(2048)
    assert found.blurred_below == pytest.approx(0.0015625)
    assert (found.noise, found.sharpness) == (16.0, 0.2)
    assert (found.noisy, found.blurred, found.clipped) == (0, 0, 0)
    # a hundred of the usual kind keep the quartiles where they are
    many = {"noise": [8.0, 16.0, 32.0] * 40, "sharpness": [0.1, 0.2, 0.4] * 40, "clipped_fraction": 0.0}
    ct, mr = view(rows(120, **many), rows(2, **far), rows(2, modality="MR", intensity_unit="a.u.", **far)).images
    assert ct.noisy_above == pytest.approx(2048)
    assert (ct.samples, ct.noisy, ct.blurred, ct.clipped) == (122, 1, 1, 2)
    assert (mr.noisy_above, mr.blurred_below, mr.noisy, mr.blurred, mr.clipped) == (None, None, 0, 0, 2)


def test_images_without_noise_are_no_error() -> None:
    (found,) = view(rows(30, noise=[0.0] * 30, sharpness=[0.0] * 29 + [0.1])).images
    assert (found.noisy_above, found.noisy) == (None, 0)
    assert found.noise == 0.0


def test_where_most_images_are_alike_none_is_far_from_the_others() -> None:
    """Equal quartiles have no range between them: all but the least would be beyond it, if only by rounding."""
    (found,) = view(rows(34, noise=[0.1] * 33 + [0.3], sharpness=[0.7] * 34)).images
    assert (found.noisy_above, found.noisy, found.blurred_below, found.blurred) == (None, 0, None, 0)


def test_repetitions_by_modality_and_unit() -> None:
    found = view(
        rows(5, near_duplicate_of=[None, None, "x", "x", "y"], duplicate_of=[None, "z", None, None, None]),
        rows(3, modality="MR", intensity_unit="a.u.", near_duplicate_of=["x", None, None]),
    )
    assert [(one.modality, one.near_duplicates, one.duplicates) for one in found.images] == [("CT", 3, 1), ("MR", 1, 0)]
    assert found.near_duplicates == 4
    assert all(isinstance(one, ImageQuality) for one in found.images)


def test_kinds_of_spacing_are_columns_in_a_fixed_order() -> None:
    found = view(
        rows(3, modality="DX", spacing_kind=["unstated", "detector", "detector"]),
        rows(4, spacing_kind="patient"),
        rows(1, modality="US", spacing_kind=None),
    ).spacing
    assert found.kinds == ("patient", "detector", "unstated", "not stated")
    assert found.rows == (("CT", (4, 0, 0, 0)), ("DX", (0, 2, 1, 0)), ("US", (0, 0, 0, 1)))


def test_the_page_says_it(dataset: Path) -> None:
    """In a copy of a data set whose CT has one series with a gap and three images that nearly repeat one."""
    path = Layout(dataset).catalog / "modality=CT" / "part-00000.parquet"
    own = duckdb.sql(f"select * from '{path}'").to_arrow_table()
    changed = own.to_pylist()
    first = changed[0]["series"]
    for number, row in enumerate(changed):
        row |= {
            "slice_gap": row["series"] == first,
            "slice_repeats": 1,
            "spacing_kind": "patient",
            "slice_spacing": 2.5,
        }
        row["near_duplicate_of"] = changed[0]["key"] if number in (1, 2, 3) else None
    write_table(path, own.from_pylist(changed, schema=own.schema))
    page = Page(render_report(dataset, read_manifest(dataset)))
    words = re.sub(r"\s+", " ", page.text)
    assert "8 of 12 series lie in space" in words
    assert re.search(r"CT ?4 ?4 ?1 25\.0 % ?0 2\.5", words)
    assert re.search(r"CT ?HU ?14 ?5 ?– ?0\.\d+ ?– ?0 3 21\.4 % ?0", words)
    assert re.search(r"patient ?not stated CT ?14 ?0 MR ?0 ?13 US ?0 ?13", words)
    assert all(header.get("scope") for header in page.all("th"))
