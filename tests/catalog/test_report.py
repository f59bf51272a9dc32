from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

import lumid
from lumid.catalog import report_matrix
from lumid.catalog.errors import DatasetError
from lumid.catalog.histogram import number, percent
from lumid.catalog.layout import Counts, read_manifest
from lumid.catalog.report import gather, render_report, write_report
from lumid.catalog.report_matrix import NOT_STATED
from tests.factory import make_dataset

VOID = {"meta", "img", "br", "link", "input", "hr", "rect"}


class Page(HTMLParser):
    """What a browser would find: balanced tags, texts, attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope="module")
def html(built: Path) -> str:
    return render_report(built, read_manifest(built))


def test_accounting_and_tables(html: str) -> None:
    page = Page(html)
    words = re.sub(r"\s+", " ", page.text)
    assert "46 planned = 40 kept + 6 rejected" in words
    assert "✓ The sum holds" in words
    assert "a localizer or scout, not a diagnostic slice" in words
    assert "No patient is in more than one split" in words
    assert "13 of 40 samples (32.5 %) are under a licence that excludes commercial use" in words
    assert all(part in words for part in ("CHEST", "PROSTATE", "lung_trial", "CC BY-NC 4.0", "slices / s"))


def test_needs_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert "url(" not in html
    assert "@import" not in html
    links = [link["href"] or "" for link in page.all("a")]
    assert all(link.startswith(("#", "https://doi.org/10.")) for link in links)
    ids = {attrs["id"] for _, attrs in page.found if "id" in attrs}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert len(html.encode()) < 5_000_000


def test_can_be_heard(html: str) -> None:
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing["aria-label"] and drawing["role"] == "img" for drawing in page.all("svg"))
    assert all(header.get("scope") for header in page.all("th"))


def test_pictures_are_of_every_modality(html: str) -> None:
    images = Page(html).all("img")
    assert len(images) == 36
    for image in images:
        data = base64.b64decode((image["src"] or "").partition(",")[2])
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape[:2] == (int(image["height"] or 0), int(image["width"] or 0))
    assert {(image["alt"] or "").split(",")[0] for image in images} == {"CT", "MR", "US"}


def test_histograms_count_every_sample(built: Path) -> None:
    report = gather(built, read_manifest(built))
    by_title = {plot.title: plot for plot in report.histograms}
    thickness = by_title["Slice thickness"]
    assert (thickness.low, thickness.high, thickness.median) == ("1.25", "5", "2.5")
    assert (thickness.stated, thickness.total) == (27, 40)
    for plot in report.histograms:
        assert sum(int(bar.label.rpartition(":")[2]) for bar in plot.bars) == plot.stated
    one = by_title["Slices in a series"]  # all equal: one bar, in the middle
    assert [place for place, bar in enumerate(one.bars) if bar.height] == [12]
    assert [one.unit for one in report.intensities] == ["HU", "a.u.", "display"]


def test_every_sample_is_counted_by_body_part_by_collection_and_by_both(built: Path) -> None:
    tables = gather(built, read_manifest(built)).matrices
    assert tables.body_parts.modalities == tables.collections.modalities == ("CT", "MR", "US")
    assert tables.body_parts.samples == tables.collections.samples == 40
    rows = lumid.open(built).to_pandas()
    for collection, table in tables.within:
        of_it = rows[rows["collection"] == collection]
        assert table.samples == len(of_it)
        for part, values in table.rows:
            parts = of_it["body_part"].isna() if part == "not stated" else of_it["body_part"] == part
            assert values == tuple(int((of_it[parts]["modality"] == one).sum()) for one in table.modalities)
    assert [name for name, _ in tables.collections.rows] == [name for name, _ in tables.within]
    assert tables.more_collections == 0


def test_what_is_beyond_the_rows_of_a_table_is_summed_and_what_is_not_stated_comes_last() -> None:
    cells = {("a", "CT", f"P{number:02}"): number for number in range(1, 21)} | {("a", "MR", NOT_STATED): 500}
    table = report_matrix._by(2, cells, 14)
    assert [name for name, _ in table.rows] == [
        *(f"P{number:02}" for number in range(20, 6, -1)),
        "6 others",
        NOT_STATED,
    ]
    assert table.rows[14] == ("6 others", (0, 21))
    assert table.modalities == ("MR", "CT")
    assert (table.samples, table.largest) == (710, 500)


def test_broken_sum_is_shown(built: Path) -> None:
    manifest = replace(read_manifest(built), counts=Counts(objects=1, planned=47, kept=41, rejected=6))
    assert "✗ The sum does not hold" in render_report(built, manifest)


def test_hostile_values_stay_text(built: Path) -> None:
    manifest = read_manifest(built)
    evil = "<script>alert(1)</script>"
    hostile = replace(
        manifest,
        name=evil,
        recipe={"description": evil, "x": evil},
        build={evil: evil, "requests": [{"archive": evil, "operation": evil, "outcome": evil, "requests": 1}]},
        libraries={evil: evil},
    )
    page = Page(render_report(built, hostile))
    assert not page.all("script")
    assert page.text.count(evil) >= 5


def test_works_before_dataset_json_and_without_samples(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "ds", n=0)
    (tmp_path / "ds" / "dataset.json").unlink()
    html = render_report(tmp_path / "ds", manifest)
    assert "no frame was kept" in html
    page = Page(html)
    ids = {attrs["id"] for _, attrs in page.found if "id" in attrs}
    assert {(link["href"] or "")[1:] for link in page.all("a")} <= ids
    with pytest.raises(DatasetError):
        write_report(tmp_path / "ds")


def test_written_and_the_same_every_time(dataset: Path, html: str) -> None:
    path = write_report(dataset)
    assert path == dataset / "report.html"
    assert path.read_text("utf-8") == html


def test_numbers_in_words() -> None:
    assert [number(value) for value in (0, 1.0, -1024.0, 0.00392, 12345.6, float("nan"))] == [
        "0", "1", "−1,024", "0.00392", "12,346", "–",
    ]  # fmt: skip
    assert [percent(share) for share in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0)] == [
        "0 %",
        "< 0.1 %",
        "50.0 %",
        "> 99.9 %",
        "100 %",
    ]
