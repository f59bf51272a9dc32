from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from lumid.model.evaluate.metrics import METRICS, mask_curves, measure, measure_masks, one_class, thresholds_of


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 4), st.booleans())
def test_one_class_is_as_scikit_learn_has_it(seed: int, count: int, levels: int, weighted: bool) -> None:
    random = np.random.default_rng(seed)
    truth = random.random(count) < 0.4
    scores = random.integers(0, 10**levels, count) / 10**levels  # with ties
    said = scores > 0.5
    weights = random.integers(0, 4, (3, count)).astype(float) if weighted else np.ones((1, count))
    found = one_class(truth, scores, said, weights)
    for draw, weight in enumerate(weights):
        present = weight > 0
        if not present.any() or len(set(truth[present])) < 2:
            assert all(np.isnan(found[name][draw]) for name in ("auroc", "auprc", "sensitivity", "specificity"))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {"sample_weight": weight}
            assert found["auroc"][draw] == pytest.approx(reference.roc_auc_score(truth, scores, **given))
            assert found["auprc"][draw] == pytest.approx(reference.average_precision_score(truth, scores, **given))
            assert found["accuracy"][draw] == pytest.approx(reference.accuracy_score(truth, said, **given))
            assert found["f1"][draw] == pytest.approx(reference.f1_score(truth, said, **given))
            assert found["sensitivity"][draw] == pytest.approx(reference.recall_score(truth, said, **given))
            assert found["specificity"][draw] == pytest.approx(reference.recall_score(~truth, ~said, **given))


def test_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    scores = np.eye(3)[[0, 1, 1, 1, 0]] + 0.0
    found = {name: float(value[0]) for name, value in measure("multiclass", labels, scores, np.full(3, np.nan)).items()}
    assert tuple(found)[:6] == METRICS
    assert found["sensitivity/0"] == pytest.approx(1 / 2)
    assert found["accuracy/2"] == pytest.approx(4 / 5)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["sensitivity"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["specificity"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # against the others: class 0 wins 1/2·2/3 + half of ties …: pairs counted by hand
    assert found["auroc"] == pytest.approx((3.5 / 6 + 5 / 6 + 2 / 4) / 3)


def test_several_labels_and_a_class_without_cases() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.6, 0.2], [0.7, 0.4]])
    thresholds = thresholds_of("multilabel", labels, scores)
    assert thresholds[0] == pytest.approx(0.8), "of two as good, the one with fewer false alarms"
    assert np.isinf(thresholds[1])
    found = measure("multilabel", labels, scores, thresholds)
    assert found["auroc"][0] == pytest.approx(3 / 4)
    assert found["accuracy"][0] == pytest.approx(7 / 8)
    assert found["sensitivity"][0] == pytest.approx(1 / 2)
    assert found["specificity"][0] == pytest.approx(1)


def test_a_threshold_is_the_best_of_all_by_youden() -> None:
    random = np.random.default_rng(0)
    labels = random.random((200, 1)) < 0.3
    scores = np.round(random.normal(0, 1, (200, 1)) + labels, 1)
    best = thresholds_of("multilabel", labels, scores)[0]

    def youden(threshold: float) -> float:
        said = scores[:, 0] > threshold
        return float(said[labels[:, 0]].mean() - said[~labels[:, 0]].mean())

    assert youden(best) == pytest.approx(max(youden(value - 0.05) for value in np.unique(scores)))


def test_masks_by_scikit_learn_image_by_image() -> None:
    random = np.random.default_rng(3)
    masks = random.random((4, 12, 10)) < 0.3
    scores = np.clip(random.normal(90, 60, masks.shape) + 80 * masks, 0, 255).astype(np.uint8)
    masks[3] = False
    scores[3] = 0
    dice, overlap = mask_curves(masks, scores)
    for number in range(3):
        for threshold in (0, 63, 127, 200):
            truth, said = masks[number].ravel(), scores[number].ravel() > threshold
            assert dice[number, threshold] == pytest.approx(reference.f1_score(truth, said, zero_division=0))
            assert overlap[number, threshold] == pytest.approx(reference.jaccard_score(truth, said, zero_division=0))
    assert (dice[3] == 1).all(), "nothing there, and nothing said"
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 0]])
    found = measure_masks(dice, overlap, weights)
    assert found["dice"] == pytest.approx([dice[:, 127].mean(), (2 * dice[0, 127] + dice[2, 127]) / 3])
    assert found["max_f"] == pytest.approx([dice.mean(0).max(), ((2 * dice[0] + dice[2]) / 3).max()])
    assert found["iou"][0] == pytest.approx(overlap[:, 127].mean())
