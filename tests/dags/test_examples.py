"""dags/examples: the scripts stop, go on and tell as they say; their command lines, recipe and flow are lumid's."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import lumid
import lumid.dags.cli
from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.layout import Layout
from lumid.dags.cli.app import app
from lumid.dags.cluster import ClusterSettings
from lumid.pipeline.recipe_cluster import KubernetesSettings
from lumid.pipeline.recipe_files import parse_recipe

pytestmark = pytest.mark.whole

FOLDER = Path(__file__).parents[2] / "dags" / "examples"
BATCH = sorted((FOLDER / "slurm").glob("*.sbatch"))
BUILDS = [path for path in BATCH if path.name.startswith("build")]
NIGHTLY = FOLDER / "cron" / "lumid-nightly"
TIMEOUT_S = 30


def parse(words: list[str]) -> None:
    """Raise where the command line knows no such command, option or kind of value."""
    for module in pkgutil.iter_modules(lumid.dags.cli.__path__):
        importlib.import_module(f"lumid.dags.cli.{module.name}")
    group: Any = typer.main.get_command(app)
    with group.make_context("lumid", list(words)) as root:
        name, command, rest = group.resolve_command(root, [*root._protected_args, *root.args])
        command.make_context(name, rest, parent=root)


def lines_of_lumid(path: Path) -> list[list[str]]:
    """Every call of lumid in a script, as words, numbers in place of variables."""
    text = re.sub(r"\\\n\s*", "", path.read_text("utf-8"))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    calls = re.findall(r"(?:^|\s)lumid ((?:build|verify|rejects|pretrain) [^&;|>\n]*)", text)
    return [shlex.split(re.sub(r'"?\$\{?\w+\}?"?', "7", call).strip(' "')) for call in calls]


@pytest.mark.parametrize("path", [*BATCH, NIGHTLY, FOLDER / "cron" / "crontab"], ids=lambda path: path.name)
def test_calls_of_lumid_are_ones_that_it_understands(path: Path) -> None:
    calls = lines_of_lumid(path)
    assert calls
    for words in calls:
        parse(words)


def test_a_call_that_lumid_does_not_understand_is_noticed() -> None:
    with pytest.raises(Exception, match="--oute"):
        parse(["build", "demo", "--oute", "x"])


@pytest.mark.parametrize("path", [*BATCH, NIGHTLY], ids=lambda path: path.name)
def test_scripts_are_bash_and_say_what_they_are_called_with(path: Path, tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    done = subprocess.run(["bash", path], capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT_S)
    assert done.returncode != 0
    assert "OUT" in done.stderr or "give a" in done.stderr


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.name)
def test_slurm_reads_every_directive(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command, "sbatch reads no further than the first command"
    text = path.read_text("utf-8")
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@300"} <= set(re.findall(r"^#SBATCH (\S+)$", text, re.M))


# --- the scripts at work, with a lumid that does as it is told ---

SCRIPT = """#!/bin/bash
echo "$0 $*" >> "$LOG"
"""
LUMID = """
trap 'sleep 0.3; echo put away >> "$LOG"; exit 143' TERM
touch "$READY"
for _ in $(seq "${TENTHS:-0}"); do sleep 0.1; done
exit "${CODE:-0}"
"""


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    """An environment in which lumid, scontrol and scancel are scripts that write down how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {"lumid": LUMID, "scontrol": "", "srun": LUMID, "scancel": "kill -TERM 0"}.items():
        (programs / name).write_text(SCRIPT + body)
        (programs / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "41", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NODELIST": "n1"}
    files = {"LOG": str(tmp_path / "log"), "READY": str(tmp_path / "ready")}
    return {"PATH": f"{programs}:/usr/bin:/bin", **slurm, **files}


def start(script: Path, fake: dict[str, str], *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", script, *arguments], env=fake | more, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def wait_until_ready(fake: dict[str, str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not Path(fake["READY"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("script", BUILDS, ids=lambda path: path.name)
@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_whose_time_is_over_comes_back_and_one_that_is_cancelled_does_not(
    script: Path, number: int, requeued: bool, fake: dict[str, str]
) -> None:
    job = start(script, fake, "r.toml", "out", TENTHS="200")
    wait_until_ready(fake)
    job.send_signal(number)
    job.communicate(timeout=TIMEOUT_S)
    called = Path(fake["LOG"]).read_text()
    assert "put away" in called, "the script waits until lumid has ended"
    assert ("scontrol requeue 41" in called) == requeued
    assert job.returncode == 143


@pytest.mark.parametrize("script", BUILDS, ids=lambda path: path.name)
@pytest.mark.parametrize(("code", "told"), [(0, ""), (2, ""), (3, "more rejects than the recipe allows")])
def test_a_build_that_ends_by_itself_is_not_asked_for_again(
    script: Path, code: int, told: str, fake: dict[str, str]
) -> None:
    job = start(script, fake, "r.toml", "out", CODE=str(code))
    _, errors = job.communicate(timeout=TIMEOUT_S)
    assert job.returncode == code
    assert "scontrol" not in Path(fake["LOG"]).read_text()
    assert told in errors
    assert bool(told) == bool(errors)


def nightly(fake: dict[str, str], out: Path, hours: str = "1", **more: str) -> tuple[int, str]:
    job = start(NIGHTLY, fake, "r.toml", str(out), hours, **more)
    printed, errors = job.communicate(timeout=TIMEOUT_S)
    return job.returncode, printed + errors


def test_cron_hears_only_of_what_somebody_has_to_look_at(fake: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert nightly(fake, out) == (0, "")
    assert nightly(fake, out, hours="0.0001", TENTHS="100") == (0, ""), "this night's hours are over"
    assert "put away" in Path(fake["LOG"]).read_text()
    code, printed = nightly(fake, out, CODE="3")
    assert (code, "lumid rejects" in printed) == (3, True)
    code, printed = nightly(fake, out, CODE="1")
    assert (code, "exit code 1" in printed) == (1, True)
    assert (tmp_path / "data.log").read_text().count("ends with exit code") == 4


def test_one_build_a_night(fake: dict[str, str], tmp_path: Path) -> None:
    first = start(NIGHTLY, fake, "r.toml", str(tmp_path / "data"), "1", TENTHS="200")
    wait_until_ready(fake)
    assert nightly(fake, tmp_path / "data") == (0, "")
    assert Path(fake["LOG"]).read_text().count("lumid build") == 1
    first.terminate()
    first.communicate(timeout=TIMEOUT_S)


def test_the_timetable_calls_the_script_as_it_is() -> None:
    lines = (FOLDER / "cron" / "crontab").read_text("utf-8").splitlines()
    calls = [line for line in lines if re.match(r"[\d*]", line)]
    assert len(calls) == 2
    for line in calls:
        assert all(re.fullmatch(r"\*|\d+", word) for word in line.split()[:5])
    (night,) = (line for line in calls if "lumid-nightly" in line)
    assert (
        len(night.partition("lumid-nightly ")[2].split())
        == len(NIGHTLY.read_text().split("\n")[1].split(":")[0].split()) - 2
    )


# --- Kubernetes ---


def test_job_recipe_and_claim_of_kubernetes_fit_each_other(tmp_path: Path) -> None:
    found = {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "kubernetes" / "build.yaml").read_text("utf-8"))}
    pod = found["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    parse(container["args"])
    (name, text), = found["ConfigMap"]["data"].items()  # fmt: skip
    cluster = parse_recipe(text, name, base=tmp_path).cluster
    assert isinstance(cluster, KubernetesSettings)
    assert cluster.image == container["image"]
    assert container["image"].endswith(f":{lumid.__version__}")
    (path, claim), = cluster.volumes.items()  # fmt: skip
    assert claim == found["PersistentVolumeClaim"]["metadata"]["name"]
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    claims = {one["name"]: one.get("persistentVolumeClaim", {}).get("claimName") for one in pod["volumes"]}
    assert claims[mounted[path]] == claim
    assert container["args"][container["args"].index("--out") + 1].startswith(f"{path}/")
    assert container["args"][1] == f"/etc/lumid/{name}"
    assert claims[mounted["/etc/lumid"]] is None, "the ConfigMap's place"


# --- Prefect ---


def _as_it_is(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda work: work


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> Iterator[ModuleType]:
    """The flow's file, its tasks plain functions: Prefect need not be installed."""
    prefect, artifacts = ModuleType("prefect"), ModuleType("prefect.artifacts")
    prefect.flow = prefect.task = _as_it_is  # type: ignore[attr-defined]
    artifacts.create_markdown_artifact = lambda text, **_: shown.append(text)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prefect", prefect)
    monkeypatch.setitem(sys.modules, "prefect.artifacts", artifacts)
    spec = importlib.util.spec_from_file_location("prefect_flow", FOLDER / "prefect_flow.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    level = logging.getLogger("distributed").level
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "keep_quiet", lambda: None)
    yield module
    logging.getLogger("distributed").setLevel(level)


@pytest.fixture
def small(study: Path, shared_cluster: ClusterSettings, tmp_path: Path) -> Path:
    """A recipe of two series and a file that is no image, which is more than it allows, on the cluster that is there."""
    (tmp_path / "small").mkdir()
    for path in [*sorted(study.glob("0[0-1]-*.dcm")), study / "notes.txt"]:
        (tmp_path / "small" / path.name).hardlink_to(path)
    source = (
        f'[[sources]]\nkind = "folder"\npath = "{tmp_path / "small"}"\ncollection = "small"\nlicense = "CC BY 4.0"\n'
    )
    cluster = f'[cluster]\nkind = "scheduler"\naddress = "{shared_cluster.scheduler}"\n'
    recipe = tmp_path / "small.toml"
    recipe.write_text(f'name = "small"\n{source}[limits]\nmax_reject_fraction = 0.01\n{cluster}')
    return recipe


def test_the_flow_builds_verifies_and_reports_and_then_fails_for_too_many_rejects(
    flow: ModuleType, small: Path, tmp_path: Path, shown: list[str]
) -> None:
    out = tmp_path / "data"
    with pytest.raises(LumidError, match="more rejects than the recipe allows"):
        flow.data_set(str(small), out)
    assert Layout(out).report.is_file()
    assert "| planned | 21 |" in shown[0]
    assert "| rejected: not_dicom | 1 |" in shown[0]
    shard = next((out / "shards").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-4096])
    with pytest.raises(LumidError, match="damaged"):
        flow.verify_data_set(out)
    with pytest.raises(UsageError):
        flow.build_data_set("no-such-recipe.toml", out)


def test_what_prefect_is_told_quotes_nothing_and_is_tried_again_where_that_may_help(flow: ModuleType) -> None:
    @flow.quoting_nothing  # type: ignore[untyped-decorator]
    def work(error: Exception) -> None:
        raise error

    with pytest.raises(RuntimeError, match=r"^lumid failed \(KeyError at ") as caught:
        work(KeyError("Doe^Jane"))
    assert "Doe" not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(UsageError):
        work(UsageError("no such folder"))

    class State:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self, raise_on_failure: bool) -> Exception:
            assert not raise_on_failure
            return self.error

    assert not flow.worth_another_try(None, None, State(UsageError("no such folder")))
    assert flow.worth_another_try(None, None, State(LumidError("the disk is full")))
