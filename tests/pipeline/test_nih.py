"""A small ChestX-ray14: two archives behind a server that breaks off, with the tables of the real one's form."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.lock import LOCK
from lumid.pipeline.archives import tar_members
from lumid.pipeline.decode import FrameHeader
from lumid.pipeline.deidentify import acquisition, identify, text_risk
from lumid.pipeline.download import Patience
from lumid.pipeline.lock import series_of
from lumid.pipeline.nih_index import HOME, age_string, missing_tables, read_tables
from lumid.pipeline.recipe import FetchSettings, NihSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, Series, Source
from lumid.pipeline.sources.nih import ARCHIVES, NihArchive, NihSource, plan_nih, read_png
from tests.servers import Fault, Server, status

KEYER = Keyer(PUBLIC_SECRET)
QUICK = Patience(first_wait_s=0.01, longest_wait_s=0.02, progress_bytes=1 << 30)

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
TABLE = HEADER + (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143,\n"
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143,\n"
    "00000002_000.png,No Finding,0,2,80,F,AP,2500,2048,0.168,0.171,\n"
    "00000003_000.png,Pleural_Thickening|Hernia,0,3,412,F,PA,2582,2991,0.143,0.143,\n"
    "00000004_000.png,Mass,0,4,,X,LL,,,,,\n"
)
NAMES = [line.split(",")[0] for line in TABLE.splitlines()[1:]]


def grey(seed: int, rows: int = 32, columns: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def rgba(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, pixels, pixels, np.full_like(pixels, 255)])


def tar_gz(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(f"images/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


FIRST = tar_gz(
    ("00000001_000.png", png(grey(1))),
    ("00000001_001.png", png(rgba(grey(2)))),
    ("00000002_000.png", png(grey(3, rows=16))),
)
SECOND = tar_gz(
    ("00000004_000.png", png(grey(5))),
    ("00000003_000.png", png(grey(4))),
    ("00000099_000.png", png(grey(6))),
    ("README.txt", b"DOE^JANE"),
)


def described(name: str, file: str, data: bytes) -> NihArchive:
    return NihArchive(name, file, hashlib.md5(data).hexdigest(), len(data))


SMALL = (described("images_001.tar.gz", "aa.gz", FIRST), described("images_002.tar.gz", "bb.gz", SECOND))


@dataclass
class Nih:
    server: Server
    folder: Path
    archives: tuple[NihArchive, ...] = SMALL

    def settings(self, **values: object) -> NihSettings:
        return NihSettings.model_validate({"path": str(self.folder), "archives": (1, 2)} | values)

    def fetch(self, **values: object) -> FetchSettings:
        base = {"nih_url": self.server.url + "/static", "attempts": 3, "timeout_s": 0.5}
        return FetchSettings.model_validate(base | values)

    def series(self) -> list[Series]:
        """By the archives' names."""
        lock = plan_nih(self.settings(), self.fetch(), KEYER, self.archives)
        return sorted(series_of(lock, 0), key=lambda one: one.location)

    def source(self, **values: object) -> NihSource:
        return NihSource(self.settings(**values), self.fetch(), KEYER, patience=QUICK)


@pytest.fixture
def nih(tmp_path: Path) -> Iterator[Nih]:
    folder = tmp_path / "nih"
    folder.mkdir()
    (folder / "Data_Entry_2017_v2020.csv").write_text(TABLE)
    (folder / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000004_000.png")
    (folder / "test_list.txt").write_text("00000002_000.png\n00000003_000.png\n")
    with Server({"/static/aa.gz": FIRST, "/static/bb.gz": SECOND}) as server:
        yield Nih(server, folder)


def dicom(blob: Blob) -> pydicom.FileDataset:
    assert isinstance(blob.data, bytes), blob.data
    return pydicom.dcmread(io.BytesIO(blob.data))


def test_the_plan_needs_nothing_and_tells_45_gb(tmp_path: Path) -> None:
    settings = NihSettings(path=str(tmp_path / "not there"))
    lock = plan_nih(settings, FetchSettings(offline=True), KEYER)
    assert lock.schema == LOCK
    assert lock.num_rows == 12
    assert sum(lock["bytes"].to_pylist()) == 45_000_000_000
    assert set(lock["modality"].to_pylist()) == {"DX"}
    assert set(lock["objects"].to_pylist()) == {None}
    assert set(lock["doi"].to_pylist()) == {"10.1109/CVPR.2017.369"}
    by_place = {one.location: one for one in series_of(lock, 0)}
    first = by_place["images_001.tar.gz md5:fe8ed0a6961412fddcbb3603c11b3698"]
    assert first.urls == ("https://nihcc.box.com/shared/static/vfk49d74nhbxq3nqjg0900w5nvkorp5c.gz",)
    last = by_place["images_012.tar.gz md5:dc9fda1757c2de0032b63347a7d2895c"]
    assert last.urls == ("https://nihcc.box.com/shared/static/ioqwiy20ihqwyr8pf4c24eazhh281pbu.gz",)
    assert all(
        one.digest() == digest for one, digest in zip(series_of(lock, 0), lock["digest"].to_pylist(), strict=True)
    )
    assert plan_nih(settings, FetchSettings(), KEYER).equals(lock), "the same wherever and whenever it is made"


def test_the_plan_takes_the_archives_asked_for() -> None:
    lock = plan_nih(NihSettings(archives=(12, 3, 3)), FetchSettings(), KEYER)
    assert sorted(place[:10] for place in lock["location"].to_pylist()) == ["images_003", "images_012"]
    assert len({one.md5 for one in ARCHIVES}) == len({one.file for one in ARCHIVES}) == 12


def test_every_image_becomes_an_object(nih: Nih) -> None:
    source = nih.source()
    as_protocol: Source = source
    first, _ = nih.series()
    blobs = list(as_protocol.blobs(first))
    assert [blob.ref.source_id for blob in blobs] == ["00000001_000.png", "00000001_001.png", "00000002_000.png"]
    assert [blob.labels for blob in blobs] == [("Cardiomegaly",), ("Cardiomegaly", "Emphysema"), ()]
    assert [blob.split for blob in blobs] == [None, None, "benchmark"]
    for blob, pixels in zip(blobs, (grey(1), grey(2), grey(3, rows=16)), strict=True):
        dataset = dicom(blob)
        assert np.array_equal(dataset.pixel_array, pixels)
        assert dataset.PhotometricInterpretation == "MONOCHROME2"
        assert (dataset.Rows, dataset.Columns) == pixels.shape


def test_the_object_says_what_the_table_says(nih: Nih) -> None:
    dataset = dicom(list(nih.source().blobs(nih.series()[0]))[2])
    assert dataset.SOPClassUID.name == "Digital X-Ray Image Storage - For Presentation"
    assert dataset.Modality == "DX"
    assert dataset.PatientID == "2"
    assert dataset.PatientSex == "F"
    assert dataset.PatientAge == "080Y"
    assert dataset.ViewPosition == "AP"
    assert dataset.BodyPartExamined == "CHEST"
    assert list(dataset.ImageType) == ["DERIVED", "PRIMARY"]
    assert "BurnedInAnnotation" not in dataset
    # 2500 × 2048 of 0.168 and 0.171 mm became 32 × 16: [between rows, between columns]
    assert [float(value) for value in dataset.ImagerPixelSpacing] == pytest.approx(
        [0.171 * 2048 / 16, 0.168 * 2500 / 32], rel=1e-5
    )
    for uid in (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID):
        assert uid.startswith("2.25.")
        assert uid.is_valid
    assert len({dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID}) == 3


def test_the_pipeline_reads_the_object_as_any_other(nih: Nih) -> None:
    header = FrameHeader(dicom(list(nih.source().blobs(nih.series()[0]))[1]), 0)
    acquired = acquisition(header, "DX")
    assert (acquired.body_part, acquired.view_position, acquired.sex, acquired.age_years) == ("CHEST", "PA", "M", 58)
    assert acquired.image_type == "DERIVED\\PRIMARY"
    assert text_risk(header, acquired, "public") == "unknown"
    identity = identify(header, KEYER, collection="nih_chest_xray", policy="public", source_id="x")
    assert identity.patient == KEYER.pseudonym("patient", "nih_chest_xray", "1")


def test_what_the_table_does_not_know_is_absent(nih: Nih) -> None:
    blobs = {blob.ref.source_id: blob for blob in nih.source().blobs(nih.series()[1])}
    old = dicom(blobs["00000003_000.png"])
    assert "PatientAge" not in old, "nobody is 412"
    odd = dicom(blobs["00000004_000.png"])
    assert not odd.PatientSex
    assert not odd.ViewPosition
    assert "PatientAge" not in odd
    assert "ImagerPixelSpacing" not in odd


def test_what_the_tables_lack_is_a_reject_without_a_name(nih: Nih) -> None:
    first, second = nih.series()
    blobs = list(nih.source().blobs(second))
    assert [blob.ref.source_id for blob in blobs[:3]] == ["00000004_000.png", "00000003_000.png", "00000099_000.png"]
    assert [blob.data.code for blob in blobs if isinstance(blob.data, Reject)] == ["not_listed", "not_listed"]
    assert blobs[3].ref.source_id.startswith(f"{second.id}/")
    assert "README" not in repr(blobs[3])
    again = [blob.ref.source_id for blob in nih.source().blobs(second)]
    assert again == [blob.ref.source_id for blob in blobs]
    assert first.id != second.id


def test_only_what_is_asked_for(nih: Nih) -> None:
    source = nih.source()
    first, second = nih.series()
    whole = {blob.ref.source_id: blob for series in (first, second) for blob in source.blobs(series)}
    for series, wanted in ((first, "00000001_001.png"), (second, "00000003_000.png"), (second, "00000099_000.png")):
        assert list(source.blobs(series, frozenset({wanted}))) == [whole[wanted]]
    assert list(source.blobs(first, frozenset())) == []


def test_whole_patients_can_be_left_out(nih: Nih) -> None:
    wanted = KEYER.pseudonym("patient", "nih_chest_xray", "1")
    source = NihSource(nih.settings(), nih.fetch(), KEYER, keep_patient=lambda one: one == wanted, patience=QUICK)
    first, second = nih.series()
    assert [blob.ref.source_id for blob in source.blobs(first)] == ["00000001_000.png", "00000001_001.png"]
    assert all(isinstance(blob.data, Reject) for blob in source.blobs(second)), "of nobody it is known not to be"


def test_the_test_list_can_be_included(nih: Nih) -> None:
    assert {blob.split for blob in nih.source(benchmark="include").blobs(nih.series()[0])} == {None}


def test_objects_are_the_same_on_every_machine(nih: Nih) -> None:
    """Fixed by hand: a change here changes every key of the collection."""
    dataset = dicom(next(iter(nih.source().blobs(nih.series()[0]))))
    assert dataset.SOPInstanceUID == "2.25.259412196525300381674366118243601289716"
    blobs = [blob.data for blob in nih.source().blobs(nih.series()[0])]
    assert blobs == [blob.data for blob in nih.source().blobs(nih.series()[0])]


FAULTS = [
    status(500),
    status(429, Retry_After="0"),
    Fault("reset", after=2000),
    Fault("truncate", after=2000),
    Fault("corrupt"),
    Fault("silent"),
    Fault("drip"),
    Fault("page"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_faults_of_the_server_are_healed(nih: Nih, fault: Fault) -> None:
    nih.server.faults["/static/aa.gz"] = [fault, fault]
    blobs = list(nih.source().blobs(nih.series()[0]))
    assert np.array_equal(dicom(blobs[2]).pixel_array, grey(3, rows=16))
    assert (nih.folder / "images_001.tar.gz").read_bytes() == FIRST


def test_a_download_that_breaks_off_goes_on_in_the_next_run(nih: Nih) -> None:
    nih.server.faults["/static/aa.gz"] = [Fault("truncate", after=1000)] * 3
    first = nih.series()[0]
    outcome = list(nih.source().blobs(first))
    assert [blob.data for blob in outcome] == [Reject("fetch", "fetch_failed", "the connection broke off")]
    assert not (nih.folder / "images_001.tar.gz").exists()
    assert len(list(nih.source().blobs(first))) == 3
    assert nih.server.log[-1].headers["Range"] == "bytes=3000-"
    assert len(list(nih.source().blobs(first))) == 3
    assert len(nih.server.log) == 4


def test_a_wrong_archive_is_never_read(nih: Nih) -> None:
    nih.server.files["/static/aa.gz"] = SECOND
    assert [blob.data for blob in nih.source().blobs(nih.series()[0])] == [
        Reject("fetch", "fetch_failed", "MD5 does not match")
    ]


def test_archives_in_the_folder_are_used(nih: Nih) -> None:
    (nih.folder / "images_001.tar.gz").write_bytes(FIRST)
    assert len(list(nih.source().blobs(nih.series()[0]))) == 3
    assert nih.server.log == []
    (nih.folder / "images_002.tar.gz").write_bytes(SECOND[:-1])
    assert len(list(nih.source().blobs(nih.series()[1]))) == 4
    assert len(nih.server.log) == 1
    assert (nih.folder / "images_002.tar.gz").read_bytes() == SECOND


def test_offline_takes_what_is_there(nih: Nih) -> None:
    (nih.folder / "images_001.tar.gz").write_bytes(FIRST)
    source = NihSource(nih.settings(), nih.fetch(offline=True), KEYER)
    first, second = nih.series()
    assert len(list(source.blobs(first))) == 3
    assert [blob.data for blob in source.blobs(second)] == [
        Reject("fetch", "fetch_failed", "offline, and not there yet")
    ]


def test_archives_are_fetched_ahead_and_broken_off(nih: Nih) -> None:
    source = nih.source()
    source.prefetch(nih.series())
    source.prefetch(nih.series())
    assert [len(list(source.blobs(one))) for one in nih.series()] == [3, 4]
    assert [len(nih.server.requests(f"/static/{one.file}")) for one in SMALL] == [1, 1]
    source.close()
    source.close()
    for name in ("images_001.tar.gz", "images_002.tar.gz"):
        (nih.folder / name).unlink()
    nih.server.faults["*"] = [Fault("drip", step=200, every_s=0.05)]
    source.prefetch(nih.series())
    source.close()
    assert not (nih.folder / "images_002.tar.gz").exists()


def test_a_damaged_member_is_a_reject_and_the_rest_goes_on(nih: Nih) -> None:
    whole = png(grey(1))
    high = png(grey(7).astype(np.uint16) * 257)
    members = [("00000001_000.png", whole[: len(whole) // 2]), ("00000001_001.png", high), ("00000002_000.png", whole)]
    data = tar_gz(*members, ("00000002_000.png", whole))
    nih.server.files["/static/aa.gz"] = data
    nih.archives = (described("images_001.tar.gz", "aa.gz", data), SMALL[1])
    found = [blob.data for blob in nih.source().blobs(nih.series()[0])]
    assert found[:2] == [
        Reject("decode", "decode_failed", "the PNG is damaged"),
        Reject("decode", "decode_failed", "not 8 bits"),
    ]
    assert isinstance(found[2], bytes)
    assert isinstance(found[3], Reject)
    assert "two" in found[3].detail


def test_png_of_absurd_size_is_not_decoded() -> None:
    data = bytearray(png(grey(1)))
    data[16:24] = b"\x7f\xff\xff\xff" * 2
    assert read_png(bytes(data)) == Reject("decode", "absurd_size", "2147483647 × 2147483647")
    assert read_png(b"GIF89a") == Reject("decode", "decode_failed", "not a PNG")
    assert read_png(b"") == Reject("decode", "decode_failed", "not a PNG")


def test_pngs_cut_or_flipped_anywhere_never_raise() -> None:
    data = png(grey(1))
    rng = random.Random(3)
    for _ in range(300):
        broken = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.5 else data)
        if broken:
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        outcome = read_png(bytes(broken))
        assert isinstance(outcome, Reject) or outcome.dtype == np.uint8


@pytest.mark.parametrize("missing", ["Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"])
def test_missing_tables_say_where_to_get_them(nih: Nih, missing: str) -> None:
    assert missing_tables(nih.folder) is None
    (nih.folder / missing).unlink()
    with pytest.raises(RecipeError) as caught:
        nih.source()
    for part in (missing, HOME, str(nih.folder)):
        assert part in str(caught.value)


def test_the_older_table_will_do(nih: Nih) -> None:
    (nih.folder / "Data_Entry_2017_v2020.csv").unlink()
    (nih.folder / "Data_Entry_2017.csv").write_text("\ufeff" + TABLE.replace(",57,M", ",057Y,M"), "utf-8")
    assert read_tables(nih.folder)["00000001_000.png"].age == "057Y"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("Data_Entry_2017_v2020.csv", "<html>please log in</html>"),
        ("Data_Entry_2017_v2020.csv", ""),
        ("Data_Entry_2017_v2020.csv", TABLE + "00000009_000.png,DOE^JANE,0,9,57,M,PA,1,1,1,1,\n"),
        ("Data_Entry_2017_v2020.csv", TABLE + "DOE^JANE,Mass,0,9,57,M,PA,1,1,1,1,\n"),
        ("Data_Entry_2017_v2020.csv", HEADER),
        ("test_list.txt", "<html>"),
        ("test_list.txt", ""),
        ("test_list.txt", "00000001_000.png\n"),
        ("train_val_list.txt", "DOE^JANE"),
    ],
)
def test_tables_that_are_not_the_tables(nih: Nih, file: str, text: str) -> None:
    (nih.folder / file).write_text(text)
    with pytest.raises(RecipeError, match="again from") as caught:
        nih.source()
    assert "DOE" not in str(caught.value)


def test_ages() -> None:
    values = {"0": "000Y", "120": "120Y", "121": None, "155": None, "060D": "060D", "1e3": None, "-1": None}
    assert {text: age_string(text) for text in values} == values


def test_the_archive_is_read_as_a_stream(nih: Nih) -> None:
    """The order of the members is the archive's, and no member is written anywhere."""
    list(nih.source().blobs(nih.series()[1]))
    files = {path.name for path in nih.folder.iterdir()}
    assert files == {
        "Data_Entry_2017_v2020.csv",
        "train_val_list.txt",
        "test_list.txt",
        "images_002.tar.gz",
        ".images_002.tar.gz.verified.json",
    }
    with (nih.folder / "images_002.tar.gz").open("rb") as stream:
        assert len(list(tar_members(stream))) == 4
