"""What the soak builds from, and how: sources on this machine, builds in processes of their own, and what must come out."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import Layout
from lumid.catalog.verify import verify
from lumid.dags.status import status as status_of
from lumid.pipeline.lock import write_lock
from lumid.pipeline.recipe_files import load_recipe
from tests.crash import CRASH
from tests.dags.command import content
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import FakeIdc, fake_idc
from tests.servers import FINE, Fault, Request, status

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 300.0
"""A build that takes longer hangs."""
LEFT_OVER_S = 30.0
"""So long may workers take to end by themselves when whoever started them is gone."""
SHARE_OF_FAULTS = 0.10
OBJECT_FAULTS = (
    status(503), status(503), status(503), status(429, Retry_After="0"), Fault("reset", after=1500),
    Fault("truncate", after=1500), Fault("corrupt"), Fault("other"), Fault("cut_head"), Fault("page"),
    Fault("drip", step=1500, every_s=0.05),
)  # fmt: skip
LISTING_FAULTS = (status(503), Fault("reset", after=200), Fault("cut_head"), Fault("page"), Fault("fewer"))
CREDENTIALS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}


class BrokenPromiseError(Exception):
    """Something that a build must never do, or a data set that is not what it has to be."""


def promise(kept: bool, what: str) -> None:
    """Raise :class:`BrokenPromiseError` with ``what`` unless ``kept``."""
    if not kept:
        raise BrokenPromiseError(what)


@dataclass(slots=True)
class Weather:
    """What the archive's answers suffer: nothing, or while ``stormy`` a share of them, and all while it is down."""

    rng: random.Random
    stormy: bool = False
    flapping: bool = False
    met: int = 0

    def pick(self, request: Request) -> Fault:
        """The fault of the next request."""
        if not self.stormy:
            return FINE
        if self.flapping and int(time.monotonic() * 4) % 4 == 0:  # away for a quarter of every second
            self.met += 1
            return status(503)
        if self.rng.random() >= SHARE_OF_FAULTS:
            return FINE
        self.met += 1
        return self.rng.choice(LISTING_FAULTS if "prefix" in request.query else OBJECT_FAULTS)


@dataclass(slots=True)
class Running:
    """A build under way, in a session of its own."""

    process: subprocess.Popen[str]
    out: Path
    said: Path

    def reached(self, wanted: Callable[[], bool]) -> bool:
        """Wait until ``wanted``; false when the build ends before."""
        end = time.monotonic() + LONGEST_S
        while self.process.poll() is None:
            if wanted():
                return True
            promise(time.monotonic() < end, "the build hangs")
            time.sleep(0.002)
        return False

    def workers(self) -> list[int]:
        """The processes that Dask has started for it."""
        found = []
        for one in _session(self.process.pid):
            with suppress(psutil.Error):
                if one.pid != self.process.pid and "spawn_main" in " ".join(one.cmdline()):
                    found.append(one.pid)
        return sorted(found)

    def parts(self) -> int:
        """How many parts there are."""
        return sum("rejects" not in path.name for path in Layout(self.out).parts.glob("*.parquet"))

    def wait(self) -> int:
        """Its exit code when it has ended, and with it every process that it has started."""
        try:
            code = self.process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BrokenPromiseError(f"the build hangs; it said: {self.text()[-300:]}") from None
        end = time.monotonic() + LEFT_OVER_S
        while left := _session(self.process.pid):
            if time.monotonic() > end:
                self.kill()
                raise BrokenPromiseError(f"{len(left)} processes are left behind")
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """Every process of it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def text(self) -> str:
        """What it has said."""
        return self.said.read_text("utf-8", "replace")

    def ended_politely(self, code: int, allowed: set[int]) -> None:
        """That it ended with one of these codes and without a traceback or a defect's line."""
        text = self.text()
        promise("Traceback" not in text, f"a traceback: {text[-600:]}")
        promise("please report" not in text, text[-600:])
        promise(code in allowed, f"exit code {code}, not one of {sorted(allowed)}: {text[-300:]}")


def _session(leader: int) -> list[psutil.Process]:
    """The processes of a session that run."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(one.pid) == leader and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that a soak needs: sources, an archive, recipes, and the data sets that come out undisturbed."""

    folder: Path
    archive: FakeIdc
    weather: Weather
    _undisturbed: dict[str, Path] = field(default_factory=dict)

    @property
    def study(self) -> Path:
        """The folder that the builds of kind ``folder`` read."""
        return self.folder / "study"

    def reference(self, kind: str) -> Path:
        """The undisturbed data set of a kind, built when it is first asked for."""
        if kind not in self._undisturbed:
            out = self.folder / "undisturbed" / kind
            calm, self.weather.stormy = self.weather.stormy, False
            running = self.start(kind, out, "--workers", "2")
            running.ended_politely(running.wait(), {0})
            promise(verify(out, deep=True).sound, "the undisturbed data set is damaged")
            self.weather.stormy = calm
            self._undisturbed[kind] = out
        return self._undisturbed[kind]

    def start(self, kind: str, out: Path | str, *more: str, **environment: str) -> Running:
        """Begin a build of a kind, or go on with it."""
        recipe = str(self.folder / f"{kind}.toml")
        lock = ("--lock", str(self.folder / "archive.lock")) if kind == "archive" else ()
        extra = {"PYTHONPATH": f"{self.folder / 'crash'}{os.pathsep}{ROOT}"} if kind == "poisoned" else {}
        return self.run(("build", recipe, "--out", str(out), *lock, *more), Path(out), extra | environment)

    def run(self, arguments: tuple[str, ...], out: Path, environment: dict[str, str]) -> Running:
        """A command of lumid in a session of its own."""
        said = self.folder / "said.txt"
        with said.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "lumid", *arguments], stdout=file, stderr=file, text=True, cwd=ROOT,
                env=os.environ | CREDENTIALS | {"PYTHONPATH": str(ROOT)} | environment, start_new_session=True,
            )  # fmt: skip
        return Running(process, out, said)

    def finish(self, kind: str, out: Path, *more: str) -> None:
        """Run a build to its end in peace: it must succeed, and give what the undisturbed one gave."""
        self.weather.stormy = False
        running = self.start(kind, out, *(more or ("--workers", "2")))
        running.ended_politely(running.wait(), {0})
        promise(verify(out, deep=True).sound, "lumid verify --deep finds damage")
        promise(content(out) == content(self.reference(kind)), "other bytes than those of the undisturbed build")
        promise(not list(out.glob(".*")), "something of the build is left in the data set")


@contextmanager
def site(folder: Path, seed: int, longest_s: float) -> Iterator[Site]:
    """Sources, an archive on 127.0.0.1, and recipes."""
    rng = np.random.default_rng(seed)
    contents = {
        f"{series:04x}": {f"{number:02x}.dcm": _slice(rng, series, number) for number in range(5)}
        for series in range(10)
    }
    for kind in ("study", "poisonous"):
        (folder / kind).mkdir(parents=True)
        for series in range(16 if kind == "study" else 5):
            for number in range(5):
                (folder / kind / f"{series:02}-{number}").write_bytes(_slice(rng, 100 + series, number))
    poison = image(gradient(), SOPInstanceUID="1.9.1", SeriesInstanceUID="1.2.99", StudyDescription="POISON")
    (folder / "poisonous" / "poison").write_bytes(as_bytes(poison))
    (folder / "poisonous" / "beside").write_bytes(_slice(rng, 99, 0))
    (folder / "crash").mkdir()
    (folder / "crash" / "sitecustomize.py").write_text(CRASH)
    weather = Weather(random.Random(seed))
    with fake_idc(contents, pick=weather.pick, longest_s=longest_s) as archive:
        _recipes(folder, archive)
        yield Site(folder, archive, weather)
    shutil.rmtree(folder, ignore_errors=True)


def _slice(rng: np.random.Generator, series: int, number: int) -> bytes:
    """A slice of CT, whose scale is fixed: a slice that is missing changes nothing of its neighbours."""
    pixels = (gradient(96, 96, high=900) + rng.integers(0, 90, (96, 96))).astype(np.int16)
    uids = {"SeriesInstanceUID": f"1.2.{series}", "StudyInstanceUID": f"1.1.{series}"}
    return as_bytes(image(pixels, **uids, SOPInstanceUID=f"1.3.{series}.{number}", PatientID=f"P{series // 2}"))


def _recipes(folder: Path, archive: FakeIdc) -> None:
    fetch = f'[fetch]\ns3_endpoint = "{archive.first.url}"\ngs_endpoint = "http://127.0.0.1:9"\nattempts = 2\ntimeout_s = 5.0\nrequests = 4\n'
    for name, source in (
        ("archive", 'kind = "idc"\ncollections = ["lidc_idri"]\n'),
        ("folder", f'kind = "folder"\npath = "{folder / "study"}"\nnames = "plain"\n'),
        ("poisoned", f'kind = "folder"\npath = "{folder / "poisonous"}"\nnames = "plain"\n'),
    ):
        batch = 1 if name == "poisoned" else 8  # each guess at which object it is costs three workers
        shards = f"[shards]\nsize_mb = 0.1\nbatch_slices = {batch}\n"
        text = f'name = "{name}"\n[[sources]]\n{source}{shards}' + (fetch if name == "archive" else "")
        (folder / f"{name}.toml").write_text(text)
    write_lock(folder / "archive.lock", archive.lock(), load_recipe(str(folder / "archive.toml")))


def state_of(out: Path) -> str:
    """What ``lumid status`` says of a folder, which it must be able to at any moment."""
    try:
        return status_of(out).state
    except LumidError as error:
        promise("\n" not in str(error), "more than a line of lumid status")
        return "nothing"
