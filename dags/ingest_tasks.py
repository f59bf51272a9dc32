"""What workers do in the second stage of a build: batches and pieces of batches, and pieces put together to batches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lumid.catalog.keys import Keyer
from lumid.catalog.paths import AnyPath
from lumid.dags.metrics import count_batch
from lumid.dags.tasks import Failure, guarded
from lumid.dags.turns import share, turn
from lumid.pipeline.batches import Batch
from lumid.pipeline.ingest import BatchResult, ingest
from lumid.pipeline.parts import PartAccount, PartFiles, write_part
from lumid.pipeline.pieces import (
    Piece,
    PieceResult,
    assemble,
    ingest_piece,
    object_names,
    parts_of,
    read_piece,
    write_piece,
)
from lumid.pipeline.recipe import Recipe, make_keyer
from lumid.pipeline.sources import DivisibleSource, Source, open_source


@dataclass(frozen=True, slots=True)
class Ingested:
    """A part that was written: its account, and rejected frames by reason code."""

    account: PartAccount
    rejects: dict[str, int]


@dataclass(frozen=True, slots=True)
class PieceDone:
    """A piece that was written: so many objects in so many seconds.

    ``lacking``, ``unreached``, ``indivisible``: as :class:`~lumid.pipeline.pieces.PieceResult` has them.
    """

    objects: int
    seconds: float
    lacking: bool
    unreached: bool
    indivisible: bool


@dataclass(frozen=True, slots=True)
class NotToBeJoined:
    """Says that a batch has to be ingested as a whole after all."""


def ingest_task(
    recipe: Recipe, batch: Batch, parts: AnyPath, scratch: Path, poisoned: frozenset[str] = frozenset()
) -> Ingested | Failure:
    """A batch: ingested, and written as a part."""

    def work() -> Ingested:
        started = time.monotonic()
        result = _ingest(recipe, batch, scratch, poisoned)
        return _written(PartFiles(parts, batch.id), result, time.monotonic() - started)

    return guarded(work, parts)


def piece_task(
    recipe: Recipe, piece: Piece, pieces: AnyPath, scratch: Path, poisoned: frozenset[str] = frozenset()
) -> PieceDone | Failure:
    """A piece of a batch: ingested, and written as a file."""

    def work() -> PieceDone:
        started = time.monotonic()
        result = _ingest_piece(recipe, piece, scratch, poisoned)
        seconds = time.monotonic() - started
        write_piece(piece_file(pieces, piece), piece, replace(result, seconds=seconds))
        objects = sum(one.objects for one in result.found.values())
        return PieceDone(objects, seconds, result.lacking, result.unreached, result.indivisible)

    return guarded(work, pieces)


def join_task(
    recipe: Recipe, pieces: tuple[Piece, ...], folder: AnyPath, parts: AnyPath
) -> Ingested | NotToBeJoined | Failure:
    """All pieces of a batch, written as its part. They stay: a worker that dies after this may have to do it again."""

    def work() -> Ingested | NotToBeJoined:
        with turn():  # a batch's samples are in memory, once
            started = time.monotonic()
            try:
                found = [read_piece(piece_file(folder, piece)) for piece in pieces]
            except FileNotFoundError:  # one was not made, for another cannot be joined to any
                return NotToBeJoined()
            batch = pieces[0].batch
            result = assemble(batch, found, recipe)
            seconds = sum(one.seconds for one in found) + time.monotonic() - started
            return NotToBeJoined() if result is None else _written(PartFiles(parts, batch.id), result, seconds)

    return guarded(work, parts)


def divide_task(
    recipe: Recipe, batch: Batch, series: list[int], scratch: Path, piece_bytes: int
) -> dict[int, int] | Failure:
    """Into how many parts each of a batch's long ``series`` is taken apart, of those that can be."""

    def work() -> dict[int, int]:
        with _opened(recipe, batch.source, scratch) as (source, _):
            if not isinstance(source, DivisibleSource):
                return {}
            known = {number: source.known_objects(batch.series[number]) for number in series}
        parts = {number: parts_of(refs, piece_bytes) for number, refs in known.items() if refs}
        return {number: count for number, count in parts.items() if count > 1}

    return guarded(work)


def try_task(recipe: Recipe, work: Batch | Piece, scratch: Path, poisoned: frozenset[str]) -> int | Failure:
    """Ingest and forget the result: finds out whether the process survives."""

    def attempt() -> int:
        if isinstance(work, Piece):
            return len(_ingest_piece(recipe, work, scratch, poisoned).found)
        return _ingest(recipe, work, scratch, poisoned).planned

    return guarded(attempt)


def names_of(recipe: Recipe, work: Batch | Piece, scratch: Path) -> list[str]:
    """The source ids of what is in a batch or piece, found out without looking into any object."""
    batch = work.batch if isinstance(work, Piece) else work
    with _opened(recipe, batch.source, scratch) as (source, _):
        if isinstance(work, Piece):
            return object_names(work, source)
        return [blob.ref.source_id for series in batch.series for blob in source.blobs(series)]


def piece_file(folder: AnyPath, piece: Piece) -> AnyPath:
    """Where a piece's result is kept."""
    return folder / f"{piece.id}.parquet"


def _written(files: PartFiles, result: BatchResult, seconds: float) -> Ingested:
    account = write_part(files, result, seconds)
    rejects: Counter[str] = Counter()
    for row in result.rejects:
        rejects[row.code] += row.frames
    count_batch(account.kept, rejects, account.seconds)
    return Ingested(account, dict(rejects))


def _ingest(recipe: Recipe, batch: Batch, scratch: Path, poisoned: frozenset[str]) -> BatchResult:
    """A batch's bytes arrive from now on, and are processed when it is its turn."""
    with _opened(recipe, batch.source, scratch) as (source, keyer):
        source.prefetch(batch.series)
        with turn():
            return ingest(batch, source, recipe, keyer, poisoned)


def _ingest_piece(recipe: Recipe, piece: Piece, scratch: Path, poisoned: frozenset[str]) -> PieceResult:
    with _opened(recipe, piece.batch.source, scratch) as (source, keyer):
        source.prefetch([piece.batch.series[span.series] for span in piece.spans if span.parts == 1])
        object_names(piece, source)  # a listing, which is remembered, need not wait for the turn
        with turn():
            return ingest_piece(piece, source, recipe, keyer, poisoned)


@contextmanager
def _opened(recipe: Recipe, number: int, scratch: Path) -> Iterator[tuple[Source, Keyer]]:
    """One of the recipe's sources, for one of the tasks that a worker runs at once."""
    keyer = make_keyer(recipe.deid)
    fetch = recipe.fetch.model_copy(update={"ahead_mb": recipe.fetch.ahead_mb * share()})
    source = open_source(recipe.model_copy(update={"fetch": fetch}), number, keyer, scratch)
    try:
        yield source, keyer
    finally:
        source.close()
