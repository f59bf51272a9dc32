"""Workers of this machine: deaf to Ctrl-C, and replaced when they are lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

from lumid.catalog.errors import LumidError
from lumid.dags import local
from lumid.dags.local import start_local

pytestmark = pytest.mark.whole

LIMIT_S = 60.0


def until(wanted: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """Workers of clusters that other tests of this process keep."""
    OTHERS.update(processes())
    yield
    OTHERS.clear()


OTHERS: set[int] = set()


def processes() -> set[int]:
    found = set()
    for one in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "spawn_main" in " ".join(one.cmdline()):
                found.add(one.pid)
    return found - OTHERS


def pids(client: Client) -> set[int]:
    return set(client.run(os.getpid).values())


def masked() -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def test_interrupts_do_not_reach_workers_nor_those_that_replace_them(tmp_path: Path) -> None:
    with start_local(1, 1, tmp_path) as cluster, Client(cluster, set_as_default=False) as client:
        (first,) = pids(client)
        os.kill(first, signal.SIGINT)
        assert client.submit(masked).result() == {signal.SIGINT}
        assert pids(client) == {first}
        os.kill(first, signal.SIGKILL)
        until(lambda: bool(processes() - {first}))
        (second,) = processes() - {first}
        os.kill(second, signal.SIGINT)  # it is being started
        assert client.submit(os.getpid).result() == second
    assert not processes()
    assert not masked()


def test_a_worker_that_is_gone_for_good_is_replaced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the new one takes: on a loaded machine it is looked for many times until it is there."""
    monkeypatch.setattr(local, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(local, "LOST_AFTER_S", 0.5)
    asked: list[int] = []
    scale = LocalCluster.scale

    def counted(self: LocalCluster, number: int, **more: Any) -> Any:
        asked.append(number)
        return scale(self, number, **more)

    monkeypatch.setattr(LocalCluster, "scale", counted)
    with start_local(2, 1, tmp_path) as cluster, Client(cluster, set_as_default=False) as client:
        before = processes()
        cluster.sync(cluster.workers[0].close)  # as it does when its process dies while it is being started
        until(lambda: len(client.scheduler_info()["workers"]) == 2)
        there = pids(client)
        time.sleep(2)
        assert pids(client) == there == processes()
        assert len(before & there) == 1
        assert set(asked) == {2}
    assert not processes()


def test_a_worker_that_stays_without_a_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(local, "LOST_AFTER_S", 0.5)
    with start_local(1, 1, tmp_path) as cluster, Client(cluster, set_as_default=False) as client:
        (first,) = pids(client)
        monkeypatch.setattr(cluster.workers[0], "instantiate", _nothing)
        os.kill(first, signal.SIGKILL)
        assert client.submit(os.getpid).result(LIMIT_S) != first


async def _nothing() -> None:
    pass


def test_a_worker_that_is_killed_while_the_first_are_being_started(tmp_path: Path) -> None:
    def kill() -> None:
        until(lambda: bool(processes()))
        time.sleep(0.3)
        os.kill(min(processes()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with start_local(2, 1, tmp_path) as cluster, Client(cluster, set_as_default=False) as client:
        killer.join()
        until(lambda: len(client.scheduler_info()["workers"]) == 2)
        assert client.submit(sum, [1, 2]).result(LIMIT_S) == 3
    assert not processes()


def test_workers_that_cannot_be_started_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fail(**given: Any) -> None:
        tried.append(given["n_workers"])
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(local, "LocalCluster", fail)
    with pytest.raises(LumidError, match="try fewer --workers"), start_local(2, 1, tmp_path):
        pass
    assert tried == [2, 2, 2]
