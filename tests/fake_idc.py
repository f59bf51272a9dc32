"""A small Imaging Data Commons: moto's S3 server with the archive's layout, behind servers that fail as they are told to."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import boto3
import pyarrow as pa
import pydicom
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.lock import LOCK, series_of
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.sources import Series
from tests.servers import FINE, Fault, Relayed, Request, Server

BUCKET = "idc-open-data"
MIRROR = "public-datasets-idc"
KEPT_HEADERS = ("Content-Type", "ETag", "Last-Modified")
Contents = Mapping[str, Mapping[str, bytes]]
"""Objects by the uuid of their series' version, and by name."""
Faults = Mapping[str, list[Fault] | Fault]
"""What goes wrong, by :func:`at_object` and :func:`at_listing`: the next requests', or, not in a list, every one's."""


def at_object(uuid: str, name: str, bucket: str = BUCKET) -> str:
    """Where requests for an object arrive."""
    return f"/{bucket}/{uuid}/{name}"


def at_listing(uuid: str, bucket: str = BUCKET) -> str:
    """Where requests for a series' listing arrive."""
    return f"/{bucket}?prefix={uuid}/"


def lock_rows(contents: Contents, *, mirror: bool = False, keyer: Keyer | None = None) -> pa.Table:
    """The lock of these series, as a plan makes it, in the order of their pseudonyms."""
    keyer = keyer or Keyer(PUBLIC_SECRET)
    rows: list[dict[str, Any]] = []
    for uuid, objects in contents.items():
        header = pydicom.dcmread(io.BytesIO(next(iter(objects.values()))), stop_before_pixels=True, force=True)
        rows.append(
            {
                "recipe_source": 0,
                "source": "idc",
                "collection": "lidc_idri",
                "source_version": "IDC v25",
                "license": "CC BY 3.0",
                "series": keyer.pseudonym("series", str(header.get("SeriesInstanceUID", uuid))),
                "modality": header.get("Modality"),
                "objects": len(objects),
                "bytes": sum(map(len, objects.values())),
                "location": uuid,
                "urls": [f"s3://{BUCKET}/{uuid}/", *([f"gs://{MIRROR}/{uuid}/"] if mirror else [])],
                "digest": hashlib.sha256(uuid.encode()).hexdigest(),
            }
        )
    rows = [dict.fromkeys(LOCK.names) | row for row in rows]
    return pa.Table.from_pylist(rows, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


def drawn(seed: int, share: float, objects: Sequence[Fault], listings: Sequence[Fault]) -> Callable[[Request], Fault]:
    """A fault for a share of the requests, the same ones whatever order they come in."""
    seen = Counter[str]()

    def pick(request: Request) -> Fault:
        seen[request.place] += 1
        digest = hashlib.sha256(f"{seed} {request.place} {seen[request.place]}".encode()).digest()
        rng = random.Random(digest)
        if rng.random() >= share:
            return FINE
        return rng.choice(listings if "prefix" in request.query else objects)

    return pick


@dataclass(frozen=True, slots=True)
class FakeIdc:
    """The archive that runs: its first server and its mirror, which log what they are asked and what they delivered."""

    first: Server
    mirror: Server | None
    contents: Contents = field(repr=False)

    def settings(self, **more: Any) -> FetchSettings:
        """Settings that read from here; an unhurried timeout and two attempts unless told otherwise."""
        mirror = self.mirror.url if self.mirror else "http://127.0.0.1:9"
        values = {"s3_endpoint": self.first.url, "gs_endpoint": mirror, "attempts": 2, "timeout_s": 20.0} | more
        return FetchSettings.model_validate(values)

    def lock(self, keyer: Keyer | None = None) -> pa.Table:
        """The lock that pins all of it."""
        return lock_rows(self.contents, mirror=self.mirror is not None, keyer=keyer)

    def pinned(self) -> list[Series]:
        """The series as a source is asked for them."""
        return series_of(self.lock(), 0)

    def deliveries(self) -> dict[str, int]:
        """How often each object went out whole and right, by ``uuid/name``, from either server; at the least 0."""
        servers = [(self.first, BUCKET), *([(self.mirror, MIRROR)] if self.mirror else [])]
        return {
            f"{uuid}/{name}": sum(server.delivered[at_object(uuid, name, bucket)] for server, bucket in servers)
            for uuid, objects in self.contents.items()
            for name in objects
        }


@contextmanager
def fake_idc(
    contents: Contents,
    *,
    faults: Faults | None = None,
    mirror: Contents | None = None,
    mirror_faults: Faults | None = None,
    pick: Callable[[Request], Fault] | None = None,
    longest_s: float = 60.0,
) -> Iterator[FakeIdc]:
    """Run an archive that holds these series, and a mirror where one is given, which may hold others.

    ``pick`` draws the first server's faults in place of ``faults``. Nothing answers for longer than ``longest_s``.
    """
    with contextlib.ExitStack() as stack:
        upstream = s3_server()
        for bucket, held in ((BUCKET, contents), (MIRROR, mirror or {})):
            stack.enter_context(_held(upstream, bucket, held))
        pool = urllib3.PoolManager(maxsize=64)
        stack.callback(pool.clear)

        def relay(request: Request) -> Relayed:
            answer = pool.request("GET", upstream + request.target, retries=False, timeout=30.0, redirect=False)
            headers = {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers}
            return Relayed(answer.status, headers, answer.data)

        def serve(faults: Faults | None, pick: Callable[[Request], Fault] | None) -> Server:
            own = {place: list(what) if isinstance(what, list) else what for place, what in (faults or {}).items()}
            return stack.enter_context(Server(faults=own, relay=relay, pick=pick, longest_s=longest_s))

        first = serve(faults, pick)
        yield FakeIdc(first, serve(mirror_faults, None) if mirror is not None else None, contents)


@cache
def s3_server() -> str:
    """The address of moto's server, one for the process: its buckets are the process's, too, and it takes its time to stop."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    atexit.register(moto.stop)
    host, port = moto.get_host_and_port()
    return f"http://{host}:{port}"


@cache
def s3_client(upstream: str) -> Any:
    """A client of that server that may write."""
    return boto3.client(
        "s3", endpoint_url=upstream, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test",
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip


@contextmanager
def _held(upstream: str, bucket: str, contents: Contents) -> Iterator[None]:
    """Objects in a bucket, for a while."""
    client = s3_client(upstream)
    keys = {f"{uuid}/{name}": data for uuid, objects in contents.items() for name, data in objects.items()}
    client.create_bucket(Bucket=bucket, ACL="public-read")
    for key, data in keys.items():
        client.put_object(Bucket=bucket, Key=key, Body=data, ACL="public-read")
    try:
        yield
    finally:
        for key in keys:
            client.delete_object(Bucket=bucket, Key=key)
        with contextlib.suppress(ClientError):  # others may have something in it
            client.delete_bucket(Bucket=bucket)
