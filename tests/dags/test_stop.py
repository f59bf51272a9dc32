"""What a signal does to a process of lumid, wherever it meets it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from lumid.dags.quiet import keep_quiet

CODE = """
import os, signal, time
import lumid.dags.cli as cli

class Loud:
    def __del__(self):
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(0.1)

def run():
    one = Loud()
    del one
    time.sleep(60)

cli._run = run
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_an_object_is_cleared_away_is_not_lost(number: str, code: int) -> None:
    """Python drops what a handler raises there, and the handler hears of no other signal of the kind."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("NUMBER", number)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == code
    assert done.stderr.splitlines() == ["stopped; what is finished is kept: run the same command again to go on"]
    assert time.monotonic() - begun < 40


def test_what_asyncio_logs_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is cut while something is asked of it would be a traceback."""
    asyncio = logging.getLogger("asyncio")
    monkeypatch.setattr(asyncio, "level", asyncio.level)
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    keep_quiet()
    assert not asyncio.isEnabledFor(logging.CRITICAL)
