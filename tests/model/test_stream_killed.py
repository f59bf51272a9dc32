"""Streams that are killed with -9, and go on with other numbers of workers and ranks: no sample twice, none left out."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lumid.model.stream import ImageStream, StreamSettings, select
from tests.model import stream_log

GLOBAL_BATCH, BATCHES = 8, 45
START = '{"epoch": 0, "index": 0, "order": ""}'

LOADER = "torch/utils/data/"
"""Where the traceback of a lost worker comes from. What it says depends on the moment: before, while or after it hands over a batch."""


@dataclass(frozen=True, slots=True)
class Phase:
    """So many ranks and worker processes each, until one of them is killed."""

    world: int
    workers: int
    killed: str


def logged(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last may have been cut."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run(phase: Phase, data: Path, folder: Path, state: str, access: str, wanted: int) -> tuple[list[str], str]:
    """Stream until every rank has ``wanted`` batches, kill; the keys of whole global batches, and the place after them."""
    folder.mkdir()
    logs = [folder / f"rank-{rank}" for rank in range(phase.world)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", stream_log.__name__, str(data), str(log), state, access,
             *map(str, (rank, phase.world, phase.workers, GLOBAL_BATCH))],
            stderr=subprocess.PIPE, text=True,
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while any(len(logged(log)) < wanted for log in logs):
            assert all(process.poll() is None for process in started), [process.communicate() for process in started]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if phase.killed == "a worker":
            os.kill(random.Random(wanted).choice(children(started[0].pid)), signal.SIGKILL)
            _, error = started[0].communicate(timeout=30)
            assert started[0].returncode == 1, "the loader notices"
            assert LOADER in error, error
        else:
            os.kill(started[-1].pid, signal.SIGKILL)
            assert started[-1].wait(30) == -signal.SIGKILL
    finally:
        for process in started:
            process.kill()
            process.communicate()
    of_ranks = [logged(log) for log in logs]
    whole = min(map(len, of_ranks))
    assert whole >= wanted
    keys = [
        key
        for number in range(whole)
        for keys in zip(*(lines[number]["keys"] for lines in of_ranks), strict=True)
        for key in keys
    ]
    after = {json.dumps(lines[whole - 1]["state"]) for lines in of_ranks}
    assert len(after) == 1, "every rank knows the same place"
    return keys, after.pop()


@pytest.mark.parametrize(
    ("access", "phases"),
    [
        pytest.param(
            "random",
            [Phase(1, 2, "a worker"), Phase(2, 0, "a rank"), Phase(1, 3, "the process")],
            marks=pytest.mark.slow,
        ),
        ("sequential", [Phase(2, 0, "a rank"), Phase(1, 0, "the process")]),
        pytest.param("random", [Phase(4, 1, "a rank"), Phase(2, 2, "a rank")], marks=pytest.mark.slow),
    ],
)
def test_what_is_killed_goes_on_with_others_at_the_next_sample(
    data: Path, tmp_path: Path, access: str, phases: list[Phase]
) -> None:
    settings = StreamSettings(GLOBAL_BATCH, access=access, lanes=4, block_mb=0.02, window_mb=0.24)
    uninterrupted = [
        key for batch in itertools.islice(ImageStream(select(data), settings), BATCHES) for key in batch.keys
    ]
    assert len(uninterrupted) > 7 * len(select(data)), "seven epochs"
    moments, state, seen = random.Random(7), START, list[str]()
    for number, phase in enumerate(phases):
        keys, state = run(phase, data, tmp_path / str(number), state, access, moments.randint(3, 9))
        seen += keys
    assert len(seen) < len(uninterrupted), "it was stopped in the middle"
    last = ImageStream(select(data), settings)
    last.load_state_dict(json.loads(state))
    for batch in itertools.islice(last, BATCHES - len(seen) // GLOBAL_BATCH):
        seen += batch.keys
    assert seen == uninterrupted
