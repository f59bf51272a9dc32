"""The report of a data set: one HTML file that needs nothing else, made from the catalog, the shards and the manifest."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import duckdb
from jinja2 import Environment, PackageLoader, StrictUndefined

from lumid.catalog.cite import CollectionUse, collections_in, non_commercial_line, unstated_line
from lumid.catalog.errors import DatasetError
from lumid.catalog.histogram import Histogram, histograms, number, percent
from lumid.catalog.layout import Layout, Manifest, Shard, read_manifest, storage_errors, write_text
from lumid.catalog.paths import AnyPath
from lumid.catalog.query import ask, connect, text
from lumid.catalog.report_drift import Drift, drift
from lumid.catalog.report_matrix import Matrices, matrices
from lumid.catalog.report_quality import QualityView, quality_view
from lumid.catalog.schema import CATALOG, REASONS, REJECTS
from lumid.catalog.show import RGB, ImageRow, choose_rows, read_images, thumbnail

THUMBNAILS, THUMBNAIL_SIZE, THUMBNAIL_QUALITY = 12, 192, 85
SHOWN_SHARDS = 500


@dataclass(frozen=True, slots=True)
class Reason:
    """A reject code, what it means, how many frames it accounts for, and their share of all that were planned."""

    code: str
    meaning: str
    frames: int
    share: float


@dataclass(frozen=True, slots=True)
class Thumb:
    """A picture as a data URI, its size in pixels, the two lines under it and what a screen reader says."""

    uri: str
    width: int
    height: int
    title: str
    detail: str
    alt: str


@dataclass(frozen=True, slots=True)
class ModalityView:
    """A modality: how much of it there is, and some of its images."""

    modality: str
    samples: int
    patients: int
    series: int
    share: float
    train: int
    thumbs: tuple[Thumb, ...]
    shown_as: str


@dataclass(frozen=True, slots=True)
class Intensity:
    """Intensities of a modality in one unit: over its samples, low p01, median p50 and high p99."""

    modality: str
    unit: str
    samples: int
    p01: float
    p50: float
    p99: float
    foreground: float
    sharpness: float


@dataclass(frozen=True, slots=True)
class Split:
    """A split: its samples and patients."""

    split: str
    samples: int
    patients: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that the template shows."""

    manifest: Manifest
    description: str
    samples: int
    patients: int
    series: int
    rejected: int
    megabytes: float
    balanced: bool
    reasons: tuple[Reason, ...]
    modalities: tuple[ModalityView, ...]
    matrices: Matrices
    collections: tuple[CollectionUse, ...]
    licence_notes: tuple[str, ...]
    drift: tuple[Drift, ...]
    splits: tuple[Split, ...]
    leaking_patients: int
    intensities: tuple[Intensity, ...]
    histograms: tuple[Histogram, ...]
    quality: QualityView
    shards: tuple[Shard, ...]
    more_shards: int
    recipe: str
    build: tuple[tuple[str, str], ...]


def write_report(root: Path) -> Path:
    """Write ``report.html`` of a finished data set; its path."""
    path = Layout(root).report
    html = render_report(root, read_manifest(root))
    with storage_errors(root):
        write_text(path, html)
    return path


def render_report(root: AnyPath, manifest: Manifest) -> str:
    """The report as HTML: needs catalog, rejects and shards in place, and takes the manifest as a value.

    Nothing but columns of the catalog and the rejects, pictures of stored samples and the manifest is in it.
    """
    environment = Environment(
        loader=PackageLoader("lumid.catalog", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment.get_template("report.html").render(report=gather(root, manifest))


def gather(root: AnyPath, manifest: Manifest) -> Report:
    """Ask the catalog for all that the report shows. Raises :class:`DatasetError` when it lacks what every sample has."""
    with connect(root, finished=False) as connection:
        for table, schema in {"catalog": CATALOG, "rejects": REJECTS}.items():
            lacking = " OR ".join(f'"{field.name}" IS NULL' for field in schema if not field.nullable)
            if ask(connection, f"SELECT 1 FROM {table} WHERE {lacking} LIMIT 1").num_rows:
                raise DatasetError(f"{root}: {table} has rows that lack what every row has: run `lumid verify`")
        totals = _row(
            connection,
            "SELECT count(*) AS samples, count(DISTINCT patient) AS patients, count(DISTINCT series) AS series FROM catalog",
        )
        rejected = int(_row(connection, "SELECT coalesce(sum(frames), 0)::BIGINT AS n FROM rejects")["n"])
        counts = manifest.counts
        uses = collections_in(connection)
        notes = (non_commercial_line(uses), unstated_line(uses))
        return Report(
            manifest=manifest,
            description=str(manifest.recipe.get("description", "")),
            samples=totals["samples"],
            patients=totals["patients"],
            series=totals["series"],
            rejected=rejected,
            megabytes=sum(shard.bytes for shard in manifest.shards) / 1e6,
            balanced=counts.planned == counts.kept + counts.rejected
            and (counts.kept, counts.rejected) == (totals["samples"], rejected),
            reasons=_reasons(connection, counts.planned),
            modalities=_modalities(connection, root, totals["samples"]),
            matrices=matrices(connection),
            collections=tuple(uses),
            licence_notes=tuple(note for note in notes if note),
            drift=drift(connection),
            splits=tuple(
                Split(**row)
                for row in _rows(
                    connection,
                    "SELECT split, count(*) AS samples, count(DISTINCT patient) AS patients FROM catalog "
                    "GROUP BY split ORDER BY samples DESC, split",
                )
            ),
            leaking_patients=int(
                _row(
                    connection,
                    "SELECT count(*) AS n FROM (SELECT patient FROM catalog GROUP BY patient HAVING count(DISTINCT split) > 1)",
                )["n"]
            ),
            intensities=tuple(_intensities(connection)),
            histograms=tuple(histograms(connection, totals["samples"])),
            quality=quality_view(connection),
            shards=manifest.shards[:SHOWN_SHARDS],
            more_shards=max(0, len(manifest.shards) - SHOWN_SHARDS),
            recipe=json.dumps(manifest.recipe, indent=2, ensure_ascii=False),
            build=tuple(_build_facts(manifest.build)),
        )


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask(connection, sql).to_pylist()
    return rows


def _row(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    return _rows(connection, sql)[0]


def _reasons(connection: duckdb.DuckDBPyConnection, planned: int) -> tuple[Reason, ...]:
    rows = _rows(
        connection, "SELECT code, sum(frames)::BIGINT AS frames FROM rejects GROUP BY code ORDER BY frames DESC, code"
    )
    return tuple(
        Reason(row["code"], REASONS.get(row["code"], ""), row["frames"], row["frames"] / max(1, planned))
        for row in rows
    )


# ---- modalities and their pictures


def _modalities(connection: duckdb.DuckDBPyConnection, root: AnyPath, samples: int) -> tuple[ModalityView, ...]:
    rows = _rows(
        connection,
        "SELECT modality, count(*) AS samples, count(DISTINCT patient) AS patients, count(DISTINCT series) AS series, "
        "count(*) FILTER (WHERE split = 'train') AS train FROM catalog GROUP BY modality ORDER BY samples DESC, modality",
    )
    views = []
    for row in rows:
        chosen = choose_rows(root, f"modality = {text(row['modality'])}", THUMBNAILS, finished=False)
        images = read_images(root, chosen)
        thumbs = tuple(
            _thumb(one, thumbnail(one, pixels, THUMBNAIL_SIZE)) for one, pixels in zip(chosen, images, strict=True)
        )
        units = {one.intensity_unit for one in chosen}
        views.append(ModalityView(**row, share=row["samples"] / samples, thumbs=thumbs, shown_as=_shown_as(units)))
    return tuple(views)


def _shown_as(units: Iterable[str]) -> str:
    ways = {
        "HU": "soft-tissue window, −160 to 240 HU",
        "display": "full range",
        "P-value": "full range",
    }
    return "; ".join(sorted({ways.get(unit, f"1st to 99th percentile ({unit})") for unit in units}))


def _thumb(row: ImageRow, image: RGB) -> Thumb:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    )
    if not done:
        raise ValueError("JPEG encoder refused a thumbnail")
    part = row.body_part or "body part not stated"
    return Thumb(
        uri="data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii"),
        width=image.shape[1],
        height=image.shape[0],
        title=row.body_part or "–",
        detail=f"{row.width}×{row.height} · {row.key[:6]}",
        alt=f"{row.modality}, {part}, {row.width} by {row.height} pixels, key {row.key}",
    )


# ---- tables


def _intensities(connection: duckdb.DuckDBPyConnection) -> Iterable[Intensity]:
    for row in _rows(
        connection,
        "SELECT modality, intensity_unit AS unit, count(*) AS samples, quantile_cont(p01, 0.05) AS p01, "
        "median(p50) AS p50, quantile_cont(p99, 0.95) AS p99, median(foreground_fraction) AS foreground, "
        "median(sharpness) AS sharpness FROM catalog GROUP BY ALL ORDER BY samples DESC, modality, unit",
    ):
        yield Intensity(**row)


# ---- how it was made


def _is_traffic(value: object) -> bool:
    words = ("archive", "operation", "outcome")
    return (
        isinstance(value, dict)
        and isinstance(value.get("requests"), int)
        and all(isinstance(value.get(word), str) for word in words)
    )


def _build_facts(build: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The manifest's free facts about the build, in words."""
    for name, value in build.items():
        label = name.replace("_", " ").replace("per second", "/ s").replace(" mb", " MB").replace("mb ", "MB ")
        if isinstance(value, bool | str) or value is None:
            yield label, str(value)
        elif isinstance(value, int | float):
            yield label, f"{value:,}"
        elif name == "requests" and isinstance(value, list) and all(map(_is_traffic, value)):
            for one in value:
                yield f"{one['archive']}: {one['operation']}, {one['outcome']}", f"{one['requests']:,}"
        else:
            yield label, json.dumps(value, ensure_ascii=False)
