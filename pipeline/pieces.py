"""A long series in pieces: workers share what is done object by object; what takes all of them follows when all are there.

It is worth it where images are searched for text, which takes hours of a core for one series of ultrasound loops; and it
can be done where each image has a scale of its own. What comes out is what the batch gives when one worker does it. A
piece is a file, ``<batch>-piece-<number>-of-<pieces>.parquet``, so that a build that is killed keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from lumid.catalog.keys import Keyer
from lumid.catalog.layout import write_table
from lumid.catalog.paths import AnyPath, parquet_metadata, read_parquet
from lumid.catalog.schema import CatalogRow, RejectRow
from lumid.pipeline.batches import Batch
from lumid.pipeline.deidentify import SEARCHED_MODALITIES
from lumid.pipeline.geometry import Placed
from lumid.pipeline.ingest import BatchResult, SeriesResult, WholeSeriesError, check_account, finish_series, read_series
from lumid.pipeline.parts import series_account
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.samples import Sample
from lumid.pipeline.series_select import Place
from lumid.pipeline.sources import DivisibleSource, ObjectRef, Series, Source

PIECE_BYTES = 64 << 20
"""About so much of a series is one piece: minutes of a core, where text is searched for."""
FACTS = b"lumid.piece"


@dataclass(frozen=True, slots=True)
class Span:
    """Part number ``part`` of ``parts`` of one of a batch's series."""

    series: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a batch: parts of its long series, or all series that are not long."""

    batch: Batch
    number: int
    pieces: int
    spans: tuple[Span, ...]

    @property
    def id(self) -> str:
        """The name of its file and of its task."""
        return f"{self.batch.id}-piece-{self.number}-of-{self.pieces}"


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What a piece gives, by the number of the series; ``met``: keyed hashes of the instances that were opened.

    ``indivisible``: a series turned out to be one that cannot be taken apart; ``unlisted``: one could not be listed.
    """

    found: dict[int, SeriesResult] = field(default_factory=dict)
    met: dict[int, frozenset[str]] = field(default_factory=dict)
    indivisible: bool = False
    unlisted: bool = False
    seconds: float = 0.0

    @property
    def lacking(self) -> bool:
        """Whether the archive did not give all of it: it is worth another try."""
        return self.unlisted or any(series_account(one).unfetched for one in self.found.values())

    @property
    def unreached(self) -> bool:
        """Whether nobody answered for any of it."""
        accounts = [series_account(one) for one in self.found.values()]
        return self.unlisted or (bool(accounts) and all(one.planned == one.unreached for one in accounts))


def long_series(batch: Batch, recipe: Recipe, piece_bytes: int) -> list[int]:
    """The numbers of a batch's series that are worth being taken apart, as far as the archive's index tells."""
    if recipe.select.stride > 1 or recipe.select.max_slices is not None:
        return []  # which slices are taken is decided among all
    return [
        number
        for number, one in enumerate(batch.series)
        if one.bytes >= 2 * piece_bytes and (one.objects or 0) > 1 and _is_searched(one, recipe)
    ]


def _is_searched(series: Series, recipe: Recipe) -> bool:
    if recipe.deid.policy == "private":
        return series.modality is not None and series.modality not in ("MR", "NM", "PT")  # whose series have one range
    return series.modality in SEARCHED_MODALITIES


def divide(batch: Batch, parts: Mapping[int, int]) -> tuple[Piece, ...]:
    """A batch's pieces: so many ``parts`` of these series, and one piece of all others."""
    spans = [(Span(number, part, count),) for number, count in parts.items() for part in range(count)]
    rest = tuple(Span(number) for number in range(len(batch.series)) if number not in parts)
    groups = [*spans, rest] if rest else spans
    return tuple(Piece(batch, number, len(groups), group) for number, group in enumerate(groups))


def parts_of(refs: Sequence[ObjectRef], piece_bytes: int) -> int:
    """Into how many parts a series of these objects is taken apart.

    >>> parts_of([ObjectRef("a", 50), ObjectRef("b", 50), ObjectRef("c", 90)], 60)
    3
    """
    return max(1, min(len(refs), sum(ref.size_bytes for ref in refs) // piece_bytes))


def part_of(refs: Sequence[ObjectRef], part: int, parts: int) -> list[ObjectRef]:
    """One of so many parts of about the same size of a series' objects: every object is in exactly one, in its order.

    >>> refs = [ObjectRef("a", 10), ObjectRef("b", 10), ObjectRef("c", 80)]
    >>> [[ref.source_id for ref in part_of(refs, part, 2)] for part in range(2)]
    [['a', 'b'], ['c']]
    """
    total = sum(ref.size_bytes for ref in refs) or 1
    chosen, before = [], 0
    for ref in refs:
        middle = before + ref.size_bytes / 2
        if min(parts - 1, int(middle * parts / total)) == part:
            chosen.append(ref)
        before += ref.size_bytes
    return chosen


def object_names(piece: Piece, source: Source) -> list[str]:
    """The source ids of a piece's objects, found out without looking into any."""
    names = []
    for span in piece.spans:
        series = piece.batch.series[span.series]
        refs = _refs(series, span, source)
        if refs is None and span.parts == 1:
            refs = [blob.ref for blob in source.blobs(series)]
        names += [ref.source_id for ref in refs or ()]
    return names


def _refs(series: Series, span: Span, source: Source) -> list[ObjectRef] | None:
    known = source.known_objects(series) if isinstance(source, DivisibleSource) else None
    return None if known is None else part_of(known, span.part, span.parts)


def ingest_piece(
    piece: Piece, source: Source, recipe: Recipe, keyer: Keyer, poisoned: frozenset[str] = frozenset()
) -> PieceResult:
    """A piece's objects as far as each can be dealt with by itself. ``poisoned`` as in :func:`~.ingest.ingest`."""
    found, met = {}, {}
    for span in piece.spans:
        series = piece.batch.series[span.series]
        account = SeriesResult(series.lock_row)
        only = None
        if span.parts > 1:
            refs = _refs(series, span, source)
            if refs is None:
                return PieceResult(unlisted=True)
            only = frozenset(ref.source_id for ref in refs)
        try:
            opened = read_series(series, source, recipe, keyer, poisoned, account, only)
        except WholeSeriesError:
            return PieceResult(indivisible=True)
        found[span.series] = account
        met[span.series] = frozenset(keyer.key(uid, 0) for uid in opened)
    return PieceResult(found, met)


def assemble(batch: Batch, pieces: Sequence[PieceResult], recipe: Recipe) -> BatchResult | None:
    """What :func:`~.ingest.ingest` gives for the batch, from its pieces in order; None where it cannot be had from them."""
    if any(piece.indivisible or piece.unlisted for piece in pieces):
        return None
    done = []
    for number, series in enumerate(batch.series):
        mine = [piece for piece in pieces if number in piece.found]
        met = [name for piece in mine for name in piece.met[number]]
        if len(set(met)) < len(met):
            return None  # copies of an instance: which of them counts is decided among all
        account = SeriesResult(series.lock_row)
        for piece in mine:
            part = piece.found[number]
            account.samples += part.samples
            account.rejects += part.rejects
            account.planned += part.planned
            account.objects += part.objects
            account.source_bytes += part.source_bytes
        if len(mine) > 1 and account.objects != series.objects:
            return None  # the archive does not say the same to all
        finish_series(series, recipe, account)
        check_account(series, account)
        done.append(account)
    return BatchResult(tuple(done))


def write_piece(path: AnyPath, piece: Piece, result: PieceResult) -> None:
    """Write a piece's result, whole or not at all."""
    samples = [(number, sample) for number, account in result.found.items() for sample in account.samples]
    facts = {
        "spans": [astuple(span) for span in piece.spans],
        "lacking": result.lacking,
        "indivisible": result.indivisible,
        "unlisted": result.unlisted,
        "seconds": result.seconds,
        "series": [
            {
                "series": number, "lock_row": one.lock_row, "planned": one.planned, "objects": one.objects,
                "source_bytes": one.source_bytes, "met": sorted(result.met[number]),
                "rejects": [asdict(row) for row in one.rejects],
            }
            for number, one in result.found.items()
        ],
    }  # fmt: skip
    table = pa.table(
        {
            "series": pa.array([number for number, _ in samples], pa.int32()),
            "sample": pa.array([json.dumps(_plain(sample)) for _, sample in samples], pa.string()),
            "image": pa.array([sample.image for _, sample in samples], pa.large_binary()),
        }
    )
    write_table(path, table.replace_schema_metadata({FACTS: json.dumps(facts)}))


def read_piece(path: AnyPath) -> PieceResult:
    """What :func:`write_piece` has written."""
    table = read_parquet(path)
    facts = json.loads(table.schema.metadata[FACTS])
    found = {
        one["series"]: SeriesResult(
            one["lock_row"], [], [RejectRow(**row) for row in one["rejects"]], one["planned"], one["objects"],
            one["source_bytes"],
        )
        for one in facts["series"]
    }  # fmt: skip
    for number, sample in _samples(table):
        found[number].samples.append(sample)
    met = {one["series"]: frozenset(one["met"]) for one in facts["series"]}
    return PieceResult(found, met, facts["indivisible"], facts["unlisted"], facts["seconds"])


def state_of(path: AnyPath, piece: Piece) -> Literal["done", "lacking", "indivisible"]:
    """What a file of a piece's name, which is there, says: of another piece, ``lacking``."""
    facts = json.loads(parquet_metadata(path).metadata[FACTS])
    if facts["spans"] != [list(astuple(span)) for span in piece.spans] or facts["lacking"]:
        return "lacking"
    return "indivisible" if facts["indivisible"] else "done"


def _plain(sample: Sample) -> dict[str, Any]:
    """A sample without its image, as values of JSON; numbers come back as they were."""
    return {name: value for name, value in asdict(sample).items() if name != "image"}


def _samples(table: pa.Table) -> Iterator[tuple[int, Sample]]:
    for batch in table.to_batches():
        columns: Iterable[tuple[int, str, bytes]] = zip(
            *(batch[name].to_pylist() for name in batch.schema.names), strict=True
        )
        for number, written, image in columns:
            facts = json.loads(written)
            place = facts["place"]
            placed = place["placed"] and Placed(**_tuples(place["placed"]))
            row = CatalogRow(**_tuples(facts["row"]))
            at = Place(placed, place["instance_number"], place["frame"], place["key"])
            yield number, Sample(row, image, at, facts["look"], tuple(facts["unknown"]))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
