"""`lumid explore`'s server in a thread, and a client that asks it as a browser would, or as nobody should."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from lumid.catalog.explore.server import Address, serving


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Client:
    address: Address
    cookie: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def secret(self) -> str:
        return parse_qs(urlsplit(self.address.url).query)["token"][0]

    def get(
        self, path: str, parameters: list[tuple[str, str]] | None = None, method: str = "GET", **headers: str
    ) -> Reply:
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent["Cookie"] = f"lumid_explore_{self.address.port}={self.secret}"
        try:
            connection.request(method, path + (f"?{urlencode(parameters)}" if parameters else ""), headers=sent)
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextmanager
def running(root: Path, query: str = "") -> Iterator[Client]:
    ready: list[Address] = []
    failed: list[BaseException] = []
    started, stop = threading.Event(), threading.Event()

    async def run() -> None:
        async with serving(root, query=query) as address:
            ready.append(address)
            started.set()
            await asyncio.get_running_loop().run_in_executor(None, stop.wait)

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert started.wait(60)
        if failed:
            raise failed[0]
        yield Client(ready[0])
    finally:
        stop.set()
        thread.join(30)
    assert not failed, failed
