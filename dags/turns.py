"""A worker's threads take turns: while one processes its batch, the bytes of the others' batches arrive."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Turns:
    """Those of this process; until it is told how many threads it has, it has one."""

    def __init__(self) -> None:
        self.threads = 1
        self.free = threading.Semaphore(1)


_turns = _Turns()


def set_threads(threads: int) -> None:
    """How many tasks this process runs at once. Half of them may compute; to be called before any does."""
    threads = max(1, threads)
    if threads != _turns.threads:  # else another build's tasks may hold some of them
        _turns.threads = threads
        _turns.free = threading.Semaphore(max(1, threads // 2))


def share() -> float:
    """The part of what a worker may hold that one of its tasks may."""
    return 1 / _turns.threads


@contextmanager
def turn() -> Iterator[None]:
    """Wait until it is this thread's turn to compute."""
    with _turns.free:
        yield
