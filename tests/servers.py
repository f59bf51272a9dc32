"""HTTP servers on 127.0.0.1 that fail as they are told to: every fault is scripted by path and request."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import urllib3

LONGEST_S = 30.0
"""No request outlives this, whatever its fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    ``status`` answers with it; ``reset`` and ``truncate`` end the connection after ``after`` bytes of the body, rudely or
    as if all were well; ``corrupt`` flips a bit; ``drip`` gives ``step`` bytes every ``every_s`` seconds, ``drip_head`` so
    the headers; ``silent`` never answers; ``page`` is a web page in place of the file; ``other`` another version of it;
    ``fewer`` is a bucket's listing without its last object, ``garbled`` no listing at all.
    """

    kind: Literal[
        "none",
        "status",
        "reset",
        "truncate",
        "corrupt",
        "drip",
        "drip_head",
        "silent",
        "page",
        "other",
        "cut_head",
        "redirect",
        "fewer",
        "garbled",
    ]
    after: int = 0
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    step: int = 1
    every_s: float = 0.05


FINE = Fault("none")


def status(code: int, **headers: str) -> Fault:
    """An answer with this status and a body that must never be shown."""
    return Fault("status", status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came in, with the seconds since the server began."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    form: Mapping[str, str]
    at_s: float
    target: str = ""

    @property
    def place(self) -> str:
        """What is asked for: a path, or the listing of a bucket's prefix."""
        return f"{self.path}?prefix={self.query['prefix']}" if "prefix" in self.query else self.path


@dataclass(frozen=True, slots=True)
class Relayed:
    """What another server has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Answer = bytes | Callable[[Request], bytes | None]
"""A file, or what a request is answered with; None is 404."""


@dataclass(slots=True)
class Server:
    """A server of ``files`` by path. Each request to a path takes the next fault of its list; then all is well.

    A fault under ``*`` befalls every request to every path, forever; so does one that is not in a list, at its path.
    ``pick`` draws the faults instead. ``chunked``: bodies come without a length. ``relay`` asks another server for what
    is not among the files. ``delivered``: how often a body went out whole, or the rest of one, and right.
    """

    files: dict[str, Answer] = field(default_factory=dict)
    faults: dict[str, list[Fault] | Fault] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    chunked: bool = False
    log: list[Request] = field(default_factory=list)
    busiest: int = 0
    pick: Callable[[Request], Fault] | None = None
    relay: Callable[[Request], Relayed] | None = None
    longest_s: float = LONGEST_S
    delivered: Counter[str] = field(default_factory=Counter)
    _busy: int = 0
    _begun: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _http: http.server.ThreadingHTTPServer | None = None

    def __enter__(self) -> Server:
        outer = self

        class Handler(_Handler):
            server_of_files = outer

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._http is not None
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Where the server is, without a slash at the end."""
        assert self._http is not None
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def requests(self, path: str) -> list[Request]:
        """The requests to a path so far."""
        with self._lock:
            return [request for request in self.log if path in (request.path, request.place)]

    def next_fault(self, request: Request) -> Fault:
        """Log the request and say what goes wrong with it."""
        with self._lock:
            self.log.append(request)
            if self.pick is not None:
                return self.pick(request)
            if everywhere := self.faults.get("*"):
                return everywhere if isinstance(everywhere, Fault) else everywhere[0]
            waiting = self.faults.get(request.place) or self.faults.get(request.path)
            if isinstance(waiting, Fault):
                return waiting
            return waiting.pop(0) if waiting else FINE

    def count_delivery(self, place: str) -> None:
        """Note that a body went out as it should."""
        with self._lock:
            self.delivered[place] += 1

    def since_s(self) -> float:
        """Seconds since the server began."""
        return time.monotonic() - self._begun

    def wait(self, seconds: float) -> bool:
        """Wait; whether to go on."""
        return not self._stop.wait(seconds) and self.since_s() < self.longest_s

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request for as long as it takes."""
        with self._lock:
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone is no error of the server's; any other is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_files: Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the log is the server's own."""

    def do_GET(self) -> None:
        """Answer, with the fault that is due."""
        self._answer({})

    def do_POST(self) -> None:
        """Answer a form."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        self._answer(dict(urllib.parse.parse_qsl(body)))

    def _answer(self, form: dict[str, str]) -> None:
        server = self.server_of_files
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        request = Request(
            self.command, parts.path, query, dict(self.headers.items()), form, server.since_s(), self.path
        )
        with server.counted(), contextlib.suppress(ConnectionError, TimeoutError):
            self._give(request, server.next_fault(request))

    def _give(self, request: Request, fault: Fault) -> None:
        server = self.server_of_files
        if fault.kind == "silent":
            while server.wait(0.05):
                pass
            self.close_connection = True
            return
        if fault.kind in ("status", "redirect"):
            self._plain(fault.status, b"a server's own words, DOE^JANE", dict(fault.headers))
            return
        if fault.kind == "page":
            self._plain(200, b"<html>please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
            return
        if server.relay is not None and request.path not in server.files:
            relayed = server.relay(request)
            if relayed.status != 200:
                self._plain(relayed.status, relayed.body, dict(relayed.headers))
            else:
                self._file(request, relayed.body, fault, relayed.headers)
            return
        content = server.files.get(request.path)
        data = content(request) if callable(content) else content
        if data is None:
            self._plain(404, b"no such thing, DOE^JANE", {})
            return
        self._file(request, data, fault, {})

    def _file(self, request: Request, data: bytes, fault: Fault, headers: Mapping[str, str]) -> None:
        if fault.kind == "corrupt":
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        if fault.kind == "other":
            data = data[::-1]
        if fault.kind == "fewer":
            data = re.sub(rb"(.*)<Contents>.*</Contents>", rb"\1", data, flags=re.DOTALL)
        if fault.kind == "garbled":
            data = b"<DOE^JANE"
        self._body(request, data, fault, headers)

    def _plain(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self, request: Request, data: bytes, fault: Fault, headers: Mapping[str, str]) -> None:
        server = self.server_of_files
        tag = headers.get("ETag", f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"')
        start = self._start(request, data, tag)
        if start is not None and start >= len(data):
            self._plain(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        body = data[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if server.etags:
            self.send_header("ETag", tag)
        for name, value in ({"Content-Type": "application/octet-stream"} | dict(headers)).items():
            if name != "ETag":
                self.send_header(name, value)
        if fault.kind in ("drip_head", "cut_head"):
            self._bad_head(fault)
            return
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body, fault, request.place)

    def _start(self, request: Request, data: bytes, tag: str) -> int | None:
        server = self.server_of_files
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if not match or not server.ranges:
            return None
        condition = request.headers.get("If-Range")
        return None if condition and condition != tag else int(match[1])

    def _bad_head(self, fault: Fault) -> None:
        self.flush_headers()
        self.close_connection = True
        if fault.kind == "cut_head":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        for _ in range(10_000):
            self.wfile.write(b"X-Slow: 1\r\n"[:1])
            if not self.server_of_files.wait(fault.every_s):
                return

    def _send(self, body: bytes, fault: Fault, place: str) -> None:
        step = fault.step if fault.kind == "drip" else 64 * 1024
        end = fault.after if fault.kind in ("reset", "truncate") else len(body)
        for position in range(0, end, step):
            piece = body[position : min(position + step, end)]
            if position + step >= end and fault.kind in ("none", "drip"):
                self.server_of_files.count_delivery(place)  # before who gets it can look
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.server_of_files.chunked else piece)
            if fault.kind == "drip" and not self.server_of_files.wait(fault.every_s):
                self.close_connection = True
                return
        if fault.kind in ("reset", "truncate"):
            self.close_connection = True
            if fault.kind == "reset":  # RST in place of FIN
                time.sleep(0.02)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
        elif self.server_of_files.chunked:
            self.wfile.write(b"0\r\n\r\n")


def now_and_then(share: float, seed: int = 5) -> tuple[Callable[[str], int | None], list[str]]:
    """For :func:`before`: 503 for this share of the requests, and the commands that were refused so far."""
    draw, refused = random.Random(seed), list[str]()

    def status(command: str) -> int | None:
        if draw.random() >= share:
            return None
        refused.append(command)
        return 503

    return status, refused


@contextmanager
def before(upstream: str, status: Callable[[str], int | None], *, answered: bool = False) -> Iterator[str]:
    """A server before another that refuses what ``status`` says: unheard, or, ``answered``, done but the answer lost."""
    pool = urllib3.PoolManager()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            code = status(self.command)
            data, headers = b"<Error/>", {}
            if code is None or answered:
                sent = pool.request(
                    self.command, upstream + self.path, body=body, headers=dict(self.headers), retries=False
                )
                if code is None:
                    code, data, headers = sent.status, sent.data, dict(sent.headers)
            self.send_response_only(code)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header(
                "Content-Length", headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
