"""Tasks on a Dask cluster: a bounded stream of them, whose failures are words and never tracebacks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from distributed import Client, as_completed, get_worker
from distributed.scheduler import KilledWorker

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import storage_errors
from lumid.catalog.paths import AnyPath
from lumid.dags.cluster import GONE, slots
from lumid.dags.metrics import count_traffic
from lumid.pipeline import traffic
from lumid.pipeline.reject import internal_error
from lumid.pipeline.traffic import Traffic

IN_FLIGHT_PER_SLOT = 2
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


def run_tasks(
    client: Client,
    tasks: Iterable[Task],
    on_killed: Callable[[str], Any] | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[str, Any]]:
    """Run tasks of (name, function, arguments) and yield (name, result) as they finish.

    Only so many are handed out as keep every worker busy, so neither the scheduler nor memory grows with the plan. A
    task that keeps killing its worker goes to ``on_killed`` when no other runs any more: with a worker all its tasks die, so
    that which of them was guilty can only be found out alone. Without ``on_killed`` it is tried anew. Raises :class:`LumidError` for the first that fails.
    """
    queue = iter(tasks)
    window = IN_FLIGHT_PER_SLOT * slots(client)
    running = as_completed(loop=client.loop)
    given: dict[str, Task] = {}
    rounds: Counter[str] = Counter()
    killed: list[str] = []

    def submit(again: Task | None = None) -> bool:
        task = again or next(queue, None)
        if task is None:
            return False
        name, function, arguments = task
        topic = watch.topic if watch else ""
        future = client.submit(
            _told, topic, name, function, *arguments, key=f"{name}-{time.monotonic_ns()}", pure=False
        )
        given[str(future.key)] = task
        if watch:
            watch.given(name)
        running.add(future)
        return True

    try:
        for _ in range(window):
            if not submit():
                break
        for future in running:
            task = given.pop(str(future.key))
            name = task[0]
            try:
                told = future.result()
                result = told.result
                if watch:
                    watch.ended(name, told)
            except KilledWorker:
                future.release()
                rounds[name] += 1
                if on_killed is not None:
                    killed.append(name)
                    submit()
                elif rounds[name] < ROUNDS:  # workers may die of something else than what they do
                    submit(task)
                else:
                    raise LumidError(
                        "a task keeps killing its worker: is there enough memory for each? try fewer --workers"
                    ) from None
                continue
            except CancelledError:  # nobody here cancels: its scheduler is gone
                raise LumidError(GONE) from None
            future.release()
            if isinstance(result, Failure):
                raise LumidError(result.message)
            submit()
            yield name, result
        for name in killed:
            assert on_killed is not None
            yield name, on_killed(name)
    finally:
        for future in list(running.futures):
            with suppress(Exception):
                future.cancel()


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
