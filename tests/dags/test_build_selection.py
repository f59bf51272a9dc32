"""Selection over a whole data set: the same slices whatever workers, batches and names."""

from __future__ import annotations

from pathlib import Path

import cv2
import duckdb
import numpy as np
import pydicom
import pytest

from lumid.catalog.layout import read_manifest
from lumid.catalog.verify import verify
from tests.dags.command import lumid
from tests.dicom import TEST_FILES, as_bytes, image

pytestmark = pytest.mark.whole

SEARCHED_LONG = {
    "JPEG-lossy.dcm", "JPEG2000.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "JPGExtended.dcm", "examples_jpeg2k.dcm",
    "examples_palette.dcm", "examples_ybr_color.dcm", "image_dfl.dcm",
}  # fmt: skip
"""Large images whose pixels are searched for text, which takes most of the time and changes no selection."""


HU = {"RescaleSlope": 1, "RescaleIntercept": -500, "RescaleType": "HU"}


def has_series(path: Path) -> bool:
    """A file without one is a series by its name, and series of a collection are drawn."""
    try:
        return bool(pydicom.dcmread(path, stop_before_pixels=True).get("SeriesInstanceUID"))
    except Exception:
        return False


@pytest.mark.parametrize(
    ("cap", "codes"),
    [
        pytest.param("", {"stride", "series_cap", "derived", "near_duplicate"}, marks=pytest.mark.slow),
        ("max_series = 10", {"collection_cap", "stride"}),
    ],
)
def test_selection_does_not_depend_on_workers_batches_or_names(tmp_path: Path, cap: str, codes: set[str]) -> None:
    """Every rule that looks at more than one slice, over pydicom's files, and over the same under other names."""
    select = (
        "[select]\nmin_side = 8\nstride = 2\nmax_slices = 3\nderived = 'drop'\n"
        "exact_duplicates = 'drop'\nnear_duplicates = 'drop'\nnear_duplicate_bits = 12\n"
        f"{cap}\n"
    )
    files = sorted(path for path in TEST_FILES.rglob("*.dcm") if path.name not in SEARCHED_LONG and has_series(path))
    blobs = cv2.GaussianBlur(np.random.default_rng(1).uniform(0, 9000, (64, 64)), None, 4)
    for number in range(24):
        pixels = (blobs - blobs.min() + number).astype(np.int16)
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 2.5 * number]}
        (tmp_path / f"slice-{number:02}").write_bytes(
            as_bytes(image(pixels, SOPInstanceUID=f"1.2.9.{number}", SeriesInstanceUID="1.2.8", **HU, **place))
        )
    files += sorted(tmp_path.glob("slice-*"))
    contents, keys = {}, {}
    for name, order, workers, slices in (
        ("one", files, "1", 1000),
        ("two", files, "2", 7),
        ("other", files[::-1], "1", 1000),
    ):
        source = tmp_path / ("other-names" if name == "other" else "names")
        source.mkdir(exist_ok=True)
        for number, path in enumerate(order):
            (source / f"{number:04}").unlink(missing_ok=True)
            (source / f"{number:04}").symlink_to(path)
        (tmp_path / f"{name}.toml").write_text(
            f"name = 'x'\n[[sources]]\nkind = 'folder'\npath = '{source}'\n[shards]\nbatch_slices = {slices}\n{select}"
        )
        done = lumid("build", tmp_path / f"{name}.toml", "--out", tmp_path / name, "--workers", workers)
        assert done.returncode == 0, done.stderr
        manifest = read_manifest(tmp_path / name)
        assert verify(tmp_path / name, deep=True).findings == ()
        contents[name] = (manifest.rejects, manifest.catalog_hash)
        rows = duckdb.sql(f"select key from '{tmp_path / name}/catalog/*/*.parquet' order by key").fetchall()
        keys[name] = [key for (key,) in rows]
    assert contents["one"] == contents["two"]
    assert keys["one"] == keys["other"]
    assert codes <= contents["one"][0].keys()
