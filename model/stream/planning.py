"""What comes when: the samples of every batch of a rank, and the blocks that they will be read from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lumid.catalog.errors import UsageError
from lumid.model.stream.batch import StreamState
from lumid.model.stream.order import (
    Arranged,
    BlockShuffle,
    Ints,
    Mixture,
    block_order,
    epoch_order,
    epoch_rows,
    sample_draws,
)
from lumid.model.stream.reading import Blocks, Need
from lumid.model.stream.selection import Columns, Selection

Access = Literal["random", "sequential"]


@dataclass(frozen=True, slots=True)
class Share:
    """Which samples of each global batch are this process's: every ``world``-th, from the ``rank``-th on."""

    rank: int
    world: int
    batch_size: int

    @property
    def global_batch(self) -> int:
        """Samples of all ranks together."""
        return self.batch_size * self.world


@dataclass(frozen=True, slots=True)
class Places:
    """The samples of one rank's batch, ``int64 [batch]`` each: rows of the selection, epochs, indices in them, and the
    units that their blocks are read in (-1 where images are read alone); ``draws``: ``float32 [batch, 8]``."""

    rows: Ints
    epochs: Ints
    indices: Ints
    units: Ints
    draws: npt.NDArray[np.float32]
    after: StreamState

    def __len__(self) -> int:
        return len(self.rows)


class Plan:
    """The order of every epoch of a selection. The next epoch is arranged while the current one runs."""

    def __init__(
        self,
        selection: Selection,
        columns: Columns,
        *,
        seed: int,
        access: Access,
        shuffle: BlockShuffle,
        block_bytes: int,
        mixture: Mixture | None,
    ) -> None:
        self.samples = len(selection)
        self.seed, self.access = seed, access
        self._shuffle = shuffle
        self._groups = selection.groups(mixture) if mixture else None
        self.blocks = Blocks.cut(columns, block_bytes) if access == "sequential" else None
        facts = {
            "selection": selection.fingerprint,
            "seed": seed,
            "mixture": [mixture.by, {group.value: group.quota for group in self._groups or ()}] if mixture else None,
            "blocks": [asdict(shuffle), block_bytes] if access == "sequential" else None,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.order = f"{access}-{digest[:24]}"
        self._arranged: dict[int, Future[Arranged]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lumid-order")

    def epoch(self, epoch: int) -> Arranged:
        """The samples of an epoch in order."""
        with self._lock:
            self._arranged = {one: made for one, made in self._arranged.items() if one >= epoch - 1}
            for one in (epoch, epoch + 1):
                if one not in self._arranged:
                    self._arranged[one] = self._pool.submit(self._arrange, one)
            wanted = self._arranged[epoch]
        return wanted.result()

    def close(self) -> None:
        """Arrange no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _arrange(self, epoch: int) -> Arranged:
        rows = epoch_rows(self.seed, epoch, self._groups) if self._groups else np.arange(self.samples, dtype=np.int64)
        if self.blocks is not None:
            return block_order(self.seed, epoch, rows, self.blocks.of_row, self._shuffle)
        return Arranged(rows[epoch_order(self.seed, epoch, len(rows))], np.full(len(rows), -1, np.int64))

    def places(self, state: StreamState, share: Share) -> Places:
        """This rank's samples of the global batch that begins at ``state``."""
        parts: list[tuple[Ints, Ints, Ints, npt.NDArray[np.float32], int]] = []
        epoch, index, done = state.epoch, state.index, 0
        while done < share.global_batch:
            if index >= self.samples:
                epoch, index = epoch + 1, 0
            arranged = self.epoch(epoch)
            count = min(self.samples - index, share.global_batch - done)
            mine = slice(index + (share.rank - done) % share.world, index + count, share.world)
            draws = sample_draws(self.seed, epoch, index, count)[mine.start - index :: share.world]
            indices = np.arange(mine.start, mine.stop, share.world, dtype=np.int64)
            parts.append((arranged.rows[mine], indices, arranged.units[mine], draws, epoch))
            index, done = index + count, done + count
        rows, indices, units, draws = (np.concatenate([part[number] for part in parts]) for number in range(4))
        epochs = np.repeat(
            np.array([part[4] for part in parts], np.int64), np.array([len(part[0]) for part in parts], np.int64)
        )
        return Places(rows, epochs, indices, units, draws, StreamState(epoch, index, self.order))

    def needs(self, state: StreamState, share: Share) -> Iterator[Need]:
        """The blocks that this rank reads from ``state`` on, in the order in which it will. Endless."""
        assert self.blocks is not None, "only a sequential plan has blocks"
        epoch, index, done = state.epoch, state.index, 0
        while True:
            arranged = self.epoch(epoch)
            first = index + (share.rank - done) % share.world
            rows, units = arranged.rows[first :: share.world], arranged.units[first :: share.world]
            named, at, uses = np.unique(units, return_index=True, return_counts=True)
            for number in np.argsort(at).tolist():
                block = int(self.blocks.of_row[rows[at[number]]])
                yield Need((epoch, int(named[number])), block, int(uses[number]))
            epoch, index, done = epoch + 1, 0, (done + self.samples - index) % share.world


def access_of(root: Path | str, asked: str, state: StreamState) -> Access:
    """How a data set is read: as asked; else as the run that goes on did; else by where it is.

    Raises :class:`UsageError` for a way that does not exist.
    """
    if asked not in ("auto", "random", "sequential"):
        raise UsageError(f"access {asked!r} is no way of reading; there are auto, random and sequential")
    before = state.order.partition("-")[0]
    if asked == "auto":
        return (
            "sequential"
            if (before or ("sequential" if isinstance(root, str) else "random")) == "sequential"
            else "random"
        )
    return "sequential" if asked == "sequential" else "random"
