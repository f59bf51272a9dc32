"""The command line: ``lumid COMMAND``. One file a group of commands, each thin: parse, call, print."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from rich.console import Console

from lumid.catalog.errors import EXIT_FAILED, LumidError
from lumid.dags.quiet import keep_quiet, place_of
from lumid.dags.stopping import Stopped, asked, catch_signals


def _say_stopped(stopped: Stopped) -> NoReturn:
    typer.echo("stopped; what is finished is kept: run the same command again to go on", err=True)
    sys.exit(stopped.exit_code)


def main() -> None:
    """Run the command line; every expected error is one line on stderr and an exit code."""
    keep_quiet()
    catch_signals()
    try:
        _run()
    except LumidError as error:
        if signalled := asked():
            _say_stopped(signalled)
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        _say_stopped(stopped)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if signalled := asked():
            _say_stopped(signalled)
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
