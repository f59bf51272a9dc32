"""What a run shows on a terminal: a panel that stays when it ends, and nothing of a run that did not begin."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lumid.catalog.errors import UsageError
from lumid.dags.training_display import TrainingDisplay
from lumid.model.journal import Progress

STEP = Progress(
    step=7, steps=10, epoch=3, loss=0.25, loss_by_modality={"CT": 0.2, "MR": 0.3}, learning_rate=1e-3, grad_norm=1.5,
    images_per_s=1234.0, stall_fraction=0.012, mfu=0.51, samples="0" * 14, bad=0, verdict="good",
)  # fmt: skip


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_last_step_stays_on_the_terminal() -> None:
    console = terminal()
    with TrainingDisplay(console, "tiny-cpu", 1, silent=False) as display:
        display.step(STEP)
        display.note("a note")
    last = written(console).rpartition("tiny-cpu")[2]
    for shown in (
        "7/10",
        "loss 0.2500",
        "waiting for data 1.2%",
        "MFU 51.0%",
        "images/s 1,234",
        "CT 0.2000   MR 0.3000",
    ):
        assert shown in last
    assert "\x1b[1A" not in last, "it is not erased"


def test_nothing_stays_of_a_run_that_did_not_begin() -> None:
    console = terminal()
    with pytest.raises(UsageError), TrainingDisplay(console, "tiny-cpu", 1, silent=False):
        raise UsageError("no such data set")
    assert written(console).endswith("\x1b[1A\x1b[2K"), "the bar's line is erased"


def test_a_file_gets_lines_and_a_silent_process_nothing() -> None:
    for silent in (False, True):
        console = Console(file=io.StringIO(), width=120)
        with TrainingDisplay(console, "tiny-cpu", 1, silent=silent) as display:
            display.step(STEP)
        expected = "step 7 of 10 · loss 0.2500 · 1,234 images/s · waiting for data 1% · MFU 51%\n"
        assert written(console) == ("" if silent else expected)
