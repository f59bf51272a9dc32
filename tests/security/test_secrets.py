"""Secrets while a private build runs: looked for wherever a cluster keeps or shows something, and in all that is left."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from distributed import Client, Scheduler, Worker

from lumid.catalog.errors import RecipeError
from lumid.catalog.places import place_manifest
from lumid.catalog.stores import open_store
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.recipe_files import parse_recipe, with_overrides
from tests.dicom import as_bytes, gradient, image
from tests.soak.site import ROOT

pytestmark = pytest.mark.whole

HELD = """
import os, time
from lumid.pipeline import parse
_header = parse.plain_header
seen = []
def held(data):
    seen.append(1)
    end = time.monotonic() + 120
    while len(seen) > 6 and not os.path.exists("go") and time.monotonic() < end:
        time.sleep(0.02)
    return _header(data)
parse.plain_header = held
"""
"""After some objects a worker waits, so that the build can be looked at."""
PAGES = (
    "status", "workers", "tasks", "system", "graph", "info/main/workers.html", "info/logs.html", "info/call-stacks.html", "json/counts.json",
    "json/identity.json", "json/index.html", "metrics", "health", "sitemap.json", "individual-config",
)  # fmt: skip


def planted() -> dict[str, str]:
    """Secrets by the variable that holds them; the first is the de-identification key, which is in a file."""
    one = {
        name: f"{name.lower()}-{secrets.token_hex(24)}"
        for name in ("KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    }
    sas = f"sv=2024&sig={secrets.token_hex(24)}"
    return one | {"AZURE_STORAGE_SAS_KEY": sas, "HTTPS_PROXY": f"http://user:{secrets.token_hex(16)}@127.0.0.1:9"}


def seen(where: str, data: bytes, hidden: dict[str, str]) -> list[str]:
    """Which secrets stand in what was found somewhere, plain or in base64."""
    found = []
    for name, value in hidden.items():
        plain = value.rpartition("user:")[2].encode()
        if any(form in data for form in (plain, base64.b64encode(plain)[:-4], plain.hex().encode())):
            found.append(f"{name} in {where}")
    return found


def test_the_search_finds() -> None:
    hidden = planted()
    for value in hidden.values():
        plain = value.rpartition("user:")[2].encode()
        assert seen("x", b"..." + plain + b"...", hidden)
        assert seen("x", b"..." + base64.b64encode(plain) + b"...", hidden)
    assert not seen("x", b"user:", hidden)


@contextmanager
def process(
    folder: Path, name: str, arguments: list[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says everything into files."""
    with (folder / f"{name}.said").open("wb") as said:
        one = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=said,
            stderr=said,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    try:
        yield one
    finally:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, 9)
        one.wait(10)


def of_scheduler(dask_scheduler: Scheduler) -> bytes:
    """All that a scheduler holds of tasks, as bytes and as text."""
    tasks = list(dask_scheduler.tasks.values())
    texts = [
        repr([one.run_spec for one in tasks]),
        repr(dask_scheduler.identity()),
        repr(dask_scheduler.transition_log),
    ]
    texts += [
        repr(dict(dask_scheduler._broker._topics)),
        repr([(one, one.annotations, one.exception_text, one.traceback_text) for one in tasks]),
    ]
    return cloudpickle.dumps([one.run_spec for one in tasks]) + "\n".join(texts).encode()


def of_worker(dask_worker: Worker) -> bytes:
    """The same of a worker."""
    state = dask_worker.state
    return (
        cloudpickle.dumps([one.run_spec for one in state.tasks.values()])
        + repr((state.tasks, list(state.log))).encode()
    )


def pages(address: str, keys: list[str]) -> Iterator[tuple[str, bytes]]:
    """The dashboard's pages, those of tasks and workers too."""
    for page in (*PAGES, *(f"info/task/{key}.html" for key in keys[:3])):
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{address}/{page}", timeout=20) as answer:
            yield f"dashboard /{page}", answer.read()


def command_lines(leaders: set[int]) -> bytes:
    """Of all processes of these sessions."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(one.pid) in leaders:
                found.append(" ".join(one.cmdline()))
    return "\n".join(found).encode()


def until(there: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_secret_is_seen_while_a_private_build_runs(tmp_path: Path) -> None:
    hidden = planted()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HELD)
    (tmp_path / "source").mkdir()
    for number in range(24):
        data = image(gradient(), SOPInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.3.{number // 2}")
        (tmp_path / "source" / str(number)).write_bytes(as_bytes(data))
    (tmp_path / "key").write_text(hidden["KEY"])
    (tmp_path / "r.toml").write_text(
        f'name = "r"\n[[sources]]\nkind = "folder"\npath = "source"\n[shards]\nbatch_slices = 2\n'
        f'[deid]\npolicy = "private"\nkey_file = "{tmp_path / "key"}"\n'
    )
    outside = {name: value for name, value in hidden.items() if name != "KEY"}
    environment = (
        os.environ
        | outside
        | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}", "DASK_LOGGING__DISTRIBUTED": "debug"}
    )
    file = str(tmp_path / "scheduler.json")
    found: list[str] = []
    begin = [
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--dashboard-address",
        "127.0.0.1:0",
    ]
    join = [
        "distributed.cli.dask_worker",
        "--host",
        "127.0.0.1",
        "--nworkers",
        "1",
        "--nthreads",
        "2",
        "--local-directory",
        str(tmp_path / "dask"),
    ]
    with (
        process(tmp_path, "scheduler", [*begin, "--scheduler-file", file], environment) as scheduler,
        process(tmp_path, "worker", [*join, "--scheduler-file", file], environment) as worker,
    ):
        until(lambda: Path(file).is_file() and Path(file).stat().st_size)
        address = json.loads(Path(file).read_text())["address"]
        arguments = ["lumid", "build", "r.toml", "--out", "data", "--scheduler", address, "--json"]
        with (
            Client(address, set_as_default=False) as client,
            process(tmp_path, "build", arguments, environment) as build,
        ):
            client.wait_for_workers(1)
            parts = tmp_path / "data" / ".build" / "parts"
            until(lambda: build.poll() is not None or any(parts.glob("*.tar")))
            keys = client.run_on_scheduler(lambda dask_scheduler: [str(key) for key in dask_scheduler.tasks])
            found += seen("the scheduler", client.run_on_scheduler(of_scheduler), hidden)
            for one, data in client.run(of_worker).items():
                found += seen(f"the worker {one}", data, hidden)
            told = {
                "logs of workers": client.get_worker_logs(),
                "logs": client.get_scheduler_logs(),
                "info": client.scheduler_info(),
            }
            for where, value in told.items():
                found += seen(where, repr(value).encode(), hidden)
            client.dump_cluster_state(str(tmp_path / "dump"), write_from_scheduler=False, format="yaml")
            found += seen("command lines", command_lines({scheduler.pid, worker.pid, build.pid}), hidden)
            shown = dict(pages(client.dashboard_link.removesuffix("/status"), keys))
            assert {f"dashboard /{page}" for page in ("status", "info/main/workers.html")} <= shown.keys()
            for where, data in shown.items():
                found += seen(where, data, hidden)
            assert keys, "it was looked at while tasks were there"
            assert build.poll() is None, "and while the build ran"
            left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
            for path in left:
                with suppress(FileNotFoundError):
                    found += seen(str(path), path.read_bytes(), hidden)
            (tmp_path / "go").touch()
            assert build.wait(120) == 0, (tmp_path / "build.said").read_text()
        inherited = Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert seen("environment", inherited, outside), "which is where they are"
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "key"):
        found += seen(str(path.relative_to(tmp_path)), path.read_bytes(), hidden)
    assert found == []
    assert place_manifest(tmp_path / "data").recipe["deid"]["policy"] == "private"


ADDRESSES = (
    "s3://AKIAEXAMPLE:hushhush@bucket/prefix", "s3://bucket/prefix?X-Amz-Signature=hushhush", "az://account/box?sv=1&sig=hushhush",
    "gs://user:hushhush@bucket", "az://account/box#hushhush",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_holds_a_secret_is_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    head = 'name = "r"\n[[sources]]\nkind = "folder"\npath = "{}"\n'
    recipe = parse_recipe(head.format("x"), "r.toml", base=tmp_path)
    attempts = (
        lambda: parse_recipe(head.format(address), "r.toml", base=tmp_path),
        lambda: parse_recipe(head.format("x") + f'[fetch]\ncache = "{address}"\n', "r.toml", base=tmp_path),
        lambda: with_overrides(recipe, cache=address),
        lambda: open_store(address),
        lambda: place_manifest(address),
    )
    for attempt in attempts:
        with pytest.raises(RecipeError, match="credentials in the environment") as caught:
            attempt()
        assert "hushhush" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://user:hushhush@host", "https://host/path?token=hushhush"])
def test_so_is_a_server(address: str, tmp_path: Path) -> None:
    text = f'name = "r"\n[[sources]]\nkind = "folder"\npath = "x"\n[fetch]\nnbia_url = "{address}"\n'
    with pytest.raises(RecipeError, match="credentials in the environment") as caught:
        parse_recipe(text, "r.toml", base=tmp_path)
    assert "hushhush" not in str(caught.value)
    assert FetchSettings(nbia_url="https://host/a@b").nbia_url.endswith("a@b")
