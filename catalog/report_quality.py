"""Geometry and quality of a data set, for its report: series with gaps, repeated images, images far from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from lumid.catalog.query import ask

CLIPPED = 0.01
"""From this share of pixels on at the brightest value, an image counts as clipped."""

FAR = 3
"""Outliers are beyond so many interquartile ranges from the quartiles (Tukey's "far out"), on a logarithmic scale."""

FEWEST = 20
"""Of fewer images no quartile is worth a threshold."""

NOT_STATED = "not stated"
KINDS = ("patient", "calibrated", "detector", "nominal", "unstated", NOT_STATED)


@dataclass(frozen=True, slots=True)
class SeriesGeometry:
    """The series of a modality: how many, how many have a position in space, a gap, or frames at one position.

    ``spacing``: of their slices, mm, the median of all series that have one.
    """

    modality: str
    series: int
    placed: int
    gaps: int
    repeats: int
    spacing: float | None


@dataclass(frozen=True, slots=True)
class ImageQuality:
    """The images of a modality in one unit: medians, and how many are beyond the thresholds; None where there is none."""

    modality: str
    unit: str
    samples: int
    noise: float
    noisy_above: float | None
    noisy: int
    sharpness: float
    blurred_below: float | None
    blurred: int
    clipped: int
    near_duplicates: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class SpacingKinds:
    """Samples by modality (rows) and by where their pixel spacing holds (columns)."""

    kinds: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class QualityView:
    """All that the section shows."""

    series: tuple[SeriesGeometry, ...]
    images: tuple[ImageQuality, ...]
    spacing: SpacingKinds

    @property
    def with_gaps(self) -> int:
        """Series with a gap."""
        return sum(one.gaps for one in self.series)

    @property
    def placed(self) -> int:
        """Series whose slices have a position in space."""
        return sum(one.placed for one in self.series)

    @property
    def near_duplicates(self) -> int:
        """Samples that nearly repeat another of their series."""
        return sum(one.near_duplicates for one in self.images)


def quality_view(connection: duckdb.DuckDBPyConnection) -> QualityView:
    """Geometry and quality of the samples in the view ``catalog``."""
    return QualityView(tuple(_series(connection)), tuple(_images(connection)), _spacing(connection))


def _series(connection: duckdb.DuckDBPyConnection) -> Sequence[SeriesGeometry]:
    rows = ask(
        connection,
        "SELECT modality, count(*) AS series, count(*) FILTER (WHERE placed) AS placed, count(*) FILTER (WHERE gap) AS gaps, "
        "count(*) FILTER (WHERE repeats > 1) AS repeats, median(spacing) AS spacing FROM (SELECT modality, series, "
        "bool_or(slice_position IS NOT NULL) AS placed, bool_or(slice_gap) AS gap, max(slice_repeats) AS repeats, "
        "median(slice_spacing) AS spacing FROM catalog GROUP BY modality, series) GROUP BY modality ORDER BY series DESC, modality",
    ).to_pylist()
    return [SeriesGeometry(**row) for row in rows]


def _images(connection: duckdb.DuckDBPyConnection) -> Sequence[ImageQuality]:
    def quartile(column: str, share: float) -> str:
        return f"quantile_cont(ln(nullif(greatest({column}, 0), 0)), {share})"

    def beyond(column: str, near: float, far: float) -> str:
        usual = f"count(*) >= {FEWEST} AND {quartile(column, near)} <> {quartile(column, far)}"  # else all equal ones would be far
        return f"CASE WHEN {usual} THEN exp({1 + FAR} * {quartile(column, near)} - {FAR} * {quartile(column, far)}) END"

    rows = ask(
        connection,
        f"WITH usual AS (SELECT modality, intensity_unit, {beyond('noise', 0.75, 0.25)} AS noisy_above, "
        f"{beyond('sharpness', 0.25, 0.75)} AS blurred_below FROM catalog GROUP BY modality, intensity_unit) "
        "SELECT modality, intensity_unit AS unit, count(*) AS samples, median(noise) AS noise, any_value(noisy_above) AS noisy_above, "
        "count(*) FILTER (WHERE noise > noisy_above) AS noisy, median(sharpness) AS sharpness, "
        "any_value(blurred_below) AS blurred_below, count(*) FILTER (WHERE sharpness < blurred_below) AS blurred, "
        f"count(*) FILTER (WHERE clipped_fraction > {CLIPPED}) AS clipped, count(near_duplicate_of) AS near_duplicates, "
        "count(duplicate_of) AS duplicates FROM catalog JOIN usual USING (modality, intensity_unit) "
        "GROUP BY modality, intensity_unit ORDER BY samples DESC, modality, unit",
    ).to_pylist()
    return [ImageQuality(**row) for row in rows]


def _spacing(connection: duckdb.DuckDBPyConnection) -> SpacingKinds:
    counts = ask(
        connection,
        f"SELECT modality, coalesce(spacing_kind, '{NOT_STATED}') AS kind, count(*) AS n FROM catalog GROUP BY modality, kind",
    ).to_pylist()
    cells = {(row["modality"], row["kind"]): row["n"] for row in counts}
    totals: dict[str, int] = {}
    for (modality, _), n in cells.items():
        totals[modality] = totals.get(modality, 0) + n
    kinds = tuple(kind for kind in KINDS if any(found == kind for _, found in cells))
    ordered = sorted(totals, key=lambda modality: (-totals[modality], modality))
    return SpacingKinds(
        kinds, tuple((modality, tuple(cells.get((modality, kind), 0) for kind in kinds)) for modality in ordered)
    )
