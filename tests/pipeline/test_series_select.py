"""Choosing among a series' slices: evenly, whatever their order, and without chains of repetitions."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lumid.pipeline.geometry import Placed, arrange
from lumid.pipeline.series_select import Place, evenly, in_order, left_out, near_duplicates

AXIAL, CORONAL, NEARLY_AXIAL = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.001, 0.0, 0.9999995)


@given(total=st.integers(0, 500), wanted=st.integers(1, 500))
def test_evenly_is_even(total: int, wanted: int) -> None:
    chosen = evenly(total, wanted)
    assert len(chosen) == min(total, wanted)
    assert chosen == sorted(set(chosen))
    assert all(0 <= one < total for one in chosen)
    if 0 < wanted < total:
        gaps = np.diff([-1 - chosen[0], *chosen, 2 * total - 1 - chosen[-1]])
        assert gaps[1:-1].max(initial=0) - gaps[1:-1].min(initial=total) <= 1
        assert chosen[0] <= total / wanted
        assert total - 1 - chosen[-1] <= total / wanted


places = st.lists(
    st.builds(
        Place,
        placed=st.one_of(
            st.none(),
            st.builds(
                Placed,
                normal=st.sampled_from([AXIAL, CORONAL, NEARLY_AXIAL]),
                position=st.one_of(st.sampled_from([0.0, 0.004, 5.0]), st.floats(-400, 400)),
            ),
        ),
        instance_number=st.one_of(st.none(), st.integers(0, 4).map(float)),
        frame=st.integers(0, 3),
        key=st.uuids().map(str),
    ),
    max_size=25,
    unique_by=lambda one: one.key,
)


@given(places, st.randoms(use_true_random=False))
def test_the_order_of_a_series_is_one_and_slice_index_counts_it(frames: list[Place], shuffle: random.Random) -> None:
    order = in_order(frames)
    assert sorted(order) == list(range(len(frames)))
    shuffled = list(frames)
    shuffle.shuffle(shuffled)
    assert [shuffled[at].key for at in in_order(shuffled)] == [frames[at].key for at in order]
    arranged = arrange([one.placed for one in frames])
    indices = [arranged[at].index for at in order]
    known = [index for index in indices if index is not None]
    assert known == sorted(known)
    assert indices == known + [None] * (len(indices) - len(known)), "what has no position comes last"


def test_slices_of_two_directions_do_not_mix() -> None:
    """A series of axial and coronal slices at the same positions: by position alone every other one is of each."""
    both = {
        (normal, number): Place(Placed(normal, 5.0 * number), number, 0, f"{normal}{number}")
        for number in range(6)
        for normal in (AXIAL, CORONAL)
    }
    order = [list(both)[at] for at in in_order(list(both.values()))]
    assert order == [(normal, number) for normal in (AXIAL, CORONAL) for number in range(6)]
    kept = both.keys() - left_out(both, 3, None).keys()
    assert kept == {(AXIAL, 1), (AXIAL, 4), (CORONAL, 1), (CORONAL, 4)}


def volume(slices: int, times: int = 1) -> dict[str, Place]:
    return {
        f"{number}/{time}": Place(
            Placed(AXIAL, 2.5 * number), time * slices + number, 0, f"{(number * 131 + time * 577) % 997:024x}"
        )
        for number in range(slices)
        for time in range(times)
    }


@given(seed=st.integers(0, 99), stride=st.integers(1, 9), most=st.one_of(st.none(), st.integers(1, 30)))
def test_order_changes_nothing_and_all_are_accounted_for(seed: int, stride: int, most: int | None) -> None:
    frames = volume(23, 2)
    names = list(frames)
    random.Random(seed).shuffle(names)
    found = left_out({name: frames[name] for name in names}, stride, most)
    assert found == left_out(frames, stride, most)
    kept = len(frames) - len(found)
    assert kept == min(-(-len(frames) // stride), most or len(frames)) >= 1
    assert set(found.values()) <= {"stride", "series_cap"}


def test_a_stride_goes_along_the_slices() -> None:
    frames = volume(12)
    found = left_out(frames, 3, None)
    assert set(found.values()) == {"stride"}
    assert sorted(int(name[:-2]) for name in frames.keys() - found.keys()) == [1, 4, 7, 10]


def test_a_cap_comes_after_the_stride_and_says_so() -> None:
    reasons = list(left_out(volume(12), 2, 3).values())
    assert (reasons.count("stride"), reasons.count("series_cap")) == (6, 3)


def test_frames_without_a_position_go_by_their_numbers() -> None:
    cine = {frame: Place(None, 1, frame, f"{997 * frame % 31:024x}") for frame in range(10)}
    assert sorted(set(cine) - left_out(cine, 1, 2).keys()) == [2, 7]


def test_repetitions_are_of_what_repeats_nothing() -> None:
    a, near, nearer_b, b = 0, 0b11, (1 << 40) - 1 ^ 1, (1 << 40) - 1
    assert near_duplicates([a, near, b, nearer_b, a], 2) == {1: 0, 3: 2, 4: 0}
    assert near_duplicates([a, near, b, nearer_b, a], 0) == {4: 0}
    drift = [(1 << number) - 1 for number in range(12)]  # each differs from the one before by a bit
    assert near_duplicates(drift, 2) == {1: 0, 2: 0, 4: 3, 5: 3, 7: 6, 8: 6, 10: 9, 11: 9}
    assert near_duplicates([], 2) == {}
