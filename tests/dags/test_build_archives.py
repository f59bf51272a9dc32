"""Whole builds from archives that are played on this machine: planned, pinned, fetched, and every image accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pydicom
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer
from rich.console import Console

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import Manifest, read_manifest
from lumid.catalog.query import count_samples, read_catalog, run_sql
from lumid.catalog.shards import read_samples
from lumid.catalog.verify import verify
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.batches import make_batches
from lumid.pipeline.ingest import ingest
from lumid.pipeline.lock import read_lock, series_of, write_lock
from lumid.pipeline.plan import plan
from lumid.pipeline.recipe import (
    FetchSettings,
    FolderSettings,
    IdcSettings,
    NihSettings,
    Recipe,
    SampleSettings,
    ShardSettings,
    SplitSettings,
    TciaSettings,
)
from lumid.pipeline.sources import nih as nih_module
from lumid.pipeline.sources import open_source
from tests.dags.command import content
from tests.dicom import TEST_FILES, as_bytes, gradient, image
from tests.fake_nbia import BASE, GET_ZIP, KEYER, Archive, Listed, real, zipped
from tests.fake_nih import HEADER, described, png, tar_gz
from tests.pipeline.test_idc_index import History, Revision, write_index
from tests.servers import Fault, Server

pytestmark = pytest.mark.whole

ONE, TWO = 1, 2


def pinned_build(recipe: Recipe, out: Path, workers: int, index: Path | None = None) -> Manifest:
    """Plan, write the lock, read it, and build from it: what three commands of a user do."""
    path = out.with_name(f"{out.name}.lock.parquet")
    write_lock(path, plan(recipe, index).lock, recipe)
    lock, same = read_lock(path, recipe)
    assert same is recipe
    return built(recipe, out, workers, lock)


def built(recipe: Recipe, out: Path, workers: int, lock: pa.Table) -> Manifest:
    made = build(recipe, out, ClusterSettings(None, workers), BuildProgress(Console(quiet=True)), lock)
    assert not made.already_finished
    checked = verify(out, deep=True)
    assert checked.sound, checked.findings
    return made.manifest


def rows(root: Path, where: str = "true") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_catalog(root, where).to_pylist()
    return found


def rejects(root: Path) -> list[tuple[str, str, int, str]]:
    """Collection, code, frames and the detail in brackets of every reject."""
    table = run_sql(root, "SELECT collection, code, frames, message FROM rejects ORDER BY ALL")
    return [
        (row["collection"], row["code"], row["frames"], row["message"].rpartition(" (")[2].rstrip(")"))
        for row in table.to_pylist()
    ]


# ---- The Cancer Imaging Archive


def scans(number: int, slices: int, **elements: object) -> dict[str, bytes]:
    """A series of CT slices of a patient."""
    return {
        f"1-{place:03d}.dcm": as_bytes(
            image(
                gradient(96, 80, high=900 + 10 * number + place), SOPInstanceUID=f"1.2.7.{number}.{place}", PatientID=f"R-{number}",
                SeriesInstanceUID=f"1.2.7.{number}", StudyInstanceUID=f"1.2.7.{number}.0", RescaleSlope=1,
                RescaleIntercept=-1024, PixelSpacing=[0.7, 0.7], PatientName="Doe^Jane", **elements,
            )
        )
        for place in range(1, slices + 1)
    }  # fmt: skip


CT_SMALL, MR_SMALL = real("CT_small.dcm"), real("MR_small.dcm")


def tcia_series() -> list[Listed]:
    """Two real series, two made ones, one that always comes broken, and one that is listed and not served."""
    found = []
    for files in (CT_SMALL, MR_SMALL):
        header = pydicom.dcmread(
            TEST_FILES / {"CT": "CT_small.dcm", "MR": "MR_small.dcm"}["CT" if files is CT_SMALL else "MR"]
        )
        found.append(
            Listed(str(header.SeriesInstanceUID), files, patient=str(header.PatientID), modality=str(header.Modality),
                   study=str(header.StudyInstanceUID))
        )  # fmt: skip
    found += [Listed(f"1.2.7.{number}", scans(number, 3 + number), patient=f"R-{number}") for number in (1, 2, 3)]
    found.append(Listed("1.2.7.4", scans(4, 4), patient="R-4"))
    return found


@pytest.fixture
def tcia() -> Iterator[Archive]:
    with Server() as server:
        archive = Archive(server, tcia_series())
        archive.publish()
        archive.zips["1.2.7.3"] = zipped(archive.series[4].files)[:-50]
        archive.gone = frozenset({"1.2.7.4"})
        yield archive


def fetch_from(archive: Archive | None = None, **values: object) -> FetchSettings:
    nbia = {"nbia_url": archive.server.url + BASE.rstrip("/")} if archive else {}
    return FetchSettings.model_validate({"attempts": 2, "timeout_s": 5} | nbia | values)


def tcia_recipe(archive: Archive) -> Recipe:
    return Recipe(
        name="tcia", sources=(TciaSettings(collections=("LIDC-IDRI",)),), fetch=fetch_from(archive),
        shards=ShardSettings(batch_slices=3),
    )  # fmt: skip


def test_collections_of_tcia_are_planned_and_built(tcia: Archive, tmp_path: Path) -> None:
    recipe = tcia_recipe(tcia)
    one = pinned_build(recipe, tmp_path / "one", ONE)
    # 1 + 1 slices that are real, 4 + 5 that were made; 6 always come broken, 4 are not served
    assert (one.counts.objects, one.counts.planned, one.counts.kept) == (21, 21, 11)
    assert one.rejects == {"fetch_failed": 10}
    assert rejects(tmp_path / "one") == [
        ("lidc_idri", "fetch_failed", 4, "HTTP 404"),
        ("lidc_idri", "fetch_failed", 6, "not a whole zip"),
    ]
    asked = [request.query["SeriesInstanceUID"] for request in tcia.server.requests(GET_ZIP)]
    assert {uid: asked.count(uid) for uid in asked} == {one.uid: 1 for one in tcia.series} | {"1.2.7.3": 2}
    pinned_build(recipe, tmp_path / "two", TWO)
    assert content(tmp_path / "one") == content(tmp_path / "two")

    found = rows(tmp_path / "one")
    for row in found:
        assert (row["collection"], row["source"], row["source_version"]) == ("lidc_idri", "tcia", "TCIA 2014-05-31")
        assert (row["license"], row["doi"]) == ("CC BY 3.0", "10.7937/k9/tcia.2015.lo9ql9sx")
        assert row["labels"] is None
        assert row["split"] in ("train", "val", "test")
    assert {row["modality"] for row in found} == {"CT", "MR"}
    lock = {row["series"]: row["patient"] for row in plan(recipe).lock.to_pylist()}
    assert all(lock[row["series"]] == row["patient"] for row in found), "the plan knows whom the headers will name"
    assert sorted(row["slice_count"] for row in found) == [1, 1, 4, 4, 4, 4, 5, 5, 5, 5, 5]
    assert "Doe" not in str(found) + str(rejects(tmp_path / "one"))


# ---- the chest X-rays

PATIENTS = {1: 3, 2: 2, 3: 2, 4: 1, 5: 3, 6: 1}
"""Images of each patient; 2 and 5 are those of the official test list."""
HELD_OUT = (2, 5)
LABELLED = ("Mass|Nodule", "No Finding", "Effusion", "Pneumonia|Infiltration")
XRAYS = [
    (f"{patient:08d}_{number:03d}.png", patient, LABELLED[(patient + number) % 4])
    for patient, count in PATIENTS.items()
    for number in range(count)
]


def xray(number: int) -> bytes:
    return png((gradient(90, 100, np.int32, 200) + number).astype(np.uint8))


MEMBERS = [(name, xray(number)) for number, (name, _, _) in enumerate(XRAYS)]
# patient 3 is in both, as patients of the real archives are
PACKED = {"/static/aa.gz": tar_gz(*MEMBERS[:6]), "/static/bb.gz": tar_gz(*MEMBERS[6:], ("00000099_000.png", xray(99)))}
ARCHIVES = tuple(
    described(f"images_{number:03d}.tar.gz", path.rpartition("/")[2], data)
    for number, (path, data) in enumerate(PACKED.items(), start=1)
)


def write_xray_tables(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        f"{name},{labels},{name[9:12]},{patient},{40 + patient},F,PA,2500,2048,0.168,0.168,\n"
        for name, patient, labels in XRAYS
    ]
    (folder / "Data_Entry_2017_v2020.csv").write_text(HEADER + "".join(lines))
    for file, test in (("train_val_list.txt", False), ("test_list.txt", True)):
        (folder / file).write_text("\n".join(name for name, patient, _ in XRAYS if (patient in HELD_OUT) is test))
    return folder


@dataclass
class Xrays:
    """The server of the archives, and a folder for each build that must not find what another has fetched."""

    server: Server
    base: Path

    def folder(self, name: str) -> Path:
        path = self.base / name
        return path if path.is_dir() else write_xray_tables(path)

    def recipe(self, folder: str, **values: Any) -> Recipe:
        source = NihSettings(path=str(self.folder(folder)), archives=(1, 2))
        settings = {"fetch": fetch_from(nih_url=self.server.url + "/static"), "splits": SplitSettings(val=0.5, test=0)}
        return Recipe(name="xrays", sources=(source,), **(settings | values))


@pytest.fixture
def xrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xrays]:
    monkeypatch.setattr(nih_module, "ARCHIVES", ARCHIVES)
    with Server(dict(PACKED)) as server:
        yield Xrays(server, tmp_path)


def test_chest_xrays_carry_their_labels_and_the_official_split(xrays: Xrays, tmp_path: Path) -> None:
    one = pinned_build(xrays.recipe("a"), tmp_path / "one", ONE)
    assert (one.counts.planned, one.counts.kept, one.rejects) == (13, 12, {"not_listed": 1})
    fetched = len(xrays.server.log)
    offline = xrays.recipe("a", fetch=fetch_from(nih_url=xrays.server.url + "/static", offline=True))
    pinned_build(offline, tmp_path / "two", TWO)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(xrays.server.log) == fetched == 2

    found = {row["source_id"]: row for row in rows(tmp_path / "one")}
    assert set(found) == {name for name, _, _ in XRAYS}
    for name, patient, labels in XRAYS:
        row = found[name]
        assert row["labels"] == sorted(labels.split("|"))
        assert row["patient"] == KEYER.pseudonym("patient", "nih_chest_xray", str(patient))
        assert (row["split"] == "benchmark") == (patient in HELD_OUT)
        assert (row["modality"], row["body_part"], row["view_position"]) == ("DX", "CHEST", "PA")
        assert (row["sex"], row["age_years"], row["source_version"]) == ("F", 40 + patient, "ChestX-ray14")
        assert (row["collection"], row["source"]) == ("nih_chest_xray", "nih")
        assert row["doi"] == "10.1109/CVPR.2017.369"
        assert row["license"]
        assert row["pixel_spacing_column"] == pytest.approx(0.168 * 2500 / 100)
    assert {row["split"] for row in found.values()} > {"benchmark"}, "the others are drawn as everyone is"
    assert count_samples(tmp_path / "one", "list_contains(labels, 'Mass')") == sum("Mass" in one[2] for one in XRAYS)
    assert count_samples(tmp_path / "one", "len(labels) = 2") == sum("|" in one[2] for one in XRAYS)
    by_key = {row["key"]: row for row in found.values()}
    for shard in read_manifest(tmp_path / "one").shards:
        for key, _, fields in read_samples(tmp_path / "one" / "shards" / shard.name):
            assert fields["labels"] == by_key[key]["labels"]


def test_an_archive_that_broke_off_goes_on_in_the_next_build_and_what_is_whole_is_not_fetched_again(
    xrays: Xrays, tmp_path: Path
) -> None:
    recipe = xrays.recipe("a")
    lock = plan(recipe).lock
    xrays.server.faults["/static/aa.gz"] = [Fault("truncate", after=1000), Fault("truncate", after=500)]
    broken = built(recipe, tmp_path / "broken", ONE, lock)
    assert broken.rejects == {"fetch_failed": 1, "not_listed": 1}
    assert rejects(tmp_path / "broken")[0] == ("nih_chest_xray", "fetch_failed", 1, "the connection broke off")
    before = len(xrays.server.log)
    built(recipe, tmp_path / "whole", ONE, lock)
    (request,) = xrays.server.log[before:]
    assert (request.path, request.headers["Range"]) == ("/static/aa.gz", "bytes=1500-")
    assert {path.name for path in xrays.folder("a").glob("images*")} == {one.name for one in ARCHIVES}


def test_two_workers_that_want_one_archive_fetch_it_once(xrays: Xrays, tmp_path: Path) -> None:
    path, archive = "/static/aa.gz", ARCHIVES[0]
    xrays.server.faults[path] = [Fault("drip", step=len(PACKED[path]) // 20, every_s=0.1)] * 9
    source = NihSettings(path=str(xrays.folder("a")), archives=(1,))
    recipe = xrays.recipe("a").model_copy(update={"sources": (source, source)})
    made = pinned_build(recipe, tmp_path / "out", TWO)
    assert (made.counts.planned, made.counts.kept, made.rejects) == (12, 6, {"duplicate_instance": 6})
    assert (xrays.folder("a") / archive.name).read_bytes() == PACKED[path]
    assert len(xrays.server.requests(path)) == 1, "the second worker waits for the first"


def test_a_sample_is_of_whole_patients(xrays: Xrays, tmp_path: Path) -> None:
    draws = {
        patient: KEYER.fraction(
            "sample", "0", "nih_chest_xray", KEYER.pseudonym("patient", "nih_chest_xray", str(patient))
        )
        for patient in (*PATIENTS, 99)
    }
    drawn = sorted(PATIENTS, key=lambda patient: draws[patient])[:3]
    fraction = draws[drawn[-1]] + 1e-9
    recipe = xrays.recipe("a", sample=SampleSettings(fraction=fraction))
    source = open_source(recipe, 0, KEYER)
    batches = make_batches(series_of(plan(recipe).lock, 0), 0, recipe.hash(), 1000)
    made = [ingest(batch, source, recipe, KEYER) for batch in batches]
    source.close()
    expected = sorted(name for name, patient, _ in XRAYS if patient in drawn)
    assert sorted(sample.row.source_id for one in made for sample in one.samples) == expected
    unlisted = ["00000099_000.png"] if draws[99] < fraction else []
    assert [reject.source_id for one in made for reject in one.rejects] == unlisted
    assert sum(one.planned for one in made) == len(expected + unlisted), "what is left out is not planned"


def test_other_tables_than_the_lock_pins_end_a_build_in_one_line(xrays: Xrays, tmp_path: Path) -> None:
    recipe = xrays.recipe("a")
    lock = plan(recipe).lock
    table = xrays.folder("a") / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Effusion", "Edema"))
    with pytest.raises(LumidError, match=r"not those that the lock pins; .* lumid plan RECIPE --out LOCK") as caught:
        built(recipe, tmp_path / "out", ONE, lock)
    assert "\n" not in str(caught.value)
    assert xrays.server.log == []


# ---- all of them


@pytest.fixture(scope="module")
def idc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a bucket with two series, and the folder of the index that lists them and one that is not there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", aws_access_key_id="test",
            aws_secret_access_key="test", config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip
        client.create_bucket(Bucket="idc-open-data", ACL="public-read")
        histories = []
        for number in (11, 12, 13):
            uuid = f"0000000{number % 10}-0000-4000-8000-000000000000"
            files = scans(number, 4)
            for name, data in files.items() if number < 13 else ():
                client.put_object(Bucket="idc-open-data", Key=f"{uuid}/{name}", Body=data, ACL="public-read")
            megabytes = sum(map(len, files.values())) / 1e6
            histories.append(
                History(
                    str(number),
                    (Revision(uuid, 25, 25, megabytes, 4),),
                    "tcga_read",
                    f"R-{number}",
                    license="CC BY 3.0",
                )
            )
        yield f"http://{host}:{port}", write_index(tmp_path_factory.mktemp("index"), histories)
    finally:
        server.stop()


def test_one_recipe_of_every_kind_of_source(idc: tuple[str, Path], tcia: Archive, xrays: Xrays, tmp_path: Path) -> None:
    endpoint, index = idc
    study = tmp_path / "study"
    study.mkdir()
    for name, data in scans(21, 5).items():
        (study / name).write_bytes(data)
    (study / "again.dcm").write_bytes(scans(11, 1)["1-001.dcm"])  # which IDC has, too
    recipe = Recipe(
        name="mixed",
        sources=(
            IdcSettings(collections=("tcga_read",), idc_version=25),
            TciaSettings(collections=("LIDC-IDRI",)),
            NihSettings(path=str(xrays.folder("a")), archives=(1, 2)),
            FolderSettings(path=str(study), collection="mine", license="CC BY-NC 4.0", version="of May"),
        ),
        fetch=fetch_from(tcia, nih_url=xrays.server.url + "/static", s3_endpoint=endpoint, gs_endpoint=endpoint),
        shards=ShardSettings(batch_slices=4, size_mb=0.05),
    )  # fmt: skip
    made = pinned_build(recipe, tmp_path / "mixed", TWO, index)
    assert made.counts.kept == 8 + 11 + 12 + 5
    assert made.rejects == {"fetch_failed": 4 + 10, "not_listed": 1, "duplicate_instance": 1}
    assert len(made.shards) > 1
    told = run_sql(
        tmp_path / "mixed",
        "SELECT source, collection, license, doi, source_version, count(*) AS n, count(labels) AS labelled "
        "FROM catalog GROUP BY ALL ORDER BY ALL",
    ).to_pylist()
    assert [tuple(row.values()) for row in told] == [
        ("folder", "mine", "CC BY-NC 4.0", None, "of May", 5, 0),
        ("idc", "tcga_read", "CC BY 3.0", "10.1/one", "IDC v25", 8, 0),
        ("nih", "nih_chest_xray", "unrestricted with attribution (NIH terms)", "10.1109/CVPR.2017.369", "ChestX-ray14", 12, 12),
        ("tcia", "lidc_idri", "CC BY 3.0", "10.7937/k9/tcia.2015.lo9ql9sx", "TCIA 2014-05-31", 11, 0),
    ]  # fmt: skip
    assert b"Doe" not in b"".join(path.read_bytes() for path in (tmp_path / "mixed" / "rejects").iterdir())
    for name in ("lidc_idri", "nih_chest_xray", "tcga_read"):
        assert (
            name in (tmp_path / "mixed" / "LICENSES.md").read_text() + (tmp_path / "mixed" / "CITATION.bib").read_text()
        )
