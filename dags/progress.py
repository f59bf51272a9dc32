"""What a build shows while it runs: slices and megabytes a second, time left, rejects so far."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lumid.pipeline.batches import Batch
from lumid.pipeline.parts import PartAccount

LINE_EVERY_S = 10.0


class BuildProgress:
    """Progress bars of a build on a terminal; a line now and then where the output goes to a file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<7}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._done = self._total = 0
        self._started = self._said = time.monotonic()
        self._slices = self._bytes = self._kept = self._rejected = 0
        self._earlier_rejected = 0

    def __enter__(self) -> BuildProgress:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Say something that is no progress."""
        self._console.print(text, markup=False)

    def begin_scan(self, objects: int) -> None:
        """The listing is known; headers are about to be read."""
        self._begin("scan", objects)

    def scanned(self, objects: int) -> None:
        """So many more headers have been read."""
        self._advance(objects, "objects")

    def taken(self, series: int, built: int) -> None:
        """So many series come from a finished data set, and so many are to be built."""
        self._console.print(f"from the base: {series:,} series; to be built: {built:,}")

    def begin_ingest(self, objects: int, done: int, batches_done: int, batches: int, rejected: int) -> None:
        """The plan is made; of its objects and batches so many are done by an earlier run, which rejected so much."""
        self._begin("ingest", objects)
        self._earlier_rejected = rejected
        if batches_done:
            self._console.print(f"going on: {batches_done:,} of {batches:,} batches are done already")
            self._advance(done, "")

    def ingested(self, batch: Batch, account: PartAccount) -> None:
        """One more batch has its part."""
        self._slices += account.planned
        self._bytes += account.source_bytes
        self._rejected += account.rejected
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._advance(
            batch.objects,
            f"{self._slices / seconds:,.0f} slices/s · {self._bytes / 1e6 / seconds:,.1f} MB/s · "
            f"{self._rejected + self._earlier_rejected:,} rejected",
        )

    def checked(self, done: int, total: int) -> None:
        """So many bytes of what is there already have been checked."""
        if self._name != "check":
            self._begin("check", total)
        self._advance(done - self._done, "bytes of what is there")

    def begin_pack(self, pieces: int) -> None:
        """Every part is there; shards and catalog are about to be written."""
        self._begin("pack", pieces)

    def packed(self) -> None:
        """One more shard or catalog file is written."""
        self._advance(1, "shards and catalog files")

    def done(self) -> None:
        """Everything is in its place."""
        if self._task is not None:
            self._bars.update(self._task, completed=self._total)

    def _begin(self, name: str, total: int) -> None:
        self._name, self._done, self._total = name, 0, total
        self._started = time.monotonic()
        self._task = self._bars.add_task(name, total=total, facts="")

    def _advance(self, steps: int, facts: str) -> None:
        self._done += steps
        if self._task is not None:
            self._bars.update(self._task, advance=steps, facts=facts)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > LINE_EVERY_S:
            self._said = now
            left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
            self._console.print(f"{self._name}: {self._done:,} of {self._total:,} · {facts} · about {left:,.0f} s left")
