"""What happens in a build, as lines of JSON.

Events and their fields are a closed vocabulary, and every field has a form that its value must have: numbers, words of
lumid's own making, addresses of workers, and the lines that errors are told in. What does not fit is left out, so a text
of a header has no way in.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lumid.catalog.errors import LumidError, StorageError
from lumid.catalog.paths import AnyPath
from lumid.catalog.schema import REASONS
from lumid.dags.quiet import place_of
from lumid.dags.stopping import asked
from lumid.pipeline.traffic import ARCHIVES, OPERATIONS, OUTCOMES, Traffic

PHASES = ("scan", "ingest", "check", "index", "pack")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
ADDRESS = re.compile(r"[A-Za-z0-9_.:/\[\]@-]{1,120}")
LINE_LENGTH = 500


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _seconds(value: Any) -> float | None:
    return round(float(value), 3) if isinstance(value, int | float) and 0 <= value < 1e10 else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and WORD.fullmatch(value) else None


def _address(value: Any) -> str | None:
    return value if isinstance(value, str) and ADDRESS.fullmatch(value) else None


def _words(value: Any) -> list[str] | None:
    return [word for word in map(_word, value) if word] if isinstance(value, list | tuple) else None


def _phase(value: Any) -> str | None:
    return value if value in PHASES else None


def _line(value: Any) -> str | None:
    return " ".join(value.split())[:LINE_LENGTH] if isinstance(value, str) else None


def _codes(value: Any) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    return {code: frames for code, frames in sorted(value.items()) if code in REASONS and type(frames) is int}


def _requests(value: Any) -> list[dict[str, Any]] | None:
    if not isinstance(value, list | tuple):
        return None
    known = (one for one in value if isinstance(one, Traffic) and one.archive in ARCHIVES
             and one.operation in OPERATIONS and one.outcome in OUTCOMES)  # fmt: skip
    return [
        {
            "archive": one.archive,
            "operation": one.operation,
            "outcome": one.outcome,
            "requests": one.requests,
            "bytes": one.bytes,
        }
        for one in known
    ]


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "attempt": _count, "batch": _word, "batches": _count, "bytes": _count, "cluster": _word, "dashboard": _address,
    "done": _count, "error": _word, "frames": _count, "kept": _count, "message": _line, "name": _word,
    "objects": _count, "phase": _phase, "piece": _count, "pieces": _count, "policy": _word, "recipe_hash": _word, "rejected": _count, "rejects": _codes,
    "requests": _requests, "running": _count, "seconds": _seconds, "series": _count, "task": _word, "tasks": _words,
    "total": _count, "version": _word, "worker": _address, "workers": _count,
}  # fmt: skip
"""Every field that a line can have besides ``time``, ``level`` and ``event``, and the form of its value."""

EVENTS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "build_begun": (logging.INFO, ("name", "version", "recipe_hash", "policy")),
    "workers_awaited": (logging.INFO, ("cluster", "seconds")),
    "cluster_joined": (logging.INFO, ("workers", "dashboard")),
    "worker_joined": (logging.INFO, ("worker",)),
    "worker_left": (logging.INFO, ("worker", "tasks")),
    "workers_gone": (logging.WARNING, ()),
    "worker_lost": (logging.WARNING, ("worker", "tasks")),
    "phase_begun": (logging.INFO, ("phase", "done", "total")),
    "progress": (logging.INFO, ("phase", "done", "total", "running", "workers")),
    "phase_ended": (logging.INFO, ("phase", "seconds")),
    "resumed": (logging.INFO, ("batches", "rejected")),
    "task_begun": (logging.INFO, ("task", "worker", "attempt")),
    "task_dropped": (logging.INFO, ("task",)),
    "task_done": (logging.INFO, ("task", "worker", "seconds", "requests")),
    "batch_done": (
        logging.INFO,
        (
            "batch",
            "worker",
            "attempt",
            "seconds",
            "series",
            "objects",
            "frames",
            "kept",
            "rejected",
            "rejects",
            "bytes",
        ),
    ),
    "piece_done": (logging.INFO, ("batch", "piece", "pieces", "worker", "attempt", "seconds", "objects")),
    "batch_suspected": (logging.WARNING, ("batch", "objects")),
    "objects_poisoned": (logging.WARNING, ("batch", "objects")),
    "requests": (logging.INFO, ("requests",)),
    "disk_full": (logging.ERROR, ("message",)),
    "build_failed": (logging.ERROR, ("error", "message")),
    "build_stopped": (logging.WARNING, ()),
    "build_done": (logging.INFO, ("seconds", "objects", "frames", "kept", "rejected", "rejects")),
    "already_finished": (logging.INFO, ("objects", "frames", "kept", "rejected")),
}
"""Every event, its level, and the fields that it can have."""


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON; of the fields, those that the event has and whose values have the right form."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.msg}
        for name in EVENTS[record.msg][1]:
            if name in fields and (value := FIELDS[name](fields[name])) is not None:
                line[name] = value
        return json.dumps(line)


class _Appended(logging.Handler):
    """Appends to a file, a line by one write: whoever dies in between leaves whole lines."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(_Lines())
        self._descriptor = descriptor
        self._cut = False  # whether the last line is not whole, on a disk that was full

    @classmethod
    def to(cls, path: Path) -> _Appended:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        handler = cls(descriptor)
        size = os.fstat(descriptor).st_size
        handler._cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        return handler

    def emit(self, record: logging.LogRecord) -> None:
        data = (b"\n" if self._cut else b"") + self.format(record).encode() + b"\n"
        try:
            self._cut = os.write(self._descriptor, data) < len(data)
        except OSError:  # a full disk ends the build by itself; for want of a log it need not
            return

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
        super().close()


class EventLog:
    """Where a build's events go: into as many files as are opened, or nowhere. Told from any thread."""

    def __init__(self) -> None:
        self._logger = logging.Logger("lumid.build", logging.INFO)  # of its own, under no other logger
        self._logger.addHandler(logging.NullHandler())
        self._ended = False

    def tell(self, event: str, **fields: Any) -> None:
        """Write down an event of :data:`EVENTS`, with those of the fields that it has."""
        self._logger.log(EVENTS[event][0], event, extra={"fields": fields})

    @contextmanager
    def writing(self, path: Path | None) -> Iterator[None]:
        """As long as this lasts, events are appended to the file, or written to stderr for None.

        Raises :class:`~lumid.catalog.errors.StorageError` when the file cannot be opened.
        """
        try:
            handler = _Appended(os.dup(sys.stderr.fileno())) if path is None else _Appended.to(path)
        except OSError as error:
            raise StorageError(
                f"--log {path}: cannot be written: {os.strerror(error.errno or 0)}; give another file"
            ) from None
        self._logger.addHandler(handler)
        try:
            yield
        finally:
            self._logger.removeHandler(handler)
            handler.close()

    @contextmanager
    def told_how_it_ends(self) -> Iterator[None]:
        """What ends in an error or by a signal says so in the log, once."""
        try:
            yield
        except Exception as error:
            if stopped := asked():  # a library in C that a signal meets can make an error of its own of it
                self._end("build_stopped")
                raise stopped from None
            self._end_failed(error)
            raise
        except BaseException:
            self._end("build_stopped")
            raise

    def _end_failed(self, error: Exception) -> None:
        # the text of others may quote a header
        message = (
            str(error)
            if isinstance(error, LumidError)
            else f"lumid failed ({type(error).__name__} at {place_of(error)})"
        )
        self._end("build_failed", error=type(error).__name__, message=message)

    def _end(self, event: str, **fields: Any) -> None:
        if self._ended:
            return
        self._ended = True
        if str(fields.get("message", "")).startswith("no space left"):
            self.tell("disk_full", message=fields["message"])
        self.tell(event, **fields)


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a log, read again; ``time`` in seconds since 1970."""

    time: float
    name: str
    fields: Mapping[str, Any]


def read_events(path: AnyPath) -> Iterator[Event]:
    """The events of a log in their order; lines that are none are passed over, and a log that is not there has none."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    for line in data.splitlines():
        try:
            fields = json.loads(line)
            time = datetime.fromisoformat(fields.pop("time")).timestamp()
            fields.pop("level")
            name = fields.pop("event")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if name in EVENTS:
            yield Event(time, name, fields)
