"""A process's HTTP connections: kept open, a bounded number of requests at each host, and answers that begin in time."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from functools import cache

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import BaseHTTPResponse

CONNECT_S = 30.0
PROBE_S = 5.0
NO_CONNECTION, NO_ANSWER = "cannot connect", "no answer in"
"""How a failure is told that lies in the network, or in a server that is not there."""
MAX_REDIRECTS = 5


def is_address(url: str) -> bool:
    """Whether it is an HTTP address at all."""
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.HTTPError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


def is_reachable(url: str) -> bool:
    """Whether anything takes connections at the address; where a proxy stands in between, that is not known: True."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host):
        return True
    try:
        with socket.create_connection((host, parts.port or (443 if parts.scheme == "https" else 80)), PROBE_S):
            return True
    except (OSError, ValueError):
        return False


def turn(url: str, requests: int) -> threading.Semaphore:
    """A turn at the address's host, of which a process has ``requests`` at a time; to be held during a request."""
    return _shared(os.getpid()).slot(urllib.parse.urlsplit(url).netloc.lower(), requests)


def send(url: str, headers: Mapping[str, str], form: Mapping[str, str] | None, timeout_s: float) -> BaseHTTPResponse:
    """Get an address, or post a form to it, and wait for the headers of the answer; its body is read by the caller.

    Redirects are followed, nothing is tried again. Raises ``urllib3.exceptions.HTTPError``.
    """
    body = None if form is None else urllib.parse.urlencode(form)
    kind = {} if form is None else {"Content-Type": "application/x-www-form-urlencoded"}
    return (
        _shared(os.getpid())
        .pool(url)
        .request(
            "GET" if body is None else "POST",
            url,
            body=body,
            headers={**headers, **kind},
            timeout=urllib3.Timeout(connect=min(timeout_s, CONNECT_S), read=timeout_s),
            retries=urllib3.Retry(
                total=None,
                connect=0,
                read=0,
                status=0,
                other=0,
                redirect=MAX_REDIRECTS,
                respect_retry_after_header=False,
            ),
            preload_content=False,
            decode_content=False,
        )
    )


def _in_time(connection: HTTPConnection, getresponse: Callable[[], urllib3.HTTPResponse]) -> urllib3.HTTPResponse:
    """The response, if its headers are there within twice the read timeout, however slowly they drip in."""
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(2 * (connection.timeout or CONNECT_S), hang_up)
    timer.daemon = True
    timer.start()
    try:
        response = getresponse()
    finally:
        timer.cancel()
    if late.is_set():  # http.client takes the end of the connection for the end of the headers
        raise TimeoutError
    return response


class _Connection(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return _in_time(self, super().getresponse)


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        return _in_time(self, super().getresponse)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Shared:
    """What the threads of a process share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._slots: dict[tuple[str, int], threading.Semaphore] = {}

    def slot(self, host: str, requests: int) -> threading.Semaphore:
        with self._lock:
            return self._slots.setdefault((host, requests), threading.Semaphore(requests))

    def pool(self, url: str) -> urllib3.PoolManager:
        """Connections to the address's host, through the proxy that the environment names for it."""
        parts = urllib.parse.urlsplit(url)
        bypassed = urllib.request.proxy_bypass(parts.hostname or "")
        proxy = "" if bypassed else urllib.request.getproxies().get(parts.scheme, "")
        with self._lock:
            if proxy not in self._pools:
                pool = urllib3.ProxyManager(proxy, maxsize=32) if proxy else urllib3.PoolManager(maxsize=32)
                pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
                self._pools[proxy] = pool
            return self._pools[proxy]


@cache
def _shared(_process: int) -> _Shared:
    """One for each process: a connection must not be used on both sides of a fork."""
    return _Shared()
