"""Growing: a new data set on the base of a finished one is the one that a build of everything gives."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lumid.catalog.diff import diff
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Counts, Layout, Manifest, read_manifest
from lumid.catalog.paths import data_path
from lumid.catalog.schema import REJECTS
from lumid.catalog.verify import verify
from lumid.dags import base as laying
from lumid.dags import build as building
from lumid.dags import grow
from lumid.dags.base import Finished
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.grow import check_growth, open_base, plan_growth, same_series
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import LOCK
from lumid.pipeline.recipe import (
    AnySource,
    DeidSettings,
    FetchSettings,
    FolderSettings,
    IdcSettings,
    NihSettings,
    PixelSettings,
    Recipe,
    SampleSettings,
    SelectSettings,
    ShardSettings,
    SplitSettings,
    TciaSettings,
)
from tests.dags.archive import assert_same, ct
from tests.dags.command import content, lumid, start, stored
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import s3_client, s3_server

pytestmark = pytest.mark.whole

KEYER = Keyer(PUBLIC_SECRET)
BUCKET = "idc-growing"
LONG_AGO = 1_600_000_000


@dataclass(frozen=True)
class Held:
    """A version of a series in the archive."""

    location: str
    uid: str
    objects: Mapping[str, bytes]
    collection: str = "lidc_idri"
    license: str = "CC BY 3.0"


def slices(uid: str, numbers: Sequence[int], **elements: Any) -> dict[str, bytes]:
    return {f"{number:08x}.dcm": ct(uid, number, **elements) for number in numbers}


def mr(uid: str, numbers: Sequence[int]) -> dict[str, bytes]:
    """Slices whose pixels depend on all of the series: on its range."""
    return {
        f"{number:08x}.dcm": as_bytes(
            image(
                gradient(high=300 + 100 * number),
                Modality="MR",
                PatientID=uid,
                SeriesInstanceUID=uid,
                SOPInstanceUID=f"{uid}.{number}",
                StudyInstanceUID=f"{uid}.0",
                BodyPartExamined="NO SUCH PART",
            )
        )
        for number in numbers
    }


def lock_of(held: Sequence[Held], version: int) -> pa.Table:
    rows = [
        dict.fromkeys(LOCK.names)
        | {"recipe_source": 0, "source": "idc", "collection": one.collection, "license": one.license, "bytes": 1,
           "source_version": f"IDC v{version}", "digest": one.location, "location": one.location, "objects": len(one.objects),
           "series": KEYER.pseudonym("series", one.uid), "urls": [f"s3://{BUCKET}/{one.location}/"]}
        for one in held
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


def recipe_of(*sources: AnySource, **more: Any) -> Recipe:
    fetch = FetchSettings(s3_endpoint=s3_server(), gs_endpoint="http://127.0.0.1:9", attempts=1, timeout_s=5)
    return Recipe(
        name="growing", sources=sources, fetch=fetch, shards=ShardSettings(size_mb=0.02, batch_slices=4), **more
    )


@dataclass(frozen=True)
class Builder:
    """Builds on the shared cluster, and what it said last."""

    cluster: ClusterSettings
    said: io.StringIO

    def __call__(self, recipe: Recipe, out: Path, lock: pa.Table | None = None, base: Path | None = None) -> Manifest:
        self.said.truncate(self.said.seek(0))
        console = Console(file=self.said, width=200)
        return build(recipe, out, self.cluster, BuildProgress(console), lock, base).manifest


@pytest.fixture
def run(shared_cluster: ClusterSettings) -> Builder:
    return Builder(shared_cluster, io.StringIO())


# ---- a newer version of an archive


IDC = IdcSettings(collections=("lidc_idri",))
SAME = Held("same", "1.2.1", slices("1.2.1", range(3), Manufacturer="nobody knows"))
OTHER_TERMS = Held("terms", "1.2.2", slices("1.2.2", range(2)))
GONE = Held("gone", "1.2.3", mr("1.2.3", range(2)))
BEFORE = Held("grew-1", "1.2.4", mr("1.2.4", range(2)))
AFTER = replace(BEFORE, location="grew-2", objects=mr("1.2.4", range(3)))
BROKEN = Held("broken", "1.2.5", {"0.dcm": ct("1.2.5", 0), "1.dcm": ct("1.2.5", 1)[:-3000]})
NEW = Held("new", "1.2.6", slices("1.2.6", range(2)))
UNFETCHED = Held("late", "1.2.7", slices("1.2.7", range(2)))
VERSION_25 = (SAME, OTHER_TERMS, GONE, BEFORE, BROKEN, UNFETCHED)
VERSION_26 = (SAME, replace(OTHER_TERMS, license="CC BY 4.0"), AFTER, BROKEN, NEW, UNFETCHED)


@pytest.fixture(scope="module")
def archive() -> Any:
    client = s3_client(s3_server())
    client.create_bucket(Bucket=BUCKET, ACL="public-read")
    return client


def give(archive: Any, *held: Held) -> None:
    for one in held:
        for name, data in one.objects.items():
            archive.put_object(Bucket=BUCKET, Key=f"{one.location}/{name}", Body=data, ACL="public-read")


def take_away(archive: Any, *held: Held) -> None:
    for one in held:
        for name in one.objects:
            archive.delete_object(Bucket=BUCKET, Key=f"{one.location}/{name}")


@dataclass(frozen=True)
class Versions:
    """Two data sets as a build from nothing makes them, ``old`` of the older version and ``new`` of the newer."""

    old: Path
    new: Path


@pytest.fixture(scope="module")
def versions(archive: Any, shared_cluster: ClusterSettings, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """One series could not be fetched when the older was built. Now the archive has nothing but what is new."""
    run, folder = Builder(shared_cluster, io.StringIO()), tmp_path_factory.mktemp("versions")
    give(archive, *VERSION_26)
    run(recipe_of(IDC), folder / "v26", lock_of(VERSION_26, 26))
    take_away(archive, *VERSION_26)
    give(archive, SAME, OTHER_TERMS, GONE, BEFORE, BROKEN)
    made = run(recipe_of(IDC), folder / "v25", lock_of(VERSION_25, 25))
    assert made.rejects == {"fetch_failed": 2, "truncated": 1}
    take_away(archive, *VERSION_25)
    give(archive, AFTER, NEW, UNFETCHED)
    return Versions(folder / "v25", folder / "v26")


def test_a_newer_version_builds_what_is_new_and_equals_a_build_from_nothing(
    versions: Versions, run: Builder, tmp_path: Path
) -> None:
    """Series that stay are not asked for (they are not there any more); what the lock says of them is that of today."""
    made = run(recipe_of(IDC), tmp_path / "grown", lock_of(VERSION_26, 26), versions.old)
    assert "from the base: 3 series; to be built: 3" in run.said.getvalue()
    assert (made.build["base_series"], made.build["series"]) == (3, 6)
    assert made.unknown == {"body_part": 3, "manufacturer": 3}
    assert_same(tmp_path / "grown", versions.new)
    rows = pq.read_table(tmp_path / "grown" / "catalog", partitioning=None)
    assert set(rows["source_version"].to_pylist()) == {"IDC v26"}


def test_a_plan_and_a_diff_say_what_is_new(versions: Versions) -> None:
    found = plan_growth(versions.old, recipe_of(IDC), lock_of(VERSION_26, 26))
    assert found == grow.Growth(str(versions.old), 3, 3, 3 / 1e9)
    difference = diff(versions.old, versions.new)
    locks = difference.locks
    assert locks is not None
    assert (locks.shared, len(locks.changed), len(locks.only_a), len(locks.only_b)) == (4, 1, 1, 1)
    total = difference.total
    # of the series that grew the first slices have other pixels: those depend on the range of all
    assert (total.in_a, total.in_b, total.same, total.other_pixels) == (10, 13, 6, 2)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (laying, "read_manifest"),
        (building, "ingest_batches"),
        pytest.param(building, "pack", marks=pytest.mark.slow),
        (building, "write_citations"),
    ],
)
def test_a_growth_that_is_stopped_goes_on(
    where: Any, name: str, versions: Versions, run: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the base is laid out, or after; and after, the base is not needed any more."""
    lock = lock_of(VERSION_26, 26)
    base = shutil.copytree(versions.old, tmp_path / "base")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, stopped_second() if where is laying else stopped)
        with pytest.raises(LumidError, match="stopped"):
            run(recipe_of(IDC), tmp_path / "grown", lock, base)
    if where is not laying:
        shutil.rmtree(base)
    run(recipe_of(IDC), tmp_path / "grown", lock, base if where is laying else None)
    assert_same(tmp_path / "grown", versions.new)


def stopped(*_: object) -> None:
    raise LumidError("stopped")


def stopped_second() -> Callable[[Path], Manifest]:
    """Reads a manifest once, and stops the second time: when every part of a base is laid, and it is not whole yet."""
    calls: list[Path] = []

    def read(root: Path) -> Manifest:
        calls.append(root)
        if len(calls) > 1:
            raise LumidError("stopped")
        return read_manifest(root)

    return read


@pytest.mark.slow
def test_from_a_folder_into_a_store_and_back(versions: Versions, bucket: tuple[str, Any], tmp_path: Path) -> None:
    """With own workers: they have the credentials of the test in their environment."""
    run = Builder(ClusterSettings(None, 1), io.StringIO())
    url, lock = f"s3://{bucket[0]}/grown", lock_of(VERSION_26, 26)
    assert run(recipe_of(IDC), data_path(url), lock, versions.old).build["base_series"] == 3
    assert stored(url) == content(versions.new)
    again = lock_of([replace(one, license="CC0") for one in VERSION_26], 27)
    assert run(recipe_of(IDC), tmp_path / "back", again, data_path(url)).build["base_series"] == 6
    assert verify(tmp_path / "back", deep=True).sound
    assert set(pq.read_table(tmp_path / "back" / "catalog")["license"].to_pylist()) == {"CC0"}


# ---- refused


def changed(base: Path, **changes: Any) -> Path:
    text = Layout(base).manifest.read_text("utf-8")
    Layout(base).manifest.write_text(json.dumps(json.loads(text) | changes))
    return base


@pytest.fixture
def base(versions: Versions, tmp_path: Path) -> Path:
    return shutil.copytree(versions.old, tmp_path / "base")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pixels": PixelSettings(codec="png")}, "pixels.codec = 'jhc' .here 'png'."),
        ({"select": SelectSettings(stride=2)}, "select.stride = 1 .here 2."),
        ({"deid": DeidSettings(exclude_head_slices=True)}, "deid.exclude_head_slices = False .here True."),
        ({"splits": SplitSettings(val=0.5)}, "splits.val = 0.01 .here 0.5."),
    ],
)
def test_other_settings_are_refused_by_name(settings: dict[str, Any], match: str, versions: Versions) -> None:
    with pytest.raises(UsageError, match=match):
        open_base(versions.old, recipe_of(IDC, **settings))


def test_settings_that_decide_nothing_of_a_series_may_be_others(versions: Versions) -> None:
    select = SelectSettings(max_series=3, exact_duplicates="keep")
    recipe = recipe_of(IDC, select=select, sample=SampleSettings(fraction=0.5), deid=DeidSettings(search=("other",)))
    assert open_base(versions.old, recipe.model_copy(update={"name": "another"})).layout.root == versions.old


def test_what_cannot_be_a_base_is_refused_in_a_line(base: Path, tmp_path: Path, run: Builder) -> None:
    recipe = recipe_of(IDC)
    manifest = json.loads(Layout(base).manifest.read_text())
    with pytest.raises(DatasetError, match="not a data set"):
        open_base(tmp_path / "nothing", recipe)
    with pytest.raises(UsageError, match="is the base itself"):
        open_base(base, recipe, base)
    with pytest.raises(UsageError, match=r"was built with numpy 1.0 .here .*install what it was built with"):
        open_base(changed(base, libraries=manifest["libraries"] | {"numpy": "1.0"}), recipe)
    with pytest.raises(UsageError, match=r"was built with lumid 99.0 .here"):
        open_base(changed(base, libraries=manifest["libraries"], lumid_version="99.0"), recipe)
    with pytest.raises(UsageError, match="was extracted from another data set"):
        open_base(changed(base, lumid_version=manifest["lumid_version"], recipe={"extract": {}}), recipe)
    changed(base, recipe=manifest["recipe"])
    with pytest.raises(UsageError, match="none of its 6 series is the same"):
        run(recipe, tmp_path / "grown", lock_of([replace(SAME, location="other")], 26), base)
    rejects = base / "rejects" / "part-00000.parquet"
    pq.write_table(pq.read_table(rejects).replace_schema_metadata(None), rejects)
    with pytest.raises(UsageError, match="does not say which series have values that no vocabulary knows"):
        open_base(base, recipe)


def test_nothing_is_grown_from_a_damaged_data_set(base: Path, run: Builder, tmp_path: Path) -> None:
    shard = next((base / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="is damaged, and is not built on"):
        run(recipe_of(IDC), tmp_path / "grown", lock_of(VERSION_26, 26), base)


def test_a_build_that_began_without_goes_on_without(versions: Versions, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "begun")
    layout.parts.mkdir(parents=True)
    assert check_growth(layout, versions.old, recipe_of(IDC)) is not None
    (layout.parts / "a-batch.parquet").touch()
    with pytest.raises(UsageError, match="unfinished build that began without --base"):
        check_growth(layout, versions.old, recipe_of(IDC))
    assert check_growth(layout, None, recipe_of(IDC)) is None


def test_another_lock_is_not_gone_on_with(
    versions: Versions, run: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "ingest_batches", stopped)
    with pytest.raises(LumidError, match="stopped"):
        run(recipe_of(IDC), tmp_path / "grown", lock_of(VERSION_26, 26), versions.old)
    with pytest.raises(UsageError, match="an unfinished build of another lock"):
        run(recipe_of(IDC), tmp_path / "grown", lock_of(VERSION_26[:4], 26), versions.old)


# ---- one more source


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Files that were there long before anything was built."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return folder


HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def folders(*paths: Path, exact: Any = "flag", most: int | None = None) -> Recipe:
    sources = tuple(FolderSettings(path=str(path), collection=path.name, license="CC0") for path in paths)
    return recipe_of(*sources, select=SelectSettings(exact_duplicates=exact, max_series=most))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three folders: of the first the second has a copy, and an instance under another series' name, as has the third."""
    root = tmp_path_factory.mktemp("places")
    files = {f"{series}-{number}": ct(f"1.3.{series}", number, **HU) for series in range(5) for number in range(2)}
    one = write(root / "one", files | {"text": b"no image"})
    two = write(root / "two", {"copy": files["1-0"], "other-series": ct("1.3.9", 3, "1.3.2.1", **HU)})
    twins = {f"twin-{number}": ct(f"1.4.{number}", number, f"1.4.{number}.0", **HU) for number in range(2)}
    return one, two, write(root / "three", twins | {"instance": ct("1.4.7", 5, "1.3.3.0", **HU)})


@pytest.mark.parametrize("exact", [pytest.param("flag", marks=pytest.mark.slow), "drop"])
def test_one_more_folder_before_the_first(
    exact: Any, places: tuple[Path, Path, Path], run: Builder, tmp_path: Path
) -> None:
    """The lock's rows are renumbered; instances and pixels that both have are decided anew; a file has changed."""
    one, two, three = (shutil.copytree(place, tmp_path / place.name) for place in places)
    run(folders(one, two, exact=exact), tmp_path / "base")
    shutil.copyfile(one / "4-1", one / "0-1")  # another image of the same size
    made = run(folders(three, two, one, exact=exact), tmp_path / "grown", base=tmp_path / "base")
    assert 0 < made.build["base_series"] < made.build["series"]
    run(folders(three, two, one, exact=exact), tmp_path / "scratch")
    assert_same(tmp_path / "grown", tmp_path / "scratch")


@pytest.mark.slow
def test_a_cap_on_series_draws_anew(places: tuple[Path, Path, Path], run: Builder, tmp_path: Path) -> None:
    """What a cap left out of the base is read now; what it leaves out now is not taken."""
    one, _, three = places
    last = tmp_path / "none"
    for number, most in enumerate((None, 2, 4, None)):
        recipe = folders(*((one,) if number == 0 else (one, three)), most=most)
        run(recipe, tmp_path / f"{number}", base=last if number else None)
        run(recipe, tmp_path / f"{number}-scratch")
        assert_same(tmp_path / f"{number}", tmp_path / f"{number}-scratch")
        last = tmp_path / f"{number}"


@pytest.mark.slow
def test_killed_at_any_time_a_growth_goes_on(recipe: Path, study: Path, tmp_path: Path) -> None:
    """`kill -9` of the command line and its workers, again and again, later each time."""
    more = write(tmp_path / "more", {f"{number}": ct("1.5.1", number) for number in range(3)})
    larger = tmp_path / "larger.toml"
    larger.write_text(recipe.read_text() + f'[[sources]]\nkind = "folder"\npath = "{more}"\ncollection = "more"\n')
    for path in study.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert lumid("build", recipe, "--out", tmp_path / "base", "--workers", "1").returncode == 0
    command = ("build", larger, "--out", tmp_path / "grown", "--base", tmp_path / "base", "--workers", "1")
    for attempt in range(20):
        process = start(*command)
        try:
            process.wait(timeout=2 * 1.5**attempt)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0
    assert read_manifest(tmp_path / "grown").build["base_series"] == 25
    assert lumid("build", larger, "--out", tmp_path / "scratch", "--workers", "1").returncode == 0
    assert_same(tmp_path / "grown", tmp_path / "scratch")


# ---- which series are the same


def pinned(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(LOCK.names) | {"recipe_source": 0} | row for row in rows], schema=LOCK)


def base_of(recipe: Recipe, lock: pa.Table, rejects: Sequence[dict[str, Any]] = ()) -> Finished:
    """A data set of which only the books are there."""
    manifest = Manifest(
        name="base", format_version=3, lumid_version="", recipe=recipe.canonical(), recipe_hash="", lock_hash="",
        catalog_hash="", libraries={}, counts=Counts(0, 0, 0, 0), modalities={}, rejects={}, shards=(), build={},
    )  # fmt: skip
    rows = [dict.fromkeys(REJECTS.names) | {"frames": 1, "stage": "", "message": ""} | row for row in rejects]
    return Finished(Layout(Path("base")), manifest, lock, pa.Table.from_pylist(rows, schema=REJECTS))


TCIA = TciaSettings(collections=("C",))


def tcia(uid: str, version: str = "TCIA 2020", objects: int | None = 3) -> dict[str, Any]:
    return {"source": "tcia", "collection": "c", "source_version": version, "series": f"s{uid}", "objects": objects,
            "bytes": 10, "location": uid, "digest": f"d{uid}"}  # fmt: skip


def test_tcia_series_are_the_same_when_all_that_is_said_of_them_is() -> None:
    base = base_of(recipe_of(TCIA), pinned(tcia("1"), tcia("2"), tcia("3"), tcia("4")))
    now = pinned(tcia("4"), tcia("3", objects=4), tcia("2", "TCIA 2021"), tcia("1"))
    assert same_series(base, recipe_of(TCIA), now, {}) == {0: 3, 3: 0}


def test_a_collection_that_is_searched_for_text_now_is_built_anew() -> None:
    base = base_of(recipe_of(TCIA), pinned(tcia("1"), tcia("2") | {"collection": "d"}))
    recipe = recipe_of(TCIA, deid=DeidSettings(search=("c",)))
    assert same_series(base, recipe, base.lock, {}) == {1: 1}


def test_series_with_rejects_that_may_be_none_any_more_are_built_anew() -> None:
    lock = pinned(*(tcia(str(number)) for number in range(6)))
    codes = ("fetch_failed", "unreadable", "exact_duplicate", "collection_cap", "blank")
    rejects = [
        {"source": "tcia", "collection": "c", "source_id": f"{number}/x", "series": f"s{number}", "code": code}
        for number, code in enumerate(codes)
    ]
    assert same_series(base_of(recipe_of(TCIA), lock, rejects), recipe_of(TCIA), lock, {}) == {4: 4, 5: 5}


def nih(archive: str) -> dict[str, Any]:
    return {
        "source": "nih",
        "collection": "nih_chest_xray",
        "series": f"s{archive}",
        "location": archive,
        "digest": archive,
    }


def test_chest_x_rays_are_taken_all_or_none() -> None:
    """Nothing tells which of its archives an image was in."""
    recipe, lock = recipe_of(NihSettings()), pinned(nih("1"), nih("2"))
    base = base_of(recipe, lock)
    assert same_series(base, recipe, pinned(nih("2"), nih("1")), {}) == {0: 1, 1: 0}
    assert same_series(base, recipe, pinned(nih("1"), nih("2"), nih("3")), {}) == {}
    assert same_series(base, recipe_of(NihSettings(benchmark="include")), lock, {}) == {}
    assert same_series(base, recipe_of(NihSettings(), sample=SampleSettings(fraction=0.5)), lock, {}) == {}
    lost = {"source": "nih", "collection": "nih_chest_xray", "source_id": "2", "series": "s2", "code": "fetch_failed"}
    assert same_series(base_of(recipe, lock, [lost]), recipe, lock, {}) == {}
