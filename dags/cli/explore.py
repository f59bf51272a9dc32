"""``lumid explore``: look at a data set in the browser."""

from __future__ import annotations

import errno
import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer

from lumid.catalog.errors import UsageError
from lumid.dags.cli.app import app

FIRST_PORT = 8765
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command()
def explore(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Folder of a finished data set.", show_default=False)
    ],
    where: Annotated[
        str | None, typer.Argument(metavar="WHERE", help="A SQL condition on the catalog's columns to begin with.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help=f"Port to answer at; by default {FIRST_PORT}, or a free one.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to answer at. Another than this machine's own lets others in.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as a line of JSON.")] = False,
) -> None:
    """Look at a data set in the browser: filter, page through thumbnails, window slices in 16 bits.

    Serves a page on this machine until Ctrl-C. It changes nothing, needs no network, and answers only who has the link.

    Examples:

        lumid explore DATASET

        lumid explore DATASET "modality = 'CT' AND slice_thickness <= 2"

        lumid explore DATASET --port 9000 --no-browser    # then, at home: ssh -L 9000:127.0.0.1:9000 HOST
    """
    from lumid.catalog.explore.server import Address, serve
    from lumid.catalog.explore.view import condition, parse_view
    from lumid.catalog.query import count_samples

    first = [("where", where)] if where else []
    if where:
        # a mistake is told here, not in the page
        count_samples(dataset, condition(parse_view(first)))

    def ready(address: Address) -> None:
        if as_json:
            typer.echo(json.dumps({"url": address.url, "host": address.host, "port": address.port, "pid": os.getpid()}))
        else:
            typer.echo(f"{address.url}\nopen this link; Ctrl-C ends it")
        if host not in LOOPBACK:
            typer.echo(
                "not only this machine is answered: whoever has the link sees these images, unencrypted", err=True
            )
        if browser and not as_json and _has_display():
            webbrowser.open(address.ticket)

    query = urlencode(first)
    try:
        serve(dataset, host, FIRST_PORT if port is None else port, query=query, ready=ready)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port is None:
            serve(dataset, host, 0, query=query, ready=ready)
        elif error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UsageError(f"port {port} cannot be had: {os.strerror(error.errno)}; choose another --port") from None
        else:
            raise UsageError(f"{host}: not an address of this machine; leave out --host") from None


def _has_display() -> bool:
    """Whether a browser would have a window: without one, some would take the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
