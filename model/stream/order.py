"""The order of an epoch: a pure function of seed, epoch and selection, and of nothing that a restart can change.

Two steps. *Which* rows an epoch holds: each once, or, under a mixture, as many of every group as its weight says.
*Where* they stand: a full permutation, or, where an image cannot be read alone, a shuffle of blocks (:func:`block_order`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lumid.catalog.errors import UsageError

Ints = npt.NDArray[np.int64]
DRAWS = 8
"""Uniform random numbers that come with every sample, for the augmentation."""
ROWS, DRAWN, BLOCKS = 0, 1, 2
"""What a generator is for: the order of the rows, the samples' own numbers, the order of the blocks. Groups come after."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How often samples are drawn, by the value of a catalog column: a value's share is ``weight × count^(1 / temperature)``.

    Temperature 1 leaves the shares as they are, 2 takes the square root of the counts, infinity makes them equal. Values
    without a weight have weight 1; one of weight 0 is left out. A value that the catalog does not know is ``"null"``.
    """

    by: str
    temperature: float = 1.0
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The rows that share a value, ``int64 [n]``, and how many of an epoch's samples are drawn from them."""

    value: str
    rows: Ints
    quota: int


def quotas(counts: Mapping[str, int], mixture: Mixture, total: int) -> dict[str, int]:
    """How many of ``total`` samples each value gives: whole numbers, by largest remainder.

    Raises :class:`UsageError` for a weight of no value, or one that is negative, and for a temperature that is not above 0.

    >>> quotas({"a": 900, "b": 100}, Mixture("collection", temperature=2.0), 1000)
    {'a': 750, 'b': 250}
    """
    weights = dict(mixture.weights or {})
    unknown = sorted(set(weights) - set(counts))
    if unknown:
        raise UsageError(
            f"a weight for {mixture.by} {unknown[0]!r}, which no sample has; there are {', '.join(counts)}"
        )
    if not mixture.temperature > 0 or any(not 0 <= weight < math.inf for weight in weights.values()):
        raise UsageError(f"the mixture by {mixture.by} needs a temperature above 0 and weights from 0 on")
    shares = {value: weights.get(value, 1.0) * count ** (1 / mixture.temperature) for value, count in counts.items()}
    whole = sum(shares.values())
    if whole <= 0:
        raise UsageError(f"the mixture by {mixture.by} leaves nothing: every weight is 0")
    exact = {value: total * share / whole for value, share in shares.items()}
    found = {value: int(share) for value, share in exact.items()}
    nearest = sorted(exact, key=lambda value: (found[value] - exact[value], value))
    for value in nearest[: total - sum(found.values())]:
        found[value] += 1
    return found


def epoch_order(seed: int, epoch: int, samples: int) -> Ints:
    """The order of an epoch: a full permutation, a pure function of seed, epoch and number of samples.

    >>> sorted(epoch_order(0, 1, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return _generator(seed, epoch, ROWS).permutation(samples).astype(np.int64)


def epoch_rows(seed: int, epoch: int, groups: Sequence[Group]) -> Ints:
    """The rows of an epoch under a mixture, ``int64 [sum of quotas]``, group by group.

    Draws of a group go on from epoch to epoch: no sample of it comes again before each has come once.
    """
    return np.concatenate([_drawn(seed, epoch, number, group) for number, group in enumerate(groups)])


def _drawn(seed: int, epoch: int, number: int, group: Group) -> Ints:
    count, begin, end = len(group.rows), epoch * group.quota, (epoch + 1) * group.quota
    if count == 0 or begin == end:
        return np.empty(0, np.int64)
    turns = range(begin // count, (end - 1) // count + 1)
    order = np.concatenate([_generator(seed, turn, BLOCKS + 1 + number).permutation(count) for turn in turns])
    first = turns[0] * count
    rows: Ints = group.rows[order[begin - first : end - first]]
    return rows


@dataclass(frozen=True, slots=True)
class BlockShuffle:
    """How far a shuffle of blocks reaches: ``lanes`` parts of an epoch go side by side, each through windows of ``window``
    blocks whose samples are mixed thoroughly."""

    lanes: int
    window: int


@dataclass(frozen=True, slots=True)
class Arranged:
    """An epoch's samples in order. ``rows``: ``int64 [n]``; ``units``: ``int64 [n]``, equal for samples whose block is read
    once for all of them, numbered from 0 without a gap."""

    rows: Ints
    units: Ints


def block_order(seed: int, epoch: int, rows: Ints, block_of: Ints, shuffle: BlockShuffle) -> Arranged:
    """A shuffle for which a store is read in whole blocks: a pure function of its arguments.

    Blocks are permuted and laid in one line; the line is cut into lanes of equal length; in a lane, the samples of
    ``window`` blocks after one another are permuted; and the lanes are dealt out in turn, sample by sample. So as many
    ranks as divide the number of lanes read each block once, whoever reads it. ``block_of``: block of every row of the
    selection, ``int64``.
    """
    generator = _generator(seed, epoch, BLOCKS)
    count, lanes = len(rows), shuffle.lanes
    blocks = block_of[rows]
    rank = generator.permutation(int(block_of.max()) + 1 if len(block_of) else 0)
    line = np.argsort(rank[blocks], kind="stable")
    starts = np.arange(lanes + 1, dtype=np.int64) * (count // lanes) + np.minimum(np.arange(lanes + 1), count % lanes)
    lane = np.repeat(np.arange(lanes, dtype=np.int64), np.diff(starts))
    ordinal = np.cumsum(np.diff(blocks[line], prepend=blocks[line[:1]]) != 0)  # of the block, along the line
    first = ordinal[np.minimum(starts[:-1], count - 1)][lane]
    window = (ordinal - first) // shuffle.window
    mixed = np.lexsort((generator.random(count), window, lane))
    # a block on the border of two lanes is read for each of them
    unit = np.cumsum((np.diff(ordinal, prepend=0) != 0) | (np.diff(lane, prepend=0) != 0))
    place = np.arange(count, dtype=np.int64)
    dealt = mixed[starts[place % lanes] + place // lanes]
    return Arranged(rows[line[dealt]], unit[dealt].astype(np.int64))


def sample_draws(seed: int, epoch: int, index: int, count: int = 1) -> npt.NDArray[np.float32]:
    """``float32 [count, 8]``, uniform in [0, 1): the random numbers of the samples from ``index`` on, whatever batch they are in.

    Philox (Salmon et al. 2011) counts: each sample has a block of its own.
    """
    generator = np.random.Generator(np.random.Philox(key=_key(seed, epoch, DRAWN), counter=[index, 0, 0, 0]))
    return generator.random((count, DRAWS), dtype=np.float32)


def met_again(before: Ints, after: Ints, batch: int) -> float:
    """How much oftener two samples of one batch share a batch in the next epoch too than under full permutations.

    1 is as good as it gets. ``before``, ``after``: the rows of two epochs in order, each row once.
    """
    count = len(before) // batch * batch
    batch_before, batch_after = np.full(len(before), -1), np.full(len(before), -2)
    batch_before[before[:count]] = np.arange(count) // batch
    batch_after[after[:count]] = np.arange(count) // batch
    both = (batch_before >= 0) & (batch_after >= 0)
    _, together = np.unique(batch_before[both] * (count // batch) + batch_after[both], return_counts=True)
    pairs = float((together * (together - 1)).sum())
    _, sizes = np.unique(batch_before[both], return_counts=True)
    chance = float((sizes * (sizes - 1)).sum()) * (batch - 1) / (count - 1)
    return pairs / chance


def uneven(order: Ints, label: Ints, batch: int) -> float:
    """How much more the batches' shares of each label vary than under a full permutation: a ratio of variances, 1 is even.

    ``label``: of every row, from 0; labels are weighted as they are frequent.
    """
    count = len(order) // batch * batch
    shares = np.zeros((count // batch, int(label.max()) + 1))
    np.add.at(shares, (np.arange(count) // batch, label[order[:count]]), 1 / batch)
    whole = shares.mean(0)
    drawn = whole * (1 - whole) / batch * (count - batch) / (count - 1)  # without putting back
    return float(shares.var(0).sum() / drawn.sum())


def _key(seed: int, epoch: int, purpose: int) -> int:
    return (seed << 64) + (purpose << 32) + epoch


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=_key(seed, epoch, purpose)))
