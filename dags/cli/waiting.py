"""A sign of life on a terminal, for work that takes longer than one waits without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_S = 2.0


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """After two seconds, ``what`` is being done, with a moving sign, until it is; nothing where no terminal is."""
    console = Console(stderr=True, highlight=False, emoji=False)
    if not console.is_terminal:
        yield
        return
    status = console.status(what)
    timer = threading.Timer(QUIET_S, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        status.stop()


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told how many samples are done, and how many there are; on a terminal only."""
    console = Console(stderr=True, highlight=False, emoji=False)
    columns = (
        TextColumn(f"[bold]{what}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bars.add_task(what, total=None)

    def tell(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)

    with bars:
        yield tell
