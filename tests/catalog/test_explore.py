from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.explore import questions
from lumid.catalog.explore.questions import Explorer, Recent
from lumid.catalog.explore.view import (
    View,
    as_command,
    as_python,
    as_sql,
    as_subset_command,
    condition,
    kind_of,
    order_by,
    parse_view,
)
from lumid.catalog.query import read_catalog, run_sql
from lumid.catalog.schema import CATALOG
from tests.factory import make_dataset


@pytest.fixture(params=["held in memory", "read from disk"])
def explorer(built: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Explorer]:
    if request.param == "read from disk":
        monkeypatch.setattr(questions, "HELD_ROWS", 0)
    found = Explorer(built)
    yield found
    found.close()


# ---- what is looked at, as SQL


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([], None),
        ([("is.modality", "CT")], "modality = 'CT'"),
        ([("is.modality", "CT"), ("is.modality", "MR"), ("is.modality", "CT")], "modality IN ('CT', 'MR')"),
        ([("is.body_part", "")], "body_part IS NULL"),
        ([("is.body_part", ""), ("is.body_part", "HEAD")], "body_part IS NULL OR body_part = 'HEAD'"),
        ([("from.slice_thickness", "1"), ("to.slice_thickness", "2.5")], "slice_thickness >= 1 AND slice_thickness <= 2.5"),
        ([("to.age_years", "60"), ("is.sex", "F")], "(sex = 'F') AND (age_years <= 60)"),
        ([("from.age_years", "")], None),
        ([("is.contrast", "true")], "contrast = true"),
        ([("is.frame", "3")], "frame = 3"),
        ([("is.noise", "0.1")], "noise = 0.1"),
        ([("is.labels", "Mass"), ("is.labels", "Nodule")], "list_has_any(labels, ['Mass', 'Nodule'])"),
        ([("is.collection", "L'Aquila")], "collection = 'L''Aquila'"),
        ([("where", " age_years > 60 OR sex = 'F' "), ("is.modality", "CT")], "(modality = 'CT') AND (age_years > 60 OR sex = 'F')"),
        ([("page", "7"), ("key", "x"), ("window", "lung")], None),
    ],
)  # fmt: skip
def test_filters_as_sql(parameters: list[tuple[str, str]], expected: str | None, built: Path) -> None:
    view = parse_view(parameters)
    assert condition(view) == expected
    run_sql(built, f"SELECT key FROM catalog{f' WHERE {expected}' if expected else ''}")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ([("is.nothing", "1")], "does not have"),
        ([("is.key; DROP TABLE x", "1")], "does not have"),
        ([("from.modality", "1")], "not a number"),
        ([("from.age_years", "sixty")], "not a number"),
        ([("from.age_years", "nan")], "not a number"),
        ([("to.age_years", "inf")], "not a number"),
        ([("is.frame", "1 OR 1=1")], "not a number"),
        ([("is.contrast", "maybe")], "true or false"),
        ([("where", "1=1) OR (1=1")], "not understood"),
        ([("where", "1=1 UNION SELECT 1")], "not understood"),
        ([("where", "1=1; SELECT 1")], "not understood"),
        ([("where", "modality = 'CT' ORDER BY 1")], "not understood"),
        ([("order", "nothing")], "does not have"),
        ([("order", "labels")], "list"),
        ([("where", "1" * 5000)], "longer"),
        ([("is.modality", str(n)) for n in range(201)], "more than 200"),
    ],
)
def test_what_cannot_be_meant(parameters: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        condition(parse_view(parameters))


def test_every_column_can_be_filtered_and_ordered_by(explorer: Explorer) -> None:
    whole = explorer.page(View(), 1, 1).rows[0]["key"]
    row = explorer.sample(whole)
    assert row is not None
    assert set(row) == set(CATALOG.names)
    for name, value in row.items():
        shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        found = explorer.page(parse_view([(f"is.{name}", shown)]), 1)
        assert whole in {one["key"] for one in found.rows}, name
        if kind_of(name) != "list":
            assert explorer.page(parse_view([("order", name), ("desc", "1")]), 1).total == 40


def test_the_copied_query_gives_the_view(explorer: Explorer, built: Path) -> None:
    view = parse_view(
        [("is.modality", "CT"), ("where", "age_years > 41 -- older"), ("order", "age_years"), ("desc", "1")]
    )
    keys = [row["key"] for row in explorer.page(view, 1).rows]
    assert 3 < len(keys) < 14
    assert run_sql(built, as_sql(view))["key"].to_pylist() == keys
    names: dict[str, object] = {}
    exec(as_python(str(built), view), names)
    assert names["table"]["key"].to_pylist() == keys  # type: ignore[index]
    command = shlex.split(as_command(str(built), view))
    assert command == ["lumid", "query", str(built), condition(view), "--order-by", order_by(view)]
    assert shlex.split(as_subset_command("a b/$(x)", View())) == [
        "lumid",
        "subset",
        "a b/$(x)",
        "--out",
        "subset.parquet",
    ]


@pytest.mark.parametrize("hostile", ["'; touch /tmp/x; '", '"$(id)"', "`id`", "a\nb", "\\", "!x", "日本", "-x"])
def test_hostile_values_are_one_word_of_a_shell_and_one_text_of_sql(hostile: str, built: Path) -> None:
    view = parse_view([("is.collection", hostile)])
    words = shlex.split(as_command("ds", view))
    assert words == ["lumid", "query", "ds", condition(view)]
    assert run_sql(built, as_sql(view)).num_rows == 0
    assert duckdb.sql(f"SELECT {words[3].partition('= ')[2]}").fetchall() == [(hostile,)]


# ---- what the catalog answers


def test_pages_hold_every_sample_once(explorer: Explorer, built: Path) -> None:
    pages = [explorer.page(View(), number, 16) for number in (1, 2, 3)]
    keys = [row["key"] for page in pages for row in page.rows]
    assert keys == read_catalog(built, columns=["key"])["key"].to_pylist()
    assert [page.total for page in pages] == [40, 40, 40]
    assert explorer.page(View(), 99, 16).number == 3
    assert explorer.page(View(), 0, 16).number == 1


def test_an_empty_page_says_why(explorer: Explorer) -> None:
    page = explorer.page(parse_view([("is.modality", "CT"), ("from.age_years", "200"), ("series", "one")]), 1)
    assert (page.total, page.rows) == (0, ())
    assert any("age_years is from 40 to 47" in line for line in page.why)


def test_one_slice_a_series_is_the_middle_of_what_is_selected(explorer: Explorer, built: Path) -> None:
    view = parse_view([("is.modality", "CT"), ("series", "one")])
    found = explorer.page(view, 1)
    series = run_sql(built, "SELECT DISTINCT series FROM catalog WHERE modality = 'CT'")["series"].to_pylist()
    assert sorted(row["series"] for row in found.rows) == sorted(series)
    assert explorer.page(parse_view([("series", "one"), ("where", "frame < 0")]), 1).total == 0
    assert read_catalog(built, condition(view)).num_rows == len(series)


def test_values_are_counted_under_all_filters_but_their_own(explorer: Explorer) -> None:
    view = parse_view([("is.modality", "CT"), ("is.body_part", "CHEST"), ("to.age_years", "50")])
    modality, part, age, flag, sequence, labels = explorer.facets(
        view, ["modality", "body_part", "age_years", "contrast", "sequence", "labels"]
    )
    rows = explorer.page(parse_view([("is.modality", "CT"), ("to.age_years", "50")]), 1).rows
    assert dict(part.values) == {
        name: sum(row["body_part"] == name for row in rows) for name in {row["body_part"] for row in rows}
    }
    assert dict(modality.values)["CT"] == explorer.page(view, 1).total
    assert age.stated == explorer.page(parse_view([("is.modality", "CT"), ("is.body_part", "CHEST")]), 1).total
    assert (age.low, age.high, len(age.bars), sum(age.bars)) == (40, 47, 24, age.stated)
    assert {value for value, _ in flag.values} <= {"true", "false", ""}
    assert sequence.values == (("", explorer.page(view, 1).total),)
    assert labels.values == ()


def test_a_chosen_value_stays_to_be_seen(explorer: Explorer) -> None:
    view = parse_view([("is.body_part", "PROSTATE"), ("is.modality", "CT")])
    (part,) = explorer.facets(view, ["body_part"])
    assert ("PROSTATE", 0) in part.values


def test_values_are_found_by_a_part_of_them(explorer: Explorer) -> None:
    assert dict(explorer.find_values(View(), "collection", "TRIAL").values) == {"lung_trial": 14, "prostate_trial": 13}
    assert explorer.find_values(View(), "collection", "%").values == ()
    assert explorer.find_values(View(), "collection", "lung\\").values == ()
    assert explorer.find_values(View(), "collection", "g_t").values == (("lung_trial", 14),)
    with pytest.raises(UsageError):
        explorer.find_values(View(), "age_years", "4")


def test_a_series_is_in_order_and_whole(explorer: Explorer, built: Path) -> None:
    key = explorer.page(parse_view([("is.modality", "MR")]), 1).rows[0]["key"]
    slices = explorer.series_of(key)
    row = explorer.sample(key)
    assert row is not None
    expected = run_sql(
        built, f"SELECT key FROM catalog WHERE series = '{row['series']}' ORDER BY slice_index, frame, key"
    )
    assert [one["key"] for one in slices] == expected["key"].to_pylist()
    assert explorer.series_of("0" * 24) == []
    assert explorer.sample("0" * 24) is None
    assert explorer.image_row("0" * 24) is None


def test_first_windows(explorer: Explorer) -> None:
    shown = {row["modality"]: row for row in explorer.page(View(), 1).rows}
    assert shown["CT"]["shown"] == {"low": -160.0, "high": 240.0}
    assert shown["MR"]["shown"] == {"low": shown["MR"]["p01"], "high": shown["MR"]["p99"]}
    assert shown["US"]["shown"] == {"low": 0.0, "high": 1.0}


def test_a_question_without_end_is_stopped(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "SLOWEST_S", 0.3)
    endless = "(SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range + b.range = frame) > 0"
    with pytest.raises(UsageError, match="took longer"):
        explorer.page(parse_view([("where", endless)]), 1)
    assert explorer.page(View(), 1).total == 40


def test_an_empty_data_set(tmp_path: Path) -> None:
    make_dataset(tmp_path / "ds", n=0)
    explorer = Explorer(tmp_path / "ds")
    try:
        assert explorer.page(View(), 1).why == ("the data set holds no samples",)
        assert explorer.facets(View(), ["modality", "age_years"])[1].low is None
    finally:
        explorer.close()
    with pytest.raises(DatasetError):
        Explorer(tmp_path)


def test_what_was_not_asked_for_longest_is_forgotten() -> None:
    recent: Recent[str, int] = Recent(10)
    recent.put("a", 1, 4)
    recent.put("b", 2, 4)
    assert recent.get("a") == 1
    recent.put("c", 3, 4)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
    recent.put("a", 5, 6)
    assert (recent.get("a"), recent.get("c")) == (5, 3)
    recent.put("d", 4, 99)
    assert (recent.get("a"), recent.get("d")) == (None, 4)
