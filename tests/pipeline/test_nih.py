"""A small ChestX-ray14: two archives behind a server that breaks off, with the tables of the real one's form."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lumid.catalog.errors import RecipeError
from lumid.catalog.lock import LOCK
from lumid.catalog.schema import LABELS
from lumid.pipeline.archives import tar_members
from lumid.pipeline.deidentify import acquisition, identify, text_risk
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.lock import series_of
from lumid.pipeline.nih_index import (
    FINDINGS,
    HOME,
    Count,
    age_string,
    count_xrays,
    missing_tables,
    read_tables,
    tables_hash,
)
from lumid.pipeline.plan import plan
from lumid.pipeline.recipe import FetchSettings, NihSettings, Recipe, SampleSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sample import draw_sample
from lumid.pipeline.sources import Blob, Source, open_source
from lumid.pipeline.sources.nih import ARCHIVES, NihSource, Pin, check_tables, plan_nih, read_png
from tests.fake_nih import (
    FIRST,
    HEADER,
    KEYER,
    QUICK,
    SECOND,
    SMALL,
    TABLE,
    Nih,
    described,
    grey,
    png,
    tar_gz,
    write_tables,
)
from tests.servers import Fault, Server, status


@pytest.fixture
def nih(tmp_path: Path) -> Iterator[Nih]:
    folder = tmp_path / "nih"
    write_tables(folder)
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
    assert [blob.labels for blob in blobs] == [("Cardiomegaly",), ("Cardiomegaly", "Emphysema"), ("No Finding",)]
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
    first, second = nih.series()

    def kept(*patients: str) -> list[str]:
        wanted = {KEYER.pseudonym("patient", "nih_chest_xray", one) for one in patients}
        source = NihSource(nih.settings(), nih.fetch(), KEYER, keep_patient=wanted.__contains__, patience=QUICK)
        return [blob.ref.source_id.split("/")[-1][:8] for one in (first, second) for blob in source.blobs(one)]

    *listed, nobodys = kept("1")
    assert listed == ["00000001", "00000001"]
    assert nobodys not in ("00000003", "00000004", "00000099"), "the file that is of no patient stays"
    assert kept("3", "99") == ["00000003", "00000099", nobodys], (
        "an image that no table lists has a patient in its name"
    )


def test_a_sample_is_drawn_as_in_any_other_archive(nih: Nih) -> None:
    """By the pseudonym that the rows will have, so that the sample of a fraction holds that of a smaller one."""
    numbers = [str(number) for number in range(1, 5)]
    draws = {
        one: KEYER.fraction("sample", "7", "nih_chest_xray", KEYER.pseudonym("patient", "nih_chest_xray", one))
        for one in numbers
    }
    order = sorted(numbers, key=lambda one: draws[one])
    for count, one in enumerate(order):
        for fraction, wanted in ((draws[one], order[:count]), (draws[one] + 1e-9, order[: count + 1])):
            recipe = Recipe(
                name="xrays", sources=(nih.settings(),), fetch=nih.fetch(), sample=SampleSettings(fraction=fraction, seed=7)
            )  # fmt: skip
            source = open_source(recipe, 0, KEYER)
            found = {
                str(int(blob.ref.source_id[:8]))
                for series in nih.series()
                for blob in source.blobs(series)
                if blob.labels is not None
            }
            assert found == set(wanted), (fraction, draws)


def test_the_draw_leaves_all_archives_in_and_a_limit_takes_whole_ones() -> None:
    lock = plan_nih(NihSettings(), FetchSettings(), KEYER)
    assert draw_sample(lock, SampleSettings(fraction=0.001), KEYER).equals(lock)
    before: set[str] = set()
    for max_gb in (1, 5, 20, 44, 45):
        held = draw_sample(lock, SampleSettings(max_gb=max_gb), KEYER)
        assert sum(held["bytes"].to_pylist()) <= max_gb * 1e9
        assert before <= set(held["location"].to_pylist())
        before = set(held["location"].to_pylist())
    assert len(before) == 12


# ---- the tables


def test_tables_that_are_there_are_pinned(nih: Nih) -> None:
    lock = plan_nih(nih.settings(), nih.fetch(), KEYER, SMALL)
    pins = [Pin.parse(location) for location in lock["location"].to_pylist()]
    assert {(pin.name, pin.md5) for pin in pins} == {(one.name, one.md5) for one in SMALL}
    assert {pin.tables for pin in pins} == {tables_hash(nih.folder)}
    assert [str(pin) for pin in pins] == lock["location"].to_pylist()
    bare = plan_nih(nih.settings(path=str(nih.folder / "none")), nih.fetch(), KEYER, SMALL)
    assert {Pin.parse(location).tables for location in bare["location"].to_pylist()} == {None}
    assert lock["series"].equals(bare["series"])
    assert not set(lock["digest"].to_pylist()) & set(bare["digest"].to_pylist()), "they are not the same inputs"
    (nih.folder / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
    assert plan_nih(nih.settings(), nih.fetch(), KEYER, SMALL).equals(lock), "nothing of a data set depends on that one"


@pytest.mark.parametrize("file", ["Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"])
def test_other_tables_than_the_pinned_ones_are_refused_before_anything_is_fetched(nih: Nih, file: str) -> None:
    series = nih.series()
    unpinned = [replace(one, location=str(replace(Pin.parse(one.location), tables=None))) for one in series]
    check_tables(nih.settings(), series)
    with (nih.folder / file).open("a") as table:
        table.write("\n")
    source = nih.source()
    for refused in (
        lambda: source.prefetch(series),
        lambda: next(source.blobs(series[0])),
        lambda: check_tables(nih.settings(), series),
    ):
        with pytest.raises(RecipeError, match=r"not those that the lock pins; .* lumid plan RECIPE"):
            refused()
    assert nih.server.log == []
    check_tables(nih.settings(), unpinned)
    assert len(list(source.blobs(unpinned[0]))) == 3, "what was planned without tables takes those that are there"
    (nih.folder / file).unlink()
    with pytest.raises(RecipeError, match="by hand"):
        check_tables(nih.settings(), unpinned)


def test_a_table_that_says_nothing_of_an_image_is_not_one_without_findings(nih: Nih) -> None:
    write_tables(nih.folder, TABLE.replace(",Mass,", ",,").replace("Pleural_Thickening|Hernia", "Hernia|No Finding"))
    labels = {name: one.labels for name, one in read_tables(nih.folder).items()}
    assert labels["00000004_000.png"] is None
    assert labels["00000003_000.png"] == ("Hernia",)
    assert labels["00000002_000.png"] == ("No Finding",)
    assert len(FINDINGS) == 14
    assert {*FINDINGS, "No Finding"} == set(LABELS)


def test_a_plan_counts_what_it_can(nih: Nih) -> None:
    def counted(archives: int, settings: NihSettings | None = None, **sample: float) -> tuple[Count, str]:
        made, notes = count_xrays(
            settings or nih.settings(), SampleSettings.model_validate(sample), KEYER, archives, 45_000_000_000
        )
        return made, " / ".join(notes)

    count, notes = counted(12)
    assert count == Count(30_805, 112_120, 0, 0)
    assert "list 5 images, 2 of the official test list, held out" in notes
    assert "not held out" in counted(12, nih.settings(benchmark="include"))[1]
    draws = sorted(KEYER.fraction("sample", "0", "nih_chest_xray", KEYER.pseudonym("patient", "nih_chest_xray", str(one)))
                   for one in range(1, 5))  # fmt: skip
    count, notes = counted(12, fraction=draws[2])
    assert (count.patients, count.uncounted) == (2, 0)
    assert "all 12 archives (45 GB) are fetched" in notes
    count, notes = counted(2)
    assert (count.patients, count.slices, count.uncounted, count.uncounted_bytes) == (None, None, 2, 45_000_000_000)
    assert "known when it is read" in notes
    assert "1 of 2" in counted(1, max_gb=4.0)[1]
    missing = nih.settings(path=str(nih.folder / "none"))
    count, notes = counted(12, missing, fraction=0.1)
    assert (count.patients, count.slices, count.uncounted_bytes) == (None, None, 4_500_000_000)
    for words in (
        *(name for name in ("Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt")),
        HOME,
        missing.path,
    ):
        assert words in notes
    assert "pins them only when they are there" in notes
    made = plan(Recipe(name="xrays", sources=(missing,), sample=SampleSettings(max_gb=1.0)))
    assert (made.collections, made.lock.num_rows) == ((), 0)
    assert any("max_gb leaves none of its archives" in note for note in made.notes)


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


ABSENT = Reject("fetch", "fetch_failed", "not in the cache, and --offline was given")


@pytest.mark.parametrize("ahead", [False, True])
def test_offline_takes_what_is_there_and_asks_nobody(nih: Nih, ahead: bool) -> None:
    (nih.folder / "images_001.tar.gz").write_bytes(FIRST)
    source = NihSource(nih.settings(), nih.fetch(offline=True), KEYER)
    first, second = nih.series()
    if ahead:
        source.prefetch([first, second])
    assert len(list(source.blobs(first))) == 3
    assert [blob.data for blob in source.blobs(second)] == [ABSENT]
    (nih.folder / "images_002.tar.gz").write_bytes(SECOND[:-1])
    source.close()
    assert [blob.data for blob in source.blobs(second)] == [ABSENT], "not whole is not there"
    source.close()
    assert nih.server.log == []


def test_what_was_tried_ahead_is_not_tried_again(nih: Nih) -> None:
    nih.server.faults["*"] = [status(500)]
    source = nih.source()
    first, _ = nih.series()
    source.prefetch([first])
    assert [blob.data for blob in source.blobs(first)] == [Reject("fetch", "fetch_failed", "HTTP 500")]
    assert len(nih.server.log) == 3
    source.close()
    nih.server.faults.clear()
    assert len(list(source.blobs(first))) == 3, "but a later reading is a new one"


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
