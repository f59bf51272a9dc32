"""Folders and object stores: what is an object, in files and in archives, and what becomes of the rest."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import multiprocessing
import os
import socket
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from lumid.catalog.errors import RecipeError, StorageError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.reject import Reject
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import ListedSource, Listing, Member, ObjectRef, Provenance, Series, archived
from lumid.pipeline.sources.archived import archive_kind
from lumid.pipeline.sources.folder import FolderSource, pydicom_files
from lumid.pipeline.sources.store import ReadAhead, StoreSource, open_folder, open_store
from tests.dicom import TEST_FILES, as_bytes, gradient, image
from tests.pipeline.test_convert import NOISE, written

PROVENANCE = Provenance("c", "folder", None, None, None)
KEYER = Keyer(PUBLIC_SECRET)
NUMBERS = itertools.count()
DICOM = (TEST_FILES / "CT_small.dcm").read_bytes()
MR = (TEST_FILES / "MR_small.dcm").read_bytes()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


PACKERS = {".zip": zipped, ".tar": tarred, ".tar.gz": lambda m: gzip.compress(tarred(m)),
           ".tar.bz2": lambda m: bz2.compress(tarred(m)), ".tar.xz": lambda m: lzma.compress(tarred(m))}  # fmt: skip


def folder(root: Path, **options: Any) -> FolderSource:
    return FolderSource(root, PROVENANCE, KEYER, **({"plain_names": True} | options))


def contents(source: ListedSource, listing: Listing | None = None) -> dict[str, bytes | str]:
    """Bytes, or the code of the reason, by source id."""
    found: dict[str, bytes | str] = {}
    for item in source.objects() if listing is None else listing:
        ref, reject = item if isinstance(item, tuple) else (item, None)
        data = reject or source.read(ref)
        assert ref.source_id not in found
        found[ref.source_id] = data.code if isinstance(data, Reject) else data
    return found


# archives in a folder


@pytest.mark.parametrize("suffix", PACKERS)
def test_members_are_objects_and_their_archive_is_none(tmp_path: Path, suffix: str) -> None:
    members = {"a/CT": DICOM, "a/b/MR.dcm": MR, "notes.txt": b"hello", "empty": b""}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "archive").write_bytes(PACKERS[suffix](members))  # no name tells what it is
    (tmp_path / "plain.dcm").write_bytes(DICOM)
    source = folder(tmp_path)
    assert contents(source) == {
        "plain.dcm": DICOM,
        "sub/archive!a/CT": DICOM,
        "sub/archive!a/b/MR.dcm": MR,
        "sub/archive!notes.txt": b"hello",
        "sub/archive!empty": "empty_file",
    }
    for ref in source.objects():
        if not isinstance(ref, tuple):
            assert source.read(ref, 100) == source.read(ref)[:100]  # type: ignore[index]
    source.close()


def test_a_packed_nifti_is_an_object_and_no_archive(tmp_path: Path) -> None:
    volume = gzip.compress(written(NOISE, ".nii"))
    (tmp_path / "v.nii.gz").write_bytes(volume)
    (tmp_path / "x.zip").write_bytes(zipped({"v.nii.gz": volume}))
    assert contents(folder(tmp_path)) == {"v.nii.gz": volume, "x.zip!v.nii.gz": volume}


def test_archives_are_told_by_content() -> None:
    assert archive_kind(zipped({})) == "zip"
    assert archive_kind(tarred({"a": b"1"})) == "tar"
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        assert archive_kind(pack(tarred({"a": DICOM}))[:4096]) == "packed"
    for data in (DICOM, MR, bytes(1024), b"", gzip.compress(DICOM), lzma.compress(DICOM), b"PK", os.urandom(1024)):
        assert archive_kind(data[:4096]) is None
    for path in TEST_FILES.iterdir():
        if path.is_file():
            assert archive_kind(path.read_bytes()[:4096]) in (None, "zip" if path.suffix == ".zip" else None), path.name


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-zé ]{1,8}(/[a-z.]{0,3}[a-z]){0,2}", fullmatch=True), st.binary(max_size=3000), max_size=8
    ),
    st.sampled_from(sorted(PACKERS)),
)
def test_any_members_come_back(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], suffix: str
) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / f"x{suffix}").write_bytes(PACKERS[suffix](members))
    expected: dict[str, bytes | str] = {f"x{suffix}!{name}": data or "empty_file" for name, data in members.items()}
    if not members:  # an empty tar is zeros, which nobody can tell from other zeros
        found = contents(folder(root))
        assert suffix != ".zip" or found == {"x.zip": "empty_file"}
        assert len(found) == 1
    else:
        assert contents(folder(root)) == expected


def test_hostile_members_are_reasons_and_nothing_is_written_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    hostile = {"../../out.dcm": DICOM, "/abs.dcm": DICOM, "good.dcm": DICOM}
    (root / "z.zip").write_bytes(zipped(hostile))
    (root / "t.tar").write_bytes(tarred(hostile, {"link.dcm": "/etc/passwd"}))
    (root / "p.tgz").write_bytes(gzip.compress(tarred(hostile, {"link.dcm": "good.dcm"})))
    found = contents(folder(root, scratch=tmp_path / "scratch"))
    for archive in ("z.zip", "t.tar", "p.tgz"):
        assert found[f"{archive}!good.dcm"] == DICOM
        assert found[f"{archive}!../../out.dcm"] == "unsafe_member"
        assert found[f"{archive}!/abs.dcm"] == "unsafe_member"
    assert found["t.tar!link.dcm"] == found["p.tgz!link.dcm"] == "unsafe_member"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "scratch"]


def test_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", DICOM)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", MR)
    (tmp_path / "x.zip!b").write_bytes(MR)
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr("b", DICOM)
    listing = folder(tmp_path).objects()
    usable = [item.source_id for item in listing if not isinstance(item, tuple)]
    assert usable == ["x.zip!a", "x.zip!b"]
    assert sorted(item[1].code for item in listing if isinstance(item, tuple)) == ["unreadable", "unsafe_member"]
    assert folder(tmp_path).read(next(item for item in listing if not isinstance(item, tuple))) == DICOM


@pytest.mark.parametrize("suffix", PACKERS)
def test_an_archive_that_ends_early_gives_what_is_whole_and_one_reason(tmp_path: Path, suffix: str) -> None:
    noise = {f"{number:02}": os.urandom(50_000) for number in range(20)}
    data = PACKERS[suffix](noise)
    (tmp_path / "x").write_bytes(data[: len(data) * 2 // 3])
    found = contents(folder(tmp_path))
    if suffix == ".zip":  # its directory is at the end
        assert found == {"x": "broken_archive"}
    else:
        assert found.pop("x") == "broken_archive"
        whole = {name.removeprefix("x!"): value for name, value in found.items() if isinstance(value, bytes)}
        assert 0 < len(whole) < 20 if suffix != ".tar.bz2" else len(whole) < 20
        assert all(noise[name] == value for name, value in whole.items())


def test_a_damaged_member_is_a_reason_and_the_others_are_whole(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": os.urandom(1000), "b": DICOM}, zipfile.ZIP_STORED))
    data[500] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert contents(folder(tmp_path)) == {"x.zip!a": "broken_archive", "x.zip!b": DICOM}


def test_bombs_stay_packed(tmp_path: Path) -> None:
    zeros = bytes(300 << 20)
    (tmp_path / "b.tgz").write_bytes(gzip.compress(tarred({"zeros": zeros}), 9))
    (tmp_path / "b.zip").write_bytes(zipped({"zeros": zeros}))
    scratch = tmp_path.parent / (tmp_path.name + "-scratch")
    found = contents(folder(tmp_path, scratch=scratch))
    assert (found["b.tgz"], found["b.zip!zeros"]) == ("unsafe_member", "unsafe_member")
    assert found.get("b.tgz!zeros") in (None, "broken_archive")  # its bytes are not there
    assert sum(path.stat().st_size for path in scratch.iterdir()) < 250 << 20


def test_nested_archives_are_not_opened(tmp_path: Path) -> None:
    inner = zipped({"a.dcm": DICOM})
    (tmp_path / "x.zip").write_bytes(
        zipped({"inner.zip": inner, "inner.tgz": gzip.compress(tarred({"a": DICOM})), "b": DICOM})
    )
    source = folder(tmp_path)
    reasons = {
        item.ref.source_id: item.reject.code for item in scan(source, source.objects(), KEYER, "public") if item.reject
    }
    assert reasons == {"x.zip!inner.zip": "nested_archive", "x.zip!inner.tgz": "nested_archive"}


def test_a_packed_tar_is_unpacked_once_for_all_processes(tmp_path: Path) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    (root / "x.tgz").write_bytes(gzip.compress(tarred({"a": DICOM, "b": MR})))
    refs = [item for item in folder(root, scratch=scratch).objects() if not isinstance(item, tuple)]
    (there,) = scratch.iterdir()
    before = there.stat()
    other = folder(root, scratch=scratch)
    assert [other.read(ref) for ref in refs] == [DICOM, MR]
    other.close()
    (after,) = scratch.iterdir()
    assert (after, after.stat().st_ino, after.stat().st_mtime_ns) == (there, before.st_ino, before.st_mtime_ns)


def _read_all(root: Path, scratch: Path) -> list[bytes | str]:
    return list(contents(folder(root, scratch=scratch)).values())


def test_processes_may_unpack_the_same_tar_at_once(tmp_path: Path) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    members = {f"{number}": os.urandom(200_000) for number in range(20)}
    (root / "x.tgz").write_bytes(gzip.compress(tarred(members), 1))
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = [job.result(timeout=120) for job in [pool.submit(_read_all, root, scratch) for _ in range(4)]]
    assert all(sorted(map(bytes, result)) == sorted(members.values()) for result in results)  # type: ignore[arg-type]
    assert [path.suffix for path in scratch.iterdir()] == [".tar"]


def test_without_scratch_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    root = tmp_path / "root"
    root.mkdir()
    (root / "x.tgz").write_bytes(gzip.compress(tarred({"a": DICOM})))
    source = folder(root)
    assert contents(source) == {"x.tgz!a": DICOM}
    assert any(temporary.iterdir())
    source.close()
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    root = tmp_path / "root"
    root.mkdir()
    (root / "x.tgz").write_bytes(gzip.compress(tarred({"a": os.urandom(3 << 20)})))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # writing beyond is refused, as on a full disk
    try:
        with pytest.raises(StorageError, match="make room"):
            folder(root, scratch=tmp_path / "scratch").objects()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_is_unpacked_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archived, "MAX_UNPACKED_BYTES", 100_000)
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tarred({"a": DICOM, "b": os.urandom(200_000)})))
    found = contents(folder(tmp_path))
    assert found["x.tgz"] == "unsafe_member"
    assert found["x.tgz!a"] == DICOM


def test_an_archive_that_changed_is_not_read_by_its_old_places(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tarred({"a": DICOM}))
    source = folder(tmp_path)
    (ref,) = source.objects()
    path.write_bytes(tarred({"0": MR, "a": DICOM}))
    os.utime(path, ns=(1, 1))
    assert isinstance(ref, ObjectRef)
    data = source.read(ref)
    assert isinstance(data, Reject)
    assert data.code == "unreadable"
    path.unlink()
    assert isinstance(source.read(ref), Reject)


def test_keyed_names_hide_members_and_lead_the_owner_back(tmp_path: Path) -> None:
    (tmp_path / "SMITH.zip").write_bytes(zipped({"J SMITH 1961/a.dcm": DICOM}))
    (tmp_path / "SMITH.tar").write_bytes(tarred({"J SMITH 1961/b.dcm": DICOM}))
    source = folder(tmp_path, plain_names=False)
    refs = source.objects()
    assert "SMITH" not in repr(refs)
    assert len({ref.source_id for ref in refs if not isinstance(ref, tuple)}) == 2
    named = {str(source.paths()[ref.source_id]) for ref in refs if not isinstance(ref, tuple)}
    assert named == {f"{tmp_path}/SMITH.zip!J SMITH 1961/a.dcm", f"{tmp_path}/SMITH.tar!J SMITH 1961/b.dcm"}


def test_a_large_directory_is_read_once(tmp_path: Path) -> None:
    names = [f"{number:05}" for number in range(3000)]
    (tmp_path / "x.zip").write_bytes(zipped(dict.fromkeys(names, b"x" * 100)))
    source = folder(tmp_path)
    refs = source.objects()
    reads = 0
    original = zipfile.ZipFile._RealGetContents  # type: ignore[attr-defined]

    def counted(self: zipfile.ZipFile) -> None:
        nonlocal reads
        reads += 1
        original(self)

    zipfile.ZipFile._RealGetContents = counted  # type: ignore[attr-defined]
    try:
        assert all(source.read(ref) == b"x" * 100 for ref in refs if not isinstance(ref, tuple))
    finally:
        zipfile.ZipFile._RealGetContents = original  # type: ignore[attr-defined]
    assert reads == 1


def test_no_folder_is_an_error_that_says_which(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        folder(tmp_path / "none")


def test_blobs_are_the_members_of_a_series_in_order(tmp_path: Path) -> None:
    objects = {}
    for number in range(6):
        objects[f"{number}.dcm"] = as_bytes(image(gradient(), SOPInstanceUID=f"1.2.{number}"))
    (tmp_path / "a.zip").write_bytes(zipped(dict(list(objects.items())[:3])))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(tarred(dict(list(objects.items())[3:5]))))
    (tmp_path / "5.dcm").write_bytes(objects["5.dcm"])
    source = folder(tmp_path)
    (series,) = group_series(scan(source, source.objects(), KEYER, "public"), PROVENANCE)
    ids = ["5.dcm", "a.zip!0.dcm", "a.zip!1.dcm", "a.zip!2.dcm", "b.tgz!3.dcm", "b.tgz!4.dcm"]
    source.prefetch([series])
    assert [blob.ref.source_id for blob in source.blobs(series)] == ids
    assert [blob.data for blob in source.blobs(series)] == [objects[name.split("!")[-1]] for name in ids]
    some = list(source.blobs(series, frozenset(ids[1:3])))
    assert [blob.ref.source_id for blob in some] == ids[1:3]


def test_pydicoms_folder_is_as_it_was() -> None:
    found = folder(pydicom_files()).objects()
    assert len(found) > 150
    assert all(isinstance(item, ObjectRef) or item[1].code in ("empty_file",) for item in found)


# object stores


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A real S3 server on this machine, and the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test",
             "AWS_SECRET_ACCESS_KEY": "test"}  # fmt: skip
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield boto3.client("s3")
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture
def bucket(s3: Any) -> str:
    """A new bucket with DICOM files and archives below ``data/``, and something beside it."""
    name = f"bucket-{next(NUMBERS)}"
    s3.create_bucket(Bucket=name)
    for key, data in {
        "data/": b"",
        "data/sub/": b"",
        "data/ct.dcm": DICOM,
        "data/sub/mr 1.dcm": MR,
        "data/sub/empty": b"",
        "data/x.zip": zipped({"a/CT": DICOM, "../evil": DICOM}),
        "data/y.tar.gz": gzip.compress(tarred({"b": MR})),
        "data/not.zip": b"no zip at all",
        "data/hidden": zipped({"a": DICOM}),
        "data2/other.dcm": MR,
    }.items():
        s3.put_object(Bucket=name, Key=key, Body=data)
    return name


def store(url: str, **options: Any) -> StoreSource:
    return StoreSource(url, PROVENANCE, KEYER, **({"plain_names": True, "timeout_s": 5, "attempts": 2} | options))


def test_a_prefix_is_a_folder(bucket: str, s3: Any, tmp_path: Path) -> None:
    source = store(f"s3://{bucket}/data", scratch=tmp_path / "scratch")
    hidden = s3.get_object(Bucket=bucket, Key="data/hidden")["Body"].read()
    assert contents(source) == {
        "hidden": hidden,
        "ct.dcm": DICOM,
        "sub/mr 1.dcm": MR,
        "sub/empty": "empty_file",
        "x.zip!a/CT": DICOM,
        "x.zip!../evil": "unsafe_member",
        "y.tar.gz!b": MR,
        "not.zip": b"no zip at all",
    }
    refs = {ref.source_id: ref for ref in source.objects() if not isinstance(ref, tuple)}
    assert source.read(refs["ct.dcm"], 200) == DICOM[:200]
    assert source.read(refs["x.zip!a/CT"], 200) == DICOM[:200]
    scanned = scan(source, source.objects(), KEYER, "public", requests=8)
    codes = {item.ref.source_id: item.reject.code for item in scanned if item.reject is not None}
    assert codes == {"hidden": "nested_archive", "sub/empty": "empty_file", "x.zip!../evil": "unsafe_member"}
    source.close()


def test_a_store_and_a_folder_of_the_same_files_are_the_same_series(bucket: str, s3: Any, tmp_path: Path) -> None:
    for page in s3.list_objects_v2(Bucket=bucket, Prefix="data/")["Contents"]:
        if not page["Key"].endswith(("/", "hidden")):
            path = tmp_path / page["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=bucket, Key=page["Key"])["Body"].read())
    s3.delete_object(Bucket=bucket, Key="data/hidden")
    from_store, from_folder = store(f"s3://{bucket}/data"), folder(tmp_path / "data")
    groups = [
        group_series(scan(source, source.objects(), KEYER, "public"), PROVENANCE)
        for source in (from_store, from_folder)
    ]
    assert [(s.id, s.digest(), s.frames) for s in groups[0]] == [(s.id, s.digest(), s.frames) for s in groups[1]]
    for one, other in zip(*groups, strict=True):
        assert [b.data for b in from_store.blobs(one)] == [b.data for b in from_folder.blobs(other)]
    from_store.close()


def test_what_is_not_there_or_not_allowed_is_one_line(bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, what in ((f"s3://{bucket}/nothing", "nothing below"), ("s3://no-such-bucket/x", "no such bucket")):
        with pytest.raises(RecipeError, match=what) as error:
            store(url).objects()
        assert "\n" not in str(error.value)
    for url in ("ftp://x/y", "http://127.0.0.1/x", "s3:/x"):
        with pytest.raises(RecipeError, match="use a folder, or s3://"):
            open_store(url)
    s3.put_object(Bucket=bucket, Key="data/../up", Body=b"x")
    with pytest.raises(RecipeError, match="rename it"):
        store(f"s3://{bucket}/data").objects()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="does not answer") as error:
        store(f"s3://{bucket}/data", attempts=1).objects()
    assert "\n" not in str(error.value)


def test_a_vanished_or_changed_object_is_a_reason(bucket: str, s3: Any) -> None:
    source = store(f"s3://{bucket}/data")
    refs = {ref.source_id: ref for ref in source.objects() if not isinstance(ref, tuple)}
    s3.delete_object(Bucket=bucket, Key="data/ct.dcm")
    s3.put_object(Bucket=bucket, Key="data/sub/mr 1.dcm", Body=MR + b"more")
    for name in ("ct.dcm", "sub/mr 1.dcm"):
        data = source.read(refs[name])
        assert isinstance(data, Reject)
        assert data.code == "unreadable"
    fresh = store(f"s3://{bucket}/data")
    s3.delete_object(Bucket=bucket, Key="data/y.tar.gz")
    gone = fresh.read(refs["y.tar.gz!b"])
    assert isinstance(gone, Reject)
    assert gone.code == "unreadable"


def test_a_public_bucket_needs_no_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.create_bucket(Bucket="public-one", ACL="public-read")
    s3.put_object(Bucket="public-one", Key="p/ct.dcm", Body=DICOM, ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    begin = time.monotonic()
    assert contents(store("s3://public-one/p")) == {"ct.dcm": DICOM}
    assert time.monotonic() - begin < 20  # it does not go looking for a machine's own credentials


def test_prefetched_series_come_whole_and_in_order(s3: Any) -> None:
    s3.create_bucket(Bucket="many-objects")
    expected = {}
    for number in range(30):
        data = as_bytes(image(gradient(), SOPInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.9.{number % 3}"))
        s3.put_object(Bucket="many-objects", Key=f"p/{number:02}", Body=data)
        expected[f"{number:02}"] = data
    source = store("s3://many-objects/p", requests=4, ahead_bytes=40_000)
    series = group_series(scan(source, source.objects(), KEYER, "public"), PROVENANCE)
    assert len(series) == 3
    source.prefetch(series)
    got = [(blob.ref.source_id, blob.data) for one in series for blob in source.blobs(one)]
    assert dict(got) == expected
    assert [name for name, _ in got] == [m.ref.source_id for one in series for m in one.members]
    again = [blob.data for blob in source.blobs(series[1], frozenset({series[1].members[3].ref.source_id}))]
    assert again == [expected[series[1].members[3].ref.source_id]]
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lumid-read")]


class Faulty(BaseHTTPRequestHandler):
    """A server that speaks as much S3 as reading takes, and fails: by the number of the request for an object."""

    faults: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if "list-type" in self.path:
            entry = f"<Contents><Key>p/ct.dcm</Key><Size>{len(DICOM)}</Size><LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            self.answer(
                200,
                f"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>".encode(),
            )
            return
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("500", "403"):
            self.answer(int(fault), b"<Error><Code>Oops</Code></Error>")
        elif fault == "short":
            self.answer(200, DICOM[:-100])
        else:
            self.answer(200, DICOM, DICOM[:1000] if fault == "reset" else DICOM)
            if fault == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, body: bytes, sent: bytes | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body if sent is None else sent)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("faults", "outcome"),
    [
        (["500"], "whole"),
        (["reset"], "whole"),
        (["500"] * 9, "fetch_failed"),
        (["reset"] * 9, "fetch_failed"),
        (["403"], "fetch_failed"),
        (["short"] * 9, "unreadable"),
    ],
)
def test_a_failing_store_gives_the_whole_object_or_a_reason(
    monkeypatch: pytest.MonkeyPatch, faults: list[str], outcome: str
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        source = store("s3://b/p", attempts=3)
        (ref,) = source.objects()
        assert isinstance(ref, ObjectRef)
        monkeypatch.setattr(Faulty, "faults", list(faults))
        data = source.read(ref)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert (data.code if isinstance(data, Reject) else "whole") == outcome
    assert isinstance(data, Reject) or data == DICOM


def test_a_path_of_a_recipe_is_a_folder_or_a_store(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    for path in (str(place), place.as_uri()):
        source = open_folder(path, PROVENANCE, KEYER, scratch=tmp_path)
        assert isinstance(source, FolderSource)
        assert (source.root, source.scratch) == (place, tmp_path)
    assert isinstance(open_folder("gs://bucket/prefix", PROVENANCE, KEYER), StoreSource)
    with pytest.raises(RecipeError, match="use a folder"):
        open_folder("http://127.0.0.1/x", PROVENANCE, KEYER)


# reading ahead


class Slow:
    """A reader that counts who reads at once, and what has been read and not been taken."""

    def __init__(self, delay: float = 0.003) -> None:
        self.delay, self.now, self.most, self.held, self.most_held = delay, 0, 0, 0, 0
        self.order: list[str] = []
        self.lock = threading.Lock()

    def read(self, ref: ObjectRef) -> bytes | Reject:
        with self.lock:
            self.now += 1
            self.held += ref.size_bytes
            self.most, self.most_held = max(self.most, self.now), max(self.most_held, self.held)
            self.order.append(ref.source_id)
        time.sleep(self.delay)
        with self.lock:
            self.now -= 1
        return bytes(ref.size_bytes)

    def took(self, ref: ObjectRef) -> None:
        with self.lock:
            self.held -= ref.size_bytes


def refs_of(sizes: list[int]) -> list[ObjectRef]:
    return [ObjectRef(f"{number:04}", size, 0, f"k{number}") for number, size in enumerate(sizes)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 6), st.integers(1, 3000))
def test_reading_ahead_is_bounded_and_ordered(sizes: list[int], requests: int, ahead: int) -> None:
    slow, refs = Slow(0.0005), refs_of(sizes)
    window = ReadAhead(slow.read, requests, ahead)
    window.expect(refs)
    for ref in refs:
        assert window.take(ref) == bytes(ref.size_bytes)
        slow.took(ref)
    window.close()
    assert slow.most <= requests
    # what is taken counts as held here until took() is called: one object more
    assert slow.most_held <= max(ahead, max(sizes)) + max(sizes)
    assert sorted(slow.order) == [ref.source_id for ref in refs]


def test_reading_ahead_overlaps_with_work() -> None:
    slow, refs = Slow(0.02), refs_of([10] * 40)
    window = ReadAhead(slow.read, 8, 1 << 20)
    window.expect(refs)
    begin = time.monotonic()
    for ref in refs:
        window.take(ref)
    took = time.monotonic() - begin
    window.close()
    assert slow.most == 8
    assert took < 40 * 0.02 / 2


def test_what_is_asked_for_unexpectedly_is_read_once_and_does_not_block() -> None:
    slow, refs = Slow(), refs_of([100] * 10)
    window = ReadAhead(slow.read, 2, 250)
    window.expect(refs)
    assert window.take(refs[7]) == bytes(100)
    window.forget(refs[:7])
    window.expect(refs[8:], first=True)
    assert window.take(refs[8]) == bytes(100)
    assert window.take(refs[9]) == bytes(100)
    window.close()
    assert slow.order.count(refs[7].source_id) == 1
    assert slow.order.count(refs[8].source_id) == 1


def test_rejects_of_a_listing_are_blobs_too(tmp_path: Path) -> None:
    reject = Reject("read", "unreadable")
    series = Series("s", PROVENANCE, 1, 0, (Member(ObjectRef("a", 1, 0, "a"), 1, reject),))
    assert [blob.data for blob in folder(tmp_path).blobs(series)] == [reject]


def test_a_closed_archive_opens_again(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"a": DICOM}))
    source = folder(tmp_path)
    (ref,) = source.objects()
    assert isinstance(ref, ObjectRef)
    source.read(ref)
    source.close()
    assert source.read(ref) == DICOM


def test_more_archives_than_are_kept_open(tmp_path: Path) -> None:
    for number in range(archived.OPEN_ZIPS * 2):
        (tmp_path / f"{number}.zip").write_bytes(zipped({"a": struct.pack("<I", number)}))
    source = folder(tmp_path)
    found = contents(source)
    assert found == {f"{number}.zip!a": struct.pack("<I", number) for number in range(archived.OPEN_ZIPS * 2)}
    assert len(source._archives._zips) == archived.OPEN_ZIPS
    source.close()


def test_a_file_that_changes_after_it_was_listed_is_a_reason(tmp_path: Path) -> None:
    for name in ("same", "longer", "touched"):
        (tmp_path / name).write_bytes(DICOM)
    source = FolderSource(tmp_path, PROVENANCE, KEYER, plain_names=True)
    refs = {ref.source_id: ref for ref in source.objects() if isinstance(ref, ObjectRef)}
    (tmp_path / "longer").write_bytes(DICOM + b"x")
    os.utime(tmp_path / "longer", ns=(0, refs["longer"].changed_ns))
    os.utime(tmp_path / "touched", ns=(0, refs["touched"].changed_ns + 1))
    assert source.read(refs["same"]) == DICOM
    assert source.read(refs["same"], 100) == DICOM[:100]
    for name in ("longer", "touched"):
        for limit in (None, 100):
            refused = source.read(refs[name], limit)
            assert isinstance(refused, Reject)
            assert refused.detail == "the file has changed"
