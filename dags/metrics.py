"""Prometheus metrics, on the pages that Dask's scheduler and workers serve anyway: ``/metrics``.

Where the package prometheus_client is not installed there are none, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from lumid.dags.events import PHASES
from lumid.pipeline.traffic import Traffic

SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
"""Bounds of the histogram of batches."""


@dataclass(frozen=True, slots=True)
class BuildState:
    """How far a build is: units done of its phase, and batches."""

    phase: str = ""
    done: int = 0
    total: int = 0
    batches_done: int = 0
    batches: int = 0


class _WorkerMetrics:
    """What a worker counts, since its process began."""

    def __init__(self, client: Any) -> None:
        self.frames = client.Counter("lumid_frames", "Frames of finished batches", ["result"])
        self.rejects = client.Counter("lumid_rejects", "Rejected frames of finished batches", ["code"])
        self.batches = client.Counter("lumid_batches", "Finished batches")
        self.seconds = client.Histogram("lumid_batch_seconds", "Time that a batch took", buckets=SECONDS)
        self.bytes = client.Counter(
            "lumid_source_bytes", "Bytes that came from archives, stores and disks", ["archive"]
        )
        self.requests = client.Counter(
            "lumid_source_requests", "Requests to archives and stores", ["archive", "operation", "outcome"]
        )
        for result in ("kept", "rejected"):
            self.frames.labels(result)


class _BuildMetrics:
    """What the scheduler shows of builds."""

    def __init__(self, client: Any) -> None:
        self.phase = client.Gauge("lumid_build_phase", "1 for the phase that a build is in", ["build", "phase"])
        self.progress = client.Gauge("lumid_build_progress_ratio", "Done part of the phase", ["build"])
        self.batches = client.Gauge("lumid_build_batches", "Batches of a build", ["build", "state"])

    def show(self, build: str, state: Mapping[str, Any]) -> None:
        for phase in PHASES:
            self.phase.labels(build, phase).set(phase == state["phase"])
        self.progress.labels(build).set(state["done"] / state["total"] if state["total"] else 0)
        self.batches.labels(build, "done").set(state["batches_done"])
        self.batches.labels(build, "planned").set(state["batches"])

    def forget(self, build: str) -> None:
        for phase in PHASES:
            self.phase.remove(build, phase)
        self.progress.remove(build)
        for which in ("done", "planned"):
            self.batches.remove(build, which)


@cache
def _worker_metrics() -> _WorkerMetrics | None:
    client = _prometheus()
    return _WorkerMetrics(client) if client else None


@cache
def _build_metrics() -> _BuildMetrics | None:
    client = _prometheus()
    return _BuildMetrics(client) if client else None


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ModuleNotFoundError:
        return None
    return prometheus_client


def prepare() -> None:
    """Have a worker show its metrics from the beginning."""
    _worker_metrics()


def count_batch(kept: int, rejects: Mapping[str, int], seconds: float) -> None:
    """One more batch of this worker is written."""
    if metrics := _worker_metrics():
        metrics.batches.inc()
        metrics.seconds.observe(seconds)
        metrics.frames.labels("kept").inc(kept)
        metrics.frames.labels("rejected").inc(sum(rejects.values()))
        for code, frames in rejects.items():
            metrics.rejects.labels(code).inc(frames)


def count_traffic(traffic: Iterable[Traffic]) -> None:
    """What this worker has asked for, and what came."""
    if metrics := _worker_metrics():
        for one in traffic:
            metrics.bytes.labels(one.archive).inc(one.bytes)
            metrics.requests.labels(one.archive, one.operation, one.outcome).inc(one.requests)


class _Shown(SchedulerPlugin):
    """Takes up what is logged under a topic; on the scheduler, which may be another machine's."""

    def __init__(self, topic: str, build: str) -> None:
        self.name = topic
        self.topic = topic
        self.build = build

    def log_event(self, topic: str, msg: Any) -> None:
        """Run by Dask for every event."""
        if topic == self.topic and (metrics := _build_metrics()):
            if msg is None:
                metrics.forget(self.build)
            else:
                metrics.show(self.build, msg)


@contextmanager
def shown_by_scheduler(client: Client, topic: str, build: str) -> Iterator[Callable[[BuildState], None]]:
    """A function that has the scheduler show how far the build of that name is, as long as this lasts."""
    topic = f"{topic}-state"

    def tell(said: dict[str, Any] | None) -> None:
        with suppress(Exception):  # metrics are no reason for a build to end
            client.log_event(topic, said)

    with suppress(Exception):  # a scheduler elsewhere may know nothing of lumid
        client.register_plugin(_Shown(topic, build))
    try:
        yield lambda state: tell(asdict(state))
    finally:
        tell(None)
        with suppress(Exception):
            client.unregister_scheduler_plugin(topic)
