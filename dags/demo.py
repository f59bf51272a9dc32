"""The whole way in a few minutes: real DICOM → shards and catalog → a query → pre-training → a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lumid.catalog.errors import UsageError
from lumid.catalog.layout import Manifest
from lumid.catalog.query import run_sql
from lumid.catalog.show import show
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.pretrain import draw_reconstruction, has_torch, run_pretraining
from lumid.dags.progress import BuildProgress
from lumid.pipeline.recipe_files import load_recipe

BY_MODALITY = (
    "SELECT modality, count(*) AS samples, count(DISTINCT patient) AS patients, any_value(intensity_unit) AS unit, "
    "round(min(p01), 1) AS p01, round(max(p99), 1) AS p99 FROM catalog GROUP BY modality ORDER BY samples DESC"
)


OF_PATIENTS = "modality NOT IN ('SC', 'OT')"
"""The secondary captures among pydicom's files are colour bars."""
TRAIN_ON = f"split = 'train' AND {OF_PATIENTS} AND (modality <> 'US' OR frame % 10 = 0)"
"""Most of the rest are frames of one ultrasound clip, which would be all that a short training learns."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where everything is; what was not made (no torch) is None."""

    data: Path
    manifest: Manifest
    sheet: Path
    run: Path | None
    figure: Path | None


def demo(out: Path, console: Console, *, steps: int | None = None) -> DemoResult:
    """Run the demo into ``out``; run again, it goes on where it was, or finds everything done."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out must be a folder")
    console.rule("1 · build: DICOM files of the pydicom package → shards, catalog, rejects, report")
    data = out / "data"
    result = build(load_recipe("demo"), data, ClusterSettings(), BuildProgress(console))
    counts = result.manifest.counts
    console.print(
        f"planned {counts.planned} = kept {counts.kept} + rejected {counts.rejected}; every frame is accounted for"
    )

    console.rule("2 · query: what is in it, by modality")
    console.print(_table(data))
    sheet = show(data, out / "contact-sheet.png").path

    console.rule("3 · pre-train: a tiny masked auto-encoder on the CPU, streaming those shards")
    if not has_torch():
        console.print("left out: torch is not installed; get it with: pip install 'lumid[train]'", markup=False)
        return DemoResult(data, result.manifest, sheet, None, None)
    run = out / "run"
    trained = run_pretraining(data, run, "tiny-cpu", steps=steps, where=TRAIN_ON, console=console)
    console.print(
        f"loss {trained.first_loss:.3f} → {trained.final_loss:.3f} in {trained.steps} steps, {trained.images_per_s:.0f} images/s"
    )

    console.rule("4 · reconstruct: what it makes of images with three quarters hidden")
    console.print("trained on: known by heart after hundreds of epochs; held out: a dozen images teach nothing general")
    figure = draw_reconstruction(run, data, out / "reconstruction.png", OF_PATIENTS)
    return DemoResult(data, result.manifest, sheet, run, figure)


def _table(data: Path) -> Table:
    answer = run_sql(data, BY_MODALITY)
    table = Table(*answer.column_names)
    for row in answer.to_pylist():
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table
