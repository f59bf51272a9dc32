"""The command line: ``lumid COMMAND``. One file a group of commands, each thin: parse, call, print."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from lumid.catalog.errors import EXIT_FAILED, LumidError

app = typer.Typer(
    name="lumid",
    help="Rebuild the LUMID medical image data set, stream it into pre-training, query it by modality.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # tracebacks with local variables would print headers
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 finished with more rejects than the recipe allows."


def _version(wanted: bool) -> None:
    if wanted:
        from lumid.dags.versions import versions

        for name, version in versions().items():
            typer.echo(f"{name} {version}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def lumid(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Versions of lumid and of the libraries it works with."
        ),
    ] = False,
) -> None:
    """Rebuild the LUMID medical image data set, stream it into pre-training, query it by modality."""


class Stopped(BaseException):
    """Ctrl-C or a polite kill. Not a KeyboardInterrupt: the command-line library would swallow that."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what cleans up must not be interrupted
    raise Stopped(number)


def main() -> None:
    """Run the command line; every expected error is one line on stderr and an exit code."""
    from lumid.dags.cli import build, demo, look, train  # noqa: F401  registers the commands

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except LumidError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        typer.echo("stopped; what is finished is kept: run the same command again to go on", err=True)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)
    except Exception as error:
        # the value of an unforeseen exception may quote a header: name its kind and place, never its text
        typer.echo(
            f"error: lumid failed ({type(error).__name__} at {_place(error)}); please report this line", err=True
        )
        sys.exit(EXIT_FAILED)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    place = "unknown"
    while trace is not None:
        place = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
