"""The tables as one HTML file that needs nothing else: with curves, calibration, confusion, and what went most wrong."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from lumid._version import __version__
from lumid.model.evaluate.metrics import LEVELS, mask_curves, probabilities
from lumid.model.evaluate.predictions import Predictions
from lumid.model.evaluate.tables import HEADS, Line, cells, remark, table_heads, tables_of
from lumid.model.evaluate.worst import Worst, read_worst

POINTS = 80
"""Of a curve: more would not be seen."""
BINS = 10
COLOURS = 8


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot: ``points`` as SVG has them, in a square of 100 with its origin at the lower left."""

    model: str
    colour: int
    points: str
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A square plot; ``text``: what a screen reader says; ``diagonal``: up, down, or none."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    diagonal: str
    text: str


@dataclass(frozen=True, slots=True)
class Range:
    """A line's interval on an axis from 0 to 100."""

    model: str
    colour: int
    low: float
    value: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many images of each class were taken for each, by row."""

    model: str
    classes: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    totals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the worst, as a data URI."""

    uri: str
    alt: str
    truth: str
    said: str


@dataclass(frozen=True, slots=True)
class View:
    """A table and all that is shown under it."""

    anchor: str
    title: str
    lead: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    metric: str
    ranges: tuple[Range, ...]
    ends: tuple[float, float]
    roc: tuple[Plot, ...]
    precision: tuple[Plot, ...]
    calibration: Plot | None
    thresholds: Plot | None
    confusions: tuple[Confusion, ...]
    by_class: tuple[tuple[str, tuple[str, ...]], ...]
    class_heads: tuple[str, ...]
    worst: tuple[tuple[str, tuple[Picture, ...]], ...] = field(repr=False)


def page(made: Sequence[Line], found: Sequence[tuple[Path, Predictions]], baseline: str | None) -> str:
    """The page; ``found``: the predictions that the lines were made of, and where they are. Curves are of the first seed."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("lumid.model", "templates"), PackageLoader("lumid.catalog", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    models = sorted({line.model for line in made})
    colours = {name: number % COLOURS for number, name in enumerate(models)}
    firsts = _first_seeds(found)
    views = [
        _view(number, group, [one for line in group if (one := firsts.get(_key(line))) is not None], colours)
        for number, group in enumerate(tables_of(made).values())
    ]
    return environment.get_template("evaluation.html").render(
        views=views, models=models, colours=colours, baseline=baseline, version=__version__,
        tasks=sorted({line.task for line in made}), images=max((line.images for line in made), default=0),
    )  # fmt: skip


def calibration_error(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015).

    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False])).__round__(3)
    0.4
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == one).mean() * abs(confidence[bins == one].mean() - right[bins == one].mean())
        for one in range(BINS)
        if (bins == one).any()
    ]
    return float(sum(gaps))


Firsts = dict[tuple[str, str, str, int], tuple[Path, Predictions]]


def _key(line: Line) -> tuple[str, str, str, int]:
    return line.task, line.model, line.protocol, line.shots


def _first_seeds(found: Sequence[tuple[Path, Predictions]]) -> Firsts:
    firsts: Firsts = {}
    for path, one in sorted(found, key=lambda pair: pair[1].about.seed):
        about = one.about
        firsts.setdefault((about.task, about.model, about.protocol, about.shots), (path, one))
    return firsts


def _view(number: int, group: list[Line], firsts: list[tuple[Path, Predictions]], colours: dict[str, int]) -> View:
    first = group[0]
    few = f", {first.shots} a class" if first.shots else ""
    labelled = [one for _, one in firsts if one.about.kind != "masks"]
    masks = [one for _, one in firsts if one.about.kind == "masks"]
    ranges, ends = _ranges(group, colours)
    class_heads, by_class = _by_class(group)
    worst = [(one.about.model, tuple(_picture(case) for case in read_worst(path))) for path, one in firsts]
    return View(
        anchor=f"table-{number}",
        title=f"{first.task}: {first.protocol}{few}",
        lead=f"{first.images:,} test images of {first.patients:,} patients; {first.train:,} training images; "
        f"{first.seeds} seed{'s' * (first.seeds > 1)}. {remark(first)}".rstrip(),
        heads=tuple(table_heads(first)),
        rows=tuple(tuple(cells(line)) for line in group),
        metric=HEADS[first.tested],
        ranges=ranges,
        ends=ends,
        roc=tuple(_curves(labelled, colours, "ROC")),
        precision=tuple(_curves(labelled, colours, "precision and recall")),
        calibration=_calibration(labelled, colours) if labelled else None,
        thresholds=_thresholds(masks, colours) if masks else None,
        confusions=tuple(_confusion(one) for one in labelled if one.about.kind == "multiclass"),
        by_class=by_class,
        class_heads=class_heads,
        worst=tuple(pair for pair in worst if pair[1]),
    )


def _ranges(group: Sequence[Line], colours: dict[str, int]) -> tuple[tuple[Range, ...], tuple[float, float]]:
    found = [(line, line.metrics[line.tested]) for line in group]
    numbers = [
        value for _, one in found for value in (one.low, one.value, one.high) if math.isfinite(value)
    ] or [0.0, 1.0]  # fmt: skip
    low, high = math.floor(min(numbers) * 20) / 20, math.ceil(max(numbers) * 20) / 20
    low = low if high > low else low - 0.05

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low) if math.isfinite(value) else 0.0

    ranges = [
        Range(
            line.model, colours[line.model], place(one.low), place(one.value), place(one.high),
            f"{one.value:.3f} ({one.low:.3f}–{one.high:.3f})",
        )
        for line, one in found
    ]  # fmt: skip
    return tuple(ranges), (low, high)


def _by_class(group: Sequence[Line]) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """The tested metric of every class, a column a model."""
    if len(group[0].classes) < 3:
        return (), ()
    heads = tuple(line.model for line in group)
    rows = []
    for name in group[0].classes:
        values = [line.classes[name][line.tested] for line in group]
        rows.append((name, tuple("–" if math.isnan(one.value) else f"{one.value:.3f} ({one.low:.3f}–{one.high:.3f})" for one in values)))  # fmt: skip
    return heads, tuple(rows)


def _curves(found: Sequence[Predictions], colours: dict[str, int], kind: str) -> list[Plot]:
    """A plot for every class: of two classes of which an image has one, for the second only, since they mirror each other."""
    if not found:
        return []
    classes = found[0].about.classes
    pair = len(classes) == 2 and found[0].about.kind == "multiclass"
    plots = []
    for number in [1] if pair else range(len(classes)):
        curves = [_curve(one, number, colours, kind) for one in found if len(set(_truth(one, number).tolist())) == 2]
        if curves:
            roc = kind == "ROC"
            axes = ("1 − specificity", "sensitivity") if roc else ("sensitivity", "precision")
            text = f"{kind} of {classes[number]}: " + "; ".join(f"{one.model} {one.label}" for one in curves)
            plots.append(Plot(classes[number], *axes, tuple(curves), "up" if roc else "", text))
    return plots


def _curve(one: Predictions, number: int, colours: dict[str, int], kind: str) -> Curve:
    truth, scores = _truth(one, number), _margin(one, number)
    if kind == "ROC":
        x, y, _ = roc_curve(truth, scores, drop_intermediate=True)
        label = f"AUROC {_area(x, y):.3f}"
    else:
        y, x, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
        label = f"average precision {-float(np.sum(np.diff(x) * y[:-1])):.3f}"
    return Curve(one.about.model, colours[one.about.model], _points(x, y), label)


def _truth(one: Predictions, number: int) -> npt.NDArray[np.bool_]:
    return np.asarray(one.labels == number if one.about.kind == "multiclass" else one.labels[:, number])


def _margin(one: Predictions, number: int) -> npt.NDArray[np.float64]:
    return np.asarray(one.scores[:, number], np.float64)


def _area(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _calibration(found: Sequence[Predictions], colours: dict[str, int]) -> Plot:
    """Confidence against how often it is right: of the class that is said, or of every label."""
    curves = []
    for one in found:
        chance = probabilities(one.about.kind, one.scores)
        if one.about.kind == "multiclass":
            confidence, right = chance.max(1), chance.argmax(1) == one.labels
        else:
            confidence, right = chance.ravel(), one.labels.ravel()
        y, x = calibration_curve(right, confidence, n_bins=BINS, strategy="quantile")
        error = calibration_error(confidence, right.astype(bool))
        curves.append(Curve(one.about.model, colours[one.about.model], _points(x, y), f"error {error:.3f}"))
    text = "Calibration: " + "; ".join(f"{one.model} {one.label}" for one in curves)
    return Plot("Calibration", "confidence", "share that is right", tuple(curves), "up", text)


def _thresholds(found: Sequence[Predictions], colours: dict[str, int]) -> Plot:
    curves = []
    for one in found:
        dice = mask_curves(one.labels, one.scores)[0].mean(0)
        label = f"Dice {dice[LEVELS // 2 - 1]:.3f} at one half, at most {dice.max():.3f}"
        points = _points(np.arange(LEVELS) / (LEVELS - 1), dice)
        curves.append(Curve(one.about.model, colours[one.about.model], points, label))
    text = "Mean Dice by threshold: " + "; ".join(f"{one.model} {one.label}" for one in curves)
    return Plot("Mean Dice by threshold", "threshold", "Dice", tuple(curves), "", text)


def _confusion(one: Predictions) -> Confusion:
    classes = one.about.classes
    counts = confusion_matrix(one.labels, one.scores.argmax(1), labels=range(len(classes)))
    rows = tuple(tuple(int(value) for value in row) for row in counts)
    return Confusion(one.about.model, classes, rows, tuple(sum(row) for row in rows))


def _points(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> str:
    """At most so many points as are seen, the ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(POINTS, len(x))).round().astype(int))
    return " ".join(f"{100 * x[number]:.1f},{100 - 100 * y[number]:.1f}" for number in kept)


def _picture(case: Worst) -> Picture:
    uri = "data:image/jpeg;base64," + base64.b64encode(case.picture).decode()
    return Picture(uri, f"{case.truth}, taken for {case.said}", case.truth, case.said)


__all__ = ["calibration_error", "page"]
