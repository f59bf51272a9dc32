"""The second stage of a build: every batch becomes a part, on some worker of a Dask cluster."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from distributed import Client

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import Layout
from lumid.catalog.paths import AnyPath, sizes
from lumid.dags.journal import noting, recall
from lumid.dags.metrics import count_batch
from lumid.dags.planning import Plan
from lumid.dags.progress import BuildProgress
from lumid.dags.tasks import Failure, guarded, run_tasks
from lumid.dags.turns import share, turn
from lumid.pipeline.batches import Batch, large_first
from lumid.pipeline.ingest import BatchResult, ingest
from lumid.pipeline.parts import PartAccount, PartFiles, choose, finished_parts, read_account, read_accounts, write_part
from lumid.pipeline.recipe import Recipe, make_keyer
from lumid.pipeline.sources import open_source

ATTEMPTS = 3
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
    missing = [missing[number] for number in large_first([batch.bytes for batch in missing])]
    folder, scratch = layout.parts, layout.unpacked
    tasks = [(batch.id, ingest_task, (recipe, batch, folder, scratch)) for batch in missing]
    batch_of = {batch.id: batch for batch in missing}
    unreached = 0
    with noting(layout) as note:
        for name, ingested in run_tasks(
            client,
            tasks,
            on_killed=lambda name: _isolate(client, recipe, batch_of[name], layout, progress),
            watch=progress.tasks,
        ):
            account = ingested.account
            note(PartFiles(folder, name), account)
            seconds += account.seconds
            progress.ingested(batch_of[name], account, ingested.rejects)
            unreached = unreached + len(account.series) if account.unreached else 0
            if unreached >= UNREACHED_SERIES:
                raise LumidError(
                    f"nobody has answered for {unreached} series in a row: check the network; what is there is kept, and "
                    "the same command goes on with it"
                )
    return seconds


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


@dataclass(frozen=True, slots=True)
class Ingested:
    """A part that was written: its account, and rejected frames by reason code."""

    account: PartAccount
    rejects: dict[str, int]


def ingest_task(
    recipe: Recipe, batch: Batch, parts: AnyPath, scratch: Path, poisoned: frozenset[str] = frozenset()
) -> Ingested | Failure:
    """A batch, on a worker: ingested, and written as a part."""

    def work() -> Ingested:
        started = time.monotonic()
        result = _ingest(recipe, batch, scratch, poisoned)
        account = write_part(PartFiles(parts, batch.id), result, time.monotonic() - started)
        rejects: Counter[str] = Counter()
        for row in result.rejects:
            rejects[row.code] += row.frames
        count_batch(account.kept, rejects, account.seconds)
        return Ingested(account, dict(rejects))

    return guarded(work, parts)


def try_task(recipe: Recipe, batch: Batch, scratch: Path, poisoned: frozenset[str]) -> int | Failure:
    """Ingest a batch and forget the result: finds out whether the process survives."""

    return guarded(lambda: _ingest(recipe, batch, scratch, poisoned).planned)


def _ingest(recipe: Recipe, batch: Batch, scratch: Path, poisoned: frozenset[str]) -> BatchResult:
    """A batch's bytes arrive from now on, and are processed when it is its turn."""
    keyer = make_keyer(recipe.deid)
    fetch = recipe.fetch.model_copy(update={"ahead_mb": recipe.fetch.ahead_mb * share()})
    source = open_source(recipe.model_copy(update={"fetch": fetch}), batch.source, keyer, scratch)
    try:
        source.prefetch(batch.series)
        with turn():
            return ingest(batch, source, recipe, keyer, poisoned)
    finally:
        source.close()


def _isolate(
    client: Client, recipe: Recipe, batch: Batch, layout: Layout[AnyPath], progress: BuildProgress
) -> Ingested:
    """A batch that keeps killing its worker: find the objects that do it, reject those, ingest the rest."""
    names = _object_names(recipe, batch, layout)
    progress.events.tell("batch_suspected", batch=batch.id, objects=len(names))
    everything = frozenset(names)
    poisoned: set[str] = set()
    pending = [names]
    while pending:
        group = pending.pop()
        if not _survives(client, recipe, batch, everything - frozenset(group), layout, progress):
            if len(group) == 1:
                poisoned.add(group[0])
            else:
                pending += [group[: len(group) // 2], group[len(group) // 2 :]]
    arguments = (recipe, batch, layout.parts, layout.unpacked, frozenset(poisoned))
    progress.events.tell("objects_poisoned", batch=batch.id, objects=len(poisoned))
    task = (f"{batch.id}-without-{len(poisoned)}", ingest_task, arguments)
    for _ in range(ATTEMPTS):  # a machine that kills workers for another reason may kill these too
        ((_, ingested),) = run_tasks(client, [task], on_killed=lambda _: None, watch=progress.tasks)
        if isinstance(ingested, Ingested):
            return ingested
    raise LumidError("a batch keeps killing its workers: is there enough memory for each? try fewer --workers")


def _object_names(recipe: Recipe, batch: Batch, layout: Layout[AnyPath]) -> list[str]:
    """The source ids of a batch, found out without looking into any object."""
    source = open_source(recipe, batch.source, make_keyer(recipe.deid), layout.unpacked)
    try:
        return [blob.ref.source_id for series in batch.series for blob in source.blobs(series)]
    finally:
        source.close()


def _survives(
    client: Client, recipe: Recipe, batch: Batch, without: frozenset[str], layout: Layout[AnyPath],
    progress: BuildProgress,
) -> bool:  # fmt: skip
    """Whether a batch can be ingested when the objects ``without`` are left unread."""
    name = f"{batch.id}-trial-{hashlib.sha256(' '.join(sorted(without)).encode()).hexdigest()[:16]}"
    killed: list[str] = []
    task = (name, try_task, (recipe, batch, layout.unpacked, without))
    for _ in run_tasks(client, [task], on_killed=killed.append, watch=progress.tasks):
        pass
    return not killed
