"""What a training run looks like while it runs: a live panel on a terminal, a line now and then in a file."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lumid.model.journal import Progress as Step

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 60
"""Points of the curve of losses: the newest reported ones."""
LINES = 10
"""Lines that a whole run writes into a file, at least one a minute."""


class TrainingDisplay:
    """Shows steps as they are told; ``silent`` for all processes of a run but one."""

    def __init__(self, console: Console, name: str, log_every: int, *, silent: bool) -> None:
        self._console, self._log_every, self._silent = console, log_every, silent
        self._bar = Progress(
            TextColumn(f"[bold]{name}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("steps", total=None)
        self._losses: deque[float] = deque(maxlen=CURVE)
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=False)
        self._shown = console.is_terminal and not silent
        self._last_line = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.transient = not self._losses  # nothing to keep of a run that did not begin
            self._live.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._silent:
            self._console.print(text, markup=False)

    def step(self, step: Step) -> None:
        """A step."""
        if step.verdict != "good":
            self.note(f"step {step.step:,}: loss {step.loss:.4g} is {step.verdict}, left out")
        if self._silent:
            return
        self._losses.append(step.loss)
        if self._shown:
            self._bar.update(self._task, total=step.steps, completed=step.step)
            self._live.update(Group(self._bar, facts(step), curve(self._losses)))
            return
        every = max(1, step.steps // LINES)
        now = time.monotonic()
        if step.step % every < self._log_every or step.step == step.steps or now - self._last_line > 60:
            self._last_line = now
            self._console.print(f"step {step.step:,} of {step.steps:,} · {line(step)}")


def line(step: Step) -> str:
    """The most important of a step, on one line."""
    mfu = "" if step.mfu is None else f" · MFU {step.mfu:.0%}"
    return f"loss {step.loss:.4f} · {step.images_per_s:,.0f} images/s · waiting for data {step.stall_fraction:.0%}{mfu}"


def facts(step: Step) -> Table:
    """All that is known of a step: speed and optimiser on one line, losses by modality on the next."""
    table = Table.grid(padding=(0, 2))
    mfu = "unknown" if step.mfu is None else f"{step.mfu:.1%}"
    first = {
        "loss": f"{step.loss:.4f}",
        "lr": f"{step.learning_rate:.2e}",
        "gradient": f"{step.grad_norm:.3f}",
        "images/s": f"{step.images_per_s:,.0f}",
        "waiting for data": f"{step.stall_fraction:.1%}",
        "MFU": mfu,
        "epoch": f"{step.epoch:,}",
    }
    table.add_row(*(Text.assemble((f"{name} ", "dim"), value) for name, value in first.items()))
    modalities = "   ".join(f"{name} {loss:.4f}" for name, loss in step.loss_by_modality.items())
    both = Table.grid()
    both.add_row(table)
    both.add_row(Text.assemble(("by modality  ", "dim"), modalities))
    return both


def curve(losses: deque[float]) -> Text:
    """Losses as a line of blocks, between their smallest and their greatest.

    >>> curve(deque([0.0, 1.0, 0.5])).plain
    '▁█▄ 0.0000 to 1.0000'
    """
    finite = [loss for loss in losses if loss == loss and abs(loss) != float("inf")]
    if not finite:
        return Text("")
    low, high = min(finite), max(finite)
    blocks = "".join(BLOCKS[int((loss - low) / ((high - low) or 1) * (len(BLOCKS) - 1))] for loss in finite)
    return Text.assemble((blocks, "cyan"), (f" {low:.4f} to {high:.4f}", "dim"))
