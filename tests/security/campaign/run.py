"""Runs a campaign: mutants in a child with limits on memory and time; what becomes of each, and the worst of them."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parents[3]
MEMORY_MB = 3000
"""Address space that a child may take beyond what it has when it begins."""
LONGEST_S = 60.0
"""One object takes no longer than this, or hangs."""


@dataclass(slots=True)
class Found:
    """What came of a kind's mutants. ``defects``: number of the mutant, and what it did."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_mb: float = 0.0

    @property
    def mutants(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())


def campaign(kind: str, seed: int, mutants: int, folder: Path, only: int | None = None) -> Found:
    """So many mutants of a kind. A mutant is a function of ``seed`` and its number; the files of defects stay in ``folder``."""
    found = Found(kind)
    number, end = (0, mutants) if only is None else (only, only + 1)
    while number < end:
        number = _child(kind, seed, number, end, folder, found)
    return found


def _child(kind: str, seed: int, begin: int, end: int, folder: Path, found: Found) -> int:
    """Mutants from ``begin`` on, until all are done or one ends the child; the number of the next."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.security.campaign.run", kind, str(seed), str(begin), str(end), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    number, begun, watch = begin, False, Timer(4 * LONGEST_S, process.kill)  # a child takes its time to begin
    watch.start()
    try:
        for line in process.stdout:
            watch.cancel()
            watch = Timer(LONGEST_S, process.kill)
            watch.start()
            if line.startswith("> "):
                number, begun = int(line[2:]), True
                continue
            if not line.startswith("{"):
                continue
            one = json.loads(line)
            found.slowest_s = max(found.slowest_s, one["seconds"])
            found.largest_mb = max(found.largest_mb, one["mb"])
            found.outcomes[one["outcome"]] += 1
            if one["outcome"] == "DEFECT":
                found.defects.append((number, one["why"]))
            begun = False
            number += 1
        code = process.wait()
    finally:
        watch.cancel()
        process.kill()
        process.wait()
    if code and not begun:
        raise RuntimeError(f"a child for {kind} ended with {code} before a mutant was read")
    if begun:  # this one ended the process
        found.outcomes["KILLED"] += 1
        found.defects.append((number, f"ended its process with {code}"))
        number += 1
    return number


def main() -> None:
    """The child: says which mutant is next, then what became of it."""
    from tests.security.campaign.readers import KINDS

    kind, seed, begin, end, kept = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    make, read = KINDS[kind]
    base = Path(tempfile.mkdtemp(prefix="lumid-fuzz-"))
    try:
        make(random.Random("warm"), base)  # seeds are made and libraries loaded before memory is measured
        (base / "warm").mkdir()
        tried(read, make(random.Random("warm"), base), base / "warm")
        limit = _memory_kb("VmSize") * 1024 + (MEMORY_MB << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(begin, end):
            data = make(random.Random(f"{kind} {seed} {number}"), base)
            print(f"> {number}", flush=True)
            folder = base / str(number)
            folder.mkdir()
            before = _memory_kb("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            begun = time.perf_counter()
            outcome, why = tried(read, data, folder)
            seconds = time.perf_counter() - begun
            mb = (_memory_kb("VmHWM") - before) / 1024
            if outcome == "DEFECT":
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"{kind}-{seed}-{number}").write_bytes(data)
            print(json.dumps({"outcome": outcome, "why": why, "seconds": seconds, "mb": mb}), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def tried(read: object, data: bytes, folder: Path) -> tuple[str, str]:
    """What became of a mutant, and why it is a ``DEFECT`` if it is one."""
    from lumid.catalog.errors import LumidError
    from tests.security.campaign.mutants import MARKER

    try:
        return read(data, folder), ""  # type: ignore[operator]
    except LumidError as error:
        text = str(error)
        return ("refused", "") if "\n" not in text and MARKER not in text else ("DEFECT", f"said: {text[:200]!r}")
    except Exception as error:
        places = [f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)]
        return "DEFECT", f"{type(error).__name__}: {str(error)[:160]!r} at {' '.join(places[-5:])}"


def _memory_kb(name: str) -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
