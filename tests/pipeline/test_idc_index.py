"""The index of IDC: totals that were counted by hand, versions, conditions, and pseudonyms that headers will agree with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.deidentify import identify
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.idc_index import candidates, index_folder, newest_version, plan_idc, version_date
from lumid.pipeline.lock import LOCK, series_of
from lumid.pipeline.recipe import IdcSettings
from tests.dicom import gradient, image

KEYER = Keyer(PUBLIC_SECRET)
NEWEST = 25


# ---- the installed index


def test_version_25_of_lumids_collections_adds_up() -> None:
    found = candidates(IdcSettings(), 25, index_folder())
    patients = pc.binary_join_element_wise(found["collection"], found["patient_id"], "\n")
    assert (found.num_rows, pc.count_distinct(patients).as_py()) == (36_864, 5_119)
    if found["objects"].null_count == 0:  # in an index of a later version, what was revised is not counted
        assert pc.sum(found["objects"]).as_py() == 3_210_467
        assert pc.sum(found["bytes"]).as_py() == 1_923_116_873_874
    assert found["license"].null_count == found["doi"].null_count == 0


def test_version_20_was_smaller_and_has_a_series_that_is_gone_today() -> None:
    found = candidates(IdcSettings(), 20, index_folder())
    patients = pc.binary_join_element_wise(found["collection"], found["patient_id"], "\n")
    assert (found.num_rows, pc.count_distinct(patients).as_py()) == (33_632, 4_967)
    gone = [row for row in found.to_pylist() if row["uuid"] == "7dff90ea-47bc-4dec-bd73-2f8783ba5e1a"]
    assert [(row["modality"], row["objects"], row["license"]) for row in gone] == [("CR", None, "CC BY 4.0")]
    grew = found.filter(pc.equal(found["collection"], "cmb_lca"))
    assert pc.count_distinct(grew["patient_id"]).as_py() == 27


def test_what_lumid_grew_by_from_version_24_to_25() -> None:
    """What a build with the older version as its base has to fetch: docs/building.md."""
    before, after = (candidates(IdcSettings(), version, index_folder()) for version in (24, 25))
    new = after.filter(pc.invert(pc.is_in(after["uuid"], value_set=before["uuid"].combine_chunks())))
    assert (after.num_rows - new.num_rows, new.num_rows) == (34_903, 1_961)
    if after["objects"].null_count == 0:
        assert (pc.sum(new["bytes"]).as_py() // 10**9, pc.sum(after["bytes"]).as_py() // 10**9) == (144, 1_923)


def test_the_papers_counts_of_the_growing_collections_are_those_of_version_16() -> None:
    names = ("cmb_lca", "cmb_crc", "cmb_pca")
    found = candidates(IdcSettings(collections=names), 16, index_folder())
    patients = {
        name: pc.count_distinct(found.filter(pc.equal(found["collection"], name))["patient_id"]).as_py()
        for name in names
    }
    assert patients == {"cmb_lca": 10, "cmb_crc": 12, "cmb_pca": 3}


def test_conditions_hold_for_every_series_and_are_the_largest_such_set() -> None:
    every = candidates(IdcSettings(), 25, index_folder())
    slices = every["objects"].to_numpy()
    some = candidates(IdcSettings(min_slices=100, max_slices=200, max_series_mb=80.0), 25, index_folder())
    assert some.num_rows == int(((slices >= 100) & (slices <= 200) & (every["bytes"].to_numpy() <= 80e6)).sum()) > 1000
    scans = candidates(IdcSettings(modalities=("MR", "PT")), 25, index_folder())
    assert scans.num_rows == pc.sum(pc.is_in(every["modality"], pa.array(["MR", "PT"]))).as_py() > 1000
    free = candidates(IdcSettings(licenses=("commercial",)), 25, index_folder())
    assert free.num_rows == 36_864 - 229 - 120 - 89
    assert set(free["license"].to_pylist()) == {"CC BY 3.0", "CC BY 4.0"}
    assert set(candidates(IdcSettings(licenses=("CC BY-NC 3.0",)), 25, index_folder())["collection"].to_pylist()) == {
        "nsclc_radiomics_genomics"
    }


def test_version_dates() -> None:
    assert version_date(index_folder(), 20) == "2024-11-06"
    assert version_date(index_folder(), 10_000) is None
    assert newest_version(index_folder()) >= 25


# ---- a small index, with every kind of history


@dataclass(frozen=True)
class Revision:
    """A revision of a series, served from version ``first`` to ``last``."""

    uuid: str
    first: int
    last: int
    megabytes: float = 1.25
    slices: int = 3


@dataclass(frozen=True)
class History:
    """A series in IDC, its revisions one after the other."""

    uid: str
    revisions: tuple[Revision, ...]
    collection: str = "one"
    patient: str = "P1"
    modality: str = "CT"
    body_part: str | None = "CHEST"
    license: str = "CC BY 4.0"
    bucket: str = "idc-open-data"
    analysis: str | None = None
    sop_class: str = "1.2.840.10008.5.1.4.1.1.2"

    @property
    def series_uid(self) -> str:
        """The name as a UID."""
        return f"1.2.3.{int.from_bytes(self.uid.encode(), 'big')}"


def write_index(folder: Path, histories: list[History], newest: int = NEWEST) -> Path:
    """The two tables as IDC makes them: today's series, and those that an earlier version served and today's does not."""
    now, before = [], []
    for one in histories:
        for revision in one.revisions:
            common = {
                "collection_id": one.collection,
                "PatientID": one.patient,
                "SeriesInstanceUID": one.series_uid,
                "Modality": one.modality,
                "aws_bucket": one.bucket,
                "crdc_series_uuid": revision.uuid,
            }
            if revision.last >= newest:
                now.append(
                    common
                    | {
                        "analysis_result_id": one.analysis,
                        "source_DOI": "10.1/one",
                        "BodyPartExamined": one.body_part,
                        "SOPClassUID": one.sop_class,
                        "instanceCount": revision.slices,
                        "license_short_name": one.license,
                        "series_init_idc_version": min(each.first for each in one.revisions),
                        "series_revised_idc_version": revision.first,
                        "series_size_MB": revision.megabytes,
                    }
                )
            else:
                rounded = {"series_size_MB": round(revision.megabytes, 2)}
                # the bucket's name at Google changed with version 20: such a series is in two rows
                spans = [(revision.first, min(revision.last, 19)), (max(revision.first, 20), revision.last)]
                before += [
                    common | rounded | {"min_idc_version": first, "max_idc_version": last}
                    for first, last in spans
                    if first <= last
                ]
    text, number = pa.large_string(), pa.int64()
    shared = [
        pa.field(name, text)
        for name in ("collection_id", "PatientID", "SeriesInstanceUID", "Modality", "aws_bucket", "crdc_series_uuid")
    ]
    size = pa.field("series_size_MB", pa.float64())
    main = [
        *shared, size,
        *(pa.field(name, text) for name in ("analysis_result_id", "source_DOI", "BodyPartExamined", "SOPClassUID", "license_short_name")),
        *(pa.field(name, number) for name in ("instanceCount", "series_init_idc_version", "series_revised_idc_version")),
    ]  # fmt: skip
    prior = [*shared, size, pa.field("min_idc_version", number), pa.field("max_idc_version", number)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(now, schema=pa.schema(main)), folder / "idc_index.parquet")
    pq.write_table(pa.Table.from_pylist(before, schema=pa.schema(prior)), folder / "prior_versions_index.parquet")
    return folder


def always(uid: str, **facts: object) -> History:
    return History(uid, (Revision(f"u-{uid}", 1, NEWEST),), **facts)  # type: ignore[arg-type]


HISTORIES = [
    always("same"),
    History("revised", (Revision("old", 3, 21, megabytes=2.004), Revision("new", 22, NEWEST, slices=9))),
    History("removed", (Revision("gone", 5, 20),), collection="two"),
    History("added", (Revision("late", 21, NEWEST),)),
    always("report", modality="SR"),
    always("derived", analysis="somebodys_segmentations"),
    always("head", bucket="idc-open-data-two", body_part="Left Breast"),
    always("paid", license="CC BY-NC 4.0", bucket="idc-open-data-cr", patient="P2"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_index(tmp_path_factory.mktemp("index"), HISTORIES)
    sources = [
        {"source_type": "analysis_result", "source_doi": "10.1/theirs", "ImageTypes": "SEG", "license": {"license_short_name": "CC BY 3.0"}},
        {"source_type": "original_data", "source_doi": "10.1/slides", "ImageTypes": "SM", "license": {"license_short_name": "CC BY 4.0"}},
        {"source_type": "original_data", "source_doi": "10.1/two", "ImageTypes": "CT, MR", "license": {"license_short_name": "CC BY-NC 4.0"}},
    ]  # fmt: skip
    versions = [{"idc_version": number, "version_timestamp": f"2020-01-{number:02}"} for number in range(1, NEWEST + 1)]
    pq.write_table(pa.Table.from_pylist(versions), folder / "version_metadata_index.parquet")
    pq.write_table(
        pa.Table.from_pylist([{"collection_id": "two", "sources": sources}]), folder / "collections_index.parquet"
    )
    return folder


def both(**conditions: object) -> IdcSettings:
    return IdcSettings(collections=("one", "two"), **conditions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "uuids"),
    [
        (2, {"u-same", "u-head", "u-paid"}),
        (4, {"u-same", "u-head", "u-paid", "old"}),
        (20, {"u-same", "u-head", "u-paid", "old", "gone"}),
        (21, {"u-same", "u-head", "u-paid", "old", "late"}),
        (22, {"u-same", "u-head", "u-paid", "new", "late"}),
        (25, {"u-same", "u-head", "u-paid", "new", "late"}),
    ],
)
def test_a_version_has_the_revisions_that_it_served(index: Path, version: int, uuids: set[str]) -> None:
    found = candidates(both(), version, index)
    assert found.num_rows == len(uuids)
    assert set(found["uuid"].to_pylist()) == uuids


def test_an_earlier_revision_takes_its_terms_from_today_and_its_size_is_rounded(index: Path) -> None:
    rows = {row["uuid"]: row for row in candidates(both(), 20, index).to_pylist()}
    assert (rows["old"]["license"], rows["old"]["doi"], rows["old"]["objects"]) == ("CC BY 4.0", "10.1/one", None)
    assert rows["old"]["bytes"] == 2_000_000
    assert (rows["u-same"]["bytes"], rows["u-same"]["objects"]) == (1_250_000, 3)


def test_a_removed_series_takes_its_terms_from_the_collections_record_of_its_modality(index: Path) -> None:
    rows = {row["uuid"]: row for row in candidates(both(), 20, index).to_pylist()}
    assert (rows["gone"]["license"], rows["gone"]["doi"]) == ("CC BY-NC 4.0", "10.1/two")
    free = candidates(both(licenses=("commercial",)), 20, index)
    assert set(free["uuid"].to_pylist()) == {"u-same", "u-head", "old"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_gives_back_what_each_version_served(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    newest = 6
    histories = [always("anchor")]  # so that the index knows its newest version
    histories[0] = History("anchor", (Revision("anchor", newest, newest),))
    for number in range(data.draw(st.integers(1, 5))):
        begins = sorted(data.draw(st.sets(st.integers(1, newest), min_size=1, max_size=3)))
        until = data.draw(st.sampled_from([newest, *range(begins[-1], newest)]))
        ends = [begin - 1 for begin in begins[1:]] + [until]
        revisions = tuple(
            Revision(f"{number}-{begin}", begin, end) for begin, end in zip(begins, ends, strict=True) if begin <= end
        )
        histories.append(History(str(number), revisions))
    folder = write_index(tmp_path_factory.mktemp("history"), histories, newest)
    assert newest_version(folder) == newest
    for version in range(1, newest + 1):
        served = {r.uuid for one in histories for r in one.revisions if r.first <= version <= r.last}
        found = candidates(IdcSettings(collections=("one",)), version, folder)["uuid"].to_pylist()
        assert sorted(found) == sorted(served)


def test_conditions(index: Path) -> None:
    def uuids(**conditions: object) -> set[str]:
        return set(candidates(both(**conditions), 25, index)["uuid"].to_pylist())

    assert uuids(body_parts=("breast",)) == {"u-head"}
    assert uuids(body_parts=("thorax", "BREAST")) == uuids()
    assert uuids(min_slices=4) == {"new"}
    assert uuids(max_slices=8) == {"u-same", "u-head", "u-paid", "late"}
    assert uuids(max_series_mb=1.0) == set()
    assert uuids(sop_classes=("1.2.840.10008.5.1.4.1.1.4",)) == set()
    assert uuids(modalities=("MR",)) == set()
    assert uuids(analysis_results=True) == uuids() | {"u-derived"}
    assert uuids(licenses=("CC BY-NC 4.0",)) == {"u-paid"}
    assert uuids(exclude=("one",)) == set()


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        (IdcSettings(collections=("lidc_idr",)), ["lidc_idr", "did you mean 'lidc_idri'?"]),
        (IdcSettings(exclude=("pseudo_phi_dicom",)), ["pseudo_phi_dicom", "did you mean 'pseudo_phi_dicom_data'?"]),
        (IdcSettings(licenses=("CC BY",)), ["CC BY", "'CC BY 4.0'", "commercial"]),
        (IdcSettings(body_parts=("cheast",)), ["cheast", "did you mean 'CHEST'?"]),
        (IdcSettings(idc_version=10_000), ["idc_version = 10000", "pip install --upgrade idc-index-data"]),
    ],
)
def test_what_the_index_does_not_know_is_named(settings_: IdcSettings, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_idc(settings_, KEYER, "public")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the lock


def test_lock_rows_say_where_and_are_sorted(index: Path) -> None:
    lock = plan_idc(both(), KEYER, "public", index)
    assert lock.schema == LOCK
    rows = lock.to_pylist()
    assert [row["series"] for row in rows] == sorted(row["series"] for row in rows)
    urls = {row["location"]: row["urls"] for row in rows}
    assert urls["u-same"] == ["s3://idc-open-data/u-same/", "gs://idc-open-data/u-same/"]
    assert urls["u-head"] == ["s3://idc-open-data-two/u-head/", "gs://idc-open-idc1/u-head/"]
    assert urls["u-paid"] == ["s3://idc-open-data-cr/u-paid/", "gs://idc-open-cr/u-paid/"]
    assert {row["source_version"] for row in rows} == {"IDC v25"}
    for row, series in zip(rows, series_of(lock, 0), strict=True):
        assert (series.id, series.digest(), series.location) == (row["series"], row["digest"], row["location"])
    assert plan_idc(both(idc_version=4), KEYER, "public", index)["source_version"][0].as_py() == "IDC v4"


@pytest.mark.parametrize("policy", ["public", "private"])
def test_pseudonyms_are_those_that_the_headers_will_give(index: Path, policy: str) -> None:
    keyer = Keyer(b"k" * 32)
    lock = plan_idc(both(), keyer, policy, index)
    expected = set()
    for one in HISTORIES:
        header = FrameHeader(
            image(gradient(dtype=np.uint16), PatientID=one.patient, SeriesInstanceUID=one.series_uid), 0
        )
        made = identify(header, keyer, collection=one.collection, policy=policy, source_id="x")
        expected.add((made.patient, made.series))
    planned = set(zip(lock["patient"].to_pylist(), lock["series"].to_pylist(), strict=True))
    assert len(planned) == 5
    assert planned < expected
