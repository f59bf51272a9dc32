"""The Dask cluster a build runs on: one sized to this machine, or one that is already there."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import dask
from distributed import Client, Worker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from lumid.catalog.errors import LumidError, UsageError
from lumid.dags import metrics
from lumid.dags.local import start_local
from lumid.dags.quiet import keep_quiet
from lumid.dags.remote import security_of, start_remote
from lumid.dags.turns import set_threads
from lumid.pipeline.recipe_cluster import SCHEDULER_ADDRESS, WAIT_MINUTES, AnyCluster, LocalSettings, SchedulerSettings

SAY_EVERY_S = 15.0
"""How often it is said that the first worker of a cluster is waited for."""
WHERE_TO_LOOK = {
    "scheduler": "start some with: dask worker and the scheduler's address",
    "ssh": "see whether the hosts can be logged into, and reach the first of them",
    "slurm": "see `squeue` and the jobs' own output",
    "kubernetes": "see `kubectl get pods` and their events",
}


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Where to run: ``scheduler`` is the address of a running one, else ``workers`` processes on this machine.

    Where neither is given, ``where`` says it: the recipe's ``[cluster]``.

    ``ahead``: whether a process here begins with its next task, as far as fetching goes, before it has ended the last.
    """

    scheduler: str | None = None
    workers: int | None = None
    ahead: bool = False
    where: AnyCluster = field(default_factory=LocalSettings)


def default_workers() -> int:
    """One worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


GONE = "the Dask scheduler is gone; what is finished is kept: run the same command again to go on"
PROFILER_OFF = {"distributed.worker.profile.enabled": False}
"""Dask samples the stacks of its threads a hundred times a second. In Python 3.11.0 to 3.11.8 that can lock a process up
for good (python/cpython#106883), and what it gathers is of no use here."""


class QuietWorker(WorkerPlugin):
    """Prepares a worker: one thread a library, and nothing printed that could quote a header."""

    name = "lumid-quiet-worker"

    def __init__(self, own_process: bool) -> None:
        self.own_process = own_process

    def setup(self, worker: Worker) -> None:
        """Run by Dask as the worker starts."""
        import cv2

        from lumid.pipeline.decode import quiet_libraries

        cv2.setNumThreads(1)
        quiet_libraries()
        set_threads(worker.state.nthreads)
        metrics.prepare()
        for name in ("profile", "profile-cycle"):  # of workers that were not started here: see PROFILER_OFF
            if sampling := worker.periodic_callbacks.get(name):
                sampling.stop()
        for name in ("distributed", "distributed.worker"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self.own_process:  # decoders in C print what they think of a file, and Dask what it thinks of a task
            keep_quiet()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)


Waiting = Callable[[str, float], None]
"""Is told the kind of the cluster, and for how many seconds its first worker has been waited for."""


@contextmanager
def open_cluster(settings: ClusterSettings, scratch: Path, waiting: Waiting | None = None) -> Iterator[Client]:
    """A client of the cluster; a cluster that was started for it ends with it, and keeps its files in ``scratch``.

    Nothing listens but on 127.0.0.1, unless a scheduler elsewhere is asked for. ``waiting`` is told now and then that
    there is no worker yet. Raises :class:`LumidError` when the scheduler does not answer, or no worker comes in time.
    """
    config = {
        "distributed.scheduler.allowed-failures": 2,
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
        "distributed.comm.timeouts.connect": "15s",
        "distributed.admin.large-graph-warning-threshold": "1GB",
        **PROFILER_OFF,
    }
    for name in (
        "distributed",
        "distributed.client",
    ):  # what befalls workers, scheduler and connections is told by lumid
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(config), _told_when_lost():
        where = _where(settings)
        if isinstance(where, SchedulerSettings) or settings.scheduler:
            with _join(settings, where) as client:
                limit = where.wait_minutes if isinstance(where, SchedulerSettings) else WAIT_MINUTES
                _await_worker(client, "scheduler", limit, waiting)
                _prepare(client, own_process=False)
                yield client
            return
        if not isinstance(where, LocalSettings):
            with (
                start_remote(where, threads=2 if settings.ahead else 1) as remote,
                Client(remote, set_as_default=False) as client,
            ):
                _await_worker(client, where.kind, where.wait_minutes, waiting)
                _prepare(client, own_process=True)
                yield client
            return
        workers, threads = where.workers or default_workers(), 2 if settings.ahead else 1
        with start_local(workers, threads, scratch) as cluster, Client(cluster, set_as_default=False) as client:
            _prepare(client, own_process=True)
            yield client


def _prepare(client: Client, *, own_process: bool) -> None:
    """Prepare all workers, those that come later too. Raises :class:`LumidError` when one of them cannot be, as without lumid."""
    try:
        client.register_plugin(QuietWorker(own_process))
    except (ClosedClientError, OSError):
        raise
    except Exception:  # what a worker raised, with its words
        raise LumidError(
            "a worker cannot be prepared: each needs this version of lumid and its libraries; see docs/clusters.md"
        ) from None


@contextmanager
def _told_when_lost() -> Iterator[None]:
    """Whatever is asked of a scheduler that is gone fails in one line; what waits for tasks says it by itself."""
    try:
        yield
    except ClosedClientError:
        raise LumidError(GONE) from None
    except OSError as error:
        if isinstance(error, CommClosedError) or str(error).startswith("Timed out trying to connect to"):
            raise LumidError(GONE) from None
        raise


def _await_worker(client: Client, kind: str, minutes: float, waiting: Waiting | None) -> None:
    """Wait for the cluster's first worker. Raises :class:`LumidError` when none has come in so many minutes."""
    begun = time.monotonic()
    while not client.scheduler_info()["workers"]:
        seconds = time.monotonic() - begun
        if seconds >= minutes * 60:
            raise LumidError(
                f"[cluster] kind = '{kind}': no worker has come in {minutes:g} minutes; {WHERE_TO_LOOK[kind]}, or wait "
                "longer with the key cluster.wait_minutes"
            )
        if waiting:
            waiting(kind, seconds)
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=min(SAY_EVERY_S, minutes * 60 - seconds))


def _where(settings: ClusterSettings) -> AnyCluster:
    """The command line's options come before the recipe."""
    return LocalSettings(workers=settings.workers) if settings.workers else settings.where


def _join(settings: ClusterSettings, where: AnyCluster) -> Client:
    """A client of a scheduler that runs already; a ``tls://`` one is met with the recipe's certificates."""
    if settings.scheduler and not re.fullmatch(rf"{SCHEDULER_ADDRESS}|(inproc|ucx|wss?)://.+", settings.scheduler):
        raise UsageError(f"--scheduler {settings.scheduler}: write it as tcp://host:8786 or tls://host:8786")
    address = settings.scheduler or (where.address if isinstance(where, SchedulerSettings) else "")
    security = security_of(where)
    if address.startswith("tls://") and security is None and not dask.config.get("distributed.comm.tls.ca-file", None):
        raise LumidError(
            f"{address}: needs certificates; give tls_ca, tls_cert and tls_key in the recipe's [cluster], see docs/clusters.md"
        )
    try:
        return Client(address, timeout="10s", set_as_default=False, security=security)
    except (OSError, ValueError, TypeError, TimeoutError):
        name = f"--scheduler {address}" if settings.scheduler else f"cluster.address: {address}"
        raise LumidError(f"{name}: no Dask scheduler answers there, or not with this certificate") from None


def slots(client: Client) -> int:
    """How many tasks the cluster runs at once: none while it has no worker."""
    threads: int = sum(client.nthreads().values())
    return threads
