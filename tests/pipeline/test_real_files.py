"""Every real file at hand, against a table of what independent readers make of it (see make_expected.py)."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.deidentify import modality_of
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import geometry
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.intensity import Range, frame_histogram, robust_range
from lumid.pipeline.reject import Reject
from tests.dicom import SHARED, TEST_FILES

quiet_libraries()
ROOTS = {"pydicom": TEST_FILES, "shared": SHARED}
with (Path(__file__).parent / "expected.csv").open(newline="") as file:
    EXPECTED = list(csv.DictReader(file))


def path_of(name: str) -> Path:
    root, _, rest = name.partition("/")
    return ROOTS[root] / rest


def opened(path: Path) -> tuple[pydicom.FileDataset, list[np.ndarray]] | None:
    """The data set and its frames, where all of them decode."""
    dataset = parse(path.read_bytes())
    if isinstance(dataset, Reject):
        return None
    size = image_size(dataset, Limits())
    if isinstance(size, Reject):
        return None
    frames = list(decode_frames(dataset, size))
    return None if any(isinstance(frame, Reject) for frame in frames) else (dataset, frames)


@cache
def series(root: str) -> dict[tuple[str, str], list[Path]]:
    """The files of every series of a modality under a root."""
    found = defaultdict(list)
    for path in sorted(ROOTS[root].rglob("*")):
        if path.is_file() and path.suffix not in (".nrrd", ".gz", ".nii", ".png", ".csv", ".md"):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, force=path.suffix == ".dcm")
            except Exception:
                continue
            found[str(header.get("SeriesInstanceUID")), str(header.get("Modality"))].append(path)
    return dict(found)


@cache
def range_of(root: str, uid: str, modality: str) -> Range | None:
    histograms = []
    for path in series(root)[uid, modality]:
        found = opened(path)
        if found is not None and uses_series_range(FrameHeader(found[0], 0), modality):
            histograms += [frame_histogram(frame, FrameHeader(found[0], at)) for at, frame in enumerate(found[1])]
    return robust_range(histograms)


def stored_object(row: dict[str, Any], profile: str) -> tuple[np.ndarray, float, set[str], pydicom.FileDataset]:
    """The whole object in its unit, the step of its stored values, its units, and its header."""
    found = opened(path_of(row["file"]))
    assert found is not None
    dataset, frames = found
    modality = row["modality"]
    values, steps, units = [], [], set()
    for at, frame in enumerate(frames):
        header = FrameHeader(dataset, at)
        span = None
        if uses_series_range(header, modality):
            span = range_of(row["file"].partition("/")[0], str(dataset.get("SeriesInstanceUID")), modality)
        kept = normalize(frame, header, modality, span, profile)
        assert not isinstance(kept, Reject)
        values.append(kept.pixels.astype(np.float64) * kept.slope + kept.intercept)
        steps.append(kept.slope)
        units.add(kept.unit)
    if len({one.ndim for one in values}) == 2:  # a frame of a cine without any colour is grey
        values = [np.repeat(one[..., None], 3, -1) if one.ndim == 2 else one for one in values]
    return np.stack(values), max(steps), units, dataset


@pytest.mark.parametrize("row", EXPECTED, ids=[row["file"] for row in EXPECTED])
def test_every_file_is_what_an_independent_reader_says(row: dict[str, Any]) -> None:
    if not path_of(row["file"]).exists():
        pytest.skip("a real image that is not part of the project, or of this version of pydicom")
    values, step, units, dataset = stored_object(row, "lumid")
    assert modality_of(FrameHeader(dataset, 0)) in (row["modality"], "SC")
    assert units == {row["unit"]}
    channels = () if row["channels"] == "1" else (3,)
    assert values.shape == (int(row["frames"]), int(row["rows"]), int(row["columns"]), *channels)
    tolerance = float(row["tolerance"] or 0) + 0.5 * step * (1 + 1e-6) + 1e-5
    found = (values.min(), values.max(), values.mean())
    np.testing.assert_allclose(found, [float(row[name]) for name in ("min", "max", "mean")], rtol=0, atol=tolerance)


@pytest.mark.parametrize("row", EXPECTED, ids=[row["file"] for row in EXPECTED])
def test_the_paper_profile_is_the_same_in_fewer_steps(row: dict[str, Any]) -> None:
    if not path_of(row["file"]).exists():
        pytest.skip("a real image that is not part of the project, or of this version of pydicom")
    values, step, units, _ = stored_object(row, "paper")
    assert units == {row["unit"]}
    if row["channels"] == "3":
        return  # grey of colour has other extremes
    top = 25.5 if row["unit"] == "SUVbw" else np.inf
    tolerance = float(row["tolerance"] or 0) + 0.5 * step * (1 + 1e-6) + 1e-5
    for found, name in ((values.min(), "min"), (values.max(), "max")):
        assert abs(found - min(float(row[name]), top)) <= tolerance


@pytest.mark.parametrize("row", [row for row in EXPECTED if row["row_mm"]], ids=lambda row: row["file"])
def test_a_slice_lies_where_simpleitk_says(row: dict[str, Any]) -> None:
    path = path_of(row["file"])
    if not path.exists():
        pytest.skip("a real image that is not part of the project, or of this version of pydicom")
    dataset = parse(path.read_bytes())
    assert not isinstance(dataset, Reject)
    size = image_size(dataset, Limits())
    assert not isinstance(size, Reject)
    placed = geometry(FrameHeader(dataset, 0), row["modality"], size.sheet)
    assert placed.spacing_row == pytest.approx(float(row["row_mm"]), rel=1e-5)
    assert placed.spacing_column == pytest.approx(float(row["column_mm"]), rel=1e-5)
    assert placed.slice_position == pytest.approx(float(row["position_mm"]), abs=2e-3)
    assert placed.spacing_kind == "patient"


def test_the_table_covers_what_there_is() -> None:
    """A file of pydicom that is an image and is not in the table is in a long series, or has no independent reader."""
    listed = {row["file"] for row in EXPECTED}
    assert len(listed) == len(EXPECTED)
    kinds = {(row["modality"], row["unit"]) for row in EXPECTED}
    assert {
        ("CT", "HU"),
        ("PT", "SUVbw"),
        ("MR", "a.u."),
        ("NM", "a.u."),
        ("CR", "display"),
        ("US", "display"),
    } <= kinds
    assert sum(row["file"].startswith("pydicom/") for row in EXPECTED) > 70
