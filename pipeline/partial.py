"""Files that are fetched in pieces: the part that is there, what it belongs to, and the memory of a verification."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from lumid.catalog.layout import write_text


@dataclass(frozen=True, slots=True)
class Validator:
    """Which body a part is of: its address, its strong ETag and its size, as far as the server told."""

    url: str
    etag: str | None
    total: int | None


@dataclass(frozen=True, slots=True)
class Partial:
    """An open part of the file ``target``; no other process has it open at the same time."""

    target: Path
    file: BinaryIO

    @property
    def path(self) -> Path:
        """Where the part lies."""
        return _part(self.target)

    def load(self) -> Validator | None:
        """What was last saved about the part."""
        try:
            return Validator(**json.loads(_state(self.target).read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def save(self, known: Validator | None) -> None:
        """Remember what the part is of, for a later run."""
        if known is None:
            _state(self.target).unlink(missing_ok=True)
        else:
            write_text(_state(self.target), json.dumps(asdict(known)) + "\n")

    def finish(self) -> None:
        """Give the part its name: it is whole."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.path.replace(self.target)
        self.save(None)

    def discard(self) -> None:
        """Forget the part."""
        self.path.unlink(missing_ok=True)
        self.save(None)


@contextmanager
def open_partial(target: Path) -> Iterator[Partial]:
    """The part of a file, new or as an earlier run left it; waits while another process works on it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _part(target).open("a+b") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                ours = os.path.samestat(os.fstat(file.fileno()), _part(target).stat())
            except FileNotFoundError:
                ours = False
            if ours:  # or whoever had it has finished and renamed it
                yield Partial(target, file)
                return


def is_verified(path: Path, size: int | None, md5: str | None) -> bool:
    """Whether the file is there and is what was wanted.

    An MD5 once found to match is remembered beside the file for as long as its size and time of change stay the same.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    if size is not None and status.st_size != size:
        return False
    if md5 is None:
        return True
    now = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "md5": md5}
    try:
        if json.loads(_mark(path).read_text("utf-8")) == now:
            return True
    except (OSError, ValueError, RecursionError):
        pass
    with path.open("rb") as file:
        matches = hashlib.file_digest(file, "md5").hexdigest() == md5
    if matches:
        mark_verified(path, md5, status)
    return matches


def mark_verified(path: Path, md5: str | None, status: os.stat_result | None = None) -> None:
    """Remember that the file's MD5 was compared; where that cannot be written it is compared again next time."""
    if md5 is not None:
        status = status or path.stat()
        with contextlib.suppress(OSError):
            write_text(
                _mark(path),
                json.dumps({"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "md5": md5}) + "\n",
            )


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _state(target: Path) -> Path:
    return target.with_name(f".{target.name}.part.json")


def _mark(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified.json")
