"""A data set's place for one build alone: a locked file in a folder, a lease that is kept alive in an object store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lumid.catalog.errors import LumidError, StorageError, UsageError
from lumid.catalog.layout import Layout, remove_half_written
from lumid.catalog.paths import AnyPath, StorePath, conditional_put, entity_tag, remove_below, sizes
from lumid.dags.state import read_state, write_state
from lumid.pipeline.recipe import Recipe

BEAT_S = 10.0
"""How often a build says in a store that it is alive."""
SILENT_S = 45.0
"""One that has not said so for so long is dead; it is watched for as long, as no two machines' clocks agree."""
CLAIM = "running"
HALF_WRITTEN = ".*.tmp"
"""``dataset.json`` and its like, which are written in their place, before they are whole."""


@contextmanager
def claimed(layout: Layout[AnyPath], recipe: Recipe, tell: Callable[[str], None] = lambda _: None) -> Iterator[Claim]:
    """The work folder for this process alone; what a killed process left half-written is swept away.

    ``tell``: what is waited for. Raises :class:`LumidError` when another process has it.
    """
    with _held(layout, tell) as claim:
        _sweep(layout)
        if isinstance(layout.work, Path):
            remove_half_written(layout.work)
            for leftover in layout.work.parent.glob(HALF_WRITTEN):
                leftover.unlink(missing_ok=True)
        if is_begun_by_another(layout, recipe):
            _empty(layout)
        if not layout.state.is_file():
            write_state(layout, recipe_name=recipe.name, recipe_hash=recipe.hash(), phase="scan", batches=0)
        yield claim


def is_begun_by_another(layout: Layout[AnyPath], recipe: Recipe) -> bool:
    """Whether a build of another recipe began here, and got no further than to look at its sources.

    Raises :class:`UsageError` when it did get further: its work is not thrown away.
    """
    state = read_state(layout) if layout.state.is_file() else {}
    if not state or state["recipe_hash"] == recipe.hash():
        return False
    if "batch_ids" in state:
        root = layout.root
        raise UsageError(
            f"{root}: holds an unfinished build of another recipe (lumid status {root}); choose another --out, or "
            "remove it once nobody is at it"
        )
    return True


def _empty(layout: Layout[AnyPath]) -> None:
    """Remove what a build began with, but for the claim, which is ours."""
    work = layout.work
    if isinstance(work, StorePath):
        remove_below(work, [name for name in sizes(work) if name != CLAIM])
        return
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != CLAIM:
            path.unlink()
    (work / "parts").mkdir()


def anything_left(layout: Layout[AnyPath]) -> bool:
    """Whether anything of a build lies in a data set: it was killed while all that was being removed, or before."""
    if not isinstance(layout.root, Path):
        return layout.work.exists()
    patterns = (layout.work.name, f"{layout.work.name}.*.gone", HALF_WRITTEN)
    return any(next(layout.root.glob(pattern), None) is not None for pattern in patterns)


@contextmanager
def nothing_unpacked_left(layout: Layout[AnyPath]) -> Iterator[None]:
    """What a build unpacks is as its source is, names and all: one that fails does not leave it beside its data set."""
    try:
        yield
    except BaseException:
        if layout.scratch is None and layout.unpacked.exists():
            with contextlib.suppress(LumidError, OSError), _held(layout):  # another build may be at it
                shutil.rmtree(layout.unpacked, ignore_errors=True)
        raise


@contextmanager
def nobody_builds(layout: Layout) -> Iterator[None]:
    """As long as this lasts, no build of this data set begins. Raises :class:`LumidError` when one is under way."""
    was_there = layout.work.exists()
    with _held(layout):
        try:
            yield
        finally:
            if not was_there:
                remove_work(layout)


def remove_work(layout: Layout[AnyPath]) -> None:
    """Remove what a build needed. In a folder it goes by one rename: nobody takes a half of it for the state of a build."""
    root, work = layout.root, layout.work
    if isinstance(work, StorePath):
        remove_below(work, [name for name in sizes(work) if name != CLAIM])  # the claim goes with whoever holds it
        return
    assert isinstance(root, Path)
    with contextlib.suppress(FileNotFoundError):
        work.rename(root / f"{work.name}.{secrets.token_hex(4)}.gone")
    _sweep(layout)


def _sweep(layout: Layout[AnyPath]) -> None:
    if isinstance(layout.root, Path):
        for gone in layout.root.glob(f"{layout.work.name}.*.gone"):
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _held(layout: Layout[AnyPath], tell: Callable[[str], None] = lambda _: None) -> Iterator[Claim]:
    work = layout.work
    if isinstance(work, StorePath):
        with Lease(work / CLAIM, str(layout.root), tell) as lease:
            yield lease
    else:
        with _lock(layout.root, work):
            yield Claim()


class Claim:
    """A place that nobody else writes to: a locked file is ours until we end."""

    def check(self) -> None:
        """Raise :class:`LumidError` when it is ours no more."""


def _lock(root: AnyPath, work: Path) -> TextIO:
    """The file that whoever builds here holds locked."""
    path = work / CLAIM
    why: OSError | None = None
    for patience in range(5, -1, -1):
        # whoever had it may take the folder away with it, at any moment
        try:
            with contextlib.ExitStack() as opened:
                (work / "parts").mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(path.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    opened.pop_all()
                    return file
        except (BlockingIOError, FileNotFoundError, FileExistsError) as error:
            why = error
        if patience:  # `lumid status` has it for a moment
            time.sleep(0.1)
    if isinstance(why, FileNotFoundError | FileExistsError):
        raise StorageError(f"{work}: cannot be made a folder: is it a link to a disk that is not there, or a file?")
    raise _taken(root)


def _taken(root: AnyPath | str) -> LumidError:
    return LumidError(f"{root}: another lumid is building here; see `lumid status`")


class Lease(Claim):
    """An object that says, by changing, that a build is alive; who finds it still for long enough takes it over.

    Every write of it is on the condition that it is as it was, so of two that want it one gets it. A build that was cut
    off and lost it learns so at its next beat; until then both write the same bytes under the same names.
    """

    def __init__(self, path: StorePath, what: str, tell: Callable[[str], None]) -> None:
        self._path, self._what, self._tell = path, what, tell
        self._owner = secrets.token_hex(8)
        self._beats = 0
        self._tag: dict[str, Any] | None = None
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lumid-lease", daemon=True)

    def __enter__(self) -> Lease:
        while not (self._write(None) or self._take_over()):
            pass  # whoever had it has just ended
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StorageError, FileNotFoundError):
            if self._is_ours():
                self._path.unlink()

    def check(self) -> None:
        """Raise :class:`LumidError` when another build has taken over."""
        if self._lost.is_set():
            raise LumidError(
                f"{self._what}: another lumid has taken this build over, because the store has not heard of this one for "
                f"{SILENT_S:.0f} s; see `lumid status`"
            )

    def _write(self, before: dict[str, Any] | None) -> bool:
        """Write the object on the condition that it is as it was ``before``, or that there is none; whether it is ours."""
        self._beats += 1
        tag = conditional_put(self._path, f"{self._owner} {self._beats}\n".encode(), before)
        if tag is None and self._is_ours():  # the answer to an earlier try was lost
            tag = entity_tag(self._path)
        self._tag = tag
        return tag is not None

    def _is_ours(self) -> bool:
        try:
            return self._path.read_text().startswith(self._owner)
        except FileNotFoundError:
            return False

    def _take_over(self) -> bool:
        """Take over a lease that does not change; False when it is gone. Raises :class:`LumidError` when it lives."""
        before = entity_tag(self._path)
        if before is None:
            return False
        self._tell(f"another build was here; waiting {SILENT_S:.0f} s to see whether it is alive")
        until = time.monotonic() + SILENT_S
        while time.monotonic() < until:
            time.sleep(min(2.0, SILENT_S / 10))
            now = entity_tag(self._path)
            if now is None:
                return False
            if now != before:
                raise _taken(self._what)
        if not self._write(before):
            raise _taken(self._what)
        self._tell("it is not: going on where it stopped")
        return True

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(Exception):  # whatever it is, the store does not hear of us
                if not self._write(self._tag):
                    self._lost.set()
                    return
                heard = time.monotonic()
            if time.monotonic() - heard > SILENT_S - BEAT_S:
                self._lost.set()
                return
