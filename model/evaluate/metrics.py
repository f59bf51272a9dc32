"""What the tables hold, by scikit-learn, with weights: a draw of a bootstrap is a weight for each patient."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from lumid.model.evaluate.tasks.base import Kind

Floats = npt.NDArray[np.float64]
METRICS = ("accuracy", "sensitivity", "specificity", "auroc", "auprc", "f1")
"""Means over the classes (macro) but for accuracy, which is over the images; of several labels, over labels and images."""


def measure(
    kind: Kind, labels: npt.NDArray[Any], scores: Floats, thresholds: Floats, weights: Floats | None = None
) -> dict[str, float]:
    """The metrics of predictions. A class that a draw has nothing of, or nothing but, does not count in its means.

    ``labels``: ``int64 [n]`` or ``bool [n, classes]``; ``scores``: ``[n, classes]``, higher is likelier; ``thresholds``:
    ``[classes]``, of several labels: above is yes; of one the highest score is. ``weights``: ``[n]``.
    """
    count = scores.shape[1]
    weight = np.ones(len(scores)) if weights is None else weights
    if kind == "multiclass":
        truth = np.eye(count, dtype=bool)[labels]
        said = np.eye(count, dtype=bool)[scores.argmax(1)]
        accuracy = float(np.average(labels == scores.argmax(1), weights=weight))
    else:
        truth = labels.astype(bool)
        said = scores > thresholds
        accuracy = float(np.average((truth == said).mean(1), weights=weight))
    by_class = [one_class(truth[:, one], scores[:, one], said[:, one], weight) for one in range(count)]
    named = METRICS[1:]
    means = {name: _mean([values[name] for values in by_class]) for name in named}
    return {"accuracy": accuracy, **means}


def one_class(
    truth: npt.NDArray[np.bool_], scores: Floats, said: npt.NDArray[np.bool_], weights: Floats
) -> dict[str, float]:
    """Those of one class against the others; NaN where there is none of it, or nothing else."""
    present = weights > 0
    truth, scores, said, weights = truth[present], scores[present], said[present], weights[present]
    if truth.all() or not truth.any():
        return dict.fromkeys(METRICS[1:], float("nan"))
    (tn, fp), (fn, tp) = confusion_matrix(truth, said, labels=[False, True], sample_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sensitivity": float(tp / (tp + fn)),
            "specificity": float(tn / (tn + fp)),
            "auroc": float(roc_auc_score(truth, scores, sample_weight=weights)),
            "auprc": float(average_precision_score(truth, scores, sample_weight=weights)),
            "f1": float(2 * tp / (2 * tp + fp + fn)),
        }


def thresholds_of(kind: Kind, labels: npt.NDArray[Any], scores: Floats) -> Floats:
    """For each label the threshold with the greatest sensitivity + specificity (Youden 1950), on validation; unused for one."""
    if kind == "multiclass":
        return np.full(scores.shape[1], np.nan)
    found = np.full(scores.shape[1], np.inf)
    for one in range(scores.shape[1]):
        truth = labels[:, one].astype(bool)
        if truth.any() and not truth.all():
            order = np.argsort(-scores[:, one], kind="stable")
            sorted_scores, hits = scores[order, one], truth[order]
            gain = np.cumsum(hits) / hits.sum() - np.cumsum(~hits) / (~hits).sum()
            ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))  # equal scores stay together
            best = ends[int(np.argmax(gain[ends]))]
            below = sorted_scores[best + 1] if best + 1 < len(order) else sorted_scores[best] - 1
            found[one] = (sorted_scores[best] + below) / 2
    return found


def _mean(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
