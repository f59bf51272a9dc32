"""A data set in a bucket: moto's S3 server behind one that honours ranges and fails as it is told to."""

from __future__ import annotations

import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import urllib3
from botocore.exceptions import ClientError

from tests.fake_idc import s3_client, s3_server

KEPT = ("Content-Type", "Content-Length", "Content-Range", "ETag", "Last-Modified")
Fault = str
"""``503``, ``403``, ``reset`` (in the middle of the body), ``slow`` (0.2 s late), or empty: all is well."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came in: the object's name below the bucket, and first and last byte where a range is asked for."""

    name: str
    first: int | None
    last: int | None


@dataclass(slots=True)
class FakeBucket:
    """The bucket that runs. ``fault`` is asked about every request; ``asked``: those that came in."""

    url: str
    endpoint: str
    asked: list[Asked] = field(default_factory=list)
    fault: Callable[[Asked], Fault] = lambda _: ""
    busiest: int = 0
    busy: int = 0

    def of_shards(self) -> list[Asked]:
        """The requests for parts of shards."""
        return [one for one in self.asked if "/shards/" in one.name]


@contextmanager
def in_bucket(data: Path, bucket: str) -> Iterator[FakeBucket]:
    """Put a data set into a bucket, below ``sets/``, for a while. ``AWS_ENDPOINT_URL`` must be set to its ``endpoint``."""
    upstream = s3_server()
    client = s3_client(upstream)
    client.create_bucket(Bucket=bucket, ACL="public-read")
    names = []
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        names.append(f"sets/{path.relative_to(data)}")
        client.put_object(Bucket=bucket, Key=names[-1], Body=path.read_bytes(), ACL="public-read")
    pool = urllib3.PoolManager(maxsize=32)
    fake = FakeBucket(f"s3://{bucket}/sets", "")
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            name = self.path.partition("?")[0].removeprefix(f"/{bucket}")
            asked = Asked(name, *(int(edge) for edge in span.groups())) if span else Asked(name, None, None)
            with lock:
                fake.asked.append(asked)
                fault = fake.fault(asked)
                fake.busy += 1
                fake.busiest = max(fake.busiest, fake.busy)
            try:
                self._give(fault)
            except (ConnectionError, TimeoutError):
                self.close_connection = True
            finally:
                with lock:
                    fake.busy -= 1

        def _give(self, fault: Fault) -> None:
            if fault.isdigit():
                self.send_response(int(fault))
                self.send_header("Content-Length", "9")
                self.end_headers()
                self.wfile.write(b"DOE^JANE!")
                return
            if fault == "slow":
                time.sleep(0.2)
            headers = {name: self.headers[name] for name in ("Range",) if name in self.headers}
            answer = pool.request("GET", upstream + self.path, headers=headers, retries=False, redirect=False)
            self.send_response(answer.status)
            for header in KEPT:
                if header in answer.headers:
                    self.send_header(header, answer.headers[header])
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.data)))
            self.end_headers()
            if fault == "reset":
                self.wfile.write(answer.data[: len(answer.data) // 2])
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            self.wfile.write(answer.data)

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A connection that was reset on purpose."""

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        pool.clear()
        for name in names:
            client.delete_object(Bucket=bucket, Key=name)
        try:
            client.delete_bucket(Bucket=bucket)
        except ClientError as error:
            raise AssertionError("something was written into the bucket") from error
