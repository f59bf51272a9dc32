from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.query import read_catalog
from lumid.catalog.show import (
    IMAGE_COLUMNS,
    PAGE,
    ImageRow,
    Tile,
    Window,
    choose_rows,
    contact_sheet,
    display_range,
    image_rows,
    read_images,
    show,
    thumbnail,
    to_display,
)
from tests.factory import make_dataset

CT = ImageRow(
    key="0" * 24, shard="lumid-000000.tar", offset=512, length=10, codec="png", modality="CT", body_part="CHEST",
    series="s", width=4, height=1, intensity_unit="HU", store_slope=1.0, store_intercept=-1024.0, p01=-1000.0, p99=500.0,
    pixel_spacing_row=1.0, pixel_spacing_column=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("window", "low", "high"),
    [(None, -160, 240), ("soft", -160, 240), ("lung", -1350, 150), ("bone", -500, 1300), ("brain", 0, 80)],
)
def test_ct_windows(window: str | None, low: int, high: int) -> None:
    values = np.array([[low - 5, low, (low + high) / 2, high, high + 5]])
    stored = np.clip(values + 1024, 0, None).astype(np.uint16)
    shown = to_display(CT, stored, window)[0, :, 0].tolist()
    assert shown[3:] == [255, 255]
    assert abs(shown[2] - 128) <= 1
    if low >= -1024:
        assert shown[:2] == [0, 0]


def test_window_is_for_hu_only() -> None:
    pixels = np.array([[0, 100, 200]], np.uint16)
    mr = replace(CT, modality="MR", intensity_unit="a.u.", store_slope=0.5, store_intercept=10.0, p01=10.0, p99=110.0)
    assert display_range(mr, pixels, "lung") == Window(10.0, 110.0)
    assert to_display(mr, pixels)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("unit", ["display", "P-value"])
def test_display_units_keep_their_full_range(unit: str) -> None:
    row = replace(CT, intensity_unit=unit, store_slope=1 / 65535, store_intercept=0.0, p01=0.4, p99=0.5)
    assert to_display(row, np.array([[0, 32768, 65535]], np.uint16))[0, :, 0].tolist() == [0, 128, 255]


def test_flat_image_is_shown_and_does_not_divide_by_zero() -> None:
    row = replace(CT, intensity_unit="a.u.", p01=5.0, p99=5.0)
    assert to_display(row, np.full((2, 2), 7, np.uint16)).max() == 0
    assert to_display(row, np.array([[7, 9]], np.uint16))[0, :, 0].tolist() == [0, 255]


def test_colour_is_untouched() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    np.testing.assert_array_equal(to_display(CT, rgb), rgb)


def test_unknown_window() -> None:
    with pytest.raises(UsageError, match="soft, lung, bone, brain"):
        to_display(CT, np.zeros((1, 1), np.uint16), "liver")


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((100, 200), (1.0, 1.0), (50, 100)),
        ((200, 100), (None, None), (100, 50)),
        ((100, 100), (2.0, 1.0), (100, 50)),
        ((100, 100), (0.5, 1.0), (50, 100)),
        ((100, 100), (100.0, 1.0), (100, 25)),
        ((10, 20), (1.0, 1.0), (40, 80)),
        ((1, 1000), (1.0, 1.0), (1, 100)),
    ],
)
def test_thumbnail_keeps_proportions(
    shape: tuple[int, int], spacing: tuple[float | None, float | None], expected: tuple[int, int]
) -> None:
    row = replace(CT, pixel_spacing_row=spacing[0], pixel_spacing_column=spacing[1])
    image = thumbnail(row, np.zeros(shape, np.uint16), 100)
    assert image.shape == (*expected, 3)
    assert image.dtype == np.uint8


def test_contact_sheet_holds_every_tile() -> None:
    tiles = [Tile(np.full((40, 30 + 5 * n, 3), 100 + n, np.uint8), "CT  CHEST", "64x48  abcdef") for n in range(8)]
    sheet = contact_sheet(tiles, columns=3)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    for tile in tiles:
        value = tile.image[0, 0, 0]
        ys, xs = np.nonzero((sheet == value).all(axis=2))
        assert (np.ptp(ys) + 1, np.ptp(xs) + 1) >= tile.image.shape[:2]
    assert tuple(sheet[0, 0]) == PAGE
    assert contact_sheet(tiles[:1]).shape[1] < sheet.shape[1]
    np.testing.assert_array_equal(sheet, contact_sheet(tiles, columns=3))


def test_captions_are_drawn_inside_their_cell() -> None:
    image = np.zeros((40, 96, 3), np.uint8)
    short, long = (contact_sheet([Tile(image, "x" * n, "")] * 2, columns=2) for n in (3, 300))
    assert short.shape == long.shape
    gap = slice(16 + 96 + 2, 16 + 96 + 12 - 2)
    assert (long[:, gap] == PAGE).all()
    assert (long[60:, 16:112] != PAGE).any()
    contact_sheet([Tile(image, "Ünï\x1b[31m", "")])


def test_no_tiles() -> None:
    with pytest.raises(ValueError):
        contact_sheet([])


def test_choice_is_spread_and_the_same_every_time(built: Path) -> None:
    rows = choose_rows(built, n=12)
    assert rows == choose_rows(built, n=12)
    assert Counter(row.modality for row in rows) == {"CT": 4, "MR": 4, "US": 4}
    assert all(len({row.series for row in rows if row.modality == name}) == 4 for name in ("CT", "MR", "US"))
    assert rows == sorted(rows, key=lambda row: (row.modality, row.key))
    assert {row.modality for row in choose_rows(built, "modality <> 'US'", n=100)} == {"CT", "MR"}
    assert len(choose_rows(built, n=100)) == 40
    assert choose_rows(built, "modality = 'XA'") == []


def test_images_come_in_the_rows_order(built: Path) -> None:
    rows = image_rows(read_catalog(built, columns=IMAGE_COLUMNS))[::-1]
    for row, pixels in zip(rows, read_images(built, rows), strict=True):
        assert pixels.shape[:2] == (row.height, row.width)
        assert (pixels.ndim == 3) == (row.modality == "US")
        assert (pixels.dtype == np.uint16) == (row.modality != "US")


def test_missing_short_and_damaged_shards(dataset: Path) -> None:
    rows = choose_rows(dataset, n=4)
    path = dataset / "shards" / rows[0].shard
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    with pytest.raises(DatasetError, match="no image at byte"):
        read_images(dataset, rows[:1])
    path.write_bytes(data[: rows[0].offset + 3])
    with pytest.raises(DatasetError, match="ends at byte"):
        read_images(dataset, rows[:1])
    path.unlink()
    with pytest.raises(DatasetError, match="missing"):
        read_images(dataset, rows[:1])


def test_a_shard_name_cannot_leave_the_folder(dataset: Path) -> None:
    for name in ("../dataset.json", "../../lumid-000000.tar", "Doe^Jane"):
        with pytest.raises(DatasetError, match="none of its own; build") as error:
            read_images(dataset, [replace(choose_rows(dataset, n=1)[0], shard=name)])
        assert name not in str(error.value)


def test_show_writes_a_png(built: Path, tmp_path: Path) -> None:
    sheet = show(built, tmp_path / "new" / "sheet.png", "modality = 'CT'", n=5)
    image = cv2.imread(str(sheet.path))
    assert image is not None
    assert image.shape == (sheet.height, sheet.width, 3)
    assert (len(sheet.rows), sheet.samples) == (5, 14)
    with pytest.raises(UsageError, match="no sample has modality = 'XA'"):
        show(built, tmp_path / "none.png", "modality = 'XA'")
    assert not (tmp_path / "none.png").exists()


def test_window_changes_the_picture(tmp_path: Path) -> None:
    make_dataset(tmp_path / "ds", n=4, modalities=("CT",))
    pictures = {
        show(tmp_path / "ds", tmp_path / f"{name}.png", window=name).path.read_bytes()
        for name in ("soft", "lung", "bone")
    }
    assert len(pictures) == 3
