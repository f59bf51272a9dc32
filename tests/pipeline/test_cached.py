"""Archives behind a cache: what is kept, what is served, what is never believed; folders and buckets alike."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from rich.console import Console
from typer.testing import CliRunner
from werkzeug.serving import make_server

from lumid.catalog.errors import LumidError, RecipeError, StorageError, UsageError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import read_manifest
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import LOCK
from lumid.pipeline.rawcache import check_cache, folder_of, marker_of, open_cache, read_marker
from lumid.pipeline.recipe import FetchSettings, FolderSettings, IdcSettings, PydicomSettings, Recipe, TciaSettings
from lumid.pipeline.recipe_files import parse_recipe, with_overrides
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Provenance, Series, open_source
from lumid.pipeline.sources.cached import CachedSource, WriteBehind, behind_cache
from tests import fake_nbia
from tests.dicom import as_bytes, gradient, image
from tests.servers import Server, status

UUID = "7a5e5f0c-39aa-4e0e-8f5b-3b3f62a1b0c4"
OTHER = "0b0fd1a5-92b5-4f32-8a0b-5d94e2a53b11"
ABSENT = Reject("fetch", "fetch_failed", "not in the cache, and --offline was given")
DAMAGED = Reject("fetch", "fetch_failed", "damaged in the cache")


# ---- a source that is scripted, around a real cache


@dataclass
class Scripted:
    """An archive of one thread: its objects by name, as bytes or as the reason why they do not come."""

    objects: dict[str, Mapping[str, bytes | Reject]]
    labels: tuple[str, ...] | None = ("effusion", "mass")
    asked: list[tuple[str, frozenset[str] | None]] = field(default_factory=list)
    prefetched: list[str] = field(default_factory=list)
    closed: int = 0

    def prefetch(self, series: Sequence[Series]) -> None:
        self.prefetched += [one.location for one in series]

    def close(self) -> None:
        self.closed += 1

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        self.asked.append((series.location, only))
        for name, data in self.objects[series.location].items():
            ref = ObjectRef(f"{series.id}/{name}", len(data) if isinstance(data, bytes) else 0, location=name)
            if only is None or ref.source_id in only:
                yield Blob(ref, data, labels=self.labels, split="benchmark")


def pinned(location: str = UUID, objects: int | None = None, version: str = "IDC v25") -> Series:
    return Series("0123456789abcdef", Provenance("c", "idc", "CC BY 3.0", None, version), objects, 1, location=location)


def fetching(cache: Path | str, **more: Any) -> FetchSettings:
    return FetchSettings(cache=str(cache), attempts=2, timeout_s=5.0, **more)


def behind(cache: Path | str, archive: Scripted | None, **more: Any) -> CachedSource:
    fetch = fetching(cache, offline=archive is None, **more)
    return CachedSource("idc", open_cache(fetch), archive, fetch)


def read(source: CachedSource, *series: Series) -> list[Blob]:
    try:
        source.prefetch(series)
        return [blob for one in series for blob in source.blobs(one)]
    finally:
        source.close()


def files_of(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def objects_of(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.suffix != ".json")


THREE: dict[str, bytes | Reject] = {"a.dcm": b"first", "b.dcm": b"", "c.dcm": b"third" * 1000}


def test_what_passed_once_is_served_as_it_was_without_the_archive(tmp_path: Path) -> None:
    archive = Scripted({UUID: THREE})
    plain = list(archive.blobs(pinned(objects=3)))
    assert read(behind(tmp_path, archive), pinned(objects=3)) == plain
    assert archive.prefetched == [UUID]
    assert archive.closed == 1
    again = Scripted({})
    assert read(behind(tmp_path, again), pinned(objects=3)) == plain
    assert (again.asked, again.prefetched) == ([], [])
    assert read(behind(tmp_path, None), pinned(objects=3)) == plain
    (only,) = behind(tmp_path, None).blobs(pinned(objects=3), frozenset({"0123456789abcdef/b.dcm"}))
    assert only == plain[1]


def test_the_second_pass_comes_from_the_cache(tmp_path: Path) -> None:
    archive = Scripted({UUID: THREE})
    source = behind(tmp_path, archive)
    first = list(source.blobs(pinned(objects=3)))
    wanted = frozenset({blob.ref.source_id for blob in first[1:]})
    assert list(source.blobs(pinned(objects=3), wanted)) == first[1:]
    assert archive.asked == [(UUID, None)]
    source.close()


@pytest.mark.parametrize(
    ("objects", "planned"),
    [
        (THREE, 4),
        (THREE, 2),
        (THREE | {"b.dcm": Reject("fetch", "fetch_failed", "HTTP 500")}, 3),
        (THREE | {"z": Reject("read", "unsafe_member")}, None),
        ({}, None),
    ],
)
def test_a_series_that_did_not_come_whole_is_never_served(
    objects: dict[str, bytes | Reject], planned: int | None, tmp_path: Path
) -> None:
    archive = Scripted({UUID: objects})
    for _ in range(2):
        assert read(behind(tmp_path, archive), pinned(objects=planned)) == list(archive.blobs(pinned()))
    assert len(archive.asked) == 4
    assert not list(tmp_path.rglob("*.json"))
    (blob,) = read(behind(tmp_path, None), pinned(objects=planned))
    assert (blob.data, blob.objects, blob.ref.source_id) == (ABSENT, planned or 1, UUID)


def test_a_marker_of_other_objects_than_planned_does_not_count(tmp_path: Path) -> None:
    read(behind(tmp_path, Scripted({UUID: THREE})), pinned(objects=3))
    (blob,) = read(behind(tmp_path, None), pinned(objects=4))
    assert (blob.data, blob.objects) == (ABSENT, 4)


def test_broken_off_after_half_of_the_objects(tmp_path: Path) -> None:
    archive = Scripted({UUID: THREE})
    source = behind(tmp_path, archive)
    passing = source.blobs(pinned(objects=3))
    next(passing), next(passing)
    passing.close()  # type: ignore[attr-defined]
    source.close()
    assert len(objects_of(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.json"))
    assert read(behind(tmp_path, None), pinned(objects=3))[0].data == ABSENT
    read(behind(tmp_path, archive), pinned(objects=3))
    assert [blob.data for blob in read(behind(tmp_path, None), pinned(objects=3))] == list(THREE.values())


def flip(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_damage_is_noticed_mended_online_and_rejected_offline(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    archive = Scripted({UUID: THREE, OTHER: {"one": b"1"}})
    series = (pinned(objects=3), pinned(OTHER, objects=1))
    plain = read(behind(tmp_path, archive), *series)
    md5 = hashlib.md5(b"third" * 1000).hexdigest()
    damage(tmp_path / "idc" / UUID / md5)
    offline = read(behind(tmp_path, None), *series)
    assert isinstance(offline[2].data, Reject)
    assert offline[2].data.detail in ("damaged in the cache", "missing in the cache")
    assert [offline[place] for place in (0, 1, 3)] == [plain[place] for place in (0, 1, 3)]
    archive.asked.clear()
    assert read(behind(tmp_path, archive), *series) == plain
    assert archive.asked == [(UUID, frozenset({"0123456789abcdef/c.dcm"}))], "no more than what is damaged"
    assert read(behind(tmp_path, None), *series) == plain


def test_several_damaged_objects_are_fetched_in_one_go(tmp_path: Path) -> None:
    objects = {f"{number:02}": bytes([number]) * 100 for number in range(20)}
    archive = Scripted({UUID: objects})
    plain = read(behind(tmp_path, archive), pinned())
    for number in (3, 4, 19):
        flip(tmp_path / "idc" / UUID / hashlib.md5(bytes([number]) * 100).hexdigest(), at=50)
    archive.asked.clear()
    assert read(behind(tmp_path, archive), pinned()) == plain
    assert archive.asked == [(UUID, frozenset(f"0123456789abcdef/{number:02}" for number in (3, 4, 19)))]
    assert read(behind(tmp_path, None), pinned()) == plain


def test_an_archive_that_has_something_else_now_does_not_mix_versions(tmp_path: Path) -> None:
    read(behind(tmp_path, Scripted({UUID: THREE})), pinned(objects=3))
    flip(tmp_path / "idc" / UUID / hashlib.md5(b"first").hexdigest())
    changed = {UUID: THREE | {"a.dcm": b"changed"}}
    blobs = read(behind(tmp_path, Scripted(changed)), pinned(objects=3))
    assert isinstance(blobs[0].data, Reject)
    assert "another one now" in blobs[0].data.detail
    assert read(behind(tmp_path, None), pinned(objects=3))[0].data == ABSENT
    assert read(behind(tmp_path, Scripted(changed)), pinned(objects=3))[0].data == b"changed"


def test_what_cannot_be_mended_is_a_reject_for_each_object(tmp_path: Path) -> None:
    read(behind(tmp_path, Scripted({UUID: THREE})), pinned(objects=3))
    for path in objects_of(tmp_path):
        path.unlink()
    why = Reject("fetch", "fetch_failed", "HTTP 503")
    gone = Scripted({UUID: {"a.dcm": why}})
    blobs = read(behind(tmp_path, gone), pinned(objects=3))
    assert [blob.data for blob in blobs] == [why, why, why]
    assert sum(blob.objects for blob in blobs) == 3
    assert len(gone.asked) == 1


def test_a_marker_that_was_touched_does_not_count(tmp_path: Path) -> None:
    read(behind(tmp_path, Scripted({UUID: THREE})), pinned(objects=3))
    marker = tmp_path / "idc" / f"{UUID}.json"
    good = marker.read_bytes()
    values = json.loads(good)
    for bad in (
        good.replace(b"a.dcm", b"A.dcm"),
        good[:-20],
        b"",
        b"[]",
        b"\xff",
        json.dumps(values | {"format": 2}).encode(),
        json.dumps(values | {"objects": values["objects"][:2]}).encode(),
    ):
        assert read_marker(pinned(), bad) is None
        marker.write_bytes(bad)
        assert read(behind(tmp_path, None), pinned())[0].data == ABSENT
    read(behind(tmp_path, Scripted({UUID: THREE})), pinned(objects=3))
    assert marker.read_bytes() == good, "the same objects have the same marker"


HOSTILE = [
    "../../../escape", "..", ".", "a/../../b", "/etc/passwd", "CON", "a\\b", "nul\0byte", "x" * 5000, "DOE^JANE", "A", "a",
    "1.2.840.113619.2.1", f"{UUID}.json", "../idc.json", "ä\ud800", "",
]  # fmt: skip


def test_no_name_of_a_server_reaches_a_path(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    objects = {name: f"content {number}".encode() for number, name in enumerate(HOSTILE)}
    archive = Scripted({UUID: objects, "../../1.2.840.99": objects})
    series = (pinned(objects=len(HOSTILE)), pinned("../../1.2.840.99", objects=len(HOSTILE)))
    plain = read(behind(cache, archive), *series)
    assert read(behind(cache, None), *series) == plain
    hashed = hashlib.sha256(b"../../1.2.840.99\tIDC v25").hexdigest()
    md5s = {hashlib.md5(data).hexdigest() for data in objects.values()}
    assert set(files_of(cache)) == {
        f"idc/{name}{rest}" for name in (UUID, hashed) for rest in (".json", *(f"/{md5}" for md5 in md5s))
    }
    assert set(files_of(tmp_path)) == {f"deep/cache/{name}" for name in files_of(cache)}


def test_a_series_is_told_apart_by_version_unless_its_name_is_one() -> None:
    assert folder_of("idc", pinned()) == folder_of("idc", pinned(version="IDC v26"))
    assert folder_of("tcia", pinned("1.2.3")) != folder_of("tcia", pinned("1.2.3", version="TCIA 2024"))
    assert folder_of("idc", pinned(UUID.upper())) != f"idc/{UUID.upper()}"


def test_two_objects_of_the_same_content(tmp_path: Path) -> None:
    archive = Scripted({UUID: {"a": b"same", "b": b"same", "c": b"other"}})
    plain = read(behind(tmp_path, archive), pinned(objects=3))
    assert read(behind(tmp_path, None), pinned(objects=3)) == plain
    assert len(objects_of(tmp_path)) == 2


def test_under_another_secret_a_cached_series_has_another_name(tmp_path: Path) -> None:
    read(behind(tmp_path, Scripted({UUID: THREE})), pinned(objects=3))
    other = replace(pinned(objects=3), id="f" * 16)
    blobs = read(behind(tmp_path, None), other)
    assert [blob.ref.source_id for blob in blobs] == [f"{'f' * 16}/{name}" for name in THREE]


def test_several_at_once_in_one_process(tmp_path: Path) -> None:
    objects = {f"{number:03}": os.urandom(20_000) for number in range(50)}
    one = dict.fromkeys((UUID, OTHER), objects)
    plain = list(Scripted(one).blobs(pinned(objects=50)))
    begin = threading.Barrier(6)

    def work(_: int) -> bool:
        source = behind(tmp_path, Scripted(one), ahead_mb=0.2)
        begin.wait(timeout=30)
        blobs = read(source, pinned(objects=50), pinned(OTHER, objects=50))
        return [blob.data for blob in blobs] == 2 * [blob.data for blob in plain]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert read(behind(tmp_path, None), pinned(objects=50)) == plain
    assert len(files_of(tmp_path)) == 2 * 51, "nothing half-written stays"


def test_no_more_waits_to_be_kept_than_is_allowed(tmp_path: Path) -> None:
    cache = open_cache(fetching(tmp_path))
    waiting, most = 0, 0
    go = threading.Semaphore(0)
    lock = threading.Lock()

    class Slow:
        stop = threading.Event()

        def put(self, folder: str, data: bytes) -> str:
            nonlocal waiting
            go.acquire(timeout=30)
            with lock:
                waiting -= len(data)
            return cache.put(folder, data)

    writer = WriteBehind(Slow(), 1000)  # type: ignore[arg-type]
    for number in range(40):
        if number >= 10:
            go.release()  # or this put would wait forever
        writer.put("idc/x", bytes([number]) * 100)
        with lock:
            waiting += 100
            most = max(most, waiting)
    for _ in range(40):
        go.release()
    writer.close()
    # the caller's count is raised after put returned, so a put that ended meanwhile was counted down before
    assert most <= 1000
    assert len(objects_of(tmp_path)) == 40


reasons = st.just(Reject("fetch", "fetch_failed", "scripted"))
objects = st.dictionaries(st.text(max_size=8), st.binary(max_size=40) | reasons, max_size=6)


@settings(max_examples=60, deadline=None)
@given(objects, st.none() | st.integers(0, 7), st.none() | st.integers(0, 6), st.data())
def test_only_whole_verified_bytes_ever_reach_a_marker(
    objects: dict[str, bytes | Reject], planned: int | None, stop: int | None, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        archive = Scripted({UUID: objects})
        series = pinned(objects=planned)
        plain = list(archive.blobs(series))
        source = behind(cache, archive)
        passing = source.blobs(series)
        for _ in range(stop if stop is not None else len(objects) + 1):
            next(passing, None)
        source.close()
        count = len(objects) if planned is None else planned
        ended = stop is None or stop > len(objects)
        complete = len(objects) == count > 0 and not any(isinstance(one, Reject) for one in objects.values())
        marker = cache / "idc" / f"{UUID}.json"
        assert marker.is_file() == (complete and ended)
        if marker.is_file():
            kept = read_marker(series, marker.read_bytes())
            assert kept is not None
            assert [(one.source_id, one.size) for one in kept] == [
                (blob.ref.source_id, len(blob.data)) for blob in plain
            ]  # type: ignore[arg-type]
            for one, blob in zip(kept, plain, strict=True):
                assert (cache / "idc" / UUID / one.md5).read_bytes() == blob.data
                assert hashlib.md5(blob.data).hexdigest() == one.md5  # type: ignore[arg-type]
            assert read_marker(series, marker_of(series, kept)) == kept
        for path in objects_of(cache):
            if data.draw(st.booleans()):
                path.write_bytes(data.draw(st.binary(max_size=40)))
        assert [blob.data for blob in read(behind(cache, archive), series)] == list(objects.values())
        for blob in read(behind(cache, None), series):
            assert blob.data == ABSENT or blob in plain


# ---- a disk that refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root and a disk that can be mounted")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


BIG = {UUID: {f"{number:02}": os.urandom(50_000) for number in range(20)}}


def test_a_full_disk_is_one_line_and_no_marker(small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"no space left in the cache .*/small; free some"):
        read(behind(small_disk, Scripted(BIG)), pinned(objects=20))
    assert not list(small_disk.rglob("*.json"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    read(behind(small_disk, Scripted(BIG)), pinned(objects=20))
    assert [blob.data for blob in read(behind(small_disk, None), pinned(objects=20))] == list(BIG[UUID].values())


@pytest.mark.parametrize("objects", [BIG[UUID], {"a": b"small", "b": b"small as well", "c": bytes(50_000)}])
def test_a_limit_on_files_is_one_line_and_no_marker(objects: dict[str, bytes], tmp_path: Path) -> None:
    archive, series = Scripted({UUID: objects}), pinned(objects=len(objects))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written: File too large"):
            read(behind(tmp_path, archive), series)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert set(map(len, files_of(tmp_path).values())) <= {5, 13}, "whole objects, and no marker"
    read(behind(tmp_path, archive), series)
    assert len(files_of(tmp_path)) == len(objects) + 1


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="the cache cannot be written: "):
            behind(place, Scripted({}))
    with pytest.raises(RecipeError, match="there is no cache of lumid's; run the build with --cache"):
        behind(tmp_path / "typo", None)
    assert not (tmp_path / "typo").exists()


# ---- an archive that is a server


@dataclass
class S3:
    """A real S3 server, and the requests that it got."""

    url: str
    log: list[str]
    client: Any
    busy: list[str] = field(default_factory=list)
    """Methods of requests that are answered with 503, each once."""

    def asked(self, bucket: str) -> int:
        return sum(path.startswith(f"/{bucket}") for path in self.log)


KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
ARCHIVE, CACHE = "open-data-of-cached", "cache-of-cached"


@pytest.fixture
def s3() -> Iterator[S3]:
    backend = DomainDispatcherApplication(create_backend_app)
    log: list[str] = []
    busy: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        log.append(environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] in busy:
            busy.remove(environ["REQUEST_METHOD"])
            start_response("503 Slow Down", [])
            return [b""]
        return backend(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test",
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip
    client.create_bucket(Bucket=ARCHIVE, ACL="public-read")
    client.create_bucket(Bucket=CACHE)
    yield S3(url, log, client, busy)
    busy.clear()
    for bucket in (ARCHIVE, CACHE):
        empty(client, bucket)
        client.delete_bucket(Bucket=bucket)
    server.shutdown()
    server.server_close()


def empty(client: Any, bucket: str) -> None:
    for one in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=one["Key"])


def publish(client: Any) -> pa.Table:
    """Two series, one of them with a range of its own, and their lock."""
    rng = np.random.default_rng(1)
    rows = []
    for number, (location, modality, count) in enumerate([(UUID, "CT", 5), (OTHER, "MR", 4)]):
        for place in range(count):
            noise = rng.integers(0, 200, (64, 48)).astype(np.int16)
            made = image(
                gradient() + noise, Modality=modality, SeriesInstanceUID=f"1.2.{number}",
                SOPInstanceUID=f"1.2.{number}.{place}",
            )  # fmt: skip
            key = f"{location}/{place:08x}.dcm"
            client.put_object(Bucket=ARCHIVE, Key=key, Body=as_bytes(made), ACL="public-read")
        rows.append(
            dict.fromkeys(LOCK.names) | {
                "recipe_source": 0, "source": "idc", "collection": "lidc_idri", "license": "CC BY 3.0", "bytes": 30_000,
                "source_version": "IDC v25", "digest": "x", "objects": count, "location": location, "modality": modality,
                "urls": [f"s3://{ARCHIVE}/{location}/"], "series": Keyer(PUBLIC_SECRET).pseudonym("series", str(number)),
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=LOCK)


def built(recipe: Recipe, out: Path, lock: pa.Table) -> tuple[object, ...]:
    build(recipe, out, ClusterSettings(None, 1), BuildProgress(Console(quiet=True)), lock)
    manifest = read_manifest(out)
    return manifest.counts, [shard.sha256 for shard in manifest.shards], manifest.catalog_hash, manifest.lock_hash


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_build_without_the_archive_is_byte_identical(
    place: str, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "raw")
    if place == "bucket":
        cache = f"s3://{CACHE}/raw"
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
    lock = publish(s3.client)
    fetch = FetchSettings(s3_endpoint=s3.url, cache=cache, attempts=2, timeout_s=10.0)
    recipe = Recipe(name="part", sources=(IdcSettings(collections=("lidc_idri",)),), fetch=fetch)
    check_cache(recipe, tmp_path / "one", pinned=True)
    first = built(recipe, tmp_path / "one", lock)
    assert s3.asked(ARCHIVE) >= 9

    empty(s3.client, ARCHIVE)
    s3.log.clear()
    offline = with_overrides(recipe, offline=True)
    check_cache(offline, tmp_path / "two", pinned=True)
    assert built(offline, tmp_path / "two", lock) == first
    assert s3.asked(f"{ARCHIVE}/") == 0, "the archive was not even asked"
    assert recipe.hash() == offline.hash()
    counts = read_manifest(tmp_path / "two").counts
    assert (counts.objects, counts.kept) == (9, 9)


def test_offline_what_is_not_cached_is_one_reject_a_series(s3: S3, tmp_path: Path) -> None:
    lock = publish(s3.client)
    recipe = Recipe(
        name="part",
        sources=(IdcSettings(collections=("lidc_idri",)),),
        fetch=FetchSettings(s3_endpoint=s3.url, cache=str(tmp_path / "raw")),
    )
    check_cache(recipe, tmp_path / "out", pinned=True)
    s3.log.clear()
    built(with_overrides(recipe, offline=True), tmp_path / "out", lock)
    counts = read_manifest(tmp_path / "out").counts
    assert (counts.objects, counts.planned, counts.kept, counts.rejected) == (9, 9, 0, 9)
    rejects = pa.parquet.read_table(tmp_path / "out" / "rejects").to_pylist()
    assert [(row["source_id"], row["frames"], row["code"]) for row in rejects] == [
        (OTHER, 4, "fetch_failed"), (UUID, 5, "fetch_failed"),
    ]  # fmt: skip
    assert all("not in the cache, and --offline was given" in row["message"] for row in rejects)
    assert s3.log == []


def test_a_bit_that_flipped_in_a_bucket_is_mended(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    cache = f"s3://{CACHE}/raw"
    archive = Scripted({UUID: THREE})
    plain = read(behind(cache, archive), pinned(objects=3))
    key = f"raw/idc/{UUID}/{hashlib.md5(b'first').hexdigest()}"
    s3.client.put_object(Bucket=CACHE, Key=key, Body=b"fi2st")
    assert read(behind(cache, None), pinned(objects=3))[0].data == DAMAGED
    assert read(behind(cache, archive), pinned(objects=3)) == plain
    assert s3.client.get_object(Bucket=CACHE, Key=key)["Body"].read() == b"first"


def test_a_bucket_that_is_busy_is_tried_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    cache = f"s3://{CACHE}/raw"
    s3.busy += ["GET", "PUT"]
    plain = read(behind(cache, Scripted({UUID: THREE})), pinned(objects=3))
    s3.busy += ["GET"]
    assert read(behind(cache, None), pinned(objects=3)) == plain
    assert s3.busy == []
    s3.busy += ["PUT"] * 100
    with pytest.raises(StorageError, match="cannot be written: the store does not answer"):
        read(behind(cache, Scripted({OTHER: THREE})), pinned(OTHER, objects=3))
    s3.busy.clear()
    s3.log.clear()
    assert read(behind(cache, None), pinned(OTHER, objects=3))[0].data == ABSENT
    assert len(s3.log) == 1
    s3.busy += ["GET"] * 100
    s3.log.clear()
    with pytest.raises(StorageError, match="cannot be read: the store does not answer"):
        read(behind(cache, None), pinned(objects=3))
    assert len(s3.log) == 2, "as many attempts as the settings give"


def test_a_bucket_that_refuses_is_one_line(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    recipe = Recipe(name="part", sources=(IdcSettings(),), fetch=fetching("s3://nobody-has-this/raw"))
    with pytest.raises(StorageError, match="nobody-has-this/raw: the cache cannot be written: no such bucket"):
        check_cache(recipe, tmp_path, pinned=True)
    with pytest.raises(RecipeError, match="there is no cache of lumid's"):
        check_cache(with_overrides(recipe, offline=True), tmp_path, pinned=True)
    with pytest.raises(RecipeError, match="ftp://nobody/raw: not an address"):
        check_cache(with_overrides(recipe, cache="ftp://nobody/raw"), tmp_path, pinned=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="the store does not answer"):
        check_cache(recipe, tmp_path, pinned=True)


def test_without_credentials_it_is_one_line(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        signed = "HTTP_AUTHORIZATION" in environ
        start_response("403 Forbidden" if not signed else "500 Internal Server Error", [])
        return [b"<Error><Code>AccessDenied</Code><Message>DOE^JANE</Message></Error>"]

    server = make_server("127.0.0.1", 0, app)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    recipe = Recipe(name="part", sources=(IdcSettings(),), fetch=fetching(f"s3://{CACHE}/raw"))
    try:
        for offline in (False, True):
            with pytest.raises(StorageError, match="access denied; give credentials in the environment") as caught:
                check_cache(with_overrides(recipe, offline=offline), tmp_path, pinned=True)
            assert "JANE" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


def test_tcia_behind_a_cache(tmp_path: Path) -> None:
    with Server() as server:
        archive = fake_nbia.Archive(server, [fake_nbia.Listed("1.2.3.1", fake_nbia.CT)])
        archive.publish()
        series = archive.pinned("1.2.3.1")
        fetch = archive.fetch(cache=str(tmp_path / "raw"))
        plain = list(archive.source().blobs(series))
        source = behind_cache("tcia", fetch, lambda half: archive.source(ahead_mb=half.ahead_mb))
        assert isinstance(source, CachedSource)
        assert read(source, series) == plain
        server.faults["*"] = [status(500)]
        server.log.clear()
        recipe = Recipe(name="t", sources=(TciaSettings(collections=("LIDC-IDRI",)),), fetch=fetch)
        for offline in (False, True):
            again = open_source(with_overrides(recipe, offline=offline), 0, fake_nbia.KEYER)
            assert isinstance(again, CachedSource)
            assert read(again, series) == plain
        assert server.log == []
        assert not [name for name in files_of(tmp_path) if "1.2.3" in name]


# ---- what is refused before a build begins


def test_no_cache_asked_for_changes_nothing() -> None:
    recipe = Recipe(name="r", sources=(IdcSettings(),))
    assert not isinstance(open_source(recipe, 0, Keyer(PUBLIC_SECRET)), CachedSource)
    check_cache(recipe, Path("out"), pinned=False)


def test_offline_without_a_cache_is_refused() -> None:
    recipe = Recipe(name="r", sources=(IdcSettings(),), fetch=FetchSettings(offline=True))
    with pytest.raises(RecipeError, match="--offline needs --cache"):
        check_cache(recipe, Path("out"), pinned=True)
    with pytest.raises(RecipeError, match="--offline needs --cache"):
        open_source(recipe, 0, Keyer(PUBLIC_SECRET))
    check_cache(
        Recipe(name="r", sources=(PydicomSettings(),), fetch=FetchSettings(offline=True)), Path("out"), pinned=False
    )


def test_offline_needs_what_a_plan_would_ask_the_network_for(tmp_path: Path) -> None:
    open_cache(fetching(tmp_path)).begin()
    tcia = Recipe(name="r", sources=(TciaSettings(collections=("X",)),), fetch=fetching(tmp_path, offline=True))
    with pytest.raises(RecipeError, match="--lock LOCK"):
        check_cache(tcia, tmp_path / "out", pinned=False)
    check_cache(tcia, tmp_path / "out", pinned=True)
    far = Recipe(name="r", sources=(FolderSettings(path="s3://b/x"),), fetch=fetching(tmp_path, offline=True))
    with pytest.raises(RecipeError, match="not with --offline"):
        check_cache(far, tmp_path / "out", pinned=True)


@pytest.mark.parametrize(
    ("cache", "out", "folder", "wrong"),
    [
        ("out/raw", "out", None, "inside --out"),
        ("out", "out", None, "inside --out"),
        ("raw", "raw/idc/mine", None, "among the files of the cache"),
        ("raw", "raw/tcia", None, "among the files of the cache"),
        ("scans/raw", "out", "scans", "would be read with the cache's files in it"),
        ("raw", "out", "raw/idc", "would be read with the cache's files in it"),
        ("raw", "raw/mine", None, None),
        ("raw", "out", "raw/scans", None),
        ("scans2", "out", "scans", None),
    ],
)
def test_places_that_would_harm(cache: str, out: str, folder: str | None, wrong: str | None, tmp_path: Path) -> None:
    sources: tuple[Any, ...] = (IdcSettings(),)
    if folder:
        (tmp_path / folder).mkdir(parents=True)
        sources += (FolderSettings(path=str(tmp_path / folder)),)
    recipe = Recipe(name="r", sources=sources, fetch=fetching(tmp_path / "x" / ".." / cache))
    if wrong is None:
        check_cache(recipe, tmp_path / out, pinned=True)
        assert (tmp_path / cache / "CACHEDIR.TAG").is_file()
    else:
        with pytest.raises(UsageError, match=wrong):
            check_cache(recipe, tmp_path / out, pinned=True)
        assert not (tmp_path / cache / "CACHEDIR.TAG").exists()


def test_a_relative_cache_starts_from_the_recipe_or_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'name = "r"\n[[sources]]\nkind = "idc"\n[fetch]\ncache = "raw"\n'
    recipe = parse_recipe(text, "r.toml", base=tmp_path)
    assert recipe.fetch.cache == str(tmp_path / "raw")
    assert parse_recipe(text.replace("raw", "gs://b/raw"), "r.toml", base=tmp_path).fetch.cache == "gs://b/raw"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    changed = with_overrides(recipe, cache="mine")
    assert (changed.fetch.cache, changed.fetch.offline) == (str(tmp_path / "here" / "mine"), False)
    assert with_overrides(recipe, offline=True).fetch.cache == recipe.fetch.cache
    assert changed.hash() == recipe.hash()


def test_the_command_line_refuses_before_it_begins(tmp_path: Path) -> None:
    from lumid.dags.cli import build as _  # noqa: F401
    from lumid.dags.cli.app import app

    out = tmp_path / "out"
    for arguments, wrong in (
        (["lumid", "--offline"], "--offline needs --cache"),
        (["lumid", "--offline", "--cache", str(tmp_path / "typo")], "there is no cache of lumid's"),
        (["lumid", "--cache", str(out / "raw")], "inside --out"),
    ):
        result = CliRunner().invoke(app, ["build", *arguments, "--out", str(out)])
        assert isinstance(result.exception, LumidError)
        assert wrong in str(result.exception)
        assert not out.exists()
