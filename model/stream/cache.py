"""Blocks of an object store that are kept on a local disk, by all processes of a machine, up to a limit.

Epochs visit every block once each, in ever new orders. So nothing is evicted to make room for what comes later, which
would be gone before it is wanted again: the cache fills up and stays, and that share of every epoch comes from the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".block"
LEDGER = "bytes"


@dataclass(frozen=True, slots=True)
class BlockCache:
    """Blocks in ``folder``, no more than ``limit_bytes`` of them together. Several processes may share a folder."""

    folder: Path
    limit_bytes: int

    def open(self) -> None:
        """Make the folder, and count what is in it. What killed processes left half-written is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._ledger():
            kept = 0
            for entry in os.scandir(self.folder):
                if entry.name.endswith(".tmp"):
                    if not _is_running(entry.name):
                        Path(entry.path).unlink(missing_ok=True)
                elif entry.name.endswith(SUFFIX):
                    kept += entry.stat().st_size
            self._write_ledger(kept)

    def get(self, name: str, size: int) -> bytes | None:
        """A block's bytes, if it is here and of that size."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) != size:
            self.drop(name)
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a block, if there is room for it. A disk that refuses costs the cache, not the run."""
        path = self._path(name)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with self._ledger() as kept:
                if path.exists() or kept + len(data) > self.limit_bytes:
                    return
                self._write_ledger(kept + len(data))
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                with self._ledger() as kept:
                    self._write_ledger(max(0, kept - len(data)))
        except OSError:
            return

    def drop(self, name: str) -> None:
        """Forget a block that is not what it should be."""
        with contextlib.suppress(OSError), self._ledger() as kept:
            size = self._path(name).stat().st_size
            self._path(name).unlink()
            self._write_ledger(max(0, kept - size))

    def _path(self, name: str) -> Path:
        return self.folder / (hashlib.sha256(name.encode()).hexdigest()[:32] + SUFFIX)

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        """How many bytes are kept, while no other process or thread may change that."""
        with (self.folder / LEDGER).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of this opening of the file: threads exclude each other, too
            file.seek(0)
            text = file.read().strip()
            yield int(text) if text.isdigit() else 0

    def _write_ledger(self, kept: int) -> None:
        (self.folder / LEDGER).write_text(str(kept))


def _is_running(temporary: str) -> bool:
    """Whether the process that is writing a temporary file is alive."""
    try:
        os.kill(int(temporary.split(".")[-2].partition("-")[0]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
