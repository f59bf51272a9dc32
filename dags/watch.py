"""Who does what on the cluster: workers say which task they begin with, the scheduler which workers come and go."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from distributed import Client

from lumid.dags.events import EventLog
from lumid.dags.metrics import shown_by_scheduler
from lumid.dags.tasks import name_of

if TYPE_CHECKING:
    from lumid.dags.progress import BuildProgress
    from lumid.dags.tasks import Told

PROGRESS_EVERY_S = 10.0
"""A build that is killed has said its last word so long ago at most."""
METRICS_EVERY_S = 5.0
DASK_TOPIC = "all"
"""Under which a Dask scheduler says which workers come and go."""


class TaskWatch:
    """The tasks of one build: which run, where, and how often each was begun. Told from several threads."""

    def __init__(self, events: EventLog, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self.topic = f"lumid-{secrets.token_hex(8)}"
        self._events = events
        self._lock = threading.Lock()
        self._attempts: Counter[str] = Counter()
        self._given: set[str] = set()
        self._running: dict[str, str] = {}
        self._workers: dict[str, str] = {}

    @property
    def running(self) -> int:
        """How many tasks workers are busy with."""
        return len(self._running)

    def given(self, name: str) -> None:
        """A task is handed to the cluster."""
        with self._lock:
            self._given.add(name)

    def heard(self, event: tuple[float, Any]) -> None:
        """A worker begins with a task."""
        name, worker = event[1]["task"], event[1]["worker"]
        with self._lock:
            if name not in self._given:  # nobody wants it any more
                return
            whole = name.partition("-without-")[0]
            self._attempts[whole] += 1
            self._running[name] = worker
            attempt = self._attempts[whole]
        self._events.tell("task_begun", task=name, worker=worker, attempt=attempt)

    def heard_of_workers(self, event: tuple[float, Any]) -> None:
        """Dask's own words on a worker that came or went."""
        said = event[1]
        action = said.get("action") if isinstance(said, dict) else None
        if action == "add-worker":
            self._events.tell("worker_joined", worker=said.get("worker"))
        elif action == "remove-worker":
            tasks = [name_of(key) for key in said.get("processing-tasks", ())]
            with self._lock:  # a worker that dies at once may not have said what it had begun with
                lost = [name for name in tasks if name in self._given]  # others' tasks have names of their own
                for name in lost:
                    self._running.pop(name, None)
            how = "worker_left" if said.get("expected") else "worker_lost"
            self._events.tell(how, worker=said.get("worker"), tasks=lost)

    def ended(self, name: str, told: Told) -> None:
        """A task's result is here."""
        with self._lock:
            self._given.discard(name)
            self._running.pop(name, None)
            self._workers[_batch_of(name)] = told.worker
        self._events.tell("task_done", task=name, worker=told.worker, seconds=told.seconds, requests=told.traffic)

    def dropped(self, name: str) -> None:
        """Nobody wants a task's result any more."""
        with self._lock:
            self._given.discard(name)
            self._running.pop(name, None)
        self._events.tell("task_dropped", task=name)

    def deserted(self) -> None:
        """There is no worker left."""
        self._events.tell("workers_gone")
        self._say("no worker is left: waiting for others to join; what is finished is kept, also when you stop here")

    def done_by(self, name: str) -> tuple[str | None, int]:
        """The worker that has done a batch or a piece, and at which attempt."""
        with self._lock:
            joined = self._attempts.pop(f"{name}-join", 0)
            return self._workers.pop(name, None), self._attempts.pop(name, 0) or joined


def _batch_of(name: str) -> str:
    """Of what a task makes a batch: without the objects that killed its worker, or of the pieces that several made.

    >>> [_batch_of(name) for name in ("5bc1e7-without-2", "5bc1e7-join", "5bc1e7-piece-0-of-2")]
    ['5bc1e7', '5bc1e7', '5bc1e7-piece-0-of-2']
    """
    return name.partition("-without-")[0].removesuffix("-join")


@contextmanager
def watching(client: Client, progress: BuildProgress, name: str) -> Iterator[None]:
    """As long as this lasts, ``progress`` hears of the cluster's tasks and workers, and log and metrics of its progress.

    ``name``: of the build, as metrics tell it.
    """
    tasks, events = progress.tasks, progress.events
    topics = {tasks.topic: tasks.heard, DASK_TOPIC: tasks.heard_of_workers}
    for topic, hear in topics.items():
        client.subscribe_topic(topic, hear)
    events.tell("cluster_joined", workers=len(client.nthreads()), dashboard=client.dashboard_link)
    ended = threading.Event()
    with shown_by_scheduler(client, tasks.topic, name) as show:

        def keep_telling() -> None:
            told = time.monotonic()
            while not ended.wait(METRICS_EVERY_S):
                show(progress.state)
                if time.monotonic() - told >= PROGRESS_EVERY_S:
                    told = time.monotonic()
                    tell_progress()

        def tell_progress() -> None:
            workers = None
            with suppress(Exception):  # a scheduler that is gone is told of by whoever waits for a result
                workers = len(client.nthreads())
            state = progress.state  # after the question, which can take a while
            events.tell("progress", phase=state.phase, done=state.done, total=state.total, running=tasks.running, workers=workers)  # fmt: skip

        teller = threading.Thread(target=keep_telling, name="lumid-progress", daemon=True)
        show(progress.state)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join(METRICS_EVERY_S)
            for topic in topics:
                with suppress(Exception):
                    client.unsubscribe_topic(topic)
