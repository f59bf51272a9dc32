"""The Imaging Data Commons' buckets, played by an S3 server on this machine that holds real DICOM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import read_manifest
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import LOCK
from lumid.pipeline.recipe import FetchSettings, IdcSettings, Recipe
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Provenance, Series, idc
from lumid.pipeline.sources.buckets import Prefix
from lumid.pipeline.sources.idc import IdcSource
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import s3_client

BUCKET = "idc-open-data"
FILES = {
    f"{number:08x}.dcm": as_bytes(image(gradient(high=500 + number), SOPInstanceUID=f"1.2.{number}"))
    for number in range(6)
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def client(endpoint: str) -> object:
    found = s3_client(endpoint)
    for bucket in (BUCKET, "mirror"):
        found.create_bucket(Bucket=bucket, ACL="public-read")
        for name, data in FILES.items():
            found.put_object(Bucket=bucket, Key=f"whole/{name}", Body=data, ACL="public-read")
    found.put_object(Bucket="mirror", Key="mirrored/a.dcm", Body=FILES["00000000.dcm"], ACL="public-read")
    return found


def settings(endpoint: str, **more: object) -> FetchSettings:
    return FetchSettings(s3_endpoint=endpoint, gs_endpoint=endpoint, attempts=2, timeout_s=5, **more)  # type: ignore[arg-type]


def series(location: str, objects: int | None, *urls: str) -> Series:
    provenance = Provenance("lidc_idri", "idc", "CC BY 3.0", None, "IDC v25")
    return Series("0" * 16, provenance, objects, 1, location=location, urls=urls)


def test_every_object_arrives_by_name_and_whole(endpoint: str, client: object) -> None:
    one = series("whole", 6, f"s3://{BUCKET}/whole/")
    source = IdcSource(settings(endpoint))
    source.prefetch([one])
    found = {blob.ref.source_id: blob.data for blob in source.blobs(one)}
    assert found == {f"whole/{name}": data for name, data in FILES.items()}
    assert list(found) == sorted(found)
    again = [blob.data for blob in source.blobs(one, frozenset({"whole/00000002.dcm"}))]
    assert again == [FILES["00000002.dcm"]]
    source.close()


def test_a_mirror_is_asked_when_the_first_has_nothing(endpoint: str, client: object) -> None:
    one = series("mirrored", 1, f"s3://{BUCKET}/mirrored/", "gs://mirror/mirrored/")
    (blob,) = IdcSource(settings(endpoint)).blobs(one)
    assert blob.data == FILES["00000000.dcm"]


@pytest.mark.parametrize(
    ("location", "objects", "detail"),
    [("whole", 7, "6 objects listed, 7 planned"), ("gone", None, "no objects listed")],
)
def test_a_series_that_is_not_what_was_planned_is_one_reject(
    location: str, objects: int | None, detail: str, endpoint: str, client: object
) -> None:
    (blob,) = IdcSource(settings(endpoint)).blobs(series(location, objects, f"s3://{BUCKET}/{location}/"))
    assert blob.data == Reject("fetch", "fetch_failed", detail)
    assert blob.objects == (objects or 1)


def test_nobody_there_is_a_reject_within_bounds() -> None:
    (blob,) = IdcSource(settings("http://127.0.0.1:9")).blobs(series("whole", 6, f"s3://{BUCKET}/whole/"))
    assert blob.data == Reject("fetch", "fetch_failed", "listing: cannot connect")
    assert blob.objects == 6


def test_what_cannot_be_asked_has_its_own_words(endpoint: str, client: object) -> None:
    whole = series("whole", 6, f"s3://{BUCKET}/whole/")
    elsewhere = series("whole", 6, "s3://no-such-bucket/whole/")
    for source, one, detail in (
        (IdcSource(settings(endpoint)), elsewhere, "listing: no such bucket"),
        (IdcSource(settings(endpoint)), series("whole", 6), "the lock names no address"),
        (IdcSource(settings(endpoint, offline=True)), whole, "offline"),
    ):
        source.prefetch([one])
        assert [blob.data for blob in source.blobs(one)] == [Reject("fetch", "fetch_failed", detail)]
        source.close()


ODD = ("a b+c.dcm", "50%2F.dcm", "ü—.dcm", "sub/x.dcm")


@pytest.mark.parametrize("quick_bytes", [idc.QUICK_BYTES, 0], ids=["obstore", "http"])
def test_names_are_asked_for_as_they_are(
    quick_bytes: int, endpoint: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to an object spell its key alike."""
    data = {name: f"content of {number}".encode() for number, name in enumerate(ODD)}
    for name, content in data.items():
        client.put_object(Bucket=BUCKET, Key=f"odd/{name}", Body=content, ACL="public-read")
    monkeypatch.setattr(idc, "QUICK_BYTES", quick_bytes)
    one = series("odd", len(data), f"s3://{BUCKET}/odd/")
    source = IdcSource(settings(endpoint))
    found = {blob.ref.source_id: blob.data for blob in source.blobs(one)}
    source.close()
    assert found == {f"odd/{name}": content for name, content in data.items()}


def test_plain_addresses_of_objects() -> None:
    fetch = FetchSettings()
    amazon, google = Prefix.of("s3://idc-open-data/u/", fetch), Prefix.of("gs://public-datasets-idc/u/", fetch)
    assert amazon.address("i.dcm") == "https://s3.amazonaws.com/idc-open-data/u/i.dcm"
    assert google.address("i.dcm") == "https://storage.googleapis.com/public-datasets-idc/u/i.dcm"


def test_an_object_in_several_parts_is_held_against_its_size(endpoint: str, client: Any) -> None:
    """Its ETag is not an MD5 of the content."""
    data = bytes(range(256)) * 24 * 1024
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts/a.dcm", ACL="public-read")["UploadId"]
    cut = 5 << 20
    tags = [
        client.upload_part(Bucket=BUCKET, Key="parts/a.dcm", UploadId=upload, PartNumber=number, Body=piece)["ETag"]
        for number, piece in ((1, data[:cut]), (2, data[cut:]))
    ]
    parts = [{"ETag": tag, "PartNumber": number} for number, tag in enumerate(tags, 1)]
    client.complete_multipart_upload(
        Bucket=BUCKET, Key="parts/a.dcm", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert "-" in client.head_object(Bucket=BUCKET, Key="parts/a.dcm")["ETag"]
    source = IdcSource(settings(endpoint))
    (blob,) = source.blobs(series("parts", 1, f"s3://{BUCKET}/parts/"))
    source.close()
    assert blob.data == data


def test_a_build_from_a_lock_keeps_what_came_and_accounts_for_what_did_not(
    endpoint: str, client: object, tmp_path: Path
) -> None:
    import pyarrow as pa
    from rich.console import Console

    recipe = Recipe(name="part", sources=(IdcSettings(collections=("lidc_idri",)),), fetch=settings(endpoint))
    keyer = Keyer(PUBLIC_SECRET)
    rows = [
        dict.fromkeys(LOCK.names) | values | {"recipe_source": 0, "source": "idc", "collection": "lidc_idri", "license": "CC BY 3.0",
         "source_version": "IDC v25", "bytes": 1, "digest": "x"}
        for values in (
            {"series": keyer.pseudonym("series", "1"), "objects": 6, "location": "whole", "urls": [f"s3://{BUCKET}/whole/"]},
            {"series": keyer.pseudonym("series", "2"), "objects": 3, "location": "gone", "urls": [f"s3://{BUCKET}/gone/"]},
        )
    ]  # fmt: skip
    lock = pa.Table.from_pylist(rows, schema=LOCK)
    for workers, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        build(recipe, out, ClusterSettings(None, workers), BuildProgress(Console(quiet=True)), lock)
    one, two = read_manifest(tmp_path / "one"), read_manifest(tmp_path / "two")
    assert (one.counts.objects, one.counts.planned, one.counts.kept, one.rejects) == (9, 9, 6, {"fetch_failed": 3})
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]
    assert one.catalog_hash == two.catalog_hash
    assert json.loads(one.to_json())["lock_hash"] == two.lock_hash
