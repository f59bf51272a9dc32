"""The Dockerfile: what it needs is there, and what it makes is what its page says."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import lumid

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
KNOWN = {"FROM", "RUN", "LABEL", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}


@dataclass
class Stage:
    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [words for name, words in self.lines if name == instruction]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE))
    for line in filter(None, text.splitlines()):
        instruction, _, words = line.partition(" ")
        assert instruction in KNOWN, line
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", words).groups()  # type: ignore[union-attr]
            found[name] = stage = Stage(name, base)
        else:
            stage.lines.append((instruction, words))
    return found


STAGES = stages()
IMAGES = ("cpu", "gpu")


def test_the_image_one_gets_without_a_target_is_the_small_one() -> None:
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_bases_are_pinned_and_of_the_python_that_wheels_are_fetched_for(stage: Stage) -> None:
    python = re.search(r"^IMAGE_PYTHON \?= (\S+)$", MAKEFILE, re.MULTILINE)
    assert python
    assert re.fullmatch(rf"python:{re.escape(python[1])}(-slim)?-trixie", stage.base)
    least = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, python[1].split("."))) >= least


@pytest.mark.parametrize("name", IMAGES)
def test_packages_come_from_the_folder_that_make_fills_with_the_same_extras(name: str) -> None:
    (install,) = (words for words in STAGES[f"{name}-packages"].all("RUN") if "pip install" in words)
    assert f"--mount=type=bind,source=wheels/{name},target=/wheels " in install
    assert "--no-index --find-links /wheels" in install
    (extras,) = re.findall(r"'lumid\[([\w,]+)\]'", install)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert re.search(rf"^EXTRAS_{name} +:= {extras}$", MAKEFILE, re.MULTILINE)
    assert f"$(call fetch_wheels,{name})" in MAKEFILE


def test_nothing_asks_a_network() -> None:
    commands = [command for stage in STAGES.values() for words in stage.all("RUN") for command in words.split("&&")]
    assert commands
    for command in commands:
        assert not re.search(r"\b(apt|apt-get|curl|wget|git|npm)\b", command), command
        assert "pip install" not in command or "--no-index" in command, command
    assert not TEXT.startswith("# syntax="), "a front end of its own would be fetched"


def test_what_the_build_is_given_is_wheels_alone() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert ignored == ["*", "!wheels"]
    assert "wheels/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_takes_what_an_earlier_stage_made(name: str) -> None:
    (copied,) = STAGES[name].all("COPY")
    source, path, target = re.fullmatch(r"--from=(\S+) (\S+) (\S+)", copied).groups()  # type: ignore[union-attr]
    assert list(STAGES).index(source) < list(STAGES).index(name)
    assert source == f"{name}-packages"
    assert any(f"-m venv {path}" in words for words in STAGES[source].all("RUN"))
    assert path == target, "a virtual environment cannot be moved"
    assert any(f"PATH={path}/bin:$PATH" in words for words in STAGES[name].all("ENV"))


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_lumid_as_nobody_of_note(name: str) -> None:
    stage = STAGES[name]
    order = [instruction for instruction, _ in stage.lines]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage.all("USER")[-1]), (
        "Kubernetes wants a number to see that it is not root"
    )
    assert "RUN" not in order[order.index("USER") :]
    (program,) = json.loads(stage.all("ENTRYPOINT")[-1])
    assert program in PROJECT["scripts"]


@pytest.mark.parametrize("name", IMAGES)
def test_labels_say_the_version_and_the_licence(name: str) -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', " ".join(STAGES[name].all("LABEL"))))
    assert labels["version"] == lumid.__version__
    assert labels["licenses"] == PROJECT["license"]
    assert {"title", "description"} <= set(labels)


def test_only_the_image_for_gpus_has_a_compiler() -> None:
    assert "slim" in STAGES["cpu"].base
    assert "slim" not in STAGES["gpu"].base
