"""Tasks on a Dask cluster: a bounded stream of them, whose failures are words and never tracebacks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from distributed import Client, Future, get_worker
from distributed.scheduler import KilledWorker

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import storage_errors
from lumid.catalog.paths import AnyPath
from lumid.dags.cluster import GONE, SAY_EVERY_S, slots
from lumid.dags.metrics import count_traffic
from lumid.pipeline import traffic
from lumid.pipeline.reject import internal_error
from lumid.pipeline.traffic import Traffic

COUNT_EVERY_S = 2.0
"""How often it is asked how many workers there are: they come and go while tasks run."""
LOOK_EVERY_S = 0.2
"""How often it is looked whether a result that was lost is there again."""
ROUNDS = 3
"""How often Dask may give up with a task, after three workers each time, that nobody can take apart."""
T = TypeVar("T")
Task = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""Name, function, arguments."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a task, in words that may be shown; exceptions of workers would carry local values."""

    message: str


@dataclass(frozen=True, slots=True)
class Told:
    """A task's result, and what came with it; ``traffic`` is what its process has asked for since it last told."""

    result: Any
    worker: str
    seconds: float
    traffic: tuple[Traffic, ...]


class Watch(Protocol):
    """Who wants to know of tasks; workers say under ``topic`` with which they begin."""

    topic: str

    def given(self, name: str) -> None:
        """A task is handed to the cluster."""
        ...

    def ended(self, name: str, told: Told) -> None:
        """A task's result is here."""
        ...

    def dropped(self, name: str) -> None:
        """Nobody wants a task's result any more."""
        ...

    def deserted(self) -> None:
        """There is no worker left that a task could be handed to."""
        ...


def run_tasks(
    client: Client,
    tasks: Iterable[Task],
    on_killed: Callable[[str], Any] | None = None,
    watch: Watch | None = None,
) -> Generator[tuple[str, Any], None, None]:
    """Run tasks of (name, function, arguments) and yield (name, result) as they finish.

    One is handed out when there is a place for it: neither the scheduler nor memory grows with the plan, none waits at
    a worker while another is idle, and workers that come later are given some. A task that keeps killing its worker goes
    to ``on_killed`` when no other runs any more: with a worker all its tasks die, so that which of them was guilty can
    only be found out alone. Without ``on_killed`` it is tried anew. Raises :class:`LumidError` for the first that fails.
    """
    running = _Running(client, iter(tasks), watch)
    rounds: Counter[str] = Counter()
    killed: list[str] = []
    try:
        while (ended := running.next()) is not None:
            task, future = ended
            name = task[0]
            try:
                told = future.result()
            except KilledWorker:
                rounds[name] += 1
                if on_killed is not None:
                    killed.append(name)
                elif rounds[name] < ROUNDS:  # workers may die of something else than what they do
                    running.submit(task)
                else:
                    raise LumidError(
                        "a task keeps killing its worker: is there enough memory for each? try fewer --workers"
                    ) from None
                continue
            except CancelledError:  # nobody here cancels: its scheduler is gone
                raise LumidError(GONE) from None
            finally:
                future.release()
            if watch:
                watch.ended(name, told)
            if isinstance(told.result, Failure):
                raise LumidError(told.result.message)
            running.fill()  # whoever asked for it may take some time over the result
            yield name, told.result
        for name in killed:
            assert on_killed is not None
            yield name, on_killed(name)
    finally:
        running.cancel()


class _Running:
    """The tasks that are handed out: one for each place of the cluster, as long as there are any."""

    def __init__(self, client: Client, tasks: Iterator[Task], watch: Watch | None) -> None:
        self._client, self._tasks, self._watch = client, tasks, watch
        self._running: dict[str, tuple[Task, Future[Told]]] = {}
        self._ended: SimpleQueue[Future[Told]] = SimpleQueue()
        self._lost: list[Future[Told]] = []
        self._places = slots(client)
        self._counted = time.monotonic()
        self._peopled: float | None = self._counted

    def submit(self, task: Task) -> None:
        """Hand out a task."""
        name, function, arguments = task
        key = key_of(name, function)
        topic = self._watch.topic if self._watch else ""
        future = self._client.submit(_told, topic, name, function, *arguments, key=key, pure=False)
        self._running[key] = task, future
        if self._watch:
            self._watch.given(name)
        future.add_done_callback(self._ended.put)

    def fill(self) -> None:
        """Hand out a task for each place that is free."""
        if time.monotonic() - self._counted >= COUNT_EVERY_S:
            self._counted = time.monotonic()
            with suppress(Exception):  # of a scheduler that is gone, the futures tell
                self._places = slots(self._client)
                self._look_for_workers()
        # where there is no worker, one task waits for it
        while len(self._running) < max(1, self._places) and (task := next(self._tasks, None)) is not None:
            self.submit(task)

    def _look_for_workers(self) -> None:
        """One that starts anew is soon there; that there is none for long is said, once."""
        now = time.monotonic()
        if self._places:
            self._peopled = now
        elif self._peopled is not None and now - self._peopled >= SAY_EVERY_S and self._watch:
            self._watch.deserted()
            self._peopled = None

    def next(self) -> tuple[Task, Future[Told]] | None:
        """The next that has ended; None when all have."""
        self.fill()
        while self._running:
            with suppress(Empty):
                future = self._ended.get(timeout=LOOK_EVERY_S if self._lost else COUNT_EVERY_S)
                if future.status != "lost":
                    return self._running.pop(str(future.key))[0], future
                self._lost.append(future)  # with its worker, since it ended: it is made again, and others do not wait
            for future in [one for one in self._lost if one.status != "lost"]:
                self._lost.remove(future)
                self._ended.put(future)
            self.fill()
        return None

    def cancel(self) -> None:
        """End what still runs."""
        with suppress(Exception):
            self._client.cancel([future for _, future in self._running.values()])
        if self._watch:
            for (name, _, _), _ in self._running.values():
                self._watch.dropped(name)


def key_of(name: str, function: Callable[..., Any]) -> str:
    """A task's name for Dask, used once. Dashboard and metrics count by how it begins: by what the task does."""
    return f"{function.__name__.removesuffix('_task')}-{name}-{time.monotonic_ns()}"


def name_of(key: object) -> str:
    """The name of a task, by Dask's name for it; of what is none of ours, anything.

    >>> name_of("ingest-5bc1e7-piece-0-of-2-81362")
    '5bc1e7-piece-0-of-2'
    """
    return str(key).partition("-")[2].rpartition("-")[0]


def _told(topic: str, name: str, function: Callable[..., Any], *arguments: Any) -> Told:
    """A task on a worker."""
    worker = get_worker()
    if topic:
        worker.log_event(topic, {"task": name, "worker": worker.address})
    started = time.monotonic()
    result = function(*arguments)
    counted = traffic.take()
    count_traffic(counted)
    return Told(result, worker.address, time.monotonic() - started, counted)


def guarded(work: Callable[[], T], folder: AnyPath | None = None) -> T | Failure:
    """Run a task's work; whatever goes wrong becomes words that may be shown."""
    try:
        with storage_errors(folder or Path()):
            return work()
    except LumidError as error:
        return Failure(str(error))
    except OSError as error:
        return Failure(f"the disk or the network failed: {type(error).__name__}, errno {error.errno}")
    except Exception as error:
        return Failure(f"lumid failed: {internal_error('task', error).detail}; please report this line")
