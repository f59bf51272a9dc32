"""An archive in the Imaging Data Commons' layout on 127.0.0.1, with the latency and the bandwidth that it is told to have.

It holds real images, written again and again (:mod:`slices`), and runs in a process of its own, whose processor time
can be told from the build's.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import multiprocessing
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from pydicom import FileDataset
from slices import ROOT, Template

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.lock import LOCK

BUCKET = "bench"
PIECE = 64 << 10


def copies(template: Template, series: int, count: int) -> Iterator[bytes]:
    """Files of one series: the first of :meth:`Template.replica`, under other UIDs, with its pixels turned round.

    What differs has the same length in each, so that none but the first has to be written by pydicom.
    """
    data, root = template.dataset, f"{ROOT}1.{10_000 + series}"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{root}.{10_000}"
    data.SeriesInstanceUID = f"{root}.2"
    if data.Modality in ("CT", "MR"):
        data.ImagePositionPatient = [-250.0, -250.0, 10_000.0]
    data.PixelData = template.pixels.tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    head = buffer.getvalue()[: -len(data.PixelData)]
    for place in range(count):
        pixels = np.roll(template.pixels, (3 * place + 1, 5 * place + 2 * series), (0, 1))
        yield (
            head.replace(f"{root}.10000".encode(), f"{root}.{10_000 + place}".encode()).replace(
                b"10000.0", f"{10_000 + place}.0".encode()
            )
            + pixels.tobytes()
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """Series of an archive: images of a modality, so many series of so many slices."""

    name: str
    series: int
    slices: int


def make_archive(root: Path, kinds: Sequence[Kind], templates: Mapping[str, Sequence[Template]]) -> pa.Table:
    """Write the objects under ``root``; the lock that pins them. A series is made of one real image."""
    rows, number = [], 0
    for kind in kinds:
        for one, template in zip(range(kind.series), itertools.cycle(templates[kind.name])):
            number += 1
            uuid = hashlib.md5(f"{kind.name}{one}".encode(), usedforsecurity=False).hexdigest()
            folder, size = root / uuid, 0
            folder.mkdir(parents=True)
            for place, data in enumerate(copies(template, number, kind.slices)):
                (folder / f"{place:05}.dcm").write_bytes(data)
                size += len(data)
            rows.append(_row(uuid, kind.name, kind.slices, size))
    return pa.Table.from_pylist(rows, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


def make_long_series(root: Path, data: FileDataset, objects: int) -> pa.Table:
    """Write one series of so many copies of an object, as it is but for its UIDs; the lock that pins it."""
    uuid, size = hashlib.md5(b"long", usedforsecurity=False).hexdigest(), 0
    (root / uuid).mkdir(parents=True)
    for number in range(objects):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}2.{number}"
        data.save_as(root / uuid / f"{number:05}.dcm", enforce_file_format=True)
        size += (root / uuid / f"{number:05}.dcm").stat().st_size
    return pa.Table.from_pylist([_row(uuid, str(data.Modality), objects, size)], schema=LOCK)


def _row(uuid: str, modality: str, objects: int, size: int) -> dict[str, Any]:
    return dict.fromkeys(LOCK.names) | {
        "recipe_source": 0, "source": "idc", "collection": "nlst", "license": "CC BY 4.0", "bytes": size,
        "source_version": "IDC", "digest": uuid, "location": uuid, "objects": objects, "modality": modality,
        "series": Keyer(PUBLIC_SECRET).pseudonym("series", uuid), "urls": [f"s3://{BUCKET}/{uuid}/"],
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs: where, and its process."""

    url: str
    process: psutil.Process

    def processor_s(self) -> float:
        """Processor seconds that it has taken so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def served(root: Path, latency_s: float = 0.0, mb_per_s: float | None = None) -> Iterator[Served]:
    """Serve an archive: every answer begins after ``latency_s``, and all together bring so many MB/s."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_run, args=(root, latency_s, mb_per_s, theirs), daemon=True)
    process.start()
    try:
        yield Served(f"http://127.0.0.1:{mine.recv()}", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.join()


def _run(root: Path, latency_s: float, mb_per_s: float | None, pipe: Any) -> None:
    asyncio.run(_serve(_Archive(root, latency_s, mb_per_s), pipe))


async def _serve(archive: _Archive, pipe: Any) -> None:
    server = await asyncio.start_server(archive.answer, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class _Archive:
    """The objects by their path, and what the line has been promised to."""

    def __init__(self, root: Path, latency_s: float, mb_per_s: float | None) -> None:
        self.latency_s, self.bytes_per_s = latency_s, mb_per_s and mb_per_s * 1e6
        self.free_at = 0.0
        self.objects = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(root.glob("*/*.dcm"))}
        self.tags = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in self.objects.items()}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The requests of one connection, one after another."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                target = urllib.parse.urlsplit(head.split(b" ", 2)[1].decode())
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                await self.give(target, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def give(self, target: urllib.parse.SplitResult, writer: asyncio.StreamWriter) -> None:
        if "prefix=" in target.query:
            body, tag = self.listing(urllib.parse.parse_qs(target.query)["prefix"][0]), "listing"
        else:
            name = target.path.split("/", 2)[2]
            body, tag = self.objects[name], self.tags[name]
        head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: "{tag}"\r\n'
        writer.write(f"{head}Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n".encode())
        for begin in range(0, len(body), PIECE) if self.bytes_per_s else ():
            piece = body[begin : begin + PIECE]
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + len(piece) / self.bytes_per_s
            if self.free_at - now > 2e-3:
                await asyncio.sleep(self.free_at - now)
            writer.write(piece)
        if not self.bytes_per_s:
            writer.write(body)
        await writer.drain()

    def listing(self, prefix: str) -> bytes:
        found = [name for name in self.objects if name.startswith(prefix)]
        entries = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self.tags[name]}&quot;</ETag><Size>{len(self.objects[name])}</Size></Contents>"
            for name in found
        )
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ).encode()
