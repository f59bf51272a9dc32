"""The command line's root: what ``lumid --help`` shows. Commands register themselves on :data:`app`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="lumid",
    help="Rebuild the LUMID medical image data set, stream it into pre-training, query it by modality.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # tracebacks with local variables would print headers
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong use, 3 finished with more rejects than the recipe allows, 130 and 143 stopped by Ctrl-C or SIGTERM."


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
