"""The order of an epoch: shuffles and mixtures as pure functions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.errors import UsageError
from lumid.catalog.query import read_catalog
from lumid.model.stream import ImageStream, Mixture, StreamSettings, epoch_order, select
from lumid.model.stream.order import BlockShuffle, Group, block_order, epoch_rows, met_again, quotas, uneven
from lumid.model.stream.reading import Blocks
from lumid.model.stream.selection import Columns


@given(
    st.integers(1, 300), st.integers(1, 40), st.integers(1, 20), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9)
)
def test_a_block_shuffle_is_a_permutation_and_reads_a_block_once_a_lane(
    samples: int, size: int, lanes: int, window: int, seed: int, epoch: int
) -> None:
    rows, block_of = np.arange(samples), np.arange(samples) // size
    shuffle = BlockShuffle(lanes, window)
    found = block_order(seed, epoch, rows, block_of, shuffle)
    assert sorted(found.rows.tolist()) == list(range(samples))
    again = block_order(seed, epoch, rows, block_of, shuffle)
    assert found.rows.tolist() == again.rows.tolist()
    assert found.units.tolist() == again.units.tolist()
    assert set(found.units.tolist()) == set(range(int(found.units.max()) + 1))
    for lane in range(min(lanes, samples)):
        units, blocks = found.units[lane::lanes], block_of[found.rows[lane::lanes]]
        assert len(set(units.tolist())) == len(set(blocks.tolist())), "one reading of a block in a lane"
        assert len(set(zip(units.tolist(), blocks.tolist(), strict=True))) == len(set(units.tolist()))
    # a unit is one lane's: whichever number of ranks divides the lanes, no two ranks read it
    for unit in set(found.units.tolist()):
        assert len({place % lanes for place in np.flatnonzero(found.units == unit).tolist()}) == 1


def test_a_block_is_held_for_no_longer_than_a_window() -> None:
    found = block_order(0, 0, np.arange(4000), np.arange(4000) // 10, BlockShuffle(4, 5))
    for lane in range(4):
        units = found.units[lane::4]
        for unit in np.unique(units):
            at = np.flatnonzero(units == unit)
            assert at.max() - at.min() < 5 * 10, "five blocks of ten samples"


def test_how_good_a_shuffle_is_can_be_told() -> None:
    """Known ends: full permutations are 1; the same order again, and sorted labels, are as bad as can be."""
    one, two = epoch_order(0, 0, 20_000), epoch_order(0, 1, 20_000)
    assert met_again(one, two, 100) == pytest.approx(1, abs=0.05)
    assert met_again(one, one, 100) == pytest.approx(19_999 / 99, rel=1e-6)
    label = np.arange(20_000) // 5000
    assert uneven(one, label, 100) == pytest.approx(1, abs=0.15)
    assert uneven(np.arange(20_000), label, 100) == pytest.approx(100 * 19_999 / 19_900, rel=0.01)


def test_larger_windows_shuffle_better_and_labels_are_even_where_keys_are_random() -> None:
    rows, block_of = np.arange(40_000), np.arange(40_000) // 50
    label = np.random.default_rng(0).integers(0, 5, 40_000)  # keys are hashes: a block is a fair sample
    quality = []
    for window in (1, 4, 16):
        epochs = [block_order(0, epoch, rows, block_of, BlockShuffle(16, window)).rows for epoch in range(2)]
        quality.append(met_again(*epochs, 256))
        assert uneven(epochs[0], label, 256) == pytest.approx(1, abs=0.2)
    assert quality[0] > quality[1] > quality[2]
    assert quality[2] < 2


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 5000), min_size=1, max_size=8),
    st.floats(0.5, 20),
    st.integers(1, 3000),
)
def test_quotas_are_whole_and_add_up(counts: dict[str, int], temperature: float, total: int) -> None:
    found = quotas(counts, Mixture("collection", temperature), total)
    assert sum(found.values()) == total
    whole = sum(count ** (1 / temperature) for count in counts.values())
    for value, count in counts.items():
        assert abs(found[value] - total * count ** (1 / temperature) / whole) < 1


def test_quotas_by_weight() -> None:
    counts = {"CT": 900, "MR": 90, "US": 10}
    assert quotas(counts, Mixture("modality"), 1000) == counts
    assert quotas(counts, Mixture("modality", float("inf")), 999) == {"CT": 333, "MR": 333, "US": 333}
    assert quotas(counts, Mixture("modality", float("inf"), {"US": 0.0, "CT": 3.0}), 400) == {
        "CT": 300,
        "MR": 100,
        "US": 0,
    }
    for wrong in (Mixture("modality", weights={"PT": 1}), Mixture("modality", 0), Mixture("modality", weights={"CT": -1}),
                  Mixture("modality", weights=dict.fromkeys(counts, 0.0))):  # fmt: skip
        with pytest.raises(UsageError):
            quotas(counts, wrong, 10)


@given(st.integers(1, 30), st.integers(0, 70), st.integers(0, 5))
def test_no_sample_of_a_group_comes_again_before_each_has_come(count: int, quota: int, seed: int) -> None:
    group = Group("a", np.arange(100, 100 + count), quota)
    drawn = np.concatenate([epoch_rows(seed, epoch, [group]) for epoch in range(4)])
    assert len(drawn) == 4 * quota
    for begin in range(0, len(drawn), count):
        turn = drawn[begin : begin + count].tolist()
        assert len(set(turn)) == len(turn)


@pytest.mark.parametrize("access", ["random", "sequential"])
def test_a_mixture_is_what_it_says_in_every_epoch(data: Path, access: str) -> None:
    """50 samples, of which 17, 17 and 16 by modality: CT three times as often as it is there is 34 of 50 …"""
    rows = {row["key"]: row["modality"] for row in read_catalog(data).to_pylist()}
    mixture = Mixture("modality", weights={"CT": 4.0, "US": 0.0})
    settings = StreamSettings(10, mixture=mixture, access=access, lanes=2, block_mb=0.02, window_mb=0.1)
    stream = iter(ImageStream(select(data), settings))
    expected = quotas(dict(sorted(Counter(rows.values()).items())), mixture, 50)
    for _ in range(3):
        drawn = [key for _ in range(5) for key in next(stream).keys]
        assert Counter(rows[key] for key in drawn) == +Counter(expected)
        times = Counter(key for key in drawn if rows[key] == "CT")  # a turn may have begun in the epoch before
        assert max(times.values()) - min(times[key] for key, modality in rows.items() if modality == "CT") <= 2


def test_mixing_by_any_column_of_the_catalog(data: Path) -> None:
    rows = {row["key"]: row["body_part"] or "null" for row in read_catalog(data).to_pylist()}
    mixture = Mixture("body_part", temperature=float("inf"))
    with pytest.raises(UsageError, match=r"also=\('body_part',\)"):
        ImageStream(select(data), StreamSettings(10, mixture=mixture)).__iter__().__next__()
    stream = iter(ImageStream(select(data, also=("body_part",)), StreamSettings(50, mixture=mixture)))
    shares = Counter(rows[key] for key in next(stream).keys)
    assert set(shares) == set(rows.values())
    assert max(shares.values()) - min(shares.values()) <= 1
    with pytest.raises(UsageError, match="no categories"):
        select(data, also=("noise",)).groups(Mixture("noise"))


def test_blocks_hold_every_row_once_in_one_shard_and_in_order(data: Path) -> None:
    columns = Columns.of(select(data).table)
    blocks = Blocks.cut(columns, 20_000)
    assert sorted(blocks.rows.tolist()) == list(range(50))
    for block in range(len(blocks.starts) - 1):
        shard, rows, range_of, begins, ends = blocks.ranges(block, columns)
        assert {columns.shards[code] for code in columns.shard[rows]} == {shard}
        assert (blocks.of_row[rows] == block).all()
        assert (begins[range_of] <= columns.offset[rows]).all()
        assert (columns.offset[rows] + columns.length[rows] <= ends[range_of]).all()
        assert columns.length[rows].sum() < 20_000 + columns.length.max()
