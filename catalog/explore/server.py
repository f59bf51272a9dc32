"""The server behind the page: a handful of questions over HTTP, all of them GET, none of which changes anything."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.explore.guard import HEADERS, own_names, refusal
from lumid.catalog.explore.images import stored_bytes, thumbnail_jpeg
from lumid.catalog.explore.questions import PAGE_SIZE, Explorer, Recent
from lumid.catalog.explore.view import (
    View,
    as_command,
    as_python,
    as_sql,
    as_subset_command,
    condition,
    kind_of,
    parse_view,
)
from lumid.catalog.schema import CATALOG
from lumid.catalog.show import DEFAULT_WINDOW, WINDOWS, ImageRow
from lumid.catalog.subset import write_subset

PORT = 8765
THREADS = 4
THUMBNAIL_BYTES = 64 << 20
KEY = r"[0-9a-f]{24}"
SEND_BYTES = 1 << 20
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FACETS = (
    "modality", "body_part", "collection", "split", "plane", "slice_thickness", "pixel_spacing_row", "manufacturer",
    "sex", "age_years", "license",
)  # fmt: skip
"""The columns that the page offers at first; it can be asked for any other."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Desk:
    """What the handlers share. A ticket is as good as the secret, once."""

    explorer: Explorer
    dataset: str
    secret: str
    tickets: set[str]
    cookie: str
    names: frozenset[str]
    threads: ThreadPoolExecutor
    thumbnails: Recent[tuple[str, str | None], bytes]
    static: Mapping[str, bytes]


class Guarded(RequestHandler):
    """A request that has to pass :mod:`lumid.catalog.explore.guard` before it is answered."""

    is_page = False

    def initialize(self, desk: Desk) -> None:
        """Called by Tornado with the handler's settings."""
        self.desk = desk

    def set_default_headers(self) -> None:
        """The same headers on every answer, errors too."""
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse what may not be answered."""
        refused = refusal(
            host=self.request.headers.get("Host", ""),
            names=self.desk.names,
            site=self.request.headers.get("Sec-Fetch-Site"),
            given=self.secret_given(),
            secret=self.desk.secret,
            is_page=self.is_page,
        )
        if refused is not None:
            raise HTTPError(refused.status, reason=refused.reason)

    def secret_given(self) -> str | None:
        """The secret that the request brings."""
        return self.get_cookie(self.desk.cookie)

    def compute_etag(self) -> str | None:
        """None: nothing is kept, so nothing is compared."""
        return None

    async def elsewhere(self, work: Callable[..., Answer], *arguments: Any) -> Answer:
        """The answer of a function that takes its time, from a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.desk.threads, work, *arguments)

    def view(self) -> View:
        """The view that the address asks for."""
        return parse_view([(name, value) for name in self.request.arguments for value in self.get_arguments(name)])

    def answer(self, value: object) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(value, ensure_ascii=False, allow_nan=False))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One line of JSON: what was wrong, and what to do."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, LumidError):
            self.set_status(400 if isinstance(error, UsageError) else 500)
            reason = str(error)
        elif isinstance(error, HTTPError):
            reason = self._reason
        else:
            # its text may quote a header
            reason = f"lumid failed ({type(error).__name__})"
        self.answer({"error": reason})

    def log_exception(self, *_: Any) -> None:
        """Nothing: what failed is in the answer, and a traceback would hold rows."""


class PageHandler(Guarded):
    """The page. A link with the secret lets a browser in: it keeps the secret as a cookie for as long as it is open."""

    is_page = True

    def secret_given(self) -> str | None:
        """The link's secret, or the cookie's."""
        token = self.get_query_argument("token", None)
        if token in self.desk.tickets:
            self.desk.tickets.discard(token)
            return self.desk.secret
        return token or super().secret_given()

    def get(self) -> None:
        """Answer with the page."""
        self.set_cookie(self.desk.cookie, self.desk.secret, httponly=True, samesite="Strict", path="/")
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(self.desk.static["index.html"])


class StaticHandler(Guarded):
    """A file of the page: one of those that were read at the start, whatever its name looks like."""

    def get(self, name: str) -> None:
        """Answer with the file."""
        if name not in self.desk.static:
            raise HTTPError(404, reason="no such file")
        self.set_header("Content-Type", f"{TYPES[Path(name).suffix]}; charset=utf-8")
        self.finish(self.desk.static[name])


class DatasetHandler(Guarded):
    """What the page needs to know of the data set once."""

    def get(self) -> None:
        """Answer with name, counts, columns and windows."""
        manifest = self.desk.explorer.manifest
        columns = []
        for field in CATALOG:
            said = {name.decode(): value.decode() for name, value in (field.metadata or {}).items()}
            columns.append(
                {
                    "name": field.name,
                    "kind": kind_of(field.name),
                    "unit": said.get("unit", ""),
                    "meaning": said.get("meaning", ""),
                    "offered": field.name in FACETS,
                }
            )
        columns.sort(key=lambda column: FACETS.index(column["name"]) if column["offered"] else len(FACETS))
        self.answer(
            {
                "name": manifest.name,
                "path": self.desk.dataset,
                "samples": manifest.counts.kept,
                "catalog_hash": manifest.catalog_hash,
                "columns": columns,
                "windows": {name: asdict(window) for name, window in WINDOWS.items()},
                "default_window": DEFAULT_WINDOW,
            }
        )


class SamplesHandler(Guarded):
    """A page of a view."""

    async def get(self) -> None:
        """Answer with samples, their number, and the query in three ways."""
        view = self.view()
        number = _whole(self.get_query_argument("page", "1"))
        page = await self.elsewhere(self.desk.explorer.page, view, number, PAGE_SIZE)
        self.answer(
            asdict(page)
            | {
                "where": condition(view),
                "command": as_command(self.desk.dataset, view),
                "subset": as_subset_command(self.desk.dataset, view),
                "sql": as_sql(view),
                "python": as_python(self.desk.dataset, view),
            }
        )


class FacetsHandler(Guarded):
    """The values of columns within a view."""

    async def get(self) -> None:
        """Answer with a facet for each ``column`` that is asked for."""
        columns = list(dict.fromkeys(self.get_query_arguments("column")))
        found = await self.elsewhere(self.desk.explorer.facets, self.view(), columns)
        self.answer([asdict(facet) for facet in found])


class ValuesHandler(Guarded):
    """The values of one column that contain some text."""

    async def get(self) -> None:
        """Answer with a facet."""
        column, part = self.get_query_argument("column", ""), self.get_query_argument("part", "")
        self.answer(asdict(await self.elsewhere(self.desk.explorer.find_values, self.view(), column, part)))


class SampleHandler(Guarded):
    """One sample's row."""

    async def get(self, key: str) -> None:
        """Answer with the row."""
        found = await self.elsewhere(self.desk.explorer.sample, key)
        if found is None:
            raise HTTPError(404, reason="no sample has this key")
        self.answer(found)


class SeriesHandler(Guarded):
    """A sample's neighbours."""

    async def get(self, key: str) -> None:
        """Answer with the slices of its series, in order."""
        self.answer(await self.elsewhere(self.desk.explorer.series_of, key))


class PictureHandler(Guarded):
    """What thumbnails and pixels have in common: a key that the catalog lists."""

    async def image_row(self, key: str) -> ImageRow:
        """The key's row, or an answer that there is none."""
        row = await self.elsewhere(self.desk.explorer.image_row, key)
        if row is None:
            raise HTTPError(404, reason="no sample has this key")
        return row


class ThumbnailHandler(PictureHandler):
    """A sample as a small JPEG."""

    async def get(self, key: str) -> None:
        """Answer with the JPEG, in the window that is asked for."""
        window = self.get_query_argument("window", None) or None
        image = self.desk.thumbnails.get((key, window))
        if image is None:
            row = await self.image_row(key)
            image = await self.elsewhere(thumbnail_jpeg, self.desk.explorer.root, row, window)
            self.desk.thumbnails.put((key, window), image, len(image))
        self.set_header("Content-Type", "image/jpeg")
        self.finish(image)


class PixelsHandler(PictureHandler):
    """A sample's pixels, as they are stored."""

    async def get(self, key: str) -> None:
        """Answer with bytes in the order of rows; the sample's row says their shape and type."""
        row = await self.image_row(key)
        data = await self.elsewhere(stored_bytes, self.desk.explorer.root, row)
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(data)


class SubsetHandler(Guarded):
    """The view as a subset, to be kept where the browser keeps downloads."""

    async def get(self) -> None:
        """Answer with the Parquet file."""
        view = self.view()
        with tempfile.TemporaryDirectory(prefix="lumid-explore-") as folder:
            path = Path(folder) / "subset.parquet"
            await self.elsewhere(partial(write_subset, self.desk.explorer.root, path, condition(view), moves=True))
            self.set_header("Content-Type", "application/vnd.apache.parquet")
            self.set_header("Content-Disposition", 'attachment; filename="subset.parquet"')
            self.set_header("Content-Length", str(path.stat().st_size))
            with path.open("rb") as file:
                while block := file.read(SEND_BYTES):
                    self.write(block)
                    await self.flush()


class NothingHandler(Guarded):
    """Any other address."""

    def get(self) -> None:
        """Say so."""
        raise HTTPError(404, reason="no such page")


def _whole(value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise UsageError("a page is a whole number, from 1")
    return int(value)


def _static_files() -> dict[str, bytes]:
    folder = files("lumid.catalog.explore") / "static"
    return {item.name: item.read_bytes() for item in folder.iterdir() if Path(item.name).suffix in TYPES}


def application(desk: Desk) -> Application:
    """The addresses that are answered."""
    shared = {"desk": desk}
    handlers: list[tuple[str, type[RequestHandler]]] = [
        (r"/", PageHandler),
        (r"/static/([a-z.]+)", StaticHandler),
        (r"/api/dataset", DatasetHandler),
        (r"/api/samples", SamplesHandler),
        (r"/api/facets", FacetsHandler),
        (r"/api/values", ValuesHandler),
        (rf"/api/samples/({KEY})", SampleHandler),
        (rf"/api/series/({KEY})", SeriesHandler),
        (rf"/thumbnails/({KEY})", ThumbnailHandler),
        (rf"/pixels/({KEY})", PixelsHandler),
        (r"/subset.parquet", SubsetHandler),
    ]
    return Application(
        [(pattern, handler, shared) for pattern, handler in handlers],
        default_handler_class=NothingHandler,
        default_handler_args=shared,
        log_function=lambda _: None,
    )


@dataclass(frozen=True, slots=True)
class Address:
    """Where a running server answers; ``url`` lets in whoever has it, ``ticket`` whoever has it first.

    A browser is opened with the ticket: everyone on a machine can see what its programs were started with.
    """

    host: str
    port: int
    url: str
    ticket: str


@asynccontextmanager
async def serving(root: Path, host: str = "127.0.0.1", port: int = 0, *, query: str = "") -> AsyncIterator[Address]:
    """Serve a finished data set for as long as the context lasts; yields where.

    ``port`` 0 takes a free one; ``query``: parameters of the first view, as an address has them. Raises
    :class:`DatasetError` when there is nothing to serve, ``OSError`` when the port cannot be had.
    """
    explorer = Explorer(root)
    threads = ThreadPoolExecutor(THREADS, "explore")
    try:
        sockets = bind_sockets(port, host, reuse_port=False)
        taken = int(sockets[0].getsockname()[1])
        secret, ticket = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        desk = Desk(
            explorer=explorer,
            dataset=str(root),
            secret=secret,
            tickets={ticket},
            # cookies do not tell ports apart
            cookie=f"lumid_explore_{taken}",
            names=own_names(),
            threads=threads,
            thumbnails=Recent(THUMBNAIL_BYTES),
            static=_static_files(),
        )
        server = HTTPServer(application(desk), max_header_size=64 << 10, max_body_size=0)
        server.add_sockets(sockets)
        shown = f"[{host}]" if ":" in host else host
        try:
            links = (f"http://{shown}:{taken}/?token={one}{'&' + query if query else ''}" for one in (secret, ticket))
            yield Address(host, taken, *links)
        finally:
            server.stop()
            await server.close_all_connections()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
        explorer.close()


def serve(root: Path, host: str, port: int, *, query: str = "", ready: Callable[[Address], None]) -> None:
    """Serve until Ctrl-C or a polite kill; ``ready`` is called once the server answers. See :func:`serving`."""

    async def run() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        async with serving(root, host, port, query=query) as address:
            ready(address)
            await stopped.wait()

    asyncio.run(run())
