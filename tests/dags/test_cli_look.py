from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

import lumid.dags.cli.ask
import lumid.dags.cli.look
import lumid.dags.cli.pick
import lumid.dags.cli.pictures  # noqa: F401  registers the commands
from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.layout import read_manifest
from lumid.catalog.query import read_catalog
from lumid.catalog.verify import verify
from lumid.dags.cli.app import app
from lumid.dags.cli.preview import can_preview, half_blocks
from lumid.dags.repair import recipe_of
from tests.catalog.sound import make_sound
from tests.stored import store


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fails(*arguments: object) -> LumidError:
    result = run(*arguments)
    assert isinstance(result.exception, LumidError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def test_query_shows_a_table_and_how_many_there_are(built: Path) -> None:
    text = ok("query", built)
    assert text.splitlines()[0].split() == [
        "key",
        "modality",
        "body_part",
        "plane",
        "width",
        "height",
        "collection",
        "split",
    ]
    assert text.splitlines()[-1] == "20 of 40 samples"
    assert len(text.splitlines()) == 23
    assert ok("query", built, "modality = 'CT'", "--limit", 3).splitlines()[-1] == "3 of 14 samples"


def test_short_forms(built: Path) -> None:
    rows = json.loads(ok("query", built, "age_years > 0", "--modality", "ct", "--body-part", "chest", "--json"))
    assert len(rows) == 8
    assert {(row["modality"], row["body_part"]) for row in rows} == {("CT", "CHEST")}
    assert ok("query", built, "--modality", "CT", "--modality", "MR").splitlines()[-1] == "20 of 27 samples"


def test_group_by_counts_descending(built: Path) -> None:
    assert json.loads(ok("query", built, "--group-by", "modality", "--json")) == [
        {"modality": "CT", "samples": 14},
        {"modality": "MR", "samples": 13},
        {"modality": "US", "samples": 13},
    ]
    assert ok("query", built, "--group-by", "modality,sex").splitlines()[-1] == "6 of 6 groups, 40 samples"
    rows = json.loads(ok("query", built, "--group-by", "modality", "--select", "min(p01) AS low", "--json"))
    assert [row["modality"] for row in rows] == ["CT", "MR", "US"]
    assert rows[0]["low"] < -900


def test_exports_hold_all_rows(built: Path, tmp_path: Path) -> None:
    assert len(list(csv.DictReader(io.StringIO(ok("query", built, "--format", "csv"))))) == 40
    assert len(json.loads(ok("query", built, "--json"))) == 40
    ok("query", built, "--select", "key, slice_thickness", "--out", tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 40
    ok("query", built, "--out", tmp_path / "a.csv", "--limit", 2)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    ok("query", built, "--sql", "SELECT 1 AS one, NULL AS none", "--out", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == [{"one": 1, "none": None}]
    assert json.loads(ok("query", built, "--sql", "SELECT 'nan'::DOUBLE AS x", "--json")) == [{"x": None}]


@pytest.mark.parametrize("at_once", [1, 7, 40, 1000])
def test_rows_are_whole_however_many_are_written_at_once(
    built: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_catalog(built, columns=["key", "modality", "labels"]).to_pylist()
    monkeypatch.setattr("lumid.dags.cli.tables.ROWS_AT_ONCE", at_once)
    asked = ("query", built, "--select", "key, modality, labels", "--order-by", "key")
    assert json.loads(ok(*asked, "--json")) == expected
    rows = list(csv.DictReader(io.StringIO(ok(*asked, "--format", "csv"))))
    assert [row["key"] for row in rows] == [row["key"] for row in expected]
    assert ok(*asked, "--limit", 0, "--json") == "[]\n"
    assert ok(*asked, "--limit", 0, "--format", "csv") == "key,modality,labels\n"


def test_columns_are_listed_with_unit_and_meaning(built: Path) -> None:
    columns = {row["column"]: row for row in json.loads(ok("query", built, "--columns", "--json"))}
    assert columns["slice_thickness"]["unit"] == "mm"
    assert "nominal" in columns["slice_thickness"]["meaning"]
    assert "nominal slice thickness" in ok("query", built, "--columns")


def test_empty_answer_says_why(built: Path) -> None:
    result = run("query", built, "--modality", "XA")
    assert result.exit_code == 0
    assert "no sample has modality = 'XA'; modality is CT (14)" in result.stderr
    assert json.loads(run("query", built, "--modality", "XA", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("modalty = 'CT'",), 2, "did you mean modality"),
        (("--sql", "COPY catalog TO 'x.csv'"), 2, "one SELECT"),
        (("modality = 'CT'", "--sql", "SELECT 1"), 2, "--sql is a whole query"),
        (("--format", "parquet"), 2, "--out"),
        (("--out", "rows.xlsx"), 2, "csv, json or parquet"),
        (
            (
                "--order-by",
                "ke",
            ),
            2,
            "did you mean key",
        ),
    ],
)
def test_wrong_use(built: Path, arguments: tuple[str, ...], code: int, hint: str) -> None:
    error = fails("query", built, *arguments)
    assert error.exit_code == code
    assert hint in str(error)


def test_no_data_set(tmp_path: Path) -> None:
    for command in ("query", "show", "rejects", "report", "cite"):
        error = fails(command, tmp_path)
        assert error.exit_code == 1
        assert "not a data set" in str(error)


def test_control_characters_do_not_reach_the_terminal(built: Path) -> None:
    text = ok("query", built, "--sql", "SELECT chr(27) || '[31mred [bold]x[/bold]' AS v")
    assert "\x1b" not in text
    assert "[bold]x[/bold]" in text


def test_rejects(built: Path) -> None:
    rows = json.loads(ok("rejects", built, "--by-code", "--json"))
    assert [(row["code"], row["frames"], row["objects"]) for row in rows] == [
        ("not_an_image", 3, 1),
        ("localizer", 2, 2),
        ("blank", 1, 1),
    ]
    assert rows[1]["meaning"] == "a localizer or scout, not a diagnostic slice"
    assert ok("rejects", built, "--limit", 1).splitlines()[-1].startswith("1 of 4 rejects, 6 frames")
    assert {row["code"] for row in json.loads(ok("rejects", built, "--code", "blank", "--json"))} == {"blank"}
    assert fails("rejects", built, "--code", "ugly").exit_code == 2


def test_show_report_and_cite(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    said = json.loads(ok("show", dataset, "--modality", "CT", "--window", "lung", "--n", 6, "--out", out, "--json"))
    assert out.read_bytes().startswith(b"\x89PNG")
    assert said["shown"] == len(said["keys"]) == 6
    assert said["samples"] == 14
    assert "no effect" in run("show", dataset, "--modality", "MR", "--window", "lung", "--out", out).stderr
    assert "nothing to show: no sample has modality = 'XA'" in str(fails("show", dataset, "--modality", "XA"))
    assert ok("report", dataset).strip() == str(dataset / "report.html")
    assert (dataset / "report.html").read_text().startswith("<!doctype html>")
    bib = ok("cite", dataset)
    assert bib.startswith("@software")
    assert bib == (dataset / "CITATION.bib").read_text()
    assert ok("cite", dataset, "--licenses") == (dataset / "LICENSES.md").read_text()
    assert [row["non_commercial"] for row in json.loads(ok("cite", dataset, "--json"))] == [False, False, True]


@pytest.mark.parametrize("command", ["query", "show", "rejects", "report", "cite"])
def test_help_has_an_example(command: str) -> None:
    text = ok(command, "--help")
    assert "Example" in text
    assert f"lumid {command} DATASET" in text


def test_registering_the_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys, lumid.dags.cli.look; "
        "print([name for name in ('duckdb', 'pyarrow', 'cv2', 'numpy', 'jinja2', 'pandas') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def command_line(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from lumid.dags.cli import main; sys.argv[0] = 'lumid'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("query", "{built}", "--limit", "1"), 0, ""),
        (("query", "{built}", "modalty = 'CT'"), 2, "error: no column 'modalty'; did you mean modality?\n"),
        (("show", "{built}", "--window", "liver"), 2, None),
        (
            ("report", "nowhere"),
            1,
            "error: nowhere: not a data set (no dataset.json); make one with `lumid build` or `lumid demo`\n",
        ),
    ],
)
def test_exit_codes_and_one_line_on_stderr(
    built: Path, arguments: tuple[str, ...], code: int, said: str | None
) -> None:
    done = command_line(*(argument.format(built=built) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert said is None or done.stderr == said


# ---- short forms, places and subsets


def test_more_short_forms(built: Path) -> None:
    asked = ("query", built, "--license", "cc-by", "--collection", "Lung-Trial", "--split", "train", "--json")
    rows = json.loads(ok(*asked, "--select", "license, collection, split"))
    assert {tuple(row.values()) for row in rows} == {("CC BY 4.0", "lung_trial", "train")}
    assert len(json.loads(ok("query", built, "--license", "cc-by-nc", "--json"))) == 13
    assert len(json.loads(ok("query", built, "--license", "none", "--json"))) == 13
    result = run("query", built, "--license", "cc0")
    assert "no sample has license = 'cc0'; license is CC BY 4.0 (14)" in result.stderr
    assert "--sql is a whole query" in str(fails("query", built, "--license", "cc-by", "--sql", "SELECT 1"))


def test_a_data_set_in_a_bucket(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store(built, monkeypatch)
    assert ok("query", url, "--group-by", "modality") == ok("query", built, "--group-by", "modality")
    assert ok("rejects", url, "--by-code") == ok("rejects", built, "--by-code")
    assert ok("cite", url) == ok("cite", built)
    assert "6 of 40 samples" in ok("show", url, "--n", 6, "--out", tmp_path / "a.png")
    assert "local disk" in str(fails("report", url))
    assert "no dataset.json there" in str(fails("query", url + "x"))


def test_a_subset_is_used_as_a_data_set_is(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "thin.parquet"
    said = ok("subset", built, "slice_thickness <= 2.5", "--modality", "CT", "--out", out)
    assert said.splitlines()[0] == f"{out}: 10 samples (CT 10)"
    assert said.splitlines()[2] == "where (slice_thickness <= 2.5) AND (modality = 'CT')"
    assert ok("subset", out) == said
    assert json.loads(ok("subset", out, "--json"))["samples"] == 10
    assert ok("query", out).splitlines()[-1] == "10 of 10 samples"
    assert ok("query", built, "--subset", out, "--group-by", "modality").splitlines()[-1] == "1 of 1 group, 10 samples"
    assert "4 of 10 samples" in ok("show", out, "--n", 4, "--out", tmp_path / "a.png")
    assert "lung_trial" in ok("cite", out)
    assert ok("cite", out, "--licenses").count("| prostate_trial") == 0
    again = ok("subset", built, "--like", out, "--out", tmp_path / "again.parquet")
    assert again.splitlines()[2] == said.splitlines()[2]
    few = json.loads(ok("subset", out, "--limit", 5, "--out", tmp_path / "few.parquet", "--json"))
    assert few["samples"] == 5
    assert [step["limit"] for step in few["steps"]] == [None, 5]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("modality = 'CT'",), "--out NAME.parquet"),
        (("--out", "{tmp}/a.csv"), "NAME.parquet"),
        (("--modality", "XA", "--out", "{tmp}/a.parquet"), "no sample has modality = 'XA'"),
        (("--like", "{tmp}/none.parquet", "--out", "{tmp}/a.parquet"), "no such file"),
        (("--like", "x.parquet", "--limit", "2", "--out", "{tmp}/a.parquet"), "leave out"),
    ],
)
def test_wrong_use_of_subset(built: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    error = fails("subset", built, *(one.format(tmp=tmp_path) for one in arguments))
    assert error.exit_code == 2
    assert hint in str(error)


def test_a_report_is_of_a_whole_data_set(built: Path, tmp_path: Path) -> None:
    ok("subset", built, "--out", tmp_path / "s.parquet")
    assert "lumid extract" in str(fails("report", tmp_path / "s.parquet"))


# ---- extract


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "ds", n=24)


def test_extract_shards(sound: Path, tmp_path: Path) -> None:
    assert "8 samples in 1 shard" in ok("extract", sound, "--modality", "CT", "--out", tmp_path / "ct")
    assert verify(tmp_path / "ct", deep=True).findings == ()
    about = json.loads(ok("extract", sound, "sex = 'F'", "--limit", 3, "--out", tmp_path / "f", "--json"))
    assert (about["samples"], about["shards"]) == (3, 1)
    assert ok("query", tmp_path / "f").splitlines()[-1] == "3 of 3 samples"


def test_an_extract_is_extracted_again_not_repaired(sound: Path, tmp_path: Path) -> None:
    ok("extract", sound, "--modality", "CT", "--out", tmp_path / "ct")
    with pytest.raises(UsageError, match="extract it again"):
        recipe_of(read_manifest(tmp_path / "ct"))


def test_extract_images(sound: Path, tmp_path: Path) -> None:
    asked = ("extract", sound, "--as", "images", "--by", "modality, split", "--out", tmp_path / "images", "--json")
    about = json.loads(ok(*asked))
    assert about["images"] == 24 == len(list((tmp_path / "images").rglob("*.png")))
    assert set(about["classes"]) == {"CT/train", "MR/train", "US/train"}


def test_extract_describes(sound: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sound, tmp_path / "ds"))
    assert ok("extract", root, "--as", "croissant").split() == [str(root / "croissant.json"), str(root / "README.md")]
    assert json.loads((root / "croissant.json").read_text())["name"] == "synthetic"
    assert verify(root).findings == ()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "--out FOLDER"),
        (("--out", "{tmp}/x", "--window", "lung"), "--as images"),
        (("--as", "croissant", "--modality", "CT"), "as a subset first"),
        (("--as", "images", "--by", "bodypart", "--out", "{tmp}/x"), "did you mean body_part"),
        (("--as", "images", "--by", "sha256,key", "--modality", "XA", "--out", "{tmp}/x"), "no sample has"),
    ],
)
def test_wrong_use_of_extract(sound: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    assert hint in str(fails("extract", sound, *(one.format(tmp=tmp_path) for one in arguments)))
    assert not (tmp_path / "x").exists()


# ---- pictures


def test_a_series_as_a_strip(built: Path, tmp_path: Path) -> None:
    row = json.loads(ok("query", built, "slice_position > 7", "--select", "key, series", "--limit", 1, "--json"))[0]
    for name in (row["series"], row["series"][:6], row["key"][:8], row["key"].upper()):
        about = json.loads(ok("show", built, "--series", name, "--out", tmp_path / "a.png", "--json"))
        assert about["samples"] == about["shown"] == 4
        order = ok(
            "query", built, f"series = '{row['series']}'", "--select", "key", "--order-by", "slice_position", "--json"
        )
        assert about["keys"] == [one["key"] for one in json.loads(order)]
    assert "2 of 4 slices" in ok("show", built, "--series", row["series"], "--n", 2, "--out", tmp_path / "a.png")
    assert "no series and no key" in str(fails("show", built, "--series", "0000000000"))
    assert "hex digits" in str(fails("show", built, "--series", "a' OR 1=1"))
    assert "leave out WHERE" in str(fails("show", built, "--series", row["series"], "--modality", "CT"))


def test_a_preview_is_drawn_when_it_is_asked_for(built: Path, tmp_path: Path) -> None:
    shown = ok("show", built, "--n", 2, "--out", tmp_path / "a.png", "--preview")
    assert shown.count("▀") > 500
    assert "▀" not in ok("show", built, "--n", 2, "--out", tmp_path / "a.png")


def test_half_blocks_are_two_pixels_each() -> None:
    picture = np.zeros((4, 3, 3), np.uint8)
    picture[0, 0], picture[1, 0], picture[3, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    text = half_blocks(picture, 80)
    assert text.plain == "▀▀▀\n▀▀▀\n"
    style = text.get_style_at_offset(Console(), 0)
    assert (style.color.get_truecolor(), style.bgcolor.get_truecolor()) == ((255, 0, 0), (0, 255, 0))
    assert text.get_style_at_offset(Console(), 6).bgcolor.get_truecolor() == (0, 0, 255)
    assert half_blocks(np.zeros((300, 900, 3), np.uint8), 60).plain.count("▀") == 60 * 10


def test_where_pictures_can_be_seen() -> None:
    def terminal(**more: object) -> Console:
        return Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), **more)

    assert can_preview(terminal(force_terminal=True, color_system="truecolor"))
    assert not can_preview(terminal(force_terminal=True, color_system="standard"))
    assert not can_preview(terminal(force_terminal=False))
