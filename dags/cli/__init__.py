"""The command line: ``lumid COMMAND``. One file a group of commands, each thin: parse, call, print."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import typer
from rich.console import Console

from lumid.catalog.errors import EXIT_FAILED, LumidError
from lumid.dags.quiet import keep_quiet, place_of


class Stopped(BaseException):
    """Ctrl-C or a polite kill. Not a KeyboardInterrupt: the command-line library would swallow that."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.exit_code = 128 + number


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what cleans up must not be interrupted
    raise Stopped(number)


def _ask_again(stopped: Stopped) -> None:
    """Python drops what is raised while it clears an object away; the signal is sent anew, to meet something else."""
    signal.signal(stopped.number, _stop)
    again = threading.Timer(0.02, os.kill, (os.getpid(), stopped.number))
    again.daemon = True
    again.start()


def _say_stopped(stopped: Stopped) -> NoReturn:
    typer.echo("stopped; what is finished is kept: run the same command again to go on", err=True)
    sys.exit(stopped.exit_code)


def main() -> None:
    """Run the command line; every expected error is one line on stderr and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    keep_quiet()
    say = sys.unraisablehook
    sys.unraisablehook = lambda caught: (
        _ask_again(caught.exc_value) if isinstance(caught.exc_value, Stopped) else say(caught)
    )
    try:
        _run()
    except LumidError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        _say_stopped(stopped)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if isinstance(error.__cause__, Stopped):  # DuckDB's "Query interrupted", where it was not asked through ask()
            _say_stopped(error.__cause__)
        # the value of an unforeseen exception may quote a header: name its kind and place, never its text
        typer.echo(
            f"error: lumid failed ({type(error).__name__} at {place_of(error)}); please report this line", err=True
        )
        sys.exit(EXIT_FAILED)


def _run() -> None:
    from lumid.dags.cli import (  # noqa: F401  registers the commands
        ask,
        build,
        check,
        deid,
        demo,
        evaluate,
        explore,
        look,
        migrate,
        pick,
        pictures,
        plan,
        publish,
        train,
    )
    from lumid.dags.cli.app import app

    app()


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
