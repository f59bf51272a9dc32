"""Pictures of a selection: stored images → 8-bit display, thumbnails, and contact sheets.

CT is shown through a window in HU (soft tissue, unless another is asked for); images that are stored for display
(unit ``display`` or ``P-value``) over their full range; everything else from its 1st to its 99th percentile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lumid.catalog.codecs import Pixels, decode, encode
from lumid.catalog.connect import cast_rows
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.layout import atomic_file, storage_errors
from lumid.catalog.places import Anywhere, Shards
from lumid.catalog.query import all_of, ask, connect, count_samples, text, where_clause, why_empty

RGB = npt.NDArray[np.uint8]
"""``uint8 [rows, columns, 3]``."""


@dataclass(frozen=True, slots=True)
class Window:
    """The values in HU that are shown black and white."""

    low: float
    high: float


WINDOWS: dict[str, Window] = {
    "soft": Window(-160.0, 240.0),
    "lung": Window(-1350.0, 150.0),
    "bone": Window(-500.0, 1300.0),
    "brain": Window(0.0, 80.0),
}
"""Window presets for CT: soft tissue (centre 40, width 400), lung (-600, 1500), bone (400, 1800), brain (40, 80)."""
DEFAULT_WINDOW = "soft"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """What the catalog must say of a sample to read its image and show it."""

    key: str
    shard: str
    offset: int
    length: int
    codec: str
    modality: str
    body_part: str | None
    series: str
    width: int
    height: int
    intensity_unit: str
    store_slope: float
    store_intercept: float
    p01: float
    p99: float
    pixel_spacing_row: float | None
    pixel_spacing_column: float | None


IMAGE_COLUMNS = tuple(item.name for item in fields(ImageRow))
"""The catalog columns of an :class:`ImageRow`."""


def image_rows(table: pa.Table) -> list[ImageRow]:
    """Rows of a catalog table that has the columns :data:`IMAGE_COLUMNS`.

    Raises :class:`DatasetError` where one lacks what every image has, or has it of another type.
    """
    return [ImageRow(**row) for row in cast_rows(table, IMAGE_COLUMNS).to_pylist()]


# ---- which samples


def choose_rows(root: Anywhere, where: str | None = None, n: int = 24, *, finished: bool = True) -> list[ImageRow]:
    """At most ``n`` samples that meet ``where``, spread over modalities and, in each, over series.

    The same samples every time: within a series the smallest keys come first, and keys are a fair shuffle.
    Returned sorted by modality and key.
    """
    queues = []
    columns = ", ".join(f'"{name}"' for name in IMAGE_COLUMNS)
    with connect(root, finished=finished) as connection:
        found = ask(connection, f"SELECT DISTINCT modality FROM catalog{where_clause(where)} ORDER BY 1")
        for modality in found["modality"].to_pylist():
            condition = all_of(where, f"modality = {text(modality)}")
            # the smallest keys are a fair sample of the modality: enough of them to meet many series
            last = f" ORDER BY key LIMIT {max(16 * n, 256)}"
            table = ask(connection, f"SELECT {columns} FROM catalog{where_clause(condition)}{last}")
            queues.append(_spread_over_series(image_rows(table)))
    chosen: list[ImageRow] = []
    for place in range(n):
        chosen += [queue[place] for queue in queues if place < len(queue)]
    return sorted(chosen[:n], key=lambda row: (row.modality, row.key))


def _spread_over_series(rows: list[ImageRow]) -> list[ImageRow]:
    """Rows that are sorted by key, reordered: the first of every series, then the second of every series, …"""
    seen: defaultdict[str, int] = defaultdict(int)
    ranked = []
    for row in rows:
        ranked.append((seen[row.series], row.key, row))
        seen[row.series] += 1
    return [row for _, _, row in sorted(ranked, key=lambda item: item[:2])]


# ---- stored image → display


def read_images(root: Anywhere, rows: Sequence[ImageRow]) -> list[Pixels]:
    """The stored images of the rows, in their order, by range reads from the shards.

    Raises :class:`DatasetError` when a shard is missing, short, or holds something else at that place.
    """
    with Shards(root) as shards:
        return [_read_image(shards, row) for row in rows]


def _read_image(shards: Shards, row: ImageRow) -> Pixels:
    try:
        return decode(shards.read(row.shard, row.offset, row.length), row.codec)
    except ValueError:
        raise DatasetError(
            f"shards/{row.shard}: no image at byte {row.offset}, where the catalog lists one; build the data set again"
        ) from None


def display_range(row: ImageRow, pixels: Pixels, window: str | None = None) -> Window:
    """The values in the row's unit that are shown black and white; ``window`` matters for HU only.

    ``pixels``: as stored. Raises :class:`UsageError` when there is no such window.
    """
    if window is not None and window not in WINDOWS:
        raise UsageError(f"no window {window!r}; there are {', '.join(WINDOWS)}")
    if row.intensity_unit == "HU":
        return WINDOWS[window or DEFAULT_WINDOW]
    if row.intensity_unit in ("display", "P-value"):
        white = float(np.iinfo(pixels.dtype).max)
        return Window(row.store_intercept, row.store_slope * white + row.store_intercept)
    if row.p01 < row.p99:
        return Window(row.p01, row.p99)
    ends = sorted(row.store_slope * float(value) + row.store_intercept for value in (pixels.min(), pixels.max()))
    return Window(ends[0], ends[1])


def to_display(row: ImageRow, pixels: Pixels, window: str | None = None) -> RGB:
    """A stored image as it is shown, in its own size: ``uint8 [rows, columns, 3]``.

    ``pixels``: ``uint8 | uint16 [rows, columns]`` or ``uint8 [rows, columns, 3]``, as stored.
    """
    shown = display_range(row, pixels, window)
    if pixels.ndim == 3:
        return pixels.astype(np.uint8)
    # one table entry a stored value: exact, and quicker than arithmetic on the image
    stored = np.arange(int(np.iinfo(pixels.dtype).max) + 1, dtype=np.float64)
    span = shown.high - shown.low
    share = (row.store_slope * stored + row.store_intercept - shown.low) / (span if span > 0 else 1.0)
    table = np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)
    return np.repeat(table[pixels][..., None], 3, axis=2)


def thumbnail(row: ImageRow, pixels: Pixels, size: int, window: str | None = None) -> RGB:
    """A stored image as it is shown, its long side ``size`` pixels (tiny images are enlarged four times at most).

    Pixels that are not square in mm are shown in their true proportions. Returns ``uint8 [rows, columns, 3]``.
    """
    shown = to_display(row, pixels, window)
    height, width = float(shown.shape[0]), float(shown.shape[1])
    if row.pixel_spacing_row and row.pixel_spacing_column:
        # beyond 4:1 a spacing is an error more likely than a shape
        height *= min(4.0, max(0.25, row.pixel_spacing_row / row.pixel_spacing_column))
    scale = min(size / max(height, width), 4.0)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cast(RGB, cv2.resize(shown, target, interpolation=method))


# ---- contact sheet

PAGE, CELL, TITLE, DETAIL = (18, 18, 20), (30, 31, 34), (232, 233, 237), (150, 154, 163)
MARGIN, GAP, LINE, FONT_SCALE = 16, 12, 15, 0.4


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture of a contact sheet: ``image`` ``uint8 [rows, columns, 3]``, and the two lines under it."""

    image: RGB
    title: str
    detail: str


def make_tile(row: ImageRow, pixels: Pixels, size: int, window: str | None = None) -> Tile:
    """The tile of a sample: its thumbnail; modality and body part; stored size and beginning of the key."""
    return Tile(
        thumbnail(row, pixels, size, window),
        f"{row.modality}  {row.body_part or '-'}",
        f"{row.width}x{row.height}  {row.key[:8]}",
    )


def contact_sheet(tiles: Sequence[Tile], columns: int | None = None) -> RGB:
    """Tiles in rows on a dark, neutral ground, each centred over its caption: ``uint8 [rows, columns, 3]``.

    ``columns``: tiles in a row; by default six, or as many as there are when they are fewer. No tiles: ``ValueError``.
    """
    if not tiles:
        raise ValueError("a contact sheet needs a tile")
    across = min(columns or 6, len(tiles))
    down = -(-len(tiles) // across)
    cell_height = max(tile.image.shape[0] for tile in tiles)
    cell_width = max(max(tile.image.shape[1] for tile in tiles), 96)
    step_y, step_x = cell_height + 2 * LINE + 8 + GAP, cell_width + GAP
    sheet = np.empty((2 * MARGIN + down * step_y - GAP, 2 * MARGIN + across * step_x - GAP, 3), np.uint8)
    sheet[:] = PAGE
    for number, tile in enumerate(tiles):
        top = MARGIN + number // across * step_y
        left = MARGIN + number % across * step_x
        sheet[top : top + cell_height, left : left + cell_width] = CELL
        height, width = tile.image.shape[:2]
        y, x = top + (cell_height - height) // 2, left + (cell_width - width) // 2
        sheet[y : y + height, x : x + width] = tile.image
        _write(sheet, tile.title, left, top + cell_height + LINE, cell_width, TITLE)
        _write(sheet, tile.detail, left, top + cell_height + 2 * LINE, cell_width, DETAIL)
    return sheet


def _write(sheet: RGB, line: str, left: int, baseline: int, width: int, colour: tuple[int, int, int]) -> None:
    """One line of text, cut where the cell ends; OpenCV's fonts hold ASCII only."""
    line = line.encode("ascii", "replace").decode()
    while len(line) > 1 and cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, 1)[0][0] > width:
        line = line[:-1]
    cv2.putText(sheet, line, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, colour, 1, cv2.LINE_AA)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A contact sheet that was written: its file, the picture, what it shows of how many samples."""

    path: Path
    picture: RGB = field(repr=False)
    rows: tuple[ImageRow, ...]
    samples: int

    @property
    def width(self) -> int:
        """Columns of the picture, in pixels."""
        return int(self.picture.shape[1])

    @property
    def height(self) -> int:
        """Rows of the picture, in pixels."""
        return int(self.picture.shape[0])


def show(
    root: Anywhere, out: Path, where: str | None = None, *, n: int = 24, window: str | None = None, size: int = 192
) -> Sheet:
    """Write the contact sheet of at most ``n`` samples that meet ``where`` to the PNG file ``out``.

    ``window``: one of :data:`WINDOWS`, for images in HU; ``size``: long side of a tile in pixels. Raises
    :class:`UsageError`, with the reason, when no sample meets ``where``.

    >>> sheet = show(DATASET, FOLDER / "lungs.png", "body_part = 'CHEST'", n=4, window="lung")
    >>> len(sheet.rows), sheet.samples
    (4, 8)
    """
    rows = choose_rows(root, where, n)
    if not rows:
        raise UsageError("nothing to show: " + "; ".join(why_empty(root, where)))
    images = read_images(root, rows)
    sheet = contact_sheet([make_tile(row, pixels, size, window) for row, pixels in zip(rows, images, strict=True)])
    write_picture(out, sheet)
    return Sheet(out, sheet, tuple(rows), count_samples(root, where))


def write_picture(out: Path, picture: RGB) -> None:
    """Write a picture as a PNG file, whole or not at all."""
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; --out must be a PNG file")
    with storage_errors(out), atomic_file(out) as file:
        file.write(encode(picture, "png"))
