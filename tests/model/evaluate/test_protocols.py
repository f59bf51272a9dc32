from __future__ import annotations

import numpy as np
import pytest

from lumid.catalog.errors import UsageError
from lumid.model.evaluate.metrics import measure
from lumid.model.evaluate.protocols import PROTOCOLS, Sets, few_shot
from lumid.model.evaluate.rows import Rows
from lumid.model.evaluate.tasks.base import Kind


def sets_of(
    kind: Kind, signal: float, n: int = 600, classes: int = 3, width: int = 16, seed: int = 5
) -> tuple[Sets, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1, (classes, width))
    if kind == "multiclass":
        labels = random.integers(0, classes, n)
        values = signal * centres[labels]
    else:
        labels = random.random((n, classes)) < 0.4
        values = signal * labels.astype(float) @ centres
    values = (values + random.normal(0, 0.05 if signal else 1, (n, width))).astype(np.float32)
    third = n // 3
    return Sets(
        kind,
        classes,
        Rows.of(values[:third]),
        labels[:third],
        Rows.of(values[third : 2 * third]),
        labels[third : 2 * third],
        Rows.of(values[2 * third :]),
    ), labels[2 * third :]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_separable_is_separated(protocol: str, kind: Kind) -> None:
    # LARS at the paper's rate takes a thousandth of the weights' size a step: some hundred steps lead nowhere
    sets, labels = sets_of(kind, 3.0, n=30_000 if protocol == "paper" else 600)
    found = measure(kind, labels, PROTOCOLS[protocol](sets, 0).test, np.zeros(3))
    assert found["auroc"][0] > {"paper": 0.97, "knn": 0.98}.get(protocol, 0.9999)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_on_noise_a_probe_is_at_chance(protocol: str, kind: Kind) -> None:
    """The mean of sixteen sets lies within four of its standard errors of one half; a test that saw its labels would not."""
    found = []
    for seed in range(16):
        sets, labels = sets_of(kind, 0.0, n=240, seed=seed)
        found.append(float(measure(kind, labels, PROTOCOLS[protocol](sets, 0).test, np.zeros(3))["auroc"][0]))
    assert abs(np.mean(found) - 0.5) < 4 * np.std(found, ddof=1) / 4
    assert np.std(found, ddof=1) < 0.06


def test_the_same_seed_gives_the_same_scores() -> None:
    sets, _ = sets_of("multiclass", 1.0)
    for protocol in PROTOCOLS.values():
        assert np.array_equal(protocol(sets, 3).test, protocol(sets, 3).test)


def test_few_shots_are_so_many_of_each_class() -> None:
    sets, _ = sets_of("multiclass", 1.0)
    few = few_shot(sets, 5, seed=1)
    assert np.bincount(few.train_labels).tolist() == [5, 5, 5]
    assert not np.array_equal(few.train.indices, few_shot(sets, 5, seed=2).train.indices)
    assert len(few_shot(sets, 10_000, seed=1).train) == len(sets.train)
    assert few.test is sets.test


def test_neighbours_block_by_block_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sets, _ = sets_of("multiclass", 1.0)
    whole = PROTOCOLS["knn"](sets, 0).test
    blocks = Rows.blocks
    monkeypatch.setattr(Rows, "blocks", lambda self, size=7: blocks(self, size))
    assert np.allclose(PROTOCOLS["knn"](sets, 0).test, whole)


def test_rows_are_those_of_the_array_in_the_order_asked_for() -> None:
    values = np.arange(40).reshape(20, 2)
    rows = Rows(values, np.array([5, 3, 3, 19]))
    assert rows.take(np.array([3, 0, 1])).tolist() == values[[19, 5, 3]].tolist()
    assert np.concatenate(list(rows.blocks(3))).tolist() == values[[5, 3, 3, 19]].tolist()
    with pytest.raises(UsageError, match="do not fit into memory"):
        rows.whole("logistic", share=1e-15)
