"""How the commands are used: wrong use is one line, small builds say what they did, finished ones stay as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags.command import TIMEOUT_S, Command, lumid

pytestmark = pytest.mark.whole
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def test_a_finished_build_says_so_and_touches_nothing(built_study: Path, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built_study.rglob("*")}
    done = lumid("build", recipe, "--out", built_study)
    assert done.returncode == 0
    assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in built_study.rglob("*")} == before


def test_a_finished_build_whose_source_changed_says_so(study: Path, on_cluster: Command, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    first, second = sorted(study.glob("*.dcm"))[:2]
    (source / "a.dcm").write_bytes(first.read_bytes())
    assert on_cluster("build", "--source", source, "--out", tmp_path / "data").returncode == 0
    (source / "b.dcm").write_bytes(second.read_bytes())
    done = on_cluster("build", "--source", source, "--out", tmp_path / "data")
    assert done.returncode == 1
    assert "source has changed" in done.stderr
    (source / "b.dcm").unlink()
    assert on_cluster("build", "--source", source, "--out", tmp_path / "data").returncode == 0


def test_other_files_of_the_same_names_and_sizes_are_not_taken_for_finished_ones(
    study: Path, on_cluster: Command, tmp_path: Path
) -> None:
    first, second = sorted(study.glob("*.dcm"))[:2]
    assert first.stat().st_size == second.stat().st_size
    for number, file in enumerate((first, second)):
        folder = tmp_path / f"source-{number}"
        folder.mkdir()
        (folder / "IM1.dcm").write_bytes(file.read_bytes())
        os.utime(folder / "IM1.dcm", (number + 1, number + 1))
    assert on_cluster("build", "--source", tmp_path / "source-0", "--out", tmp_path / "data").returncode == 0
    done = on_cluster("build", "--source", tmp_path / "source-1", "--out", tmp_path / "data")
    assert done.returncode == 1
    assert "from other files" in done.stderr


def test_an_out_below_the_source_is_not_read_as_one(study: Path, on_cluster: Command, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.dcm").write_bytes(next(study.glob("*.dcm")).read_bytes())
    for words in ("is finished", "is finished already"):
        done = on_cluster("build", "--source", source, "--out", source / "out[b]")
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert "planned 1 = kept 1" in done.stdout


def test_a_recipe_of_another_data_set_is_refused(built_study: Path) -> None:
    done = lumid("build", "demo", "--out", built_study)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "another recipe" in done.stderr


@pytest.mark.parametrize("what", ["folder", "file"])
def test_an_out_that_holds_something_else_is_refused(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    else:
        out.write_text("precious")
    done = lumid("build", "demo", "--out", out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--out" in done.stderr
    assert (out / "thesis.tex" if what == "folder" else out).read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build"], 2, "RECIPE or --source"),
        (["build", "no-such"], 2, "demo, lumid, paper"),
        (["build", "--source", "no-such-folder", "--out", "x"], 2, "no such folder"),
        (["build", "lumid", "--only", "no_such", "--out", "x"], 2, "no_such"),
        (["build", "demo", "--out", "x", "--scheduler", "tcp://127.0.0.1:9"], 1, "no Dask scheduler answers"),
        (["status", "no-such"], 1, "not a data set"),
        (["query", "no-such"], 1, "not a data set"),
        (["build", "--nope"], 2, "(see python -m lumid build --help)"),
        (["biuld"], 2, "(see python -m lumid --help)"),
        (["build", "--workers", "0"], 2, "--workers"),
        (["query"], 2, "DATASET"),
    ],
)
def test_wrong_use_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = lumid(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("colours", ["1", "0"])
@pytest.mark.parametrize("group", [[], ["deid"]])
def test_a_command_of_commands_shows_its_help(group: list[str], colours: str) -> None:
    done = lumid(*group, TYPER_USE_RICH=colours)
    assert (done.returncode, done.stderr) == (2, "")
    assert "Commands" in done.stdout


@pytest.mark.parametrize("limit", ["2", "1000"])  # less than is kept before it is written, and more
def test_a_full_disk_below_what_is_printed_is_one_line(limit: str, built_study: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lumid", "query", str(built_study), "--format", "csv", "--limit", limit],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=BUFFERED,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: No space left on device: nothing more can be written; make room and run the same command again"
    ]


@pytest.mark.parametrize("limit", ["2", "1000"])
def test_whoever_reads_what_is_printed_may_have_had_enough(limit: str, built_study: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lumid", "query", str(built_study), "--format", "csv", "--limit", limit],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, env=BUFFERED,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_folder_without_images_is_a_data_set_of_rejects(on_cluster: Command, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("no image")
    done = on_cluster("build", "--source", tmp_path / "source", "--out", tmp_path / "data", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["counts"] == {"objects": 1, "planned": 1, "kept": 0, "rejected": 1}
    assert facts["rejects"] == {"not_dicom": 1}
    assert lumid("query", tmp_path / "data").returncode == 0


@pytest.mark.parametrize("option", ["--source", "--out", "--scheduler", "--base", "--log"])
def test_an_option_that_is_empty_is_no_option_that_is_not_there(option: str, tmp_path: Path) -> None:
    """A shell makes it of a variable that is not set; --scheduler "" would build here."""
    done = lumid("build", "--source", tmp_path, "--out", tmp_path / "o", option, "")
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [f"error: {option}: is empty; is the variable set that you gave?"],
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--source", ""], "--source"),
        (["build", "--source", "loop", "--out", "o"], "in a circle"),
        (["build", "--source", "a.dcm", "--out", "o"], "is a file"),
        (["build", "--source", ".", "--out", "loop"], "Too many levels of symbolic links"),
        (["build", "--source", ".", "--out", "o", "--workers", "99999999999999999999"], "--workers"),
        (["query", "x" * 300], "File name too long"),
    ],
)
def test_paths_and_numbers_that_cannot_be(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.dcm").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    done = lumid(*arguments)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "error: ")
    assert words in done.stderr


def test_a_working_directory_that_is_gone(built_study: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'mkdir gone; cd gone; rmdir ../gone; exec "$@"', "-", sys.executable, "-m", "lumid", "query", str(built_study)],
        cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: the working directory is gone; cd to one that is there\n")


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-", ">&-", "2>&-"])
def test_streams_that_are_closed_are_no_files_of_the_build(closed: str, study: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lumid", "build", "--source", str(study), "--out", "o", "--workers", "1"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "-", *command], cwd=tmp_path, timeout=TIMEOUT_S, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "o" / "dataset.json").is_file()


def test_a_terminal_of_few_letters(built_study: Path) -> None:
    done = lumid("query", built_study, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_on_stderr_is_all_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("no image")
    done = lumid(
        "build",
        "--source",
        tmp_path / "source",
        "--out",
        tmp_path / "o",
        "--scheduler",
        "tcp://127.0.0.1:9",
        "--log",
        "-",
    )
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert (done.returncode, events[-1]) == (1, "build_failed")


def test_an_empty_folder_is_no_data_set(on_cluster: Command, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    done = on_cluster("build", "--source", source, "--out", out)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [f"error: {source}: there is no file in it; is its disk mounted?"],
    )
    assert not out.exists()
    (source / "note.txt").write_text("no image")
    assert on_cluster("build", "--source", source, "--out", out).returncode == 0


def test_one_of_two_folders_is_empty(tmp_path: Path) -> None:
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "a.txt").write_text("no image")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\n[[sources]]\nkind = "folder"\npath = "full"\n[[sources]]\nkind = "folder"\npath = "empty"\ncollection = "other"\n'
    )
    done = lumid("build", recipe, "--out", tmp_path / "data")
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [f"error: {tmp_path / 'empty'}: there is no file in it; is its disk mounted?"],
    )


def test_nothing_that_a_recipe_needs_is_there(on_cluster: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "r"\n[[sources]]\nkind = "folder"\npath = "package"\nby_hand = true\n')
    done = on_cluster("build", recipe, "--out", tmp_path / "data")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: recipe 'r' selects no series, and no folder that it needs is there; lumid plan says what is missing",
    )


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    done = lumid("build", tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        [f"error: {tmp_path}: is a folder, not a recipe; to build from its files: --source {tmp_path}"],
    )


def test_more_rejects_than_the_recipe_allows_is_exit_code_3(on_cluster: Command, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("no image")
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[[sources]]\nkind = "folder"\npath = "source"\n[limits]\nmax_reject_fraction = 0.5\n'
    )
    done = on_cluster("build", tmp_path / "r.toml", "--out", tmp_path / "data")
    assert done.returncode == 3
    assert "more than 50%" in done.stderr


def test_version_lists_the_libraries() -> None:
    done = lumid("--version")
    assert done.returncode == 0
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"lumid", "python", "pydicom", "dask", "pyarrow", "webdataset"} <= names


def test_help_of_every_command_has_an_example() -> None:
    top = lumid("--help")
    assert top.returncode == 0
    for command in (
        "demo",
        "build",
        "status",
        "query",
        "show",
        "rejects",
        "report",
        "cite",
        "pretrain",
        "reconstruct",
        "export",
    ):
        assert command in top.stdout
        done = lumid(command, "--help")
        assert done.returncode == 0
        assert f"lumid {command}" in done.stdout, f"{command} --help shows no example"
