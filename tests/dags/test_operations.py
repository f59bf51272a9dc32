"""A build as its operator sees it: the log, the status and the metrics of real builds, and of made-up logs."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import signal
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client
from rich.console import Console

from lumid.catalog.errors import DatasetError, LumidError, StorageError, UsageError
from lumid.catalog.layout import Layout, Manifest, storage_errors
from lumid.catalog.paths import sizes
from lumid.dags import progress as progress_module
from lumid.dags import status as status_module
from lumid.dags import watch
from lumid.dags.build import build
from lumid.dags.claim import remove_work
from lumid.dags.cli.build import log_to
from lumid.dags.cluster import ClusterSettings
from lumid.dags.events import EVENTS, FIELDS, EventLog, read_events
from lumid.dags.packing import pack_task
from lumid.dags.prices import cost_of
from lumid.dags.progress import BuildProgress
from lumid.dags.state import write_state
from lumid.dags.status import Status, status
from lumid.dags.status_view import view
from lumid.dags.stopping import Stopped
from lumid.dags.tasks import Told, key_of
from lumid.dags.watch import TaskWatch
from lumid.pipeline.parts import PartFiles, finished_parts, read_account
from lumid.pipeline.recipe_files import load_recipe
from lumid.pipeline.traffic import Traffic
from tests.catalog.sound import make_sound
from tests.dags.command import TIMEOUT_S, lumid, start, wait_for_parts

pytestmark = pytest.mark.whole

Lines = list[dict[str, Any]]


def lines_of(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def logged(
    recipe: Path, shared_cluster: ClusterSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Lines, Manifest]:
    """A build on a cluster that runs already, and its log."""
    folder = tmp_path_factory.mktemp("logged")
    events = EventLog()
    with events.writing(folder / "log.jsonl"):
        progress = BuildProgress(Console(quiet=True), events)
        manifest = build(load_recipe(str(recipe)), folder / "data", shared_cluster, progress).manifest
    return lines_of(folder / "log.jsonl"), manifest


def test_the_log_of_a_build_accounts_for_all_of_it(logged: tuple[Lines, Manifest]) -> None:
    lines, manifest = logged
    done = [line for line in lines if line["event"] == "batch_done"]
    assert len(done) == 25
    for name, total in (("frames", manifest.counts.planned), ("kept", manifest.counts.kept)):
        assert sum(line[name] for line in done) == total
    rejects: Counter[str] = Counter()
    for line in done:
        rejects.update(line["rejects"])
    assert rejects == manifest.rejects != {}
    assert {line["attempt"] for line in done} == {1}
    assert all(line["worker"].startswith("tcp://127.0.0.1:") for line in done)
    begun = {line["task"] for line in lines if line["event"] == "task_begun"}
    assert begun == {line["task"] for line in lines if line["event"] == "task_done"}
    assert {line["batch"] for line in done} < begun
    phases = [(line["event"], line["phase"]) for line in lines if line["event"].startswith("phase_")]
    assert phases == [
        (event, phase) for phase in ("scan", "ingest", "index", "pack") for event in ("phase_begun", "phase_ended")
    ]
    asked = sum(request["bytes"] for line in lines for request in line.get("requests", ()))
    assert asked >= sum(line["bytes"] for line in done) > 0
    assert manifest.build["requests"][0]["bytes"] == asked


def test_the_log_has_no_other_events_and_fields_than_are_written_down(logged: tuple[Lines, Manifest]) -> None:
    lines, _ = logged
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo is UTC
        assert line["time"].endswith("Z")
        assert set(line) - {"time", "level", "event"} <= set(EVENTS[line["event"]][1])
    for event, (_, fields) in EVENTS.items():
        assert f"`{event}`" in page
        assert set(fields) <= FIELDS.keys()
        assert [name for name in fields if f"`{name}`" not in page] == []


def test_what_is_no_word_of_lumids_own_does_not_get_into_the_log(tmp_path: Path) -> None:
    events = EventLog()
    with events.writing(tmp_path / "log"):
        events.tell(
            "batch_done", batch="Doe^Jane 1961", worker="Doe Jane", attempt="Doe", seconds="Doe", rejects={"Doe": 3, "blank": 2},
            frames=True, message="Doe", patient="Doe", kept=7, rejected=-1,
        )  # fmt: skip
        events.tell("task_done", task="4711/Doe.dcm", requests=[Traffic("Doe", "get", "ok", 1, 1), "Doe"])
        events.tell("phase_begun", phase="Doe")
    batch, task, phase = lines_of(tmp_path / "log")
    assert "Doe" not in (tmp_path / "log").read_text()
    assert {name: batch[name] for name in batch if name not in ("time", "level", "event")} == {
        "kept": 7,
        "rejects": {"blank": 2},
    }
    assert (task["event"], task["requests"], "phase" in phase) == ("task_done", [], False)


def test_a_log_is_appended_to_and_a_torn_line_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with EventLog().writing(path):
        pass
    path.write_text(
        '{"time": "2026-01-01T00:00:00.000Z", "level": "info", "event": "resumed", "batches": 1}\n{"time": "20'
    )
    events = EventLog()
    with events.writing(path):
        events.tell("resumed", batches=2)
    assert [event.fields["batches"] for event in read_events(path)] == [1, 2]
    assert path.read_text().splitlines()[1] == '{"time": "20'


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LumidError("nobody answers: check the network"), [("build_failed", "nobody answers: check the network")]),
        (OSError(errno.ENOSPC, "Doe"), [("disk_full", "no space left while"), ("build_failed", "no space left while")]),
        (ValueError("Doe^Jane"), [("build_failed", "lumid failed (ValueError at ")]),
        (KeyboardInterrupt(), [("build_stopped", "")]),
    ],
)
def test_how_a_build_ends_is_told_once_and_not_in_the_words_of_libraries(
    error: BaseException, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    events = EventLog()
    with (
        events.writing(tmp_path / "log"),
        pytest.raises((LumidError, type(error))),
        events.told_how_it_ends(),
        events.told_how_it_ends(),
        storage_errors(tmp_path),
    ):
        raise error
    told = [(line["event"], line.get("message", "")) for line in lines_of(tmp_path / "log")]
    assert [event for event, _ in told] == [event for event, _ in expected]
    assert all(message.startswith(begin) for (_, message), (_, begin) in zip(told, expected, strict=True))
    assert "Doe" not in (tmp_path / "log").read_text()


def test_what_a_library_makes_of_a_signal_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB raises an error of its own where a handler did; a timeout, whose cause is a CancelledError, is a failure."""

    def ends_with(error: Exception) -> tuple[BaseException, str]:
        events = EventLog()
        with events.writing(tmp_path / "log"), pytest.raises(BaseException) as caught, events.told_how_it_ends():
            raise error
        return caught.value, lines_of(tmp_path / "log")[-1]["event"]

    timeout = TimeoutError()
    timeout.__cause__ = asyncio.CancelledError()
    assert ends_with(timeout) == (timeout, "build_failed")
    stopped = Stopped(signal.SIGTERM)
    monkeypatch.setattr("lumid.dags.events.asked", lambda: stopped)
    assert ends_with(UsageError("the query was not understood")) == (stopped, "build_stopped")


# ---- status


def test_status_of_a_build_that_runs_is_killed_and_goes_on(
    recipe: Path, shared_cluster: ClusterSettings, tmp_path: Path
) -> None:
    out, log = tmp_path / "data", tmp_path / "log.jsonl"
    command = ("build", recipe, "--out", out, "--log", log, "--scheduler", shared_cluster.scheduler or "")
    process = start(*command)
    wait_for_parts(out, 4, process)
    os.kill(process.pid, signal.SIGSTOP)
    running = status(out)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    assert (running.state, running.phase, running.name, running.batches, running.workers) == (
        "running",
        "ingest",
        "study",
        25,
        2,
    )
    assert running.dashboard
    assert running.dashboard.startswith("http://127.0.0.1:")
    assert running.why is running.advice is None
    assert 4 <= running.batches_done < 25
    parts = whole_parts(out)
    while True:  # the cluster's workers end what they are at
        stopped, before = status(out), parts
        if (parts := whole_parts(out)) == before:
            break
    assert stopped.state == "stopped"
    assert "killed" in (stopped.why or "")
    assert "lumid build" in (stopped.advice or "")
    assert stopped.seconds_left is stopped.dashboard is None
    accounts = [read_account(files) for files in parts]
    assert (stopped.batches_done, stopped.planned, stopped.kept, stopped.rejected) == (
        len(parts),
        sum(one.planned for one in accounts),
        sum(one.kept for one in accounts),
        sum(one.rejected for one in accounts),
    )
    assert sum(stopped.rejects.values()) == stopped.rejected
    told = lines_of(log)
    assert lumid(*command).returncode == 0
    after = lines_of(log)
    assert after[: len(told)] == told
    assert after[-1]["event"] == "build_done"
    (resumed,) = [line["batches"] for line in after if line["event"] == "resumed"]
    assert resumed >= len(parts)
    done = Counter(line["batch"] for line in after if line["event"] == "batch_done")
    assert len(done) >= 25 - resumed
    finished = status(out)
    assert (finished.state, finished.planned, finished.advice) == ("finished", 241, None)
    assert finished.rate
    assert lumid(*command, "--json").returncode == 0
    assert lines_of(log)[-1]["event"] == "already_finished"


def whole_parts(out: Path) -> list[PartFiles]:
    batches = json.loads(Layout(out).state.read_text())["batch_ids"]
    there = sizes(Layout(out).parts)
    return [files for batch in batches for files in finished_parts(Layout(out).parts, batch, there)]


class MadeUp:
    """A build's folder with a log of our own, whose times are seconds after the year 2026 began."""

    def __init__(self, root: Path, batches: int) -> None:
        self.layout = Layout(root)
        self.layout.parts.mkdir(parents=True)
        self.ids = [f"{number:024x}" for number in range(batches)]
        write_state(self.layout, recipe_name="made-up", recipe_hash="0", phase="ingest", batches=batches, batch_ids=self.ids,
                    batch_series=[3] * batches, objects=batches * 10)  # fmt: skip
        self.lines: list[str] = []

    def tell(self, at: float, event: str, **fields: object) -> None:
        time = datetime.fromtimestamp(1767225600 + at, UTC).isoformat()
        self.lines.append(json.dumps({"time": time, "level": "info", "event": event, **fields}))

    def done(self, at: float, number: int, **more: object) -> None:
        (self.layout.parts / f"{self.ids[number]}.parquet").touch()  # never opened: it is no Parquet file
        facts = {"objects": 10, "frames": 10, "kept": 8, "rejected": 2, "rejects": {"blank": 2}, "bytes": 5_000_000}
        self.tell(at, "batch_done", batch=self.ids[number], **(facts | more))

    def status(self) -> Status:
        self.layout.log.write_text("\n".join(self.lines) + "\n")
        return status(self.layout.root)


def test_status_does_not_open_parts_that_the_log_knows(tmp_path: Path) -> None:
    made = MadeUp(tmp_path / "data", 3000)
    made.tell(0, "build_begun")
    for number in range(2900):
        made.done(number, number)
    found = made.status()
    assert (found.batches_done, found.batches, found.planned, found.kept) == (2900, 3000, 29_000, 23_200)
    assert found.rejects == {"blank": 5800}


def test_rates_and_what_was_going_on(tmp_path: Path) -> None:
    made = MadeUp(tmp_path / "data", 10)
    request = {"archive": "folder-s3", "operation": "get", "outcome": "ok", "requests": 1000, "bytes": 10**9}
    made.tell(-900, "build_begun")
    made.tell(-890, "task_begun", task="left-by-an-earlier-run", worker="tcp://a:1", attempt=1)
    made.tell(-880, "task_done", task="x", requests=[request])
    made.done(-800, 0)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard="http://127.0.0.1:1/status")
    made.tell(10, "phase_begun", phase="ingest", done=10, total=100)
    for at, task, worker in ((10, 1, "tcp://a:1"), (11, 2, "tcp://b:1"), (50, 3, "tcp://a:1")):
        made.tell(at, "task_begun", task=made.ids[task], worker=worker, attempt=1)
    made.tell(50, "task_done", task=made.ids[1], requests=[request])
    made.done(50, 1)
    made.tell(60, "worker_lost", worker="tcp://b:1", tasks=[made.ids[2]])
    made.tell(61, "task_begun", task=made.ids[2], worker="tcp://a:1", attempt=2)
    made.tell(110, "build_failed", error="StorageError", message="no space left while writing under /x; free some")
    made.lines.insert(3, "not JSON")
    found = made.status()
    assert (found.phase, found.phase_done, found.phase_total, found.batches_done) == ("ingest", 20, 100, 2)
    assert found.rate
    assert (found.rate.slices_per_second, found.rate.mb_per_second) == (0.1, 0.05)
    assert [(one.task, one.series, one.attempt) for one in found.running] == [(made.ids[3], 3, 1), (made.ids[2], 3, 2)]
    assert (found.workers_lost, found.retried, found.seconds) == (1, 1, 110.0)
    assert found.requests == (Traffic("folder-s3", "get", "ok", 2000, 2 * 10**9),)
    assert (found.cost.requests, found.cost.bytes_out) == (0.0008, 0.18)
    text = shown(found)
    for words in ("stopped (made-up)", "20%, 20 of 100 objects", "blank 4", "2 batches with 6 series on 1 worker", "1 lost",
                  "0.1 slices/s", "2,000 to folder-s3 (2.0 GB)", "$0.18", "no space left", "lumid build"):  # fmt: skip
        assert words in text


def test_time_left_goes_by_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    said = io.StringIO()
    progress = BuildProgress(Console(file=said, width=200))
    progress.begin_ingest(100, 90, batches_done=9, batches=10, rejected=0, missing=1)
    now[0] += 60
    progress.scanned(0)
    now[0] += 60
    progress.scanned(5)
    assert said.getvalue().splitlines() == [
        "going on: 9 of 10 batches are done already",
        "ingest: 90 of 100 · objects",
        "ingest: 95 of 100 · objects · about 120 s left",
    ]


def test_what_is_told_of_another_phase_does_not_count_in_this_one(tmp_path: Path) -> None:
    """It is told by a thread of its own, which asks the scheduler something in between."""
    made = MadeUp(tmp_path / "data", 10)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard=None)
    made.tell(10, "phase_begun", phase="index", done=0, total=8)
    made.tell(11, "progress", phase="ingest", done=99_990, total=100_000, running=1, workers=3)
    found = made.status()
    assert (found.phase, found.phase_done, found.phase_total) == ("index", 0, 8)


def test_the_time_left_counts_what_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeUp(tmp_path / "data", 10)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard=None)
    for number in range(10):  # all have a part; of some not everything could be fetched
        made.done(5, number)
    made.tell(6, "build_begun")
    made.tell(7, "cluster_joined", workers=2, dashboard=None)
    made.tell(10, "phase_begun", phase="ingest", done=50, total=100)
    made.tell(
        20, "batch_done", batch=f"{made.ids[0]}-1", objects=10, frames=10, kept=10, rejected=0, rejects={}, bytes=1
    )
    monkeypatch.setattr(status_module, "_is_running", lambda _: True)
    monkeypatch.setattr(status_module, "time", SimpleNamespace(time=lambda: 1767225600 + 30))
    assert made.status().seconds_left == 80.0, "10 of 50 in 20 s"


def test_a_build_without_workers_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeUp(tmp_path / "data", 10)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=1, dashboard=None)
    made.tell(10, "phase_begun", phase="ingest", done=0, total=100)
    made.done(20, 0)
    made.tell(21, "worker_lost", worker="tcp://a:1", tasks=[])
    made.tell(40, "workers_gone")
    monkeypatch.setattr(status_module, "_is_running", lambda _: True)
    found = made.status()
    assert (found.workers, found.seconds_left) == (0, None)
    assert "none, it waits for some to join, 1 lost" in shown(found)


def test_workers_that_leave_are_not_lost(tmp_path: Path) -> None:
    made = MadeUp(tmp_path / "data", 10)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard=None)
    made.tell(10, "task_begun", task=made.ids[0], worker="tcp://a:1", attempt=1)
    made.tell(10, "task_begun", task=made.ids[1], worker="tcp://b:1", attempt=1)
    made.tell(10, "task_begun", task=made.ids[2], worker="tcp://b:1", attempt=1)
    made.tell(12, "worker_left", worker="tcp://a:1", tasks=[made.ids[0]])
    made.tell(12, "task_dropped", task=made.ids[2])
    found = made.status()
    assert (found.workers_lost, [one.task for one in found.running]) == (0, [made.ids[1]])


def test_a_build_that_ends_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "ds"
    make_sound(root, n=3)
    (root / ".build").mkdir()
    (root / ".build" / "build.json").write_text("{}")
    monkeypatch.setattr(status_module, "_is_running", lambda _: True)

    def gone(layout: Layout) -> None:
        remove_work(layout)
        raise DatasetError("cannot be read")

    monkeypatch.setattr(status_module, "read_state", gone)
    assert status(root).state == "finished"


def test_what_is_dropped_does_not_come_back(tmp_path: Path) -> None:
    """A worker says that it begins, and meanwhile nobody wants it any more."""
    events = EventLog()
    tasks = TaskWatch(events)
    tasks.given("a")
    with events.writing(tmp_path / "log"):
        tasks.dropped("a")
        tasks.heard((0.0, {"task": "a", "worker": "tcp://a:1"}))
    assert tasks.running == 0
    assert [line["event"] for line in lines_of(tmp_path / "log")] == ["task_dropped"]


@pytest.mark.parametrize("counted", [True, False])
def test_time_left_where_some_archive_does_not_say_how_many_objects_there_are(
    counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeUp(tmp_path / "data", 20)
    write_state(made.layout, batch_objects=[10 if counted or number >= 10 else 0 for number in range(20)])
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard=None)
    made.tell(10, "phase_begun", phase="ingest", done=0, total=200 if counted else 100)
    for number in range(4):
        made.done(20, number, **({} if counted else {"objects": 9000}))
    monkeypatch.setattr(status_module, "_is_running", lambda _: True)
    monkeypatch.setattr(status_module, "time", SimpleNamespace(time=lambda: 1767225600 + 50))
    found = made.status()
    assert (found.phase_done, found.phase_total) == ((40, 200) if counted else (0, 100))
    assert found.seconds_left == 160.0, "4 of 20 batches in 40 s"


def test_time_left_of_a_long_series_goes_by_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeUp(tmp_path / "data", 2)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard=None)
    made.tell(10, "phase_begun", phase="ingest", done=0, total=1200)
    facts = {"pieces": 10, "worker": "tcp://a:1", "attempt": 1, "seconds": 9.0, "objects": 100}
    for piece in range(10):  # a piece in 120 s
        made.tell(10 + 120 * (piece + 1), "piece_done", batch=made.ids[0], piece=piece, **facts)
    monkeypatch.setattr(status_module, "_is_running", lambda _: True)
    monkeypatch.setattr(status_module, "time", SimpleNamespace(time=lambda: 1767225600 + 1211))
    assert made.status().seconds_left == 240.0
    made.done(1211, 0, objects=1000)
    assert made.status().seconds_left == 240.0, "what is put together was counted"


def test_who_made_a_batch_that_several_had_to_do_with() -> None:
    tasks = TaskWatch(EventLog())
    for name in ("a", "a", "a", "a-without-1", "b-join", "c"):
        tasks.given(name)
        tasks.heard((0.0, {"task": name, "worker": f"tcp://{name}:1"}))
    for name in ("a-without-1", "b-join", "c"):
        tasks.ended(name, Told(None, f"tcp://{name}:1", 0.1, ()))
    assert [tasks.done_by(name) for name in "abcd"] == [
        ("tcp://a-without-1:1", 4), ("tcp://b-join:1", 1), ("tcp://c:1", 1), (None, 0),
    ]  # fmt: skip


def test_the_tasks_of_a_lost_worker_are_named(tmp_path: Path) -> None:
    """And of a scheduler that others use as well, no others."""
    events, log = EventLog(), tmp_path / "log"
    tasks = TaskWatch(events)
    keys = [key_of(name, pack_task) for name in ("5bc1e7-piece-0-of-2", "shard-3", "ended")]
    for name in ("5bc1e7-piece-0-of-2", "shard-3"):
        tasks.given(name)
    with events.writing(log):
        tasks.heard_of_workers(
            (0.0, {"action": "remove-worker", "worker": "tcp://a:1", "processing-tasks": [*keys, "sum-1"]})
        )
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["event"], line["tasks"]) == ("worker_lost", ["5bc1e7-piece-0-of-2", "shard-3"])


def test_pieces_count_until_their_batch_does(tmp_path: Path) -> None:
    made = MadeUp(tmp_path / "data", 10)
    made.tell(0, "build_begun")
    made.tell(1, "cluster_joined", workers=2, dashboard=None)
    made.tell(10, "phase_begun", phase="ingest", done=0, total=100)
    facts = {"pieces": 4, "worker": "tcp://a:1", "attempt": 1, "seconds": 9.0, "objects": 3}

    def piece_done(at: float, batch: str, piece: int) -> None:
        made.tell(at, "piece_done", batch=batch, piece=piece, **facts)

    for number in (0, 1, 2, 1):  # of one something could not be fetched the first time
        piece_done(20 + number, made.ids[0], number)
    made.tell(23, "task_begun", task=f"{made.ids[0]}-piece-3-of-4", worker="tcp://a:1", attempt=1)
    made.tell(24, "task_begun", task=made.ids[1], worker="tcp://b:1", attempt=1)
    found = made.status()
    assert (found.batches_done, found.pieces_done, found.objects_done, found.phase_done) == (0, 3, 9, 9)
    text = shown(found)
    assert "0 of 10 and 3 pieces of long series, 9 of 100 objects" in text
    assert "1 batch with 3 series and 1 piece of long series on 2 workers" in text
    made.done(30, 0)
    found = made.status()
    assert (found.batches_done, found.pieces_done, found.objects_done, found.phase_done) == (1, 0, 10, 10)
    piece_done(31, f"{made.ids[0]}-1", 0)  # series of a batch that has a part already are fetched again
    found = made.status()
    assert (found.batches_done, found.pieces_done, found.objects_done) == (1, 0, 10)


def test_public_archives_cost_the_reader_nothing(tmp_path: Path) -> None:
    traffic = [
        Traffic("idc-aws", "get", "ok", 10**6, 10**12),
        Traffic("idc-aws", "list", "ok", 1000, 0),
        Traffic("tcia", "get", "ok", 5, 9),
    ]
    cost = cost_of(traffic)
    assert (cost.requests, cost.bytes_out, cost.paid_by_archives) == (0.0, 0.0, 90.405)
    found = Status("running", "x", "ingest", 1, 2, 1, 2, 1, 1, 0, 60.0, phase_total=2, requests=traffic, cost=cost)
    assert "free to you" in shown(found)
    assert "$90.4" in shown(found)
    assert "about 1 min left" in shown(found)


def shown(found: Status) -> str:
    console = Console(width=200, no_color=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(view(Path("data"), found, 1767225600 + 200, bar=False))
    return console.export_text()


def test_a_log_inside_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--log .* is inside --out"):
        log_to(EventLog(), str(tmp_path / "data" / "log"), tmp_path / "data")
    with (
        pytest.raises(StorageError, match=r"--log .* cannot be written"),
        log_to(EventLog(), str(tmp_path / "no" / "log"), tmp_path / "data"),
    ):
        pass


# ---- metrics


def test_scheduler_and_workers_serve_metrics(
    recipe: Path, shared_cluster: ClusterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client")
    monkeypatch.setattr(watch, "METRICS_EVERY_S", 0.05)
    with Client(shared_cluster.scheduler, set_as_default=False) as client:
        seen: list[str] = []

        class Looking(BuildProgress):
            def begin_index(self, groups: int) -> None:
                until = time.monotonic() + 20
                while 'phase="ingest"} 1.0' not in (page := _get(client.scheduler_info()["services"]["dashboard"])):
                    assert time.monotonic() < until, page
                    time.sleep(0.05)
                seen.append(page)
                super().begin_index(groups)

        before = _sums(client)
        manifest = build(
            load_recipe(str(recipe)), tmp_path / "data", shared_cluster, Looking(Console(quiet=True))
        ).manifest
        after = _sums(client)
    grown = {name: after[name] - before[name] for name in after}
    assert grown['lumid_frames_total{result="kept"}'] == manifest.counts.kept
    assert grown['lumid_frames_total{result="rejected"}'] == manifest.counts.rejected
    assert grown['lumid_rejects_total{code="not_dicom"}'] == manifest.rejects["not_dicom"]
    assert grown["lumid_batches_total"] == grown["lumid_batch_seconds_count"] == 25
    (folder,) = manifest.build["requests"]
    assert grown['lumid_source_bytes_total{archive="folder"}'] == folder["bytes"]
    assert grown['lumid_source_requests_total{archive="folder",operation="get",outcome="ok"}'] == folder["requests"]
    (page,) = seen
    assert 'lumid_build_phase{build="study",phase="ingest"} 1.0' in page
    assert 'lumid_build_batches{build="study",state="planned"} 25.0' in page


def _get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def _sums(client: Client) -> Counter[str]:
    """The counters of all workers of the cluster, added."""
    sums: Counter[str] = Counter()
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        for line in _get(worker["services"]["dashboard"]).splitlines():
            if line.startswith("lumid_") and "_created" not in line:
                name, _, value = line.rpartition(" ")
                sums[name] += int(float(value))
    return sums
