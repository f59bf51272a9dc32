"""What a folder holds: a finished data set, a build that runs, or one that stopped; and how far it is.

A build's own log says what there is to say, so that nothing has to be counted: the accounts of thousands of parts would
take seconds to read. Parts of which the log does not know, for the build was killed between the two, are read.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.paths import AnyPath, StorePath, changed_at, sizes
from lumid.dags import claim
from lumid.dags.events import Event, read_events
from lumid.dags.prices import FREE, Cost, cost_of
from lumid.dags.state import read_state
from lumid.pipeline.traffic import Traffic, together

RECENT_S = 600.0
"""Over so many seconds the rate is taken that the time left is reckoned by."""
STARTING, WAITING = "starting workers", "waiting for the first worker"
GO_ON = "run the same `lumid build` again: what is finished is kept"


@dataclass(frozen=True, slots=True)
class Running:
    """A task that a worker is busy with: a batch of so many ``series``, a ``piece`` of one, or something else."""

    task: str
    series: int | None
    worker: str
    since: float
    attempt: int

    @property
    def piece(self) -> bool:
        """Whether it is a piece of a batch that several workers share."""
        return "-piece-" in self.task


@dataclass(frozen=True, slots=True)
class Rate:
    """Frames and megabytes of sources a second."""

    slices_per_second: float
    mb_per_second: float


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a build: ``finished``, ``running`` or ``stopped``, and how far it is.

    ``phase_done`` of ``phase_total`` counts the units of the phase: objects, bytes, or files. ``pieces_done``, in this
    run, of batches that several workers share and that are not put together yet. ``seconds`` are those of
    this run, up to now or to its last word. ``requests`` and ``cost`` are of all runs of this build. Times are seconds
    since 1970. ``why``: why a build stopped, as far as it could say; ``advice``: what to do.
    """

    state: str
    name: str
    phase: str
    batches_done: int
    batches: int
    objects_done: int
    objects: int
    planned: int
    kept: int
    rejected: int
    seconds_left: float | None
    rejects: Mapping[str, int] = field(default_factory=dict)
    phase_done: int = 0
    phase_total: int = 0
    pieces_done: int = 0
    running: Sequence[Running] = ()
    workers: int = 0
    workers_lost: int = 0
    retried: int = 0
    begun: float | None = None
    last_word: float | None = None
    seconds: float = 0.0
    rate: Rate | None = None
    recent_rate: Rate | None = None
    requests: Sequence[Traffic] = ()
    cost: Cost = FREE
    dashboard: str | None = None
    why: str | None = None
    advice: str | None = None


def status(root: AnyPath) -> Status:
    """The status of the data set at ``root``.

    Raises :class:`~lumid.catalog.errors.DatasetError` when there is neither a data set nor a build.
    """
    layout: Layout[AnyPath] = Layout(root)
    running = _is_running(layout)
    # what a finished data set lacks may be on its way
    if (layout.manifest.is_file() and not running) or not layout.state.is_file():
        return _finished(layout)
    try:
        return _under_way(layout, running=running)
    except (DatasetError, OSError):
        if layout.state.is_file():
            raise
        return _finished(layout)  # it has ended just now


def _under_way(layout: Layout[AnyPath], *, running: bool) -> Status:
    state = read_state(layout)
    planned = dict(zip(state.get("batch_ids", []), state.get("batch_objects", []), strict=False))
    run = _Run.of(read_events(layout.log), planned)
    batches = _batches(layout, state.get("batch_ids", []), run)
    counts = list(batches.values())
    total = Counter[str]()
    for one in counts:
        total.update(one.rejects)
    pieces = [run.pieces.get(batch, {}) for batch in state.get("batch_ids", []) if batch not in batches]
    series = dict(zip(state.get("batch_ids", []), state.get("batch_series", []), strict=False))
    now = time.time() if running else (run.last_word or changed_at(layout.state) or time.time())
    seconds = max(0.0, now - (run.begun or now))
    requests = together(run.traffic)
    return Status(
        state="running" if running else "stopped",
        name=state["recipe_name"],
        phase=run.phase or (STARTING if running and not state["batches"] else state["phase"]),
        batches_done=len(counts),
        batches=state["batches"],
        objects_done=sum(one.objects for one in counts) + sum(sum(objects.values()) for objects in pieces),
        objects=state.get("objects", 0),
        planned=sum(one.frames for one in counts),
        kept=sum(one.kept for one in counts),
        rejected=sum(one.rejected for one in counts),
        seconds_left=run.seconds_left(now, state["batches"] - len(counts)) if running and run.workers else None,
        rejects=dict(total.most_common()),
        phase_done=run.phase_done,
        phase_total=run.phase_total,
        pieces_done=sum(map(len, pieces)),
        running=tuple(sorted((_with_series(one, series) for one in run.running.values()), key=lambda one: one.since)),
        workers=run.workers if running else 0,
        workers_lost=run.workers_lost,
        retried=run.retried,
        begun=run.begun,
        last_word=run.last_word,
        seconds=round(seconds, 1),
        rate=run.rate(run.ingest_begun, now),
        recent_rate=run.rate(max(now - RECENT_S, run.ingest_begun or 0.0), now) if run.ingest_begun else None,
        requests=requests,
        cost=cost_of(requests),
        dashboard=run.dashboard if running else None,
        why=None if running else _why(run),
        advice=None if running else GO_ON,
    )


def _finished(layout: Layout[AnyPath]) -> Status:
    """Of a data set that is whole; what it lacks may be on its way."""
    manifest = read_manifest(layout.root)
    counts, facts = manifest.counts, manifest.build
    left = layout.state.is_file()
    requests = tuple(Traffic(**one) for one in facts.get("requests", ()))
    rate = {"slices_per_second", "mb_per_second"} <= facts.keys()
    return Status(
        "finished",
        manifest.name,
        "being completed when it stopped: run the same `lumid build` again" if left else "done",
        0,
        0,
        counts.objects,
        counts.objects,
        counts.planned,
        counts.kept,
        counts.rejected,
        0.0,
        rejects=dict(sorted(manifest.rejects.items(), key=lambda item: -item[1])),
        workers=facts.get("workers", 0),
        seconds=facts.get("seconds", 0.0),
        rate=Rate(facts["slices_per_second"], facts["mb_per_second"]) if rate else None,
        requests=requests,
        cost=cost_of(requests),
        advice=GO_ON if left else None,
    )


def requests_of(layout: Layout[AnyPath]) -> tuple[Traffic, ...]:
    """What all runs of a build under way have asked for so far."""
    return together(_Run.of(read_events(layout.own_log)).traffic)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What has become of a batch's frames; ``at``: when it was done."""

    at: float
    objects: int
    frames: int
    kept: int
    rejected: int
    rejects: Mapping[str, int]
    bytes: int


@dataclass(slots=True)
class _Run:
    """A build's log, read: of all runs the batches and requests, of the last one what it is at.

    ``planned``: by batch, the objects that its archive says there are, or 0. ``steps``: when in this run's ingest so many
    objects were done.
    """

    begun: float | None = None
    last_word: float | None = None
    ingest_begun: float | None = None
    phase: str = ""
    phase_begun: float = 0.0
    phase_at_first: int = 0
    phase_done: int = 0
    phase_total: int = 0
    dashboard: str | None = None
    workers: int = 0
    workers_lost: int = 0
    retried: int = 0
    ended: str | None = None
    message: str | None = None
    running: dict[str, Running] = field(default_factory=dict)
    batches: dict[str, _Batch] = field(default_factory=dict)
    pieces: dict[str, dict[int, int]] = field(default_factory=dict)  # of a batch that is not done: their objects
    done: list[_Batch] = field(default_factory=list)
    planned: Mapping[str, int] = field(default_factory=dict)
    steps: list[tuple[float, int]] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event], planned: Mapping[str, int] = MappingProxyType({})) -> _Run:
        run = cls(planned=planned)
        for event in events:
            if event.name == "build_begun":
                run = cls(event.time, batches=run.batches, traffic=run.traffic, planned=planned)
            try:
                run.take(event)
            except (KeyError, TypeError):  # a line of another version, or that someone has changed
                continue
        return run

    def take(self, event: Event) -> None:
        """One more event."""
        said = event.fields
        self.last_word = event.time
        match event.name:
            case "workers_awaited":
                self.phase = WAITING
            case "cluster_joined":
                self.phase, self.workers, self.dashboard = "", said["workers"], said.get("dashboard")
            case "worker_joined":
                self.workers += 1
            case "worker_lost" | "worker_left":
                self.workers = max(0, self.workers - 1)
                self.workers_lost += event.name == "worker_lost"
                for name in said.get("tasks", ()):
                    self.running.pop(name, None)
            case "workers_gone":
                self.workers = 0
            case "phase_begun":
                self.phase, self.phase_begun = said["phase"], event.time
                self.phase_done = self.phase_at_first = said["done"]
                self.phase_total = said["total"]
                if self.phase == "ingest":
                    self.ingest_begun = event.time
            case "progress":
                self.workers = said.get("workers", self.workers)
                self.phase_done = said["done"] if said["phase"] == self.phase else self.phase_done
            case "phase_ended":
                self.phase_done = self.phase_total
            case "task_begun":
                self.running[said["task"]] = Running(said["task"], None, said["worker"], event.time, said["attempt"])
                self.retried += said["attempt"] > 1
            case "task_dropped":
                self.running.pop(said["task"], None)
            case "task_done":
                self.running.pop(said["task"], None)
                self.phase_done += self.phase in ("index", "pack")
                self.traffic += [Traffic(**one) for one in said["requests"]]
            case "requests":
                self.traffic += [Traffic(**one) for one in said["requests"]]
            case "batch_done":
                values = (said[name] for name in ("objects", "frames", "kept", "rejected", "rejects", "bytes"))
                self.batches[said["batch"]] = one = _Batch(event.time, *values)
                self.done.append(one)
                ahead = sum(self.pieces.pop(said["batch"], {}).values())
                counted = self.planned.get(said["batch"].partition("-")[0], one.objects)
                self.step(event.time, one.objects - ahead if counted else 0)
            case "piece_done":
                pieces = self.pieces.setdefault(said["batch"], {})
                before = pieces.get(said["piece"], 0)  # of which something was lacking: made again
                pieces[said["piece"]] = said["objects"]
                self.step(event.time, said["objects"] - before)
            case "build_failed" | "build_stopped":
                self.ended, self.message = event.name, said.get("message")
            case _:
                pass

    def step(self, at: float, objects: int) -> None:
        """So many more of the phase's objects are done."""
        if self.phase == "ingest":
            self.phase_done += objects
            self.steps.append((at, objects))

    def rate(self, begin: float | None, end: float) -> Rate | None:
        """That of the batches of this run between two times."""
        done = [one for one in self.done if begin is not None and one.at >= begin]
        if not done or begin is None or end <= begin:
            return None
        seconds = end - begin
        return Rate(
            round(sum(one.frames for one in done) / seconds, 2),
            round(sum(one.bytes for one in done) / 1e6 / seconds, 3),
        )

    def seconds_left(self, now: float, batches: int) -> float | None:
        """Of the phase, by what was done in this run, of late where it has gone on for long; ``batches`` are to be made.

        Of ingesting by objects, as the share that is done; by batches where an archive does not say how many there are.
        """
        begin, left, made = self.phase_begun, self.phase_total - self.phase_done, self.phase_done - self.phase_at_first
        if self.phase == "ingest":
            begin = max(now - RECENT_S, begin)
            made = sum(objects for at, objects in self.steps if at >= begin)
            if self.phase_total == 0 or 0 in self.planned.values():
                left, made = batches, sum(one.at >= begin for one in self.done)
        elif self.phase_total == 0:
            return None
        return round(max(0, left) * (now - begin) / made, 1) if made > 0 else None


def _batches(layout: Layout[AnyPath], batches: Sequence[str], run: _Run) -> dict[str, _Batch]:
    """What has become of the batches that have a part: by the log, and by the parts where it does not know of them."""
    there = _names(layout.parts)
    found = {}
    for batch in batches:
        if f"{batch}.parquet" in there:
            again = f"{batch}-1.parquet" in there  # series that were tried again take the place of what they were
            known = None if again else run.batches.get(batch)
            found[batch] = known or _read(layout, batch, there)
    return found


def _names(folder: AnyPath) -> set[str]:
    if isinstance(folder, StorePath):
        return set(sizes(folder))
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def _read(layout: Layout[AnyPath], batch: str, there: set[str]) -> _Batch:
    # seldom wanted, and what it brings along takes longer to import than all else here to run
    from lumid.pipeline.parts import choose, finished_parts, read_account, read_rejects

    parts = choose([[files] for files in finished_parts(layout.parts, batch, there)])
    accounts = [read_account(files) for files in parts]
    rejects: Counter[str] = Counter()
    for files in parts:
        table = read_rejects(files).select(["code", "frames"])
        for code, frames in zip(*(column.to_pylist() for column in table.columns), strict=True):
            rejects[code] += frames
    return _Batch(
        0.0,  # before this run, as far as its rate is concerned
        sum(one.objects for one in accounts),
        sum(one.planned for one in accounts),
        sum(one.kept for one in accounts),
        sum(one.rejected for one in accounts),
        rejects,
        sum(one.source_bytes for one in accounts),
    )


def _with_series(one: Running, series: Mapping[str, int]) -> Running:
    return Running(one.task, series.get(one.task), one.worker, one.since, one.attempt)


def _why(run: _Run) -> str:
    if run.ended == "build_failed":
        return run.message or "it failed"
    if run.ended == "build_stopped":
        return "it was stopped, by Ctrl-C or a polite kill"
    return "it was killed, or the machine went down: its log ends without a word on why"


def _is_running(layout: Layout[AnyPath]) -> bool:
    place = layout.work / claim.CLAIM
    if isinstance(place, StorePath):
        changed = changed_at(place)
        return changed is not None and abs(time.time() - changed) < claim.SILENT_S
    try:
        with place.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
