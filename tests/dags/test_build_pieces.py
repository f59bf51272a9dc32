"""Builds whose long series several workers share: the same bytes, however they are cut, stopped, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lumid.catalog.layout import Layout, Manifest, read_manifest
from lumid.catalog.paths import AnyPath, data_path, sizes
from lumid.catalog.verify import verify
from lumid.dags import ingesting
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.recipe import IdcSettings, Recipe, ShardSettings
from tests.crash import CRASH
from tests.dags.command import content, stored
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import Contents, FakeIdc, fake_idc
from tests.pipeline.test_pieces import loop
from tests.servers import FINE, Fault, Request, status

pytestmark = pytest.mark.whole

SMALL = 25_000
"""Bytes of a piece here: a few loops."""


def contents() -> Contents:
    """Two long series of loops in batches with slices, one of which is of instances that are there twice."""
    held: dict[str, dict[str, bytes]] = {}
    for series in range(6):
        uids = {"SeriesInstanceUID": f"1.3.{series}", "PatientID": f"P{series}"}
        slices = [image(gradient(high=500 + n), SOPInstanceUID=f"1.4.{series}.{n}", **uids) for n in range(3)]
        held[f"{series:04x}"] = {f"{n:02}.dcm": as_bytes(one) for n, one in enumerate(slices)}
    for series, copies in ((6, 0), (7, 1)):
        uids = {"SeriesInstanceUID": f"1.3.{series}", "PatientID": f"P{series}"}
        numbers = [*range(12), *range(copies)]
        held[f"{series:04x}"] = {
            f"{n:02}.dcm": loop(number, SOPInstanceUID=f"1.4.{series}.{number}", **uids)
            for n, number in enumerate(numbers)
        }
    marked = loop(5, SOPInstanceUID="1.4.6.5", SeriesInstanceUID="1.3.6", PatientID="P6", StudyDescription="POISON")
    held["0006"]["05.dcm"] = marked  # harmless but where a test says otherwise
    return held


_piece_done = BuildProgress.piece_done
FAILING: set[str] = set()
"""Objects of these series are refused."""


def weather(request: Request) -> Fault:
    refused = any(f"/{series}/" in request.target for series in FAILING) and "prefix" not in request.query
    return status(503, Retry_After="0") if refused else FINE


@pytest.fixture(scope="module")
def archive() -> Iterator[FakeIdc]:
    with fake_idc(contents(), pick=weather) as archive:
        yield archive


@pytest.fixture(scope="module")
def whole(archive: FakeIdc, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "data"
    run(archive, out)
    return out


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingesting, "PIECE_BYTES", SMALL)


def recipe(archive: FakeIdc, **fetch: Any) -> Recipe:
    source = IdcSettings(kind="idc", collections=("lidc_idri",))
    shards = ShardSettings(size_mb=0.1, batch_slices=16)
    return Recipe(name="loops", sources=(source,), shards=shards, fetch=archive.settings(**fetch))


def run(archive: FakeIdc, out: AnyPath, log: Path | None = None, **fetch: Any) -> Manifest:
    progress = BuildProgress(Console(quiet=True))
    with progress:
        if log is not None:
            with progress.events.writing(log):
                return build(
                    recipe(archive, **fetch), out, ClusterSettings(workers=2), progress, archive.lock()
                ).manifest
        return build(recipe(archive, **fetch), out, ClusterSettings(workers=2), progress, archive.lock()).manifest


def events(log: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == event]


def stop_after(pieces: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of pieces that are done, up to when the build is stopped."""
    done: list[str] = []

    def stop(self: BuildProgress, *given: Any) -> None:
        _piece_done(self, *given)
        done.append(given[0].id)
        if len(done) == pieces:
            raise KeyboardInterrupt

    monkeypatch.setattr(BuildProgress, "piece_done", stop)
    return done


def test_the_same_bytes_as_from_whole_batches(archive: FakeIdc, whole: Path, cut: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(archive, tmp_path / "data", log)
    assert content(tmp_path / "data") == content(whole)
    assert verify(tmp_path / "data", deep=True).sound
    pieces = events(log, "piece_done")
    assert len(pieces) == sum({line["batch"]: line["pieces"] for line in pieces}.values()) >= 8
    assert {line["batch"] for line in pieces} < {line["batch"] for line in events(log, "batch_done")}
    assert {line["attempt"] for line in events(log, "batch_done")} == {1}


@pytest.mark.slow
def test_what_a_cache_holds_is_shared(archive: FakeIdc, whole: Path, cut: None, tmp_path: Path) -> None:
    """And not what it does not hold: who reads only some of a series cannot keep it whole."""
    cache, log = str(tmp_path / "cache"), tmp_path / "log"
    run(archive, tmp_path / "data", log, cache=cache)
    assert not events(log, "piece_done")
    before = archive.deliveries()
    run(archive, tmp_path / "offline", log, cache=cache, offline=True)
    assert len(events(log, "piece_done")) >= 8
    assert archive.deliveries() == before
    assert content(tmp_path / "data") == content(tmp_path / "offline") == content(whole)


def stopped_and_gone_on_with(archive: FakeIdc, out: AnyPath, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a build after some pieces, and go on with it: none that was there is made again."""
    done = stop_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(archive, out)
    there = {name.removesuffix(".parquet") for name in sizes(Layout(out).pieces)}
    assert {*done} <= there
    monkeypatch.setattr(BuildProgress, "piece_done", _piece_done)
    run(archive, out, log)
    made = {f"{one['batch']}-piece-{one['piece']}-of-{one['pieces']}" for one in events(log, "piece_done")}
    assert made
    assert not made & there


def test_a_stopped_build_goes_on_with_the_pieces_it_has(
    archive: FakeIdc, whole: Path, cut: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_and_gone_on_with(archive, tmp_path / "data", tmp_path / "log", monkeypatch)
    assert content(tmp_path / "data") == content(whole)


@pytest.mark.slow
def test_pieces_in_a_store_are_gone_on_with_and_removed(
    archive: FakeIdc, whole: Path, cut: None, bucket: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = data_path(f"s3://{bucket[0]}/data")
    stopped_and_gone_on_with(archive, out, tmp_path / "log", monkeypatch)
    assert stored(str(out)) == content(whole)
    assert not [name for name in sizes(out) if name.startswith(".build")]


@pytest.mark.slow
def test_what_pieces_lack_is_fetched_when_a_build_goes_on(
    archive: FakeIdc, whole: Path, cut: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(3, monkeypatch)
    FAILING.update({"0006", "0007"})
    try:
        with pytest.raises(KeyboardInterrupt):
            run(archive, tmp_path / "data")
    finally:
        FAILING.clear()
    monkeypatch.setattr(BuildProgress, "piece_done", _piece_done)
    assert len(sizes(Layout(tmp_path / "data").pieces)) >= 3
    manifest = run(archive, tmp_path / "data")
    assert manifest.rejects == {"duplicate_instance": 1}
    assert content(tmp_path / "data") == content(whole)


@pytest.mark.slow
def test_an_object_that_kills_its_worker_costs_a_piece(
    archive: FakeIdc, whole: Path, cut: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{Path(__file__).resolve().parents[2]}")
    manifest = run(archive, tmp_path / "data", tmp_path / "log")
    assert manifest.rejects == {"decoder_crash": 1, "duplicate_instance": 1}
    assert manifest.counts.kept == read_manifest(whole).counts.kept - 2, "its frames"
    suspected = events(tmp_path / "log", "batch_suspected")
    assert any("-piece-" in one["batch"] and one["objects"] < 12 for one in suspected)
    assert sum(one["objects"] for one in events(tmp_path / "log", "objects_poisoned")) == 1
