"""The command line: ``lumid COMMAND``. One file a group of commands, each thin: parse, call, print."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from lumid.catalog.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, LumidError, UsageError
from lumid.dags.quiet import keep_quiet, place_of
from lumid.dags.stopping import Stopped, asked, catch_signals

WRONG_USE: Any = typer.BadParameter.__base__
"""click's UsageError: that of click or, in newer versions of typer, that of its own copy of click."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)


def _say_stopped(stopped: Stopped) -> NoReturn:
    typer.echo("stopped; what is finished is kept: run the same command again to go on", err=True)
    sys.exit(stopped.exit_code)


def main() -> None:
    """Run the command line; every expected error is one line on stderr and an exit code."""
    _open_standard_streams()
    keep_quiet()
    catch_signals()
    try:
        _check_folder()
        _run()
    except LumidError as error:
        if signalled := asked():
            _say_stopped(signalled)
        _say_failed(str(error), error.exit_code)
    except Stopped as stopped:
        _say_stopped(stopped)
    except BrokenPipeError:
        _drop_output()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if error.errno in NO_PATH:
            _say_failed(f"{os.strerror(error.errno)}: choose another path", EXIT_USAGE)
        if error.errno not in FULL:
            _say_unforeseen(error)
        _drop_output()
        _say_failed(
            f"{os.strerror(error.errno)}: nothing more can be written; make room and run the same command again",
            EXIT_FAILED,
        )
    except Exception as error:
        _say_unforeseen(error)


def _open_standard_streams() -> None:
    """Where a stream was closed (``lumid … >&-``), the next file opened would be taken for it, by every child too."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="backslashreplace")


def _check_folder() -> None:
    """Relative paths mean nothing where the working directory was removed, and libraries say so in many ways."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working directory is gone; cd to one that is there") from None


def _drop_output() -> None:
    """What could not be printed is forgotten; else Python would try once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_unforeseen(error: BaseException) -> NoReturn:
    if signalled := asked():
        _say_stopped(signalled)
    # the value of an unforeseen exception may quote a header: name its kind and place, never its text
    typer.echo(f"error: lumid failed ({type(error).__name__} at {place_of(error)}); please report this line", err=True)
    sys.exit(EXIT_FAILED)


def _say_failed(text: str, exit_code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False, emoji=False).print(f"[bold red]error:[/] {escape(text)}")
    sys.exit(exit_code)


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

    try:
        code = app(standalone_mode=False)
    except typer.Abort as error:  # of an EOFError
        _say_unforeseen(error.__cause__ or error)
    except WRONG_USE as error:
        message = error.format_message()
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message, nl=bool(message))  # the help; in colours, it has been shown already
            sys.exit(EXIT_USAGE)
        command = error.ctx.command_path if error.ctx else "lumid"
        raise UsageError(f"{message.rstrip('.')} (see {command} --help)") from None
    sys.stdout.flush()  # a full disk is told here, or by Python in its own words
    sys.exit(code or EXIT_DONE)
