"""The log of a build in an object store: kept on the builder's machine, copied to the store for whoever looks from elsewhere."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from lumid.catalog.errors import StorageError
from lumid.catalog.layout import Layout
from lumid.catalog.paths import AnyPath, StorePath, download, link_or_copy

COPY_EVERY_S = 30.0


class LogCopy:
    """Copies the log now and then, as long as it is entered; nothing where the log lies with the data set.

    Nothing can be added to an object: all of it goes each time, a few megabytes for thousands of batches.
    """

    def __init__(self, layout: Layout[AnyPath]) -> None:
        self._own, self._there = layout.own_log, layout.log
        self._copied = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_copying, name="lumid-log", daemon=True)

    def __enter__(self) -> LogCopy:
        if isinstance(self._there, StorePath):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended.is_set():
            self.end()
            self._copy()

    def end(self) -> None:
        """The build is about to remove what it has there: copy no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_copying(self) -> None:
        self._copy()
        while not self._ended.wait(COPY_EVERY_S):
            self._copy()

    def _copy(self) -> None:
        if not isinstance(self._there, StorePath):
            return
        with contextlib.suppress(StorageError, OSError):  # for want of a log a build need not end
            size = self._own.stat().st_size
            if size != self._copied:
                link_or_copy(self._own, self._there)
                self._copied = size


def earlier_log(layout: Layout[AnyPath]) -> None:
    """Go on with the log that an earlier run has left in the store."""
    if isinstance(layout.log, StorePath) and isinstance(layout.own_log, Path):
        with contextlib.suppress(FileNotFoundError):
            download(layout.log, layout.own_log)
