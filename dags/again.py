"""A finished data set that lacks what an archive did not give: the base of its own next build, which fetches only that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.layout import Layout, Manifest
from lumid.catalog.lock import load_lock
from lumid.catalog.paths import AnyPath, read_parquet
from lumid.dags.base import Base, Origins, open_finished
from lumid.dags.progress import BuildProgress
from lumid.pipeline.pack import ELSEWHERE, SAME_PIXELS
from lumid.pipeline.parts import UNFETCHED


@dataclass(frozen=True, slots=True)
class Again:
    """What of a finished data set is to be built again, as rows of its lock.

    ``missing``: series that an archive did not give whole, and how many frames it did not. ``redone``: those that share
    an instance or the pixels of one with another series; of such only one is kept, and with some series fetched anew it
    is decided anew which.
    """

    lock: pa.Table = field(repr=False)
    missing: dict[int, int]
    redone: frozenset[int]

    @property
    def rows(self) -> frozenset[int]:
        """All of them."""
        return self.redone | self.missing.keys()


def read_again(layout: Layout[AnyPath], finished: Manifest | None) -> Again | None:
    """What is to be built again of a finished data set, or of one whose next build was being put in its place.

    None where there is neither, or nothing is missing.
    """
    base = own_base(layout)
    there = open_finished(layout.root) if finished else None
    # a base of an earlier one is left when a build was killed after it had put the new one in its place
    if base.is_laid(there):
        lock, rejects = load_lock(base.lock), read_parquet(base.rejects.rejects)
    elif there is not None:
        lock, rejects = there.lock, there.rejects
    else:
        return None
    origins = Origins(lock)
    lost = rejects.filter(pc.equal(rejects["code"], UNFETCHED))
    missing: Counter[int] = Counter()
    for row, frames in zip(origins.of(lost), lost["frames"].to_pylist(), strict=True):
        missing[row] += frames
    # whose pixels a rejected duplicate had may have other pixels now: a series' range is that of all its slices
    redone = origins.of(rejects.filter(is_decided_anew(rejects)))
    return Again(lock, dict(missing), frozenset(redone)) if missing else None


def is_decided_anew(rejects: pa.Table) -> pa.ChunkedArray:
    """Which rejects are duplicates of another series' samples: of other series, another one may be kept."""
    return pc.or_(pc.equal(rejects["message"], ELSEWHERE.message), pc.equal(rejects["code"], SAME_PIXELS.code))


def own_base(layout: Layout[AnyPath]) -> Base:
    """Where a finished data set is laid out as the base of its own next build."""
    return Base(layout.work / "base")


def lay_own_base(layout: Layout[AnyPath], progress: BuildProgress) -> None:
    """Lay the finished data set out as parts of its own next build.

    Raises :class:`~lumid.catalog.errors.DatasetError` when it is damaged.
    """
    finished, base = open_finished(layout.root), own_base(layout)
    if base.is_laid(finished):
        return
    lost = Origins(finished.lock).of(finished.rejects.filter(pc.equal(finished.rejects["code"], UNFETCHED)))
    base.lay(finished, finished.lock, {row: row for row in range(finished.lock.num_rows)}, progress, frozenset(lost))
