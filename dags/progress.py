"""What a build shows while it runs: slices and megabytes a second, time left, rejects so far."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
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

from lumid._version import __version__
from lumid.catalog.layout import Layout, storage_errors
from lumid.catalog.paths import AnyPath
from lumid.dags.cluster import WHERE_TO_LOOK
from lumid.dags.events import EventLog
from lumid.dags.log_copy import earlier_log
from lumid.dags.metrics import BuildState
from lumid.dags.watch import TaskWatch
from lumid.pipeline import traffic
from lumid.pipeline.batches import Batch
from lumid.pipeline.parts import PartAccount
from lumid.pipeline.pieces import Piece
from lumid.pipeline.recipe import Recipe

LINE_EVERY_S = 10.0


class BuildProgress:
    """Progress bars of a build on a terminal; a line now and then where the output goes to a file."""

    def __init__(self, console: Console, events: EventLog | None = None) -> None:
        self.events = events or EventLog()
        self.tasks = TaskWatch(self.events, self.note)
        self._batches_done = self._batches = 0
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
        self._done = self._at_first = self._total = 0
        self._started = self._said = time.monotonic()
        self._slices = self._bytes = self._kept = self._rejected = 0
        self._earlier_rejected = 0
        self._ahead: defaultdict[str, dict[int, int]] = defaultdict(dict)

    def __enter__(self) -> BuildProgress:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    @property
    def state(self) -> BuildState:
        """How far the build is."""
        return BuildState(self._name, self._done, self._total, self._batches_done, self._batches)

    @contextmanager
    def recording(self, layout: Layout[AnyPath], recipe: Recipe) -> Iterator[None]:
        """As long as this lasts, events are kept beside the build, for `lumid status`."""
        earlier_log(layout)
        with self.events.writing(layout.own_log), self.events.told_how_it_ends(), storage_errors(layout.root):
            self.events.tell(
                "build_begun",
                name=recipe.name,
                version=__version__,
                recipe_hash=recipe.hash(),
                policy=recipe.deid.policy,
            )
            yield

    def waiting(self, kind: str, seconds: float) -> None:
        """The first worker of a cluster has not come yet."""
        self.events.tell("workers_awaited", cluster=kind, seconds=seconds)
        self._console.print(
            escape(
                f"waiting for the first worker ([cluster] kind = '{kind}'), {seconds:,.0f} s so far; {WHERE_TO_LOOK[kind]}"
            ),
            soft_wrap=True,
        )

    def note(self, text: str) -> None:
        """Say something that is no progress."""
        self._console.print(text, markup=False, soft_wrap=True)

    def begin_scan(self, objects: int) -> None:
        """The listing is known; headers are about to be read."""
        self._begin("scan", objects)

    def scanned(self, objects: int) -> None:
        """So many more headers have been read."""
        self._advance(objects, "objects")

    def taken(self, series: int, built: int) -> None:
        """So many series come from a finished data set, and so many are to be built."""
        self._console.print(f"from the base: {series:,} series; to be built: {built:,}")

    def begin_ingest(
        self, objects: int, done: int, batches_done: int, batches: int, rejected: int, missing: int
    ) -> None:
        """The plan is made; of its objects and batches so many are done by an earlier run, which rejected so much.

        ``missing``: batches that are to be made, or of which something is to be fetched again.
        """
        self._begin("ingest", objects, done)
        self._earlier_rejected = rejected
        self._batches_done, self._batches = batches - missing, batches
        if batches_done:
            self.events.tell("resumed", batches=batches_done, rejected=rejected)
            self._console.print(f"going on: {batches_done:,} of {batches:,} batches are done already")

    def ingested(self, batch: Batch, account: PartAccount, rejects: Mapping[str, int]) -> None:
        """One more batch has its part; ``rejects`` by reason code."""
        worker, attempt = self.tasks.done_by(batch.id)
        self.events.tell(
            "batch_done", batch=batch.id, worker=worker, attempt=attempt, seconds=account.seconds,
            series=len(account.series), objects=account.objects, frames=account.planned, kept=account.kept,
            rejected=account.rejected, rejects=rejects, bytes=account.source_bytes,
        )  # fmt: skip
        self._batches_done += 1
        self._slices += account.planned
        self._bytes += account.source_bytes
        self._rejected += account.rejected
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._advance(
            batch.objects - sum(self._ahead.pop(batch.id, {}).values()),
            f"{self._slices / seconds:,.0f} slices/s · {self._bytes / 1e6 / seconds:,.1f} MB/s · "
            f"{self._rejected + self._earlier_rejected:,} rejected",
        )

    @property
    def made(self) -> tuple[int, int]:
        """Of all batches that this run has done: frames, kept or rejected, and bytes of their sources."""
        return self._slices, self._bytes

    def piece_done(self, piece: Piece, objects: int, seconds: float) -> None:
        """A batch that several workers share is so many objects further."""
        worker, attempt = self.tasks.done_by(piece.id)
        self.events.tell(
            "piece_done", batch=piece.batch.id, piece=piece.number, pieces=piece.pieces, worker=worker, attempt=attempt,
            seconds=seconds, objects=objects,
        )  # fmt: skip
        before = self._ahead[piece.batch.id].get(piece.number, 0)  # of which something was lacking: made again
        self._ahead[piece.batch.id][piece.number] = objects
        self._advance(objects - before, f"a piece of {piece.pieces} of a long series")

    def checked(self, done: int, total: int) -> None:
        """So many bytes of what is there already have been checked."""
        if self._name != "check":
            self._begin("check", total)
        self._advance(done - self._done, "bytes of what is there")

    def begin_index(self, groups: int) -> None:
        """Every part is there; in so many groups they are about to be read for their samples' keys and places."""
        self._begin("index", groups)

    def indexed(self) -> None:
        """One more group is read."""
        self._advance(1, "groups of parts")

    def begin_pack(self, pieces: int) -> None:
        """Every sample is known; shards and catalog are about to be written."""
        self._begin("pack", pieces)

    def packed(self) -> None:
        """One more shard, catalog file, or group of parts cut for the catalog is written."""
        self._advance(1, "shards and catalog files")

    def done(self) -> None:
        """Everything is in its place."""
        if self._task is not None:
            self._bars.update(self._task, completed=self._total)
        self._end_phase()

    def _begin(self, name: str, total: int, done: int = 0) -> None:
        self._end_phase()
        self.tell_requests()
        self.events.tell("phase_begun", phase=name, total=total, done=done)
        self._name, self._total = name, total
        self._done = self._at_first = done
        self._started = time.monotonic()
        self._task = self._bars.add_task(name, total=total, completed=done, facts="")

    def tell_requests(self) -> None:
        """Put down what this process has asked archives and stores for since it last did."""
        if own := traffic.take():
            self.events.tell("requests", requests=own)

    def _end_phase(self) -> None:
        if self._name:
            self.events.tell("phase_ended", phase=self._name, seconds=time.monotonic() - self._started)
            self._name = ""

    def _advance(self, steps: int, facts: str) -> None:
        self._done += steps
        if self._task is not None:
            self._bars.update(self._task, advance=steps, facts=facts)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > LINE_EVERY_S:
            self._said = now
            said = [f"{self._name}: {self._done:,} of {self._total:,}", *([facts] if facts else [])]
            if made := self._done - self._at_first:  # by this run, in the time that it took for that
                left = (now - self._started) / made * (self._total - self._done)
                said.append(f"about {left:,.0f} s left")
            self._console.print(" · ".join(said))
