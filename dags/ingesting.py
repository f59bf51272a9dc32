"""The second stage of a build: every batch becomes a part, on some worker of a Dask cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest

from distributed import Client

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import Layout
from lumid.catalog.paths import AnyPath, sizes
from lumid.dags.ingest_tasks import (
    Ingested,
    NotToBeJoined,
    PieceDone,
    divide_task,
    ingest_task,
    join_task,
    names_of,
    piece_file,
    piece_task,
    try_task,
)
from lumid.dags.journal import noting, recall
from lumid.dags.planning import Plan
from lumid.dags.progress import BuildProgress
from lumid.dags.tasks import Task, run_tasks
from lumid.pipeline.batches import Batch, large_first
from lumid.pipeline.parts import PartAccount, PartFiles, choose, finished_parts, read_account, read_accounts
from lumid.pipeline.pieces import PIECE_BYTES, Piece, divide, long_series, state_of
from lumid.pipeline.recipe import Recipe

ATTEMPTS = 3
DIVISIONS_IN_VAIN = 16
"""After so many series in a row that cannot be listed, or are not in the cache, no more are looked at to be shared."""
UNREACHED_SERIES = 40
"""So many series in a row for which no server answered mean that there is no network; one by one they would take days."""


def ingest_batches(
    client: Client, recipe: Recipe, plan: Plan, layout: Layout[AnyPath], progress: BuildProgress
) -> float:
    """Every batch has a part when this returns; the seconds that workers spent on them.

    Of batches whose part exists, what was not fetched is tried once more.
    """
    missing: list[Batch] = []
    earlier: list[PartAccount] = []
    begun = 0
    recall(layout)
    tried = _finished(plan, layout)
    read_accounts([files for found in tried for files in found])  # some at once, where they are in a store
    for batch, found in zip(plan.batches, tried, strict=True):
        begun += len(found) > 0
        done = choose([[files] for files in found]) if len(found) > 1 else found
        accounts = [read_account(files) for files in done]
        again = _unfetched(batch, accounts) if done else batch
        if again is not None:
            missing.append(again)
        earlier += accounts
    left = sum(batch.objects for batch in missing)
    total = sum(batch.objects for batch in plan.batches)
    rejected = sum(account.rejected for account in earlier)
    progress.begin_ingest(total, total - left, begun, len(plan.batches), rejected, len(missing))
    seconds = sum(account.seconds for account in earlier)
    silence = _Silence()
    with noting(layout) as note:
        for batch, ingested in _ingested(client, recipe, missing, layout, progress, silence):
            account = ingested.account
            note(PartFiles(layout.parts, batch.id), account)
            seconds += account.seconds
            progress.ingested(batch, account, ingested.rejects)
            silence.heard(len(account.series), account.unreached)
    return seconds


@dataclass(slots=True)
class _Silence:
    """For how many series in a row nobody has answered."""

    series: int = 0

    def heard(self, series: int, unreached: bool) -> None:
        """So many more, of which nothing was reached, or something. Raises :class:`LumidError` when there is no network."""
        self.series = self.series + series if unreached else 0
        if self.series >= UNREACHED_SERIES:
            raise LumidError(
                f"nobody has answered for {self.series} series in a row: check the network; what is there is kept, and "
                "the same command goes on with it"
            )


def _ingested(
    client: Client, recipe: Recipe, batches: Sequence[Batch], layout: Layout[AnyPath], progress: BuildProgress,
    silence: _Silence,
) -> Iterator[tuple[Batch, Ingested]]:  # fmt: skip
    """What becomes of each batch, as it is done; those that several workers share come last."""
    shared = _shared(client, recipe, batches, layout, progress)
    there = sizes(layout.pieces) if shared else {}
    work: list[Batch | Piece] = []
    for number in large_first([batch.bytes for batch in batches]):
        batch = batches[number]
        states = {piece: _state(layout, piece, there) for piece in shared.get(batch.id, ())}
        if "indivisible" in states.values():
            del shared[batch.id]
        work += [piece for piece, state in states.items() if state == "lacking"] if batch.id in shared else [batch]
    lacking: list[Batch | Piece] = []
    yield from _worked(client, recipe, work, layout, progress, silence, lacking)
    yield from _worked(client, recipe, lacking, layout, progress, silence)
    batch_of = {f"{batch.id}-join": batch for batch in batches if batch.id in shared}
    joins = [
        (name, join_task, (recipe, shared[batch.id], layout.pieces, layout.parts)) for name, batch in batch_of.items()
    ]
    whole: list[Batch | Piece] = []
    for name, joined in run_tasks(client, joins, watch=progress.tasks):
        batch = batch_of[name]
        if isinstance(joined, NotToBeJoined):
            whole.append(batch)
            continue
        yield batch, joined
        _remove(layout, shared[batch.id])
    for batch, ingested in _worked(client, recipe, whole, layout, progress, silence):
        yield batch, ingested
        _remove(layout, shared[batch.id])  # and not before: of them a build that goes on knows that it is no use


def _state(layout: Layout[AnyPath], piece: Piece, there: Container[str]) -> str:
    file = piece_file(layout.pieces, piece)
    return state_of(file, piece) if file.name in there else "lacking"


def _remove(layout: Layout[AnyPath], pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        piece_file(layout.pieces, piece).unlink(missing_ok=True)


def _shared(
    client: Client, recipe: Recipe, batches: Sequence[Batch], layout: Layout[AnyPath], progress: BuildProgress
) -> dict[str, tuple[Piece, ...]]:
    """The pieces of those batches that one worker would be at for long, by the batch's id."""
    long = {batch.id: numbers for batch in batches if (numbers := long_series(batch, recipe, PIECE_BYTES))}
    batch_of = {f"{batch.id}-divide": batch for batch in batches if batch.id in long}
    tasks = [
        (name, divide_task, (recipe, batch, long[batch.id], layout.unpacked, PIECE_BYTES))
        for name, batch in batch_of.items()
    ]
    found: dict[str, tuple[Piece, ...]] = {}
    in_vain = 0
    with closing(run_tasks(client, tasks, watch=progress.tasks)) as divided:
        for name, parts in divided:
            batch = batch_of[name]
            in_vain = 0 if parts else in_vain + 1
            if parts:
                found[batch.id] = divide(batch, parts)
            elif in_vain == DIVISIONS_IN_VAIN:
                break
    return found


def _worked(
    client: Client, recipe: Recipe, work: Sequence[Batch | Piece], layout: Layout[AnyPath], progress: BuildProgress,
    silence: _Silence, lacking: list[Batch | Piece] | None = None,
) -> Iterator[tuple[Batch, Ingested]]:  # fmt: skip
    """Batches with what has become of them, and pieces, of which only the progress is told.

    ``lacking`` is given the pieces of which something could not be fetched.
    """
    by_id = {one.id: one for one in work}
    indivisible: set[str] = set()  # batches whose other pieces are of no use any more
    tasks = (_task(recipe, one, layout) for one in work if not (isinstance(one, Piece) and one.batch.id in indivisible))
    for name, done in run_tasks(
        client,
        tasks,
        on_killed=lambda name: _isolate(client, recipe, by_id[name], layout, progress),
        watch=progress.tasks,
    ):
        one = by_id[name]
        if not isinstance(one, Piece):
            yield one, done
            continue
        progress.piece_done(one, done.objects, done.seconds)
        silence.heard(len(one.spans), done.unreached)
        if done.indivisible:
            indivisible.add(one.batch.id)
        elif done.lacking and lacking is not None:
            lacking.append(one)


def _task(recipe: Recipe, work: Batch | Piece, layout: Layout[AnyPath], poisoned: frozenset[str] = frozenset()) -> Task:
    """A batch or a piece as a task, which leaves out what is ``poisoned``."""
    name = f"{work.id}-without-{len(poisoned)}" if poisoned else work.id
    if isinstance(work, Piece):
        return name, piece_task, (recipe, work, layout.pieces, layout.unpacked, poisoned)
    return name, ingest_task, (recipe, work, layout.parts, layout.unpacked, poisoned)


def _unfetched(batch: Batch, accounts: list[PartAccount]) -> Batch | None:
    """The batch's series that the archive did not give whole, as a batch of their own."""
    lost = frozenset().union(*(account.unfetched for account in accounts))
    series = tuple(one for one in batch.series if one.lock_row in lost)
    return replace(batch, id=f"{batch.id}-{len(accounts)}", series=series) if series else None


def built_parts(plan: Plan, layout: Layout[AnyPath]) -> list[list[PartFiles]]:
    """All parts of a plan's batches, by how often they were tried."""
    tried = _finished(plan, layout)
    return [[files for files in generation if files is not None] for generation in zip_longest(*tried)]


def _finished(plan: Plan, layout: Layout[AnyPath]) -> list[list[PartFiles]]:
    folder = layout.parts
    there = sizes(folder)
    return [finished_parts(folder, batch.id, there) for batch in plan.batches]


def _isolate(
    client: Client, recipe: Recipe, work: Batch | Piece, layout: Layout[AnyPath], progress: BuildProgress
) -> Ingested | PieceDone:
    """What keeps killing its worker: find the objects that do it, reject those, ingest the rest."""
    names = names_of(recipe, work, layout.unpacked)
    progress.events.tell("batch_suspected", batch=work.id, objects=len(names))
    everything = frozenset(names)
    poisoned: set[str] = set()
    pending = [names]
    while pending:
        group = pending.pop()
        if not _survives(client, recipe, work, everything - frozenset(group), layout, progress):
            if len(group) == 1:
                poisoned.add(group[0])
            else:
                pending += [group[: len(group) // 2], group[len(group) // 2 :]]
    progress.events.tell("objects_poisoned", batch=work.id, objects=len(poisoned))
    task = _task(recipe, work, layout, frozenset(poisoned))
    for _ in range(ATTEMPTS):  # a machine that kills workers for another reason may kill these too
        ((_, done),) = run_tasks(client, [task], on_killed=lambda _: None, watch=progress.tasks)
        if isinstance(done, Ingested | PieceDone):
            return done
    raise LumidError("a batch keeps killing its workers: is there enough memory for each? try fewer --workers")


def _survives(
    client: Client, recipe: Recipe, work: Batch | Piece, without: frozenset[str], layout: Layout[AnyPath],
    progress: BuildProgress,
) -> bool:  # fmt: skip
    """Whether this can be ingested when the objects ``without`` are left unread."""
    name = f"{work.id}-trial-{hashlib.sha256(' '.join(sorted(without)).encode()).hexdigest()[:16]}"
    killed: list[str] = []
    task = (name, try_task, (recipe, work, layout.unpacked, without))
    for _ in run_tasks(client, [task], on_killed=killed.append, watch=progress.tasks):
        pass
    return not killed
