"""Series grouped into batches: the unit of work and of resuming."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lumid.catalog.schema import FORMAT_VERSION
from lumid.pipeline.sources import Series


@dataclass(frozen=True, slots=True)
class Batch:
    """Some whole series of one source."""

    id: str
    source: int
    series: tuple[Series, ...]

    @property
    def objects(self) -> int:
        """How many objects the batch holds, as far as the archives say."""
        return sum(series.objects or 0 for series in self.series)

    @property
    def bytes(self) -> int:
        """Size of all its objects."""
        return sum(series.bytes for series in self.series)


def make_batches(series: Sequence[Series], source: int, recipe_hash: str, frames: int) -> list[Batch]:
    """Series in order, as many to a batch as hold so many ``frames``; a series of more is a batch of its own."""
    return [Batch(_batch_id(group, source, recipe_hash), source, tuple(group)) for group in _fill(series, frames)]


MOST_FRAMES = 1000
LEAST_FRAMES = 63
FEW_BATCHES = 16


def usual_frames(frames: int) -> int:
    """Frames of a batch for a source of so many: 1,000, and fewer where that would be fewer than 16 batches, down to 63.

    What is finished is kept by the batch, and shared among workers by the batch: one of everything would be neither.

    >>> [usual_frames(frames) for frames in (10, 900, 3_000, 12_000, 3_000_000)]
    [63, 63, 125, 500, 1000]
    """
    size = MOST_FRAMES
    while size > LEAST_FRAMES and frames < FEW_BATCHES * size:
        size = -(-size // 2)
    return size


def _fill(series: Sequence[Series], batch_slices: int) -> Iterator[list[Series]]:
    group: list[Series] = []
    frames = 0
    for one in series:
        # what an archive does not count can be large, and is a batch of its own
        if group and (frames + one.frames > batch_slices or one.objects is None or group[-1].objects is None):
            yield group
            group, frames = [], 0
        group.append(one)
        frames += one.frames
    if group:
        yield group


LARGE = 3


def large_first(sizes: Sequence[float]) -> list[int]:
    """The order in which batches of these sizes are handed out: as they are, but those first that are far larger than most.

    Some series take hours of a core: begun at the end, one would be waited for by all workers but its own.
    """
    usual = sorted(sizes)[len(sizes) // 2] if sizes else 0
    return sorted(range(len(sizes)), key=lambda number: sizes[number] <= LARGE * usual)


def _batch_id(group: Sequence[Series], source: int, recipe_hash: str) -> str:
    """A hash of everything the part depends on: inputs as far as a listing tells, recipe, format."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {recipe_hash} {source}\n".encode())
    for series in group:
        changed = max((member.ref.changed_ns for member in series.members), default=0)
        refused = sum(member.reject is not None for member in series.members)  # a cap depends on the other series
        # the part's rows name the lock's: a series more in a folder moves those that come after it
        digest.update(f"{series.id} {series.digest()} {changed} {refused} {series.lock_row}\n".encode())
    return digest.hexdigest()[:24]
