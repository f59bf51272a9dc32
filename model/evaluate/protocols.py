"""From cached features to scores: nearest neighbours, logistic regression, a linear probe by a grid, and the paper's.

Each is fitted on train, chooses what there is to choose on validation, and is asked for scores of the test once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from lumid.model.evaluate.features import Features
from lumid.model.evaluate.metrics import Floats, quality_of
from lumid.model.evaluate.rows import Rows
from lumid.model.evaluate.tasks.base import Kind

Labels = npt.NDArray[Any]
NEIGHBOURS, TEMPERATURE = (1, 5, 10, 20, 50), 0.07
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
RATES, DECAYS = (1e-3, 3e-3, 1e-2, 3e-2), (0.0, 1e-4, 1e-2)
EPOCHS, BATCH, PATIENCE = 40, 1024, 8
PAPER_EPOCHS, PAPER_WARMUP, PAPER_BATCH, PAPER_BASE_RATE = 90, 10, 512, 0.1


@dataclass(frozen=True, slots=True)
class Sets:
    """Features and labels of a task's splits."""

    kind: Kind
    classes: int
    train: Rows
    train_labels: Labels
    val: Rows
    val_labels: Labels
    test: Rows


@dataclass(frozen=True, slots=True)
class Scores:
    """What a protocol says: scores of validation and test, ``float64 [n, classes]``, and what it chose."""

    val: Floats
    test: Floats
    chosen: dict[str, float]


def neighbours(sets: Sets, _seed: int = 0) -> Scores:
    """k nearest neighbours by cosine, each with weight exp(similarity / 0.07) (Wu et al. 2018); k on validation."""
    truth = _as_matrix(sets.train_labels, sets)
    counts = [count for count in NEIGHBOURS if count <= len(sets.train)] or [len(sets.train)]
    val = _vote(sets.train, truth, sets.val, counts)
    best = max(counts, key=lambda count: (quality_of(sets.kind, sets.val_labels, val[count]), -count))
    test = _vote(sets.train, truth, sets.test, [best])
    return Scores(val[best], test[best], {"k": best})


def logistic(sets: Sets, seed: int = 0) -> Scores:
    """Logistic regression (scikit-learn, L2) of standardised features; the penalty on validation."""
    scale = _Standard.of(sets.train)
    train, val, test = (scale(rows.whole("logistic")) for rows in (sets.train, sets.val, sets.test))
    found = []
    for penalty in PENALTIES:
        models = _regressions(train, sets, penalty, seed)
        found.append((quality_of(sets.kind, sets.val_labels, _predicted(models, val, sets)), -penalty, models))
    quality, negative, models = max(found, key=lambda one: one[:2])
    return Scores(
        _predicted(models, val, sets), _predicted(models, test, sets), {"C": -negative, "validation": quality}
    )


def linear(sets: Sets, seed: int = 0) -> Scores:
    """A linear layer by AdamW over a grid of rates and decays, all at once; rate, decay and epoch on validation."""
    scale = _Standard.of(sets.train)
    grid = [(rate, decay) for rate in RATES for decay in DECAYS]
    layer = _Grid(sets.train.width, sets.classes, grid)
    labels = torch.from_numpy(sets.train_labels)
    random = torch.Generator().manual_seed(seed)
    best = (-math.inf, 0, 0, torch.empty(0))
    steps = EPOCHS * math.ceil(len(sets.train) / BATCH)
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(sets.train), generator=random), BATCH):
            layer.step(torch.from_numpy(scale(sets.train.take(rows.numpy()))), labels[rows], sets.kind, steps)
        scores = torch.cat([layer(torch.from_numpy(scale(block))) for block in sets.val.blocks()], 1)
        for number in range(len(grid)):
            quality = quality_of(sets.kind, sets.val_labels, scores[number].double().numpy())
            if quality > best[0]:
                best = (quality, epoch + 1, number, layer.weights[number].clone())
        if epoch + 1 - best[1] >= PATIENCE:
            break
    quality, epochs, number, weights = best
    rate, decay = grid[number]
    val_scores, test_scores = (
        np.concatenate(
            [(_with_one(torch.from_numpy(scale(block))) @ weights).double().numpy() for block in of.blocks()]
        )
        for of in (sets.val, sets.test)
    )
    chosen = {"rate": rate, "decay": decay, "epochs": epochs, "validation": quality}
    return Scores(val_scores, test_scores, chosen)


def paper(sets: Sets, seed: int = 0) -> Scores:
    """The paper's probe on cached features: BatchNorm without affine, a linear layer, LARS (You et al. 2017), 90 epochs.

    Its crops and flips are left out, since features are cached; the epoch is chosen on validation, not on the test.
    """
    random = torch.Generator().manual_seed(seed)
    width = sets.train.width
    layer = nn.Linear(width, sets.classes)
    head = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), layer)
    nn.init.trunc_normal_(layer.weight, std=0.01, generator=random)
    nn.init.zeros_(layer.bias)
    batch = min(PAPER_BATCH, len(sets.train))
    momenta = [torch.zeros_like(parameter) for parameter in head.parameters()]
    labels = torch.from_numpy(sets.train_labels)
    best: tuple[float, int, Floats, dict[str, Tensor]] = (-math.inf, 0, np.empty(0), {})
    per_epoch = max(1, len(sets.train) // batch)
    for epoch in range(PAPER_EPOCHS):
        head.train()
        order = torch.randperm(len(sets.train), generator=random)
        for number in range(per_epoch):
            rows = order[number * batch : (number + 1) * batch]
            loss = _loss(head(torch.from_numpy(sets.train.take(rows.numpy()))), labels[rows], sets.kind)
            gradients = torch.autograd.grad(loss, list(head.parameters()))
            _lars(list(head.parameters()), gradients, momenta, _paper_rate(epoch + number / per_epoch, batch))
        head.eval()
        scores = _scores_of(head, sets.val)
        quality = quality_of(sets.kind, sets.val_labels, scores)
        if quality > best[0]:
            best = (quality, epoch + 1, scores, copy.deepcopy(head.state_dict()))
    head.load_state_dict(best[3])
    return Scores(best[2], _scores_of(head, sets.test), {"epoch": best[1], "validation": best[0]})


@torch.no_grad()
def _scores_of(head: nn.Module, rows: Rows) -> Floats:
    return np.concatenate([head(torch.from_numpy(block)).double().numpy() for block in rows.blocks()])


PROTOCOLS: dict[str, Callable[[Sets, int], Scores]] = {
    "knn": neighbours,
    "logistic": logistic,
    "linear": linear,
    "paper": paper,
}


def few_shot(sets: Sets, shots: int, seed: int) -> Sets:
    """The same with so many training images a class (of a label: that have it), drawn by ``seed``; fewer where there are."""
    kept = few_shot_rows(sets.kind, sets.classes, sets.train_labels, shots, seed)
    return replace(sets, train=sets.train.subset(kept), train_labels=sets.train_labels[kept])


def few_shot_rows(kind: Kind, classes: int, labels: Labels, shots: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of the training images those are, in order."""
    random = np.random.default_rng((seed, shots))
    truth = np.eye(classes)[labels] if kind == "multiclass" else labels
    return np.array(
        sorted(
            {int(row) for one in range(classes) for row in random.permutation(np.flatnonzero(truth[:, one]))[:shots]}
        )
    )


# ---- nearest neighbours


def _unit(values: Features) -> Features:
    whole = np.array(values, np.float32)
    whole /= np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)
    return whole


def _vote(train: Rows, truth: Floats, asked: Rows, counts: list[int]) -> dict[int, Floats]:
    """Scores by every number of neighbours; block by block of both sides, of which the nearest so far are kept."""
    found: dict[int, list[Floats]] = {count: [] for count in counts}
    for block in asked.blocks():
        similar, nearest = _nearest(train, _unit(block), max(counts))
        weights = np.exp((similar.astype(np.float64) - 1) / TEMPERATURE)
        for count in counts:
            voted = np.einsum("nk,nkc->nc", weights[:, :count], truth[nearest[:, :count]])
            found[count].append(voted / np.maximum(weights[:, :count].sum(1, keepdims=True), 1e-300))
    return {count: np.concatenate(parts) for count, parts in found.items()}


def _nearest(train: Rows, asked: Features, most: int) -> tuple[Features, npt.NDArray[np.int64]]:
    """Similarity and place of the ``most`` nearest rows, ``[n, most]`` each, the nearest first."""
    similar = np.full((len(asked), 0), 0, np.float32)
    places = np.full((len(asked), 0), 0, np.int64)
    begin = 0
    for block in train.blocks():
        similar = np.concatenate([similar, asked @ _unit(block).T], 1)
        here = np.broadcast_to(np.arange(begin, begin + len(block)), (len(asked), len(block)))
        places = np.concatenate([places, here], 1)
        begin += len(block)
        if similar.shape[1] > most:
            kept = np.argpartition(-similar, most - 1, axis=1)[:, :most]
            similar, places = np.take_along_axis(similar, kept, 1), np.take_along_axis(places, kept, 1)
    order = np.argsort(-similar, axis=1, kind="stable")
    return np.take_along_axis(similar, order, 1), np.take_along_axis(places, order, 1)


# ---- logistic regression


@dataclass(frozen=True, slots=True)
class _Standard:
    """Features minus their mean over their deviation, of train."""

    mean: Features
    deviation: Features

    @classmethod
    def of(cls, rows: Rows) -> _Standard:
        mean = sum((block.sum(0, dtype=np.float64) for block in rows.blocks()), np.zeros(rows.width)) / len(rows)
        squares = sum((((block - mean) ** 2).sum(0) for block in rows.blocks()), np.zeros(rows.width))
        deviation = np.sqrt(squares / len(rows))
        return cls(mean.astype(np.float32), np.where(deviation > 1e-8, deviation, 1).astype(np.float32))

    def __call__(self, values: Features) -> Features:
        return np.asarray((values - self.mean) / self.deviation, np.float32)


def _regressions(train: Features, sets: Sets, penalty: float, seed: int) -> list[Any]:
    def fitted(labels: Labels) -> Any:
        if len(np.unique(labels)) < 2:
            return float(labels.mean()) if len(labels) else 0.0
        return LogisticRegression(C=penalty, max_iter=1000, random_state=seed).fit(train, labels)

    if sets.kind == "multiclass":
        return [fitted(sets.train_labels)]
    return [fitted(sets.train_labels[:, one]) for one in range(sets.classes)]


def _predicted(models: list[Any], values: Features, sets: Sets) -> Floats:
    if sets.kind == "multiclass":
        scores = np.zeros((len(values), sets.classes))
        scores[:, models[0].classes_] = models[0].predict_proba(values)
        return scores
    columns = [
        np.full(len(values), one) if isinstance(one, float) else one.predict_proba(values)[:, 1] for one in models
    ]
    return np.stack(columns, 1)


# ---- linear layers


class _Grid:
    """As many linear layers as there are settings, trained side by side: ``weights`` is ``[settings, features + 1, classes]``."""

    def __init__(self, width: int, classes: int, grid: list[tuple[float, float]]) -> None:
        self.weights = torch.zeros(len(grid), width + 1, classes)
        self._rates, self._decays = (torch.tensor(of).view(-1, 1, 1) for of in zip(*grid, strict=True))
        self._first, self._second = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self._number = 0

    def __call__(self, values: Tensor) -> Tensor:
        """``[settings, n, classes]``."""
        return _with_one(values) @ self.weights

    def step(self, values: Tensor, labels: Tensor, kind: Kind, steps: int) -> None:
        """One step of AdamW (Loshchilov and Hutter 2019) with a cosine to 0. The gradient of both losses is the scores'
        error times the features; decay spares the constant."""
        whole = _with_one(values)
        scores = whole @ self.weights
        if kind == "multiclass":
            error = scores.softmax(-1)
            error[:, torch.arange(len(labels)), labels] -= 1
        else:
            error = scores.sigmoid() - labels.float()
        gradient = whole.T @ error / len(values)
        self._number += 1
        self._first.mul_(0.9).add_(gradient, alpha=0.1)
        self._second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        first = self._first / (1 - 0.9**self._number)
        second = (self._second / (1 - 0.999**self._number)).sqrt_().add_(1e-8)
        rate = self._rates * 0.5 * (1 + math.cos(math.pi * min(1.0, self._number / steps)))
        self.weights[:, :-1].mul_(1 - rate * self._decays)
        self.weights.sub_(rate * first / second)


def _with_one(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones(len(values), 1)], 1)


def _loss(scores: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    if kind == "multiclass":
        return nn.functional.cross_entropy(scores, labels)
    return nn.functional.binary_cross_entropy_with_logits(scores, labels.float())


def _paper_rate(epoch: float, batch: int) -> float:
    peak = PAPER_BASE_RATE * batch / 256
    if epoch < PAPER_WARMUP:
        return peak * epoch / PAPER_WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - PAPER_WARMUP) / (PAPER_EPOCHS - PAPER_WARMUP)))


@torch.no_grad()
def _lars(parameters: list[nn.Parameter], gradients: Any, momenta: list[Tensor], rate: float) -> None:
    """A step of LARS, trust coefficient 0.001, momentum 0.9, no decay; vectors are not scaled."""
    for parameter, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
        if parameter.ndim > 1:
            size, slope = parameter.norm(), gradient.norm()
            if size > 0 and slope > 0:
                gradient = gradient * (0.001 * size / slope)
        momentum.mul_(0.9).add_(gradient)
        parameter.sub_(momentum, alpha=rate)


def _as_matrix(labels: Labels, sets: Sets) -> Floats:
    return np.eye(sets.classes)[labels] if sets.kind == "multiclass" else labels.astype(np.float64)
