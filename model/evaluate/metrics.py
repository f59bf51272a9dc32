"""What the tables hold, under many weightings of the images at once: a draw of a bootstrap is a weight for each patient.

Of one weighting scikit-learn gives the same numbers, and the tests compare; under a thousand it would take hours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lumid.model.evaluate.tasks.base import Kind

Floats = npt.NDArray[np.float64]
METRICS = ("accuracy", "sensitivity", "specificity", "auroc", "auprc", "f1")
"""Means over the classes (macro) but for accuracy, which is over the images; of several labels, over labels and images."""
MASK_METRICS = ("dice", "iou", "max_f")
"""Of masks: means over images of Dice and intersection over union at one half, and the greatest mean Dice (F1) of any
threshold, which the field calls max-F; as its threshold is chosen on the test itself, it flatters."""
LEVELS = 256
"""Grey levels in which a probability is kept."""
OF_CLASS = "/"
"""Between metric and class in names of metrics of one class."""


def measure(
    kind: Kind, labels: npt.NDArray[Any], scores: Floats, thresholds: Floats, weights: Floats | None = None
) -> dict[str, Floats]:
    """The metrics of predictions, each ``float64 [draws]``. A class that a draw has nothing of, or nothing but, does not
    count in its means; NaN where there is no such class.

    Beside the means there are those of each class against the others, named ``metric/number of the class``.
    ``labels``: ``int64 [n]`` or ``bool [n, classes]``; ``scores``: ``[n, classes]``, higher is likelier, probabilities or logits; ``thresholds``:
    ``[classes]``, of several labels: above is yes; of one the highest score is. ``weights``: ``[draws, n]``, 1 by default.
    """
    count = scores.shape[1]
    weight = np.ones((1, len(scores))) if weights is None else weights
    if kind == "multiclass":
        best, scores = scores.argmax(1), probabilities(kind, scores)
        truth, said = (np.eye(count, dtype=bool)[of] for of in (labels, best))
        right = (labels == best).astype(np.float64)
    else:
        truth, said = labels.astype(bool), scores > thresholds
        right = (truth == said).mean(1)
    by_class = [one_class(truth[:, one], scores[:, one], said[:, one], weight) for one in range(count)]
    means = {name: _mean(np.stack([values[name] for values in by_class])) for name in METRICS[1:]}
    each = {f"{name}{OF_CLASS}{one}": by_class[one][name] for one in range(count) for name in METRICS}
    return {"accuracy": weight @ right / weight.sum(1), **means, **each}


def quality_of(kind: Kind, labels: npt.NDArray[Any], scores: Floats) -> float:
    """What settings and epochs are chosen by, on validation: mean AUROC; accuracy where there is one class only."""
    found = measure(kind, labels, scores, np.zeros(scores.shape[1]))
    quality = float(found["auroc"][0])
    return quality if np.isfinite(quality) else float(found["accuracy"][0])


def mask_curves(masks: npt.NDArray[np.bool_], scores: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Dice and intersection over union of every image at every threshold, ``float64 [n, 256]`` each: above it is yes.

    ``masks``, ``scores``: ``[n, rows, columns]``. Where neither has anything, both are 1.
    """
    dice, overlap = np.empty((len(masks), LEVELS)), np.empty((len(masks), LEVELS))
    for number, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        inside = np.bincount(score[mask], minlength=LEVELS)
        outside = np.bincount(score[~mask], minlength=LEVELS)
        hits = inside.sum() - np.cumsum(inside)
        alarms = outside.sum() - np.cumsum(outside)
        union = alarms + inside.sum()
        dice[number] = np.where(union > 0, 2 * hits / np.maximum(hits + union, 1), 1)
        overlap[number] = np.where(union > 0, hits / np.maximum(union, 1), 1)
    return dice, overlap


def measure_masks(dice: Floats, overlap: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    """The metrics of masks, each ``float64 [draws]``, from :func:`mask_curves`; ``weights``: ``[draws, n]``, 1 by default."""
    weight = np.ones((1, len(dice))) if weights is None else weights
    weight = weight / weight.sum(1, keepdims=True)
    half = LEVELS // 2 - 1
    return {"dice": weight @ dice[:, half], "iou": weight @ overlap[:, half], "max_f": (weight @ dice).max(1)}


def probabilities(kind: Kind, scores: Floats) -> Floats:
    """Scores as probabilities: as they are where they are such, else by softmax, or by the logistic function for labels.

    One class against the others is ranked by these: a logit says nothing before it is set against the others' of its image.
    """
    inside = bool((scores >= 0).all() and (scores <= 1).all())
    if kind == "multilabel":
        return scores if inside else np.asarray(1 / (1 + np.exp(-np.clip(scores, -500, 500))))
    if inside and np.allclose(scores.sum(1), 1, atol=1e-6):
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def one_class(
    truth: npt.NDArray[np.bool_], scores: Floats, said: npt.NDArray[np.bool_], weights: Floats
) -> dict[str, Floats]:
    """Those of one class against the others, each ``[draws]``; NaN where a draw has none of it, or nothing else."""
    of_class, others = weights @ truth, weights @ ~truth
    defined = (of_class > 0) & (others > 0)
    of_class, others = (np.where(defined, total, np.nan) for total in (of_class, others))
    hits, alarms = weights @ (truth & said), weights @ (~truth & said)
    total = of_class + others
    auroc, auprc = _areas(truth, scores, weights, of_class, others)
    return {
        "accuracy": (hits + others - alarms) / total,
        "sensitivity": hits / of_class,
        "specificity": 1 - alarms / others,
        "auroc": auroc,
        "auprc": auprc,
        "f1": 2 * hits / (hits + alarms + of_class),
    }


def _areas(
    truth: npt.NDArray[np.bool_], scores: Floats, weights: Floats, of_class: Floats, others: Floats
) -> tuple[Floats, Floats]:
    """Area under the ROC curve, by trapezoids, and average precision, by steps; images of equal score come together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    sorted_weights = weights[:, order]
    hits = np.cumsum(sorted_weights * truth[order], 1)[:, ends]
    alarms = np.cumsum(sorted_weights * ~truth[order], 1)[:, ends]
    before_hits = np.pad(hits, ((0, 0), (1, 0)))[:, :-1]
    before_alarms = np.pad(alarms, ((0, 0), (1, 0)))[:, :-1]
    auroc = ((alarms - before_alarms) * (hits + before_hits)).sum(1) / 2 / (of_class * others)
    said = hits + alarms
    precision = np.divide(hits, said, out=np.zeros_like(hits), where=said > 0)
    return auroc, ((hits - before_hits) * precision).sum(1) / of_class


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


def _mean(values: Floats) -> Floats:
    """Over the classes of those that are defined, ``[classes, draws]`` → ``[draws]``."""
    defined = np.isfinite(values)
    count = defined.sum(0)
    total = np.where(defined, values, 0).sum(0)
    mean: Floats = np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)
    return mean
