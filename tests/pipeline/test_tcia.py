"""A small NBIA with real DICOM: metadata, manifests, zips with their list of MD5s, and every way to fail."""

from __future__ import annotations

import hashlib
import io
import logging
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from lumid.catalog.errors import LumidError, RecipeError
from lumid.catalog.lock import LOCK
from lumid.pipeline.deidentify import identify
from lumid.pipeline.download import Downloader, FetchError
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.lock import series_of
from lumid.pipeline.nbia import Nbia, license_name, read_manifest
from lumid.pipeline.plan import plan
from lumid.pipeline.recipe import FetchSettings, Recipe, TciaSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, Source
from lumid.pipeline.sources.tcia import collection_id, fetch_series, plan_tcia
from tests.dicom import TEST_FILES
from tests.fake_nbia import BASE, CT, GET_ZIP, KEYER, MR, QUICK, Archive, Listed, real, zipped
from tests.servers import Fault, Server, status


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Server() as server:
        series = [
            Listed("1.2.3.1", CT, patient="001"),
            Listed("1.2.3.2", MR, patient="002", modality="MR"),
            Listed("1.2.3.3", {"1-1.dcm": b"x"}, modality="SEG"),
            Listed("1.2.3.4", {"1-1.dcm": b"x"}, third_party="YES"),
            Listed("1.2.4.1", CT, collection="TCGA-OV", patient="TCGA-04-1331", extra={"LicenseURI": None}),
        ]
        archive = Archive(server, series)
        archive.publish()
        yield archive


def contents(blobs: list[Blob]) -> dict[str, bytes | Reject]:
    return {blob.ref.source_id.split("/")[1]: blob.data for blob in blobs}


# ---- the plan


def test_a_collection_is_planned(archive: Archive) -> None:
    lock = archive.plan("LIDC-IDRI")
    assert lock.schema == LOCK
    rows = {row["location"]: row for row in lock.to_pylist()}
    assert set(rows) == {"1.2.3.1", "1.2.3.2"}, "no segmentation, no third party's analysis"
    assert rows["1.2.3.1"] == {
        "recipe_source": 0,
        "source": "tcia",
        "collection": "lidc_idri",
        "source_version": "TCIA 2014-05-31",
        "license": "CC BY 3.0",
        "doi": "10.7937/k9/tcia.2015.lo9ql9sx",
        "series": KEYER.pseudonym("series", "1.2.3.1"),
        "patient": KEYER.pseudonym("patient", "lidc_idri", "001"),
        "modality": "CT",
        "objects": 3,
        "bytes": sum(map(len, CT.values())),
        "location": "1.2.3.1",
        "urls": [f"{archive.server.url}{GET_ZIP}?SeriesInstanceUID=1.2.3.1"],
        "digest": series_of(lock, 0)[[one.location for one in series_of(lock, 0)].index("1.2.3.1")].digest(),
    }
    assert "DOE" not in str(lock.to_pylist())
    assert lock["series"].to_pylist() == sorted(lock["series"].to_pylist())


def test_names_of_collections_are_found_however_written(archive: Archive) -> None:
    by_name = archive.plan("LIDC-IDRI", "TCGA-OV")
    assert archive.plan("lidc_idri", "tcga_ov", "TCGA-OV").equals(by_name)
    assert by_name.num_rows == 3
    assert dict(zip(by_name["location"].to_pylist(), by_name["license"].to_pylist(), strict=True))["1.2.4.1"] == (
        "Creative Commons Attribution 3.0 Unported License"
    )
    with pytest.raises(RecipeError, match=r"'lidc-idr'.*did you mean 'LIDC-IDRI'\?"):
        archive.plan("lidc-idr")


def test_modalities_restrict(archive: Archive) -> None:
    assert archive.plan("LIDC-IDRI", modalities=("MR",))["location"].to_pylist() == ["1.2.3.2"]


def test_pseudonyms_are_those_of_the_headers(archive: Archive) -> None:
    """What the plan says of a series is what its objects will say of themselves."""
    dataset = pydicom.dcmread(TEST_FILES / "CT_small.dcm")
    archive.series = [
        Listed(str(dataset.SeriesInstanceUID), real("CT_small.dcm"), patient=str(dataset.PatientID)),
        Listed("1.2.9", MR, patient="", study="1.2.8"),
    ]
    rows = {row["location"]: row for row in archive.plan("LIDC-IDRI").to_pylist()}
    found = identify(FrameHeader(dataset, 0), KEYER, collection="lidc_idri", policy="public", source_id="x")
    assert rows[dataset.SeriesInstanceUID]["series"] == found.series
    assert rows[dataset.SeriesInstanceUID]["patient"] == found.patient
    nobody = pydicom.dcmread(TEST_FILES / "MR_small.dcm")
    del nobody.PatientID
    nobody.StudyInstanceUID = "1.2.8"
    found = identify(FrameHeader(nobody, 0), KEYER, collection="lidc_idri", policy="public", source_id="x")
    assert rows["1.2.9"]["patient"] == found.patient
    private = {row["location"]: row for row in archive.plan("LIDC-IDRI", policy="private").to_pylist()}
    found = identify(FrameHeader(dataset, 0), KEYER, collection="lidc_idri", policy="private", source_id="x")
    assert private[dataset.SeriesInstanceUID]["patient"] == found.patient


def manifest(folder: Path, *uids: str, server: str = "https://nbia.example/x") -> Path:
    path = folder / "some.tcia"
    head = ["includeAnnotation=true", "noOfrRetry=4", "databasePrivate=", "manifestVersion=3.0"]
    lines = [f"downloadServerUrl={server}", *head, "ListOfSeriesToDownload=", *uids]
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def test_a_manifest_is_planned(archive: Archive, tmp_path: Path) -> None:
    path = manifest(tmp_path, "1.2.3.4", "1.2.3.1", "1.2.4.1", "1.2.3.3", "1.2.3.1")
    lock = archive.plan(manifest=path)
    assert sorted(lock["location"].to_pylist()) == ["1.2.3.1", "1.2.3.4", "1.2.4.1"], (
        "what was chosen, as far as images"
    )
    whole = archive.plan("LIDC-IDRI", "TCGA-OV")
    mutual = [row for row in whole.to_pylist() if row["location"] in ("1.2.3.1",)]
    assert mutual == [row for row in lock.to_pylist() if row["location"] == "1.2.3.1"], "both endpoints say the same"
    assert archive.plan("LIDC-IDRI", manifest=path).num_rows == 4


def test_a_patient_001_is_not_the_number_1(archive: Archive, tmp_path: Path) -> None:
    lock = archive.plan(manifest=manifest(tmp_path, "1.2.3.1"))
    assert lock["patient"].to_pylist() == [KEYER.pseudonym("patient", "lidc_idri", "001")]


def test_a_series_that_is_gone_stays_in_the_plan_and_becomes_a_reject(archive: Archive, tmp_path: Path) -> None:
    lock = archive.plan(manifest=manifest(tmp_path, "1.2.3.1", "1.2.3.999"))
    gone = next(one for one in series_of(lock, 0) if one.location == "1.2.3.999")
    assert (gone.objects, gone.bytes, gone.provenance.collection) == (None, 0, "tcia")
    blobs = list(archive.source().blobs(gone))
    assert [(blob.data, blob.objects) for blob in blobs] == [(Reject("fetch", "fetch_failed", "HTTP 404"), 1)]
    only = archive.plan(manifest=manifest(tmp_path, "1.2.3.999"))
    assert only["location"].to_pylist() == ["1.2.3.999"]


def test_a_plan_says_which_releases_and_what_the_archive_does_not_list(archive: Archive, tmp_path: Path) -> None:
    archive.series = [
        Listed(f"1.2.5.{year}", CT, patient=str(year), extra={"DateReleased": f"{year}-05-31"})
        for year in (2014, 2013, 2016)
    ]
    everything = TciaSettings(collections=("LIDC-IDRI",))
    [one] = plan(Recipe(name="x", sources=(everything,), fetch=archive.fetch())).collections
    assert (one.collection, one.patients, one.series, one.slices) == ("lidc_idri", 3, 3, 9)
    assert one.source_version == "TCIA 2013-05-31 … TCIA 2016-05-31"
    path = manifest(tmp_path, "1.2.5.2014", "1.2.3.998", "1.2.3.999")
    made = plan(Recipe(name="x", sources=(TciaSettings(manifest=str(path)),), fetch=archive.fetch()))
    gone = next(one for one in made.collections if one.collection == "tcia")
    assert (gone.series, gone.slices, gone.uncounted) == (2, None, 2)
    assert any(note.startswith("tcia: 2 series of the manifest that the archive does not list") for note in made.notes)


@pytest.mark.parametrize(
    ("text", "uids"),
    [
        ("1.2.3\n\n 1.2.4 \n1.2.3\n", ("1.2.3", "1.2.4")),
        ("\ufeffdownloadServerUrl=x\nmanifestVersion=3.0\nListOfSeriesToDownload=\n1.2.3", ("1.2.3",)),
        ("downloadServerUrl=x\nListOfSeriesToDownload=1.2.3\n1.2.4", ("1.2.3", "1.2.4")),
    ],
)
def test_manifests_of_every_form(text: str, uids: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "m").write_text(text, "utf-8")
    assert read_manifest(tmp_path / "m").uids == uids


@pytest.mark.parametrize(
    "text", ["", "<html>", "downloadServerUrl=x\n1.2.3", "ListOfSeriesToDownload=\n", "1.2.3\nDOE^JANE"]
)
def test_what_is_no_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(text)
    with pytest.raises(RecipeError, match="not a manifest") as caught:
        read_manifest(tmp_path / "m")
    assert "DOE" not in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_manifest(tmp_path / "missing")


def test_nlst_has_a_host_of_its_own(tmp_path: Path) -> None:
    nbia = Nbia(Downloader(FetchSettings()))
    assert nbia.image_url("1.2", nlst=False) == (
        "https://nbia.cancerimagingarchive.net/nbia-api/services/v4/getImageWithMD5Hash?SeriesInstanceUID=1.2"
    )
    assert nbia.image_url("1.2", nlst=True).startswith("https://nlst.cancerimagingarchive.net/nbia-api/services/v4/get")
    assert read_manifest(manifest(tmp_path, "1.2", server="https://nlst.cancerimagingarchive.net/x")).nlst
    assert not read_manifest(manifest(tmp_path, "1.2")).nlst


HEALED = [
    status(500),
    status(429, Retry_After="0"),
    Fault("reset", after=10),
    Fault("truncate", after=10),
    Fault("drip"),
    Fault("silent"),
]


@pytest.mark.parametrize("fault", HEALED, ids=lambda fault: f"{fault.kind}-{fault.status}")
@pytest.mark.parametrize("endpoint", ["getCollectionValues", "getSeries", "getSeriesMetadata"])
def test_metadata_survives_a_fault(archive: Archive, endpoint: str, fault: Fault, tmp_path: Path) -> None:
    path = manifest(tmp_path, "1.2.4.1")
    expected = archive.plan("LIDC-IDRI", manifest=path)
    archive.server.faults[BASE + endpoint] = [fault]
    assert archive.plan("LIDC-IDRI", manifest=path).equals(expected)


LASTING = [
    (status(500), "HTTP 500"),
    (status(401), "HTTP 401"),
    (Fault("truncate", after=10), "the connection broke off"),
    (Fault("silent"), "no answer in 0.5 s"),
    (Fault("page"), "not understood"),
]


@pytest.mark.parametrize(("fault", "words"), LASTING, ids=lambda value: getattr(value, "kind", None))
@pytest.mark.parametrize("endpoint", ["getCollectionValues", "getSeries", "getSeriesMetadata"])
def test_metadata_that_cannot_be_had_is_no_empty_answer(
    archive: Archive, endpoint: str, fault: Fault, words: str, tmp_path: Path
) -> None:
    archive.server.faults[BASE + endpoint] = [fault] * 3
    with pytest.raises(FetchError, match=words) as caught:
        archive.plan("LIDC-IDRI", manifest=manifest(tmp_path, "1.2.4.1"))
    assert isinstance(caught.value, LumidError)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [b'{"error": "DOE"}', b"[1, 2]", b'[{"SeriesInstanceUID": "DOE^JANE"}]', b"[{}]", b"{"]
)
def test_odd_answers_are_not_taken_for_series(archive: Archive, answer: bytes) -> None:
    archive.server.files[BASE + "getSeries"] = answer
    with pytest.raises(FetchError, match="not understood"):
        archive.plan("LIDC-IDRI")


def test_counts_that_are_no_numbers_are_unknown(archive: Archive) -> None:
    archive.series[0].extra = {"ImageCount": "many", "FileSize": None, "DateReleased": "soon", "CollectionURI": "DOE"}
    row = next(row for row in archive.plan("LIDC-IDRI").to_pylist() if row["location"] == "1.2.3.1")
    assert (row["objects"], row["bytes"], row["source_version"], row["doi"]) == (None, 0, "TCIA", None)


def test_tcia_utils_leaves_no_trace() -> None:
    """Its import sets up everybody's logging; its functions are put back as they were."""
    code = """
import logging, sys
from lumid.pipeline.sources import tcia
assert "tcia_utils" not in sys.modules and "plotly" not in sys.modules and "pandas" not in sys.modules
from lumid.pipeline.nbia import Nbia
from lumid.pipeline.download import Downloader, FetchError, Patience
from lumid.pipeline.recipe import FetchSettings
try:
    Nbia(Downloader(FetchSettings(nbia_url="http://127.0.0.1:9", attempts=1))).collections()
except FetchError as error:
    print(error)
import requests, tcia_utils.nbia
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
assert tcia_utils.nbia.requests is requests and "cancerimagingarchive" in tcia_utils.nbia.setApiUrl("x")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("TCIA cannot be asked (getCollections): cannot connect;"), done.stderr
    assert done.stderr == ""
    assert logging.getLogger("tcia_utils.nbia").level == logging.NOTSET


def test_licences_in_the_short_form() -> None:
    for path, short in [
        ("by/4.0/", "CC BY 4.0"),
        ("by-nc/3.0/", "CC BY-NC 3.0"),
        ("by-nc-sa/4.0/legalcode", "CC BY-NC-SA 4.0"),
    ]:
        assert license_name("x", f"https://creativecommons.org/licenses/{path}") == short
    assert license_name("TCIA Restricted", "https://example.org") == "TCIA Restricted"
    assert license_name("", "") is None
    assert [collection_id(name) for name in ("LIDC-IDRI", "CT COLONOGRAPHY", "--", "")] == [
        "lidc_idri",
        "ct_colonography",
        "tcia",
        "tcia",
    ]


# ---- the fetch


def test_a_series_comes_whole_and_verified(archive: Archive) -> None:
    series = archive.pinned("1.2.3.1")
    source: Source = archive.source()
    blobs = list(source.blobs(series))
    assert contents(blobs) == CT
    assert [blob.ref.source_id for blob in blobs] == [f"{series.id}/{name}" for name in sorted(CT)]
    assert [blob.ref.size_bytes for blob in blobs] == [len(CT[name]) for name in sorted(CT)]
    assert dict(fetch_series(series, Downloader(archive.fetch(), QUICK))) == CT
    wanted = blobs[1].ref.source_id
    assert list(source.blobs(series, frozenset({wanted}))) == [blobs[1]]


def test_the_list_of_md5s_may_have_its_columns_either_way(archive: Archive) -> None:
    digests = {name: hashlib.md5(data).hexdigest() for name, data in CT.items()}
    for lines in (
        [f"{digest.upper()},x/{name}" for name, digest in digests.items()],
        [f'"{name}" , "{digest}"' for name, digest in digests.items()],
    ):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            made.writestr("a/MD5Hashes.csv", "\r\n".join(lines))
            for name, data in CT.items():
                made.writestr(f"a/{name}", data)
        archive.zips["1.2.3.1"] = buffer.getvalue()
        assert contents(list(archive.source().blobs(archive.pinned("1.2.3.1")))) == CT


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize(
    "fault",
    [
        *HEALED,
        Fault("corrupt"),
        Fault("page"),
        Fault("reset", after=9000),
        Fault("truncate", after=9000),
        Fault("cut_head"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.after}",
)
def test_a_fault_of_the_download_is_healed(archive: Archive, fault: Fault, chunked: bool) -> None:
    series = archive.pinned("1.2.3.1")
    archive.server.chunked = chunked
    archive.server.faults[GET_ZIP] = [fault]
    assert contents(list(archive.source().blobs(series))) == CT
    assert len(archive.server.requests(GET_ZIP)) == 2


LOST = [
    (status(500), "HTTP 500"),
    (status(400), "HTTP 400"),
    (Fault("silent"), "no answer in 0.5 s"),
    (Fault("reset", after=50), "the connection broke off"),
    (Fault("page"), "not a whole zip"),
]


@pytest.mark.parametrize(("fault", "words"), LOST, ids=lambda value: getattr(value, "kind", None))
def test_a_lasting_fault_accounts_for_every_object(archive: Archive, fault: Fault, words: str) -> None:
    series = archive.pinned("1.2.3.1")
    archive.server.faults["*"] = [fault]
    blobs = list(archive.source().blobs(series))
    assert [(blob.data, blob.objects) for blob in blobs] == [(Reject("fetch", "fetch_failed", words), 3)]
    assert blobs[0].ref.source_id == f"{series.id}/missing"


def test_missing_objects_are_one_reject(archive: Archive) -> None:
    """The zip is in order, but does not hold all that was planned; three times."""
    series = archive.pinned("1.2.3.1")
    archive.zips["1.2.3.1"] = zipped({name: CT[name] for name in ("1-001.dcm",)})
    blobs = list(archive.source().blobs(series))
    assert [(blob.ref.source_id.split("/")[1], blob.objects) for blob in blobs] == [("1-001.dcm", 1), ("missing", 2)]
    assert blobs[1].data == Reject("fetch", "fetch_failed", "2 of 3 objects are not in the archive's answer")
    assert len(archive.server.requests(GET_ZIP)) == 3
    assert list(archive.source().blobs(series)) == blobs, "the same at every call"


def test_objects_of_the_list_that_are_missing_count_where_nobody_planned_a_number(archive: Archive) -> None:
    archive.series[0].extra = {"ImageCount": None}
    series = archive.pinned("1.2.3.1")
    assert series.objects is None
    assert contents(list(archive.source().blobs(series))) == CT
    archive.zips["1.2.3.1"] = zipped({"1-001.dcm": CT["1-001.dcm"]}, {"1-002.dcm": "0" * 32, "1-003.dcm": "1" * 32})
    blobs = list(archive.source().blobs(series))
    assert [blob.objects for blob in blobs] == [1, 2]


def test_a_series_that_grew_is_not_the_one_that_was_pinned(archive: Archive) -> None:
    series = archive.pinned("1.2.3.1")
    archive.zips["1.2.3.1"] = zipped(CT | {"1-004.dcm": b"new"})
    blobs = list(archive.source().blobs(series))
    words = "the archive has 4 objects now, 3 were planned"
    assert [(blob.data, blob.objects) for blob in blobs] == [(Reject("fetch", "fetch_failed", words), 3)]


def test_a_wrong_md5_concerns_one_object(archive: Archive) -> None:
    series = archive.pinned("1.2.3.1")
    archive.zips["1.2.3.1"] = zipped(CT, {"1-002.dcm": "0" * 32})
    blobs = list(archive.source().blobs(series))
    assert contents(blobs) == CT | {"1-002.dcm": Reject("fetch", "fetch_failed", "MD5 does not match")}
    assert len(archive.server.requests(GET_ZIP)) == 3


def test_what_no_list_vouches_for_is_not_taken(archive: Archive) -> None:
    series = archive.pinned("1.2.3.1")
    archive.zips["1.2.3.1"] = zipped(CT, listed=False)
    blobs = list(archive.source().blobs(series))
    assert [(blob.data, blob.objects) for blob in blobs] == [
        (Reject("fetch", "fetch_failed", "no list of MD5s in the zip"), 3)
    ]
    some = io.BytesIO(zipped({name: CT[name] for name in ("1-001.dcm", "1-002.dcm")}))
    with zipfile.ZipFile(some, "a") as made:
        made.writestr("1-003.dcm", CT["1-003.dcm"])
    archive.zips["1.2.3.1"] = some.getvalue()
    found = contents(list(archive.source().blobs(series)))
    assert found == CT | {"1-003.dcm": Reject("fetch", "fetch_failed", "not in the list of MD5s")}


def test_unsafe_members_are_rejects_without_their_names(archive: Archive) -> None:
    evil = {"../../DOE^JANE.dcm": CT["1-001.dcm"], "1-002.dcm": CT["1-002.dcm"], "1-003.dcm": CT["1-003.dcm"]}
    series = archive.pinned("1.2.3.1")
    archive.zips["1.2.3.1"] = zipped(evil)
    blobs = list(archive.source().blobs(series))
    rejected = [blob for blob in blobs if isinstance(blob.data, Reject)]
    assert [blob.data for blob in rejected] == [Reject("read", "unsafe_member", "path with '..'")]
    assert len(blobs) == 3
    assert "DOE" not in repr(blobs)


def test_equal_names_in_two_folders_stay_two_objects(archive: Archive) -> None:
    files = {"a/1.dcm": CT["1-001.dcm"], "b/1.dcm": CT["1-001.dcm"], "c.dcm": CT["1-003.dcm"]}
    series = archive.pinned("1.2.3.1")
    archive.zips["1.2.3.1"] = zipped(files)
    blobs = list(archive.source().blobs(series))
    assert len({blob.ref.source_id for blob in blobs}) == 3
    assert sorted(blob.data for blob in blobs if isinstance(blob.data, bytes)) == sorted(files.values())
    assert [blob.ref.source_id for blob in blobs] == sorted(blob.ref.source_id for blob in blobs)


def test_series_arrive_ahead(archive: Archive) -> None:
    archive.series = [Listed(f"1.2.3.{number}", CT) for number in range(1, 6)]
    lock = series_of(archive.plan("LIDC-IDRI"), 0)
    source = archive.source()
    source.prefetch(lock)
    deadline = time.monotonic() + 10
    while len(archive.server.requests(GET_ZIP)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(archive.server.requests(GET_ZIP)) == 5, "before anyone asked"
    for series in lock:
        assert contents(list(source.blobs(series))) == CT
    assert len(archive.server.requests(GET_ZIP)) == 5
    source.close()


def test_what_arrives_ahead_is_bounded(archive: Archive) -> None:
    archive.series = [Listed(f"1.2.3.{number}", CT) for number in range(1, 6)]
    lock = series_of(archive.plan("LIDC-IDRI"), 0)
    source = archive.source(ahead_mb=2.5 * lock[0].bytes / 1e6)
    source.prefetch(lock)
    time.sleep(0.5)
    assert len(archive.server.requests(GET_ZIP)) == 2
    assert contents(list(source.blobs(lock[0]))) == CT
    time.sleep(0.5)
    assert len(archive.server.requests(GET_ZIP)) == 3
    source.close()


def test_close_breaks_off_what_is_under_way(archive: Archive) -> None:
    lock = series_of(archive.plan("LIDC-IDRI", "TCGA-OV"), 0)
    archive.server.faults["*"] = [Fault("drip", step=200, every_s=0.05)]
    source = archive.source()
    before = threading.active_count()
    source.prefetch(lock)
    time.sleep(0.2)
    begun = time.monotonic()
    source.close()
    assert time.monotonic() - begun < 3
    archive.server.faults.clear()
    assert contents(list(source.blobs(lock[0])))
    source.close()
    assert threading.active_count() <= before + 4


def test_no_zip_is_left_behind(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    series = archive.pinned("1.2.3.1")
    source = archive.source()
    half = source.blobs(series)
    next(half)
    assert list(tmp_path.iterdir()) == [], "the file has no name even while it is read"
    half.close()
    source.prefetch([series])
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_offline_is_offline(archive: Archive) -> None:
    series = archive.pinned("1.2.3.1")
    before = len(archive.server.log)
    blobs = list(archive.source(offline=True).blobs(series))
    assert [(blob.data, blob.objects) for blob in blobs] == [(Reject("fetch", "fetch_failed", "offline"), 3)]
    with pytest.raises(FetchError, match="offline"):
        plan_tcia(TciaSettings(collections=("x",)), archive.fetch(offline=True), KEYER)
    assert len(archive.server.log) == before
