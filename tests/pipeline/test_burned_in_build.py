"""Text in pixels from a file to a shard: what is searched under which policy, and what a row says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from lumid.catalog.codecs import Pixels, decode
from lumid.catalog.keys import Keyer
from lumid.catalog.schema import CatalogRow
from lumid.pipeline.batches import make_batches
from lumid.pipeline.ingest import BatchResult, ingest
from lumid.pipeline.recipe import DeidSettings, PixelSettings, Recipe, SelectSettings
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import open_listed
from tests.dicom import as_bytes, image
from tests.planted_text import drawn, plant

KEYER = Keyer(b"k" * 32)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
GREY_US = {"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}


def body(seed: int = 3, dtype: Any = np.uint16, high: int = 1060) -> Pixels:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:160, :224]
    inside = np.hypot((rows - 95) / 55, (columns - 112) / 90) < 1
    return np.clip(np.where(inside, high, high // 40) + rng.normal(0, high / 90, inside.shape), 0, None).astype(dtype)


def build(folder: Path, objects: dict[str, tuple[Pixels, dict[str, Any]]], **deid: Any) -> BatchResult:
    """The files' one batch, pixels stored as large as they are."""
    for number, (name, (pixels, elements)) in enumerate(objects.items()):
        values = {"SOPInstanceUID": f"1.2.3.{number}", "SeriesInstanceUID": f"1.2.4.{number}"} | elements
        (folder / name).write_bytes(as_bytes(image(pixels, **values)))
    recipe: Recipe = make_recipe(folder, collection="test").model_copy(
        update={"deid": DeidSettings(**deid), "pixels": PixelSettings(size="native"), "select": SelectSettings()}
    )
    source = open_listed(recipe.sources[0], recipe, KEYER)
    series = group_series(scan(source, source.objects(), KEYER, "public"), source.provenance)
    (batch,) = make_batches(series, 0, recipe.hash(), 1000)
    return ingest(batch, source, recipe, KEYER)


def only(result: BatchResult) -> tuple[CatalogRow, Pixels]:
    assert not result.rejects, [row.message for row in result.rejects]
    (sample,) = result.samples
    return sample.row, decode(sample.image, sample.row.codec)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB"])
def test_a_name_in_an_ultrasound_image_does_not_reach_a_shard(tmp_path: Path, photometric: str) -> None:
    pixels = body(dtype=np.uint8, high=150)
    planted = plant(pixels, drawn("SMITH^JOHN", "sans", 12), 4, 4, "white", 255.0)
    given, elements = planted.pixels, dict(GREY_US)
    if photometric == "RGB":
        given = np.stack([given] * 3, axis=2)
        given[planted.ink] = (255, 255, 0)
    else:
        elements["PhotometricInterpretation"] = photometric
        given = np.bitwise_not(given) if photometric == "MONOCHROME1" else given
    row, stored = only(build(tmp_path, {"us": (given, elements)}))
    assert row.burned_in_text == "removed"
    assert not stored[planted.ink].any()
    assert stored.shape[:2] == pixels.shape
    assert stored[80:].any()


def test_public_ct_is_not_searched_and_private_is(tmp_path: Path) -> None:
    planted = plant(body(), drawn("SMITH^JOHN", "sans", 12), 4, 4, "white")
    for policy, marked, expected in (
        ("public", (), "unknown"),
        ("public", ("test",), "removed"),
        ("private", (), "removed"),
    ):
        folder = tmp_path / f"{policy}{len(marked)}"
        folder.mkdir()
        row, stored = only(build(folder, {"ct": (planted.pixels, HU)}, policy=policy, search=marked))
        assert row.burned_in_text == expected
        assert bool(stored[planted.ink].any()) == (expected == "unknown")


def test_nothing_found_is_checked_or_where_the_header_says_otherwise_rejected(tmp_path: Path) -> None:
    quiet = np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)
    result = build(tmp_path, {"a": (quiet, GREY_US), "b": (quiet + 1, GREY_US | {"BurnedInAnnotation": "YES"})})
    assert [sample.row.burned_in_text for sample in result.samples] == ["checked"]
    assert [(row.stage, row.code) for row in result.rejects] == [("deidentify", "text_in_pixels")]


def test_a_recipe_can_have_images_with_text_left_out(tmp_path: Path) -> None:
    planted = plant(body(dtype=np.uint8, high=150), drawn("JONES", "sans", 14), 4, 4, "white", 255.0)
    result = build(tmp_path, {"a": (planted.pixels, GREY_US)}, text="reject")
    assert [row.code for row in result.rejects] == ["text_in_pixels"]
    assert not any("JONES" in row.message for row in result.rejects)


def test_every_frame_is_searched_by_itself(tmp_path: Path) -> None:
    frames = np.stack([body(seed, np.uint8, 150) for seed in range(3)])
    alpha = drawn("DOE JANE", "sans", 12)
    frames[1] = plant(frames[1], alpha, 4, 4, "white", 255.0).pixels
    elements = {"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1"}
    result = build(tmp_path, {"cine": (frames, elements)})
    ink = np.zeros(frames[0].shape, bool)
    ink[4 : 4 + alpha.shape[0], 4 : 4 + alpha.shape[1]] = alpha > 0.3
    stored = {sample.row.frame: decode(sample.image, sample.row.codec) for sample in result.samples}
    assert sorted(stored) == [0, 1, 2]
    assert not stored[1][ink].any()
    assert stored[0][ink].any()


def test_overlays_curves_and_icons_are_never_in_the_pixels(tmp_path: Path) -> None:
    pixels = body() & 0x0FFF
    text = drawn("SMITH^JOHN", "sans", 12)
    plane = np.zeros(pixels.shape, np.uint8)
    plane[4 : 4 + text.shape[0], 4 : 4 + text.shape[1]] = text > 0.3
    icon = Dataset()
    icon.Rows, icon.Columns, icon.SamplesPerPixel, icon.BitsAllocated, icon.BitsStored = 64, 64, 1, 8, 8
    icon.HighBit, icon.PixelRepresentation, icon.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    icon.PixelData = b"\xff" * 64 * 64
    twelve = HU | {"BitsStored": 12, "HighBit": 11}

    plain = only(build(made(tmp_path, "plain"), {"ct": (pixels, twelve)}))[1]
    in_a_plane = image(pixels, **twelve)
    in_a_plane.add_new(0x60000010, "US", plane.shape[0])
    in_a_plane.add_new(0x60000011, "US", plane.shape[1])
    in_a_plane.add_new(0x60000040, "CS", "G")
    in_a_plane.add_new(0x60000050, "SS", [1, 1])
    in_a_plane.add_new(0x60000100, "US", 1)
    in_a_plane.add_new(0x60000102, "US", 0)
    in_a_plane.add_new(0x60003000, "OW", np.packbits(plane, bitorder="little").tobytes())
    in_a_plane.add_new(0x50000005, "US", 2)
    in_a_plane.add_new(0x50003000, "OW", b"\x01\x00" * 64)
    in_a_plane.IconImageSequence = [icon]
    embedded = image(pixels | (plane.astype(np.uint16) << 15), **twelve)
    embedded.add_new(0x60000010, "US", plane.shape[0])
    embedded.add_new(0x60000011, "US", plane.shape[1])
    embedded.add_new(0x60000100, "US", 16)
    embedded.add_new(0x60000102, "US", 15)
    for name, dataset in (("plane", in_a_plane), ("embedded", embedded)):
        folder = made(tmp_path, name)
        (folder / "ct").write_bytes(as_bytes(dataset))
        stored = only(build(folder, {}))[1]
        assert (stored == plain).all(), name


def made(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder
