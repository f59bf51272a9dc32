"""Dask workers that are processes of this machine: deaf to Ctrl-C, and replaced when they are lost."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

import dask
from distributed import LocalCluster
from distributed.core import Status
from distributed.utils import LoopRunner
from tornado.ioloop import IOLoop, PeriodicCallback

from lumid.catalog.errors import LumidError

START_ATTEMPTS = 3
LOOK_EVERY_S = 1.0
"""How often it is looked whether a worker is lost."""
PATIENCE_S = 0.5
"""How long a worker may go on with its task when a build is stopped."""
LOST_AFTER_S = 15.0
"""A worker that has had no process for so long is not being started again."""


@contextmanager
def start_local(workers: int, threads: int, scratch: Path) -> Iterator[LocalCluster]:
    """A scheduler in this process and so many worker processes, all on 127.0.0.1; they end with this.

    ``threads``: how many tasks a worker runs at once. ``scratch``: where workers keep files.
    """
    # the workers are forked from a fresh interpreter: limits on threads must be in its environment
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": one_thread}),
        _loop_deaf_to_interrupts() as loop,
        _begun(workers, threads, scratch, loop) as cluster,
        _ended_at_once(cluster),
        _replaced_when_lost(cluster, loop),
    ):
        yield cluster


def _begun(workers: int, threads: int, scratch: Path, loop: IOLoop) -> LocalCluster:
    """The cluster; a worker that dies while the first ones are being started is one that Dask gives up with.

    Raises :class:`LumidError` when that happens again and again.
    """
    for _ in range(START_ATTEMPTS):
        with suppress(RuntimeError):
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # two builds on one machine must not want the same port
                local_directory=str(scratch),
                silence_logs=logging.CRITICAL,
                loop=loop,
            )
    raise LumidError(
        "the workers end while they are being started: is there enough memory for each? try fewer --workers"
    )


@contextmanager
def _loop_deaf_to_interrupts() -> Iterator[IOLoop]:
    """An event loop in a thread that Ctrl-C does not reach, nor the processes that are started from it.

    A terminal sends Ctrl-C to all of them. A worker that is still importing would die of it with a traceback, and one
    that works would be taken for lost; whoever leads ends them.
    """
    runner = LoopRunner()
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # with the first process, it would lift the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            runner.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        runner.start()
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _ended_at_once(cluster: LocalCluster) -> Iterator[None]:
    """Where this is left by an exception, workers are not given time to end their tasks: whoever pressed Ctrl-C waits."""
    try:
        yield
    except BaseException:
        cluster.sync(_close_workers, cluster)
        raise


async def _close_workers(cluster: LocalCluster) -> None:
    workers = list(cluster.workers.values())
    await asyncio.gather(*(nanny.close(timeout=PATIENCE_S) for nanny in workers), return_exceptions=True)


@contextmanager
def _replaced_when_lost(cluster: LocalCluster, loop: IOLoop) -> Iterator[None]:
    """Start a worker for each that is gone for good.

    Dask's nanny starts a dead worker again, but not one that dies while it is still being started: a worker that takes
    up the object that kills it at once, on a busy machine. With all workers lost that way a build would wait for ever.
    """
    looks = Counter[object]()

    def look() -> None:
        for name, nanny in list(cluster.workers.items()):
            looks[name] = 0 if nanny.is_alive() else looks[name] + 1
            ended = nanny.status in (Status.closing, Status.closed, Status.failed)
            if ended or looks[name] * LOOK_EVERY_S > LOST_AFTER_S:
                del cluster.workers[name], looks[name]
                closing.add(asyncio.ensure_future(nanny.close()))
        if (
            cluster.worker_spec.keys() - cluster.workers.keys()
        ):  # or is being started at the moment: then this does nothing
            cluster.scale(len(cluster.worker_spec))

    closing: set[asyncio.Future[object]] = set()
    looking = PeriodicCallback(look, LOOK_EVERY_S * 1000)
    loop.add_callback(looking.start)
    try:
        yield
    finally:
        loop.add_callback(looking.stop)
