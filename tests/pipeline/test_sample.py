"""Samples: whole patients, and a larger sample holds every smaller one."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.lock import LOCK
from lumid.pipeline.recipe import SampleSettings
from lumid.pipeline.sample import cap_series, draw_sample

KEYER = Keyer(PUBLIC_SECRET)


@dataclass(frozen=True)
class Row:
    collection: str
    patient: str | None
    bytes: int | None


rows = st.builds(
    Row,
    st.sampled_from(["a", "b"]),
    st.one_of(st.none(), st.integers(0, 12).map(lambda number: f"p{number}")),
    st.one_of(st.none(), st.integers(0, 10**9)),
)
locks = st.lists(rows, max_size=40)


def lock_of(some: list[Row]) -> pa.Table:
    values = [
        {"recipe_source": 0, "collection": one.collection, "patient": one.patient, "series": f"{number:016}", "bytes": one.bytes}
        for number, one in enumerate(some)
    ]  # fmt: skip
    return pa.Table.from_pylist(values, schema=LOCK)


def drawn(lock: pa.Table, **sizes: float) -> list[str]:
    series: list[str] = draw_sample(lock, SampleSettings(**sizes), KEYER)["series"].to_pylist()  # type: ignore[arg-type]
    return series


@given(some=locks, one=st.floats(0.001, 1), other=st.floats(0.001, 1), seed=st.integers(0, 3))
def test_a_larger_fraction_holds_the_smaller(some: list[Row], one: float, other: float, seed: int) -> None:
    lock = lock_of(some)
    smaller, larger = sorted((one, other))
    assert set(drawn(lock, fraction=smaller, seed=seed)) <= set(drawn(lock, fraction=larger, seed=seed))


@given(some=locks, one=st.floats(0.001, 12), other=st.floats(0.001, 12), seed=st.integers(0, 3))
def test_a_larger_limit_holds_the_smaller_and_neither_is_exceeded(
    some: list[Row], one: float, other: float, seed: int
) -> None:
    lock = lock_of(some)
    smaller, larger = sorted((one, other))
    first, second = drawn(lock, max_gb=smaller, seed=seed), drawn(lock, max_gb=larger, seed=seed)
    assert set(first) <= set(second)
    for series, limit in ((first, smaller), (second, larger)):
        assert sum(some[int(number)].bytes or 0 for number in series) <= limit * 1e9


@given(some=locks, fraction=st.floats(0.001, 1), max_gb=st.floats(0.001, 12))
def test_patients_are_whole_and_rows_keep_their_order(some: list[Row], fraction: float, max_gb: float) -> None:
    series = drawn(lock_of(some), fraction=fraction, max_gb=max_gb)
    assert series == sorted(series)
    taken = {(some[int(number)].collection, some[int(number)].patient) for number in series}
    for number, row in enumerate(some):
        if row.patient is not None:
            assert ((row.collection, row.patient) in taken) == (f"{number:016}" in series)


@given(some=locks, order=st.randoms(use_true_random=False), max_gb=st.floats(0.001, 12))
def test_what_is_drawn_does_not_depend_on_the_rows_order(some: list[Row], order: object, max_gb: float) -> None:
    lock = lock_of(some)
    places = list(range(len(some)))
    order.shuffle(places)  # type: ignore[attr-defined]
    assert sorted(drawn(lock.take(pa.array(places, pa.int64())), max_gb=max_gb)) == drawn(lock, max_gb=max_gb)


def test_max_gb_stops_at_the_first_patient_that_does_not_fit() -> None:
    lock = lock_of([Row("a", f"p{number}", 10**9) for number in range(20)])
    draws = {f"{number:016}": KEYER.fraction("sample", "0", "a", f"p{number}") for number in range(20)}
    by_draw = sorted(draws, key=lambda series: draws[series])
    assert set(drawn(lock, max_gb=5.5)) == set(by_draw[:5])
    large = int(by_draw[3])  # the fourth of the draw no longer fits: those after it, which would, are not taken
    some = [Row("a", f"p{number}", 10**10 if number == large else 10**9) for number in range(20)]
    assert set(drawn(lock_of(some), max_gb=5.5)) == set(by_draw[:3])


def test_the_fraction_is_about_the_share_and_the_seed_changes_it() -> None:
    lock = lock_of([Row("a", f"p{number}", 1) for number in range(4000)])
    one, other = drawn(lock, fraction=0.1), drawn(lock, fraction=0.1, seed=1)
    assert len(one) == pytest.approx(400, abs=80)
    assert set(one) != set(other)
    # the same number in another collection is another patient
    both = lock_of([Row(name, f"p{number}", 1) for name in "ab" for number in range(4000)])
    series = {int(number) for number in drawn(both, fraction=0.1)}
    assert {number for number in series if number < 4000} != {number - 4000 for number in series if number >= 4000}


def test_everything_is_everything() -> None:
    lock = lock_of([Row("a", None, None), Row("a", "p", 5)])
    assert draw_sample(lock, SampleSettings(), KEYER) is lock
    assert drawn(LOCK.empty_table(), fraction=0.5) == []


@given(some=locks, one=st.integers(1, 12), other=st.integers(1, 12))
def test_a_larger_cap_holds_the_smaller_and_is_a_collections_own(some: list[Row], one: int, other: int) -> None:
    lock = lock_of(some)
    smaller, larger = (cap_series(lock, most, KEYER) for most in sorted((one, other)))
    assert set(smaller["series"].to_pylist()) <= set(larger["series"].to_pylist())
    for name in ("a", "b"):
        whole = [row.collection for row in some].count(name)
        assert smaller["collection"].to_pylist().count(name) == min(whole, one, other)
    assert cap_series(lock, None, KEYER) is lock


def test_what_is_drawn_of_a_collection_depends_on_its_series_alone() -> None:
    lock = lock_of([Row("a", None, 1), Row("b", None, 1), Row("a", "p1", 5), Row("a", "p2", 5)])
    kept = cap_series(lock, 2, KEYER)["series"].to_pylist()
    reordered = lock.take([3, 2, 1, 0])
    assert sorted(cap_series(reordered, 2, KEYER)["series"].to_pylist()) == sorted(kept)
    assert len(kept) == 3
