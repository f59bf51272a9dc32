"""The tables: made from predictions alone, so that anyone can make them again, with intervals and paired tests."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lumid.catalog.errors import UsageError
from lumid.model.evaluate.metrics import MASK_METRICS, METRICS, OF_CLASS, Floats, mask_curves, measure, measure_masks
from lumid.model.evaluate.predictions import Predictions
from lumid.model.evaluate.statistics import (
    DRAWS,
    FEWEST_PATIENTS,
    Difference,
    Interval,
    difference,
    holm,
    interval,
    sampled,
)
from lumid.model.evaluate.tasks.base import Reported

HEADS = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "dice": "Dice",
    "iou": "IoU",
    "max_f": "max-F",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A model on a task by a protocol: means over seeds, with their 95 % intervals over patients; ``classes``: the same of
    each class against the others; ``tested``: the metric of which ``against`` is this model's minus the baseline's, its
    p-value corrected for the lines of the table; None for the baseline itself."""

    task: str
    model: str
    protocol: str
    shots: int
    seeds: int
    train: int
    images: int
    patients: int
    metrics: dict[str, Interval]
    classes: dict[str, dict[str, Interval]]
    tested: str
    seed_sd: float
    against: Difference | None
    leak: str
    note: str
    reported: Reported | None


ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def lines(found: Sequence[Predictions], baseline: str | None = None, *, count: int = DRAWS) -> list[Line]:
    """The lines of the tables, by task, protocol and shots, in the order of the models' names.

    ``baseline``: the model that the others are tested against. Raises :class:`UsageError` when there are no predictions,
    or no such model.
    """
    if not found:
        raise UsageError("no predictions here; run `lumid evaluate` with a model and a task first")
    names = {one.about.model for one in found}
    if baseline is not None and baseline not in names:
        raise UsageError(f"{baseline}: no predictions of it; there are {', '.join(sorted(names))}")
    groups: dict[tuple[str, str, int], dict[str, list[Predictions]]] = {}
    for one in found:
        group = groups.setdefault((one.about.task, one.about.protocol, one.about.shots), {})
        group.setdefault(one.about.model, []).append(one)
    made: list[Line] = []
    for _, models in sorted(groups.items()):
        made += _group(models, baseline, count)
    return made


def _group(models: dict[str, list[Predictions]], baseline: str | None, count: int) -> list[Line]:
    values = {name: _sampled(seeds, count) for name, seeds in models.items()}
    made = []
    for name in sorted(models):
        first = models[name][0]
        tested = tested_of(first)
        estimate, samples, by_seed = values[name]
        against = None
        if baseline in models and name != baseline:
            other = models[baseline][0]
            if (other.ids, other.patients) != (first.ids, first.patients):
                raise UsageError(
                    f"{name} and {baseline}: were tested on other images of {first.about.task}; evaluate both again"
                )
            others = values[baseline]
            against = difference(estimate[tested] - others[0][tested], samples[tested], others[1][tested])
            if len(set(first.patients)) < FEWEST_PATIENTS:
                against = replace(against, p=math.nan)
        made.append(
            Line(
                task=first.about.task,
                model=name,
                protocol=first.about.protocol,
                shots=first.about.shots,
                seeds=len(models[name]),
                train=first.about.train,
                images=len(first.ids),
                patients=len(set(first.patients)),
                metrics={metric: interval(estimate[metric], samples[metric]) for metric in metrics_of(first)},
                classes=_classes(first, estimate, samples),
                tested=tested,
                seed_sd=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else math.nan,
                against=against,
                leak=first.about.leak,
                note=first.about.note,
                reported=first.about.reported,
            )
        )
    judged = [line for line in made if line.against is not None]
    corrected = holm([line.against.p for line in judged if line.against is not None])
    by_model = dict(zip([line.model for line in judged], corrected, strict=True))
    return [_corrected(line, by_model) for line in made]


def _corrected(line: Line, by_model: dict[str, float]) -> Line:
    if line.against is None:
        return line
    return replace(line, against=replace(line.against, p=by_model[line.model]))


def _sampled(seeds: Sequence[Predictions], count: int) -> tuple[dict[str, float], dict[str, Floats], list[float]]:
    """Means over seeds: of the estimate, and of every draw; and the tested metric of each seed."""
    measures, tested = [_measure(one) for one in seeds], tested_of(seeds[0])

    def mean(weights: Floats) -> dict[str, Floats]:
        rows = [of(weights) for of in measures]
        return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}

    whole = np.ones((1, len(seeds[0].ids)))
    estimate = {name: float(values[0]) for name, values in mean(whole).items()}
    return estimate, sampled(mean, seeds[0].patients, count), [float(of(whole)[tested][0]) for of in measures]


def metrics_of(one: Predictions) -> tuple[str, ...]:
    """The metrics of a task's tables."""
    return MASK_METRICS if one.about.kind == "masks" else METRICS


def tested_of(one: Predictions) -> str:
    """The metric that models are compared by."""
    return "dice" if one.about.kind == "masks" else "auroc"


def _classes(
    one: Predictions, estimate: dict[str, float], samples: dict[str, Floats]
) -> dict[str, dict[str, Interval]]:
    if one.about.kind == "masks":
        return {}
    return {
        name: {
            metric: interval(estimate[f"{metric}{OF_CLASS}{number}"], samples[f"{metric}{OF_CLASS}{number}"])
            for metric in METRICS
        }
        for number, name in enumerate(one.about.classes)
    }


def _measure(one: Predictions) -> Callable[[Floats], dict[str, Floats]]:
    if one.about.kind == "masks":
        curves = mask_curves(one.labels, one.scores)
        return lambda weights: measure_masks(*curves, weights)
    thresholds = np.array(one.about.thresholds)
    return lambda weights: measure(one.about.kind, one.labels, one.scores, thresholds, weights)


# ---- as texts


def markdown(made: Sequence[Line], baseline: str | None = None) -> str:
    """A table a task and protocol."""
    parts = [
        "# Evaluation",
        "",
        "Means over seeds; in brackets the 95 % interval of a bootstrap over patients (percentiles).",
    ]
    if baseline is not None:
        parts += [
            f"Δ: minus that of {baseline}, the same draws for both; p two-sided, corrected by Holm within a table."
        ]
    for (task, protocol, shots), group in tables_of(made).items():
        few = f", {shots} a class" if shots else ""
        first = group[0]
        parts += ["", f"## {task}: {protocol}{few}", ""]
        parts += [
            f"{first.images:,} test images of {first.patients:,} patients; {first.train:,} training images. {remark(first)}".rstrip(),
            "",
        ]
        heads = table_heads(first)
        parts += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        parts += [f"| {' | '.join(cells(line))} |" for line in group]
    return "\n".join(parts) + "\n"


def latex(made: Sequence[Line]) -> str:
    """The same as ``tabular`` environments (booktabs)."""
    parts = []
    for (task, protocol, shots), group in tables_of(made).items():
        few = f", {shots} a class" if shots else ""
        heads = table_heads(group[0])[: len(group[0].metrics) + 3]
        parts += [f"% {task}: {protocol}{few}", r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}", r"\toprule"]
        parts += [" & ".join(_tex(head) for head in heads) + r" \\", r"\midrule"]
        parts += [" & ".join(_tex(cell) for cell in cells(line)[: len(heads)]) + r" \\" for line in group]
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(parts)


def as_csv(made: Sequence[Line]) -> str:
    """One row a line, every number by itself."""
    return _csv([_flat(line) for line in made])


def classes_csv(made: Sequence[Line]) -> str:
    """One row a line and class: each class against the others."""
    rows = []
    for line in made:
        for name, metrics in line.classes.items():
            row: dict[str, object] = {of: getattr(line, of) for of in ("task", "model", "protocol", "shots")}
            row["class"] = name
            row |= {f"{metric}{end}": getattr(one, of) for metric, one in metrics.items() for end, of in ENDS}
            rows.append(row)
    return _csv(rows)


def _csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(made: Sequence[Line]) -> str:
    """All of it; what is not a number is null."""
    return json.dumps([_plain(asdict(line)) for line in made], indent=1, ensure_ascii=False) + "\n"


def table_heads(line: Line) -> list[str]:
    """The heads of the table that a line is in."""
    paper = [] if line.reported is None else ["paper: MedMAE", "comparable"]
    heads = [HEADS[name] for name in line.metrics]
    return ["model", *heads, f"Δ {HEADS[line.tested]}", "p", "test seen in pre-training", *paper]


def cells(line: Line) -> list[str]:
    """The cells of a line, in words, under :func:`table_heads`."""
    against, reported = line.against, line.reported
    paper = [] if reported is None else [reported.values, f"{'yes' if reported.comparable else 'no'}: {reported.why}"]
    return [
        line.model,
        *(_words(one) for one in line.metrics.values()),
        "–" if against is None else f"{against.value:+.3f} ({against.low:+.3f} to {against.high:+.3f})",
        "–" if against is None or math.isnan(against.p) else f"{against.p:.3f}",
        line.leak,
        *paper,
    ]


def remark(line: Line) -> str:
    """What a reader of a line's table has to know."""
    few = f"Fewer than {FEWEST_PATIENTS} patients: intervals mean little, and nothing is tested."
    return " ".join(
        part
        for part in (
            f"{line.note[0].upper()}{line.note[1:]}." if line.note else "",
            few * (line.patients < FEWEST_PATIENTS),
        )
        if part
    )


def _words(one: Interval) -> str:
    return "–" if math.isnan(one.value) else f"{one.value:.3f} ({one.low:.3f}–{one.high:.3f})"


def tables_of(made: Sequence[Line]) -> dict[tuple[str, str, int], list[Line]]:
    """The lines of each table, by task, protocol and shots."""
    tables: dict[tuple[str, str, int], list[Line]] = {}
    for line in made:
        tables.setdefault((line.task, line.protocol, line.shots), []).append(line)
    return tables


def _flat(line: Line) -> dict[str, object]:
    row: dict[str, object] = {
        name: getattr(line, name)
        for name in ("task", "model", "protocol", "shots", "seeds", "train", "images", "patients")
    }
    for name in (*METRICS, *MASK_METRICS):
        one = line.metrics.get(name)
        row |= {f"{name}{end}": getattr(one, of) if one else "" for end, of in ENDS}
    against, reported = line.against, line.reported
    row |= {"tested": line.tested, "tested_sd_over_seeds": line.seed_sd}
    row |= {f"difference{end}": getattr(against, of) if against else "" for end, of in (*ENDS, ("_p", "p"))}
    paper = {"paper": reported.values, "comparable": reported.comparable, "why": reported.why} if reported else {}
    return row | {"leak": line.leak, "note": line.note} | ({"paper": "", "comparable": "", "why": ""} | paper)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tex(text: str) -> str:
    for of, to in (
        ("\\", r"\textbackslash{}"),
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("Δ", r"$\Delta$"),
        ("–", "--"),
    ):
        text = text.replace(of, to)
    return text
