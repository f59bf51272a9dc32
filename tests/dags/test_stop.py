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
from lumid.catalog.errors import DatasetError

class Loud:
    def __del__(self):
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(0.1)

def cleared():
    one = Loud()
    del one
    time.sleep(60)

def translated():
    try:
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(60)
    except BaseException:
        pass  # a library in C that knows nothing of Python's signals
    raise DatasetError("damaged")

cli._run = WHERE
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("where", ["cleared", "translated"])
def test_a_signal_is_not_lost_wherever_it_meets_the_process(where: str, number: str, code: int) -> None:
    """Python drops what a handler raises while it clears an object away, and libraries make errors of their own of it."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("NUMBER", number).replace("WHERE", where)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == code
    assert done.stderr.splitlines() == ["stopped; what is finished is kept: run the same command again to go on"]
    assert time.monotonic() - begun < 40


def test_what_asyncio_logs_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is cut while something is asked of it would be a traceback."""
    asyncio = logging.getLogger("asyncio")
    before = asyncio.level
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    try:
        keep_quiet()
        assert not asyncio.isEnabledFor(logging.CRITICAL)
    finally:
        asyncio.setLevel(before)
