from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

import lumid.dags.cli.ask
import lumid.dags.cli.look
import lumid.dags.cli.pick
import lumid.dags.cli.pictures  # noqa: F401  registers the commands
from lumid.catalog.errors import LumidError
from lumid.dags.cli.app import app


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
