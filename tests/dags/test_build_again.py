"""Building again: what an archive did not give is asked for once more, and nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.paths import data_path
from lumid.catalog.verify import verify
from lumid.dags import build as building
from lumid.dags.cluster import ClusterSettings
from lumid.pipeline.recipe import SelectSettings
from tests.dags.archive import Archive, Make, assert_same, ct, make_archive, plain
from tests.dags.command import content, stored
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import s3_server

pytestmark = pytest.mark.whole

SERIES = {uid: plain(uid, 3) for uid in ("1.2.1", "1.2.2", "1.2.3", "1.2.4", "1.2.5")}


@pytest.fixture
def archive(shared_cluster: ClusterSettings) -> Make:
    """Makes an archive of these series, with nothing in it yet."""
    return partial(make_archive, s3_server(), shared_cluster)


def scratch(made: Archive, folder: Path) -> Path:
    """The data set that a build makes at once with everything there."""
    made.give(*made.series)
    made.build(folder)
    return folder


def test_a_finished_data_set_fetches_only_what_it_lacks(archive: Make, tmp_path: Path) -> None:
    made = archive(SERIES)
    made.give("1.2.1", "1.2.3", "1.2.5")
    first = made.build(tmp_path / "ds")
    assert (first.counts.kept, first.rejects) == (9, {"fetch_failed": 6})

    made.take_away("1.2.1", "1.2.3", "1.2.5")  # were they asked for again, they would be lost now
    made.give("1.2.2")
    assert made.build(tmp_path / "ds", workers=2).rejects == {"fetch_failed": 3}
    made.take_away("1.2.2")
    made.give("1.2.4")
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


@pytest.mark.slow
def test_in_a_store_as_in_a_folder(archive: Make, bucket: tuple[str, Any], tmp_path: Path) -> None:
    made, url = archive(SERIES), f"s3://{bucket[0]}/ds"
    made.give("1.2.1", "1.2.3", "1.2.5")
    first = made.build(data_path(url), workers=2)
    assert (first.counts.kept, first.rejects) == (9, {"fetch_failed": 6})
    made.take_away("1.2.1", "1.2.3", "1.2.5")
    made.give("1.2.2", "1.2.4")
    assert made.build(data_path(url), workers=2).rejects == {}
    assert stored(url) == content(scratch(made, tmp_path / "scratch"))
    assert verify(data_path(url), deep=True).sound
    assert not Layout(data_path(url)).work.exists()


def test_a_data_set_is_left_alone_when_the_archive_gives_nothing_more(archive: Make, tmp_path: Path) -> None:
    made = archive(SERIES)
    made.give("1.2.1")
    made.build(tmp_path / "ds")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "ds").rglob("*")}
    assert made.build(tmp_path / "ds").rejects == {"fetch_failed": 12}
    made.take_away("1.2.1")  # the archive has got worse: nothing that is there is given up
    assert made.build(tmp_path / "ds").rejects == {"fetch_failed": 12}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ds").rglob("*")} == files


def test_an_interrupted_build_fetches_what_it_lacks_too(
    archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(SERIES)
    made.give("1.2.1", "1.2.3")
    with monkeypatch.context() as patch:
        patch.setattr(building, "pack", stopped)
        with pytest.raises(LumidError, match="stopped"):
            made.build(tmp_path / "ds")
    made.take_away("1.2.1", "1.2.3")
    made.give("1.2.2")
    with monkeypatch.context() as patch:  # killed a second time, when everything was packed
        patch.setattr(building, "write_citations", stopped)
        with pytest.raises(LumidError, match="stopped"):
            made.build(tmp_path / "ds")
    made.take_away("1.2.2")
    made.give("1.2.4", "1.2.5")
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


@pytest.mark.parametrize("place", ["pack", "write_citations"])
def test_killed_while_it_takes_the_place_of_a_finished_one(
    place: str, archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(SERIES)
    made.give("1.2.1", "1.2.2", "1.2.3")
    made.build(tmp_path / "ds")
    made.take_away("1.2.1", "1.2.2", "1.2.3")
    made.give("1.2.4", "1.2.5")
    with monkeypatch.context() as patch:
        patch.setattr(building, place, stopped)
        with pytest.raises(LumidError, match="stopped"):
            made.build(tmp_path / "ds")
    made.take_away("1.2.4", "1.2.5")
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


@pytest.mark.parametrize("late", ["1.2.1", "1.2.2", "1.2.3"])
def test_an_instance_of_two_series_is_kept_once_whichever_comes_later(late: str, archive: Make, tmp_path: Path) -> None:
    """The first row of the lock keeps it, as in a build that has everything at once."""
    shared = {"0.dcm": ct("1.2.1", 0, "1.2.9.9")}
    both = {"0.dcm": ct("1.2.2", 5, "1.2.9.9"), "1.dcm": ct("1.2.2", 6)}
    made = archive({"1.2.1": shared, "1.2.2": both, "1.2.3": plain("1.2.3", 2)})
    made.give(*({"1.2.1", "1.2.2", "1.2.3"} - {late}))
    made.build(tmp_path / "ds")
    made.give(late)
    assert made.build(tmp_path / "ds").rejects == {"duplicate_instance": 1}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


# ---- with the same pixels kept once


DROP = SelectSettings(exact_duplicates="drop")
KEYER = Keyer(PUBLIC_SECRET)


def twins() -> dict[str, dict[str, bytes]]:
    """Three series of two CT slices, of which the first has the same pixels in all; the smallest key keeps them."""
    hu = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    return {
        f"1.2.{series}": {"0.dcm": ct(f"1.2.{series}", 0, **hu), "1.dcm": ct(f"1.2.{series}", series, **hu)}
        for series in (1, 2, 3)
    }


def kept_keys(root: Path) -> set[str]:
    return set(pq.read_table(root / "catalog", columns=["key"], partitioning=None)["key"].to_pylist())


@pytest.mark.parametrize("late", ["1.2.1", "1.2.2", "1.2.3"])
def test_the_same_pixels_are_kept_once_whichever_series_comes_later(late: str, archive: Make, tmp_path: Path) -> None:
    """Whether the series that comes later has the smallest key of the three, the largest, or the one between."""
    made = replace(archive(twins()), select=DROP)
    made.give(*(made.series.keys() - {late}))
    assert made.build(tmp_path / "ds").rejects == {"exact_duplicate": 1, "fetch_failed": 2}
    made.give(late)
    assert made.build(tmp_path / "ds").rejects == {"exact_duplicate": 2}
    first = {series: KEYER.key(f"{series}.0", 0) for series in made.series}
    assert kept_keys(tmp_path / "ds") & set(first.values()) == {min(first.values())}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


def test_one_series_after_another_drops_what_all_at_once_would(archive: Make, tmp_path: Path) -> None:
    """What is dropped can be the sample that kept the pixels before; what was dropped is asked for again."""
    made = replace(archive(twins()), select=DROP)
    by_key = sorted(made.series, key=lambda series: KEYER.key(f"{series}.0", 0), reverse=True)
    for number, series in enumerate(by_key):
        made.give(series)
        manifest = made.build(tmp_path / "ds")
        assert manifest.rejects.get("exact_duplicate", 0) == number
        assert KEYER.key(f"{series}.0", 0) in kept_keys(tmp_path / "ds")
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


@pytest.mark.parametrize("place", ["pack", "write_citations"])
def test_a_build_that_is_stopped_after_it_dropped_pixels_goes_on(
    place: str, archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before or after it packed, in its first build and in one that takes the place of a finished one."""
    made = replace(archive(twins()), select=DROP)
    made.give("1.2.1", "1.2.2")
    for late, rejects in ((None, {"exact_duplicate": 1, "fetch_failed": 2}), ("1.2.3", {"exact_duplicate": 2})):
        if late:
            made.give(late)
        with monkeypatch.context() as patch:
            patch.setattr(building, place, stopped)
            with pytest.raises(LumidError, match="stopped"):
                made.build(tmp_path / "ds")
        assert made.build(tmp_path / "ds").rejects == rejects
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


def test_a_sample_comes_back_when_what_it_repeated_has_other_pixels_now(archive: Make, tmp_path: Path) -> None:
    """Two MR series begin with the same slice. Of one the other slice, a brighter one, comes later: with it the range
    of that series, and all its pixels, are others, and what was dropped as a copy is none any more.
    """
    first, second = sorted(("1.2.1", "1.2.2"), key=lambda series: KEYER.key(f"{series}.0", 0))

    def mr(series: str, number: int, high: int) -> bytes:
        uids = {"SeriesInstanceUID": series, "SOPInstanceUID": f"{series}.{number}", "StudyInstanceUID": f"{series}.9"}
        return as_bytes(image(gradient(high=high), Modality="MR", PatientID=series, **uids))

    series = {first: {"0.dcm": mr(first, 0, 400), "1.dcm": mr(first, 1, 3000)}, second: {"0.dcm": mr(second, 0, 400)}}
    made = replace(archive(series), select=DROP)
    made.give(first, second)
    listed_and_not_given = {"ACL": "public-read", "StorageClass": "GLACIER"}
    made.client.put_object(
        Bucket=made.bucket, Key=f"{first}/1.dcm", Body=series[first]["1.dcm"], **listed_and_not_given
    )
    assert made.build(tmp_path / "ds").rejects == {"exact_duplicate": 1, "fetch_failed": 1}
    assert kept_keys(tmp_path / "ds") == {KEYER.key(f"{first}.0", 0)}
    made.give(first)
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


def test_nothing_is_built_on_a_damaged_data_set(archive: Make, tmp_path: Path) -> None:
    made = archive(SERIES)
    made.give("1.2.1", "1.2.2", "1.2.3")
    manifest = made.build(tmp_path / "ds")
    shard = tmp_path / "ds" / "shards" / manifest.shards[0].name
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    made.give("1.2.4")
    with pytest.raises(DatasetError, match="is damaged, and is not built on"):
        made.build(tmp_path / "ds")
    data[1000] ^= 1
    shard.write_bytes(data)
    made.take_away("1.2.4")  # it is here already
    assert made.build(tmp_path / "ds").rejects == {"fetch_failed": 3}


def test_a_file_system_without_links_copies(archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refused(*paths: object) -> None:
        asked.append(paths)
        raise PermissionError(1, "Operation not permitted")

    made = archive(SERIES)
    made.give("1.2.1", "1.2.2", "1.2.3", "1.2.4")
    made.build(tmp_path / "ds")
    made.give("1.2.5")
    monkeypatch.setattr("os.link", refused)
    shards = len(read_manifest(tmp_path / "ds").shards)
    made.build(tmp_path / "ds")
    assert len(asked) == shards > 1
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


def stopped(*_: object) -> None:
    raise LumidError("stopped")


@pytest.mark.parametrize(
    "left",
    [
        "all",
        pytest.param("no tars", marks=pytest.mark.slow),
        pytest.param("no parts", marks=pytest.mark.slow),
        "only the base",
    ],
)
def test_what_a_build_leaves_that_is_killed_at_its_very_end_harms_nothing(
    left: str, archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(layout: Layout) -> None:
        for path in sorted(layout.work.rglob("*")):
            gone = {"all": False, "no tars": path.suffix == ".tar", "no parts": layout.parts in path.parents}
            if path.is_file() and gone.get(left, path.parent.name != "base"):
                path.unlink()
        raise LumidError("killed")

    made = archive(SERIES)
    made.give("1.2.1", "1.2.2")
    made.build(tmp_path / "ds")
    made.give("1.2.3", "1.2.4")
    with monkeypatch.context() as patch:
        patch.setattr(building, "remove_work", half)
        with pytest.raises(LumidError, match="killed"):
            made.build(tmp_path / "ds")
    assert Layout(tmp_path / "ds").work.exists()
    kept = read_manifest(tmp_path / "ds").counts.kept
    made.take_away(*SERIES)
    assert made.build(tmp_path / "ds").counts.kept == kept == 12
    made.give("1.2.5")
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


def test_a_build_that_waited_for_another_looks_again(
    archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(SERIES)
    made.give("1.2.1")
    made.build(tmp_path / "ds")
    made.give(*SERIES)

    def meanwhile(*_: object) -> None:
        monkeypatch.undo()
        made.build(tmp_path / "ds")
        made.take_away("1.2.2", "1.2.3")

    monkeypatch.setattr(building, "check_fetching", meanwhile)
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))


def test_another_lock_is_refused_even_when_its_place_is_being_taken(
    archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = archive(SERIES)
    made.give("1.2.1")
    made.build(tmp_path / "ds")
    made.give("1.2.2")
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_citations", stopped)
        with pytest.raises(LumidError, match="stopped"):
            made.build(tmp_path / "ds")
    other = replace(made, series={uid: SERIES[uid] for uid in ("1.2.1", "1.2.2")})
    with pytest.raises(UsageError, match="another lock"):
        other.build(tmp_path / "ds")


def test_archives_that_cannot_be_reached_are_one_line_and_harm_nothing(archive: Make, tmp_path: Path) -> None:
    made = archive(SERIES)
    made.give("1.2.1")
    made.build(tmp_path / "ds")
    nobody = replace(made, endpoint="http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(LumidError, match="the archives cannot be reached"):
        nobody.build(tmp_path / "other", gs_endpoint="http://127.0.0.1:9")
    assert nobody.build(tmp_path / "ds", gs_endpoint="http://127.0.0.1:9").counts.kept == 3
    assert time.monotonic() - begun < 20
    assert not (tmp_path / "other").exists()


def test_a_network_that_goes_away_ends_the_build_and_the_next_goes_on(
    archive: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"1.2.{number}": plain(f"1.2.{number}", 1) for number in range(1, 60)}
    made = archive(many)
    made.give(*many)
    monkeypatch.setattr(building, "archives_answer", lambda _: True)
    nobody = replace(made, endpoint="http://127.0.0.1:9")
    with pytest.raises(LumidError, match=r"nobody has answered for 4\d series in a row: check the network"):
        nobody.build(tmp_path / "ds")
    assert made.build(tmp_path / "ds").rejects == {}
    assert_same(tmp_path / "ds", scratch(made, tmp_path / "scratch"))
