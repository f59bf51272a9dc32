"""Requests are counted where they are made: as many as the servers saw, with what came of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline import traffic
from lumid.pipeline.download import Downloader, Patience, Wanted
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Provenance
from lumid.pipeline.sources.folder import FolderSource
from lumid.pipeline.sources.idc import IdcSource
from lumid.pipeline.traffic import Traffic, take, together
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import at_listing, at_object, fake_idc
from tests.servers import Server, status

UUID = "7a5e5f0c-39aa-4e0e-8f5b-3b3f62a1b0c4"
OBJECTS = {
    f"{number}.dcm": as_bytes(image(gradient(high=500 + number), SOPInstanceUID=f"1.2.{number}")) for number in range(5)
}
IMPATIENT = Patience(first_wait_s=0.01, longest_wait_s=0.02)


def test_what_a_bucket_is_asked_is_what_is_counted() -> None:
    take()
    faults = {
        at_object(UUID, "1.dcm"): [status(503)],
        at_listing(UUID): [status(500)],
        at_object(UUID, "2.dcm"): status(404),
    }
    with fake_idc({UUID: OBJECTS}, faults=faults, mirror={UUID: OBJECTS}) as fake:
        source = IdcSource(fake.settings(attempts=3), IMPATIENT)
        (series,) = fake.pinned()
        blobs = list(source.blobs(series))
        source.close()
        asked = [(server, "list" if "prefix" in request.query else "get")
                 for name, server in (("idc-aws", fake.first), ("idc-google", fake.mirror)) if server
                 for request in server.log for server in [name]]  # fmt: skip
    assert not [blob for blob in blobs if isinstance(blob.data, Reject)]
    counted = take()
    totals: Counter[tuple[str, str]] = Counter()
    for one in counted:
        totals[one.archive, one.operation] += one.requests
    assert totals == Counter(asked)
    outcomes = {(one.operation, one.outcome): one.requests for one in counted if one.archive == "idc-aws"}
    assert outcomes["list", "failed"] == 1
    assert outcomes["get", "busy"] == 1
    assert outcomes["get", "absent"] == 1
    assert sum(one.bytes for one in counted) == sum(map(len, OBJECTS.values()))
    assert {one.archive for one in counted if one.bytes} == {"idc-aws", "idc-google"}


def test_a_download_that_breaks_off_counts_what_came(tmp_path: Path) -> None:
    take()
    body = bytes(range(256)) * 100
    with Server(files={"/a.zip": body}, faults={"/a.zip": [status(429)]}) as server:
        settings = FetchSettings(nbia_url=server.url, attempts=2, timeout_s=5)
        assert Downloader(settings, IMPATIENT).file(Wanted((f"{server.url}/a.zip",)), tmp_path / "a.zip")
    busy, whole = take()
    assert (busy.archive, busy.outcome, busy.requests) == ("tcia", "busy", 1)
    assert whole == Traffic("tcia", "get", "ok", 1, len(body))


def test_a_folder_of_this_machine_counts_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(OBJECTS["0.dcm"])
    source = FolderSource(tmp_path, Provenance("c", "folder", None, None, None), Keyer(PUBLIC_SECRET))
    (ref,) = source.objects()
    take()
    assert not isinstance(ref, tuple)
    source.read(ref)
    assert take() == (Traffic("folder", "get", "ok", 1, len(OBJECTS["0.dcm"])),)


def test_sums() -> None:
    traffic.count("nih", "get", "ok", 10)
    first = take()
    traffic.count("nih", "get", "ok", 5)
    assert together([*first, *take()]) == (Traffic("nih", "get", "ok", 2, 15),)
    assert take() == ()
