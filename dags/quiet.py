"""What a process says when something unforeseen happens: the kind and the place of it, never its text.

The text of an exception can quote a header, and a core dump holds all of memory.
"""

from __future__ import annotations

import logging
import sys
import threading


def keep_quiet() -> None:
    """From now on, exceptions that nobody catches in this process are one line each, and it leaves no core dump."""
    sys.excepthook = lambda _kind, error, _trace: _say(error)
    threading.excepthook = lambda caught: _say(caught.exc_value)
    sys.unraisablehook = lambda caught: _say(caught.exc_value)
    # what asyncio logs of a connection that is cut while it is asked something ends in a traceback
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    try:
        import resource
    except ImportError:  # not on this system
        return
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _say(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
        kind = type(error).__name__
        print(f"error: lumid failed ({kind} at {place_of(error)}); please report this line", file=sys.stderr)


def place_of(error: BaseException) -> str:
    """The module and line that an exception comes from."""
    trace = error.__traceback__
    place = "unknown"
    while trace is not None:
        place = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
