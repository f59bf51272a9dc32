"""Ctrl-C and a polite kill: one exception, wherever they meet the process, that no library makes another one of."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

AGAIN_S = 10.0
"""What cleans up is not interrupted by a second signal within so many seconds; where the first had no effect, it has."""


class Stopped(BaseException):
    """Ctrl-C or a polite kill. Not a KeyboardInterrupt: the command-line library would swallow that."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.exit_code = 128 + number


_last: tuple[float, Stopped] | None = None


def catch_signals() -> None:
    """From now on, SIGINT and SIGTERM raise :class:`Stopped` in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    say = sys.unraisablehook
    sys.unraisablehook = lambda caught: (
        _ask_again(caught.exc_value) if isinstance(caught.exc_value, Stopped) else say(caught)
    )


def asked() -> Stopped | None:
    """What was raised for a signal, if there was one: a library in C that it meets may raise an error of its own instead."""
    return _last[1] if _last else None


def _stop(number: int, _frame: FrameType | None) -> None:
    global _last
    if _last and time.monotonic() - _last[0] < AGAIN_S:
        return
    stopped = Stopped(number)
    _last = time.monotonic(), stopped
    raise stopped


def _ask_again(stopped: Stopped) -> None:
    """Python drops what is raised while it clears an object away; the signal is sent anew, to meet something else."""
    global _last
    _last = None
    again = threading.Timer(0.02, os.kill, (os.getpid(), stopped.number))
    again.daemon = True
    again.start()
