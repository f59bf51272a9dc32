"""A selection as a folder of PNG files, in the layout that ``torchvision.datasets.ImageFolder`` and others read."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from lumid.catalog.codecs import decode, encode
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.extract import Progress, read_samples_of, work_folder
from lumid.catalog.layout import atomic_file, storage_errors
from lumid.catalog.mistakes import no_column
from lumid.catalog.places import Anywhere, Shards, as_place
from lumid.catalog.query import ask, connect, where_clause, why_empty
from lumid.catalog.schema import CATALOG
from lumid.catalog.show import ImageRow, to_display

NOT_STATED = "unstated"
MOST_FOLDERS = 10_000
SAMPLES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder that was written: how many images each folder of a class holds, by its path."""

    root: Path
    images: int
    classes: dict[str, int]


def extract_images(
    where: Anywhere,
    out: Path,
    condition: str | None = None,
    *,
    by: Sequence[str] = ("modality",),
    window: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> ImageFolder:
    """Write the samples that meet a condition as ``out/VALUE/KEY.png``, VALUE being that of the column ``by``.

    More than one column gives folders in folders. Images keep their stored values, 16 bits wide where they are: the
    columns ``store_slope`` and ``store_intercept`` of ``metadata.csv``, which holds a row a file, turn them into units.
    With ``window``, one of :data:`~lumid.catalog.show.WINDOWS`, they are 8 bits wide and as ``lumid show`` shows them.
    Raises :class:`UsageError` when there are no such samples, no such column, or ``out`` holds something.

    >>> extract_images(DATASET, FOLDER / "images", "modality <> 'US'", by=["split", "body_part"]).classes
    {'train/ABDOMEN': 6, 'train/CHEST': 8, 'train/HEAD': 8, 'train/PROSTATE': 5}
    """
    for name in by:
        if name not in CATALOG.names:
            raise UsageError(no_column(name, CATALOG.names))
    place = as_place(where)
    last = "" if limit is None else f" LIMIT {int(limit)}"
    with storage_errors(out), work_folder(out) as work, connect(place) as connection, Shards(place) as shards:
        table = ask(connection, f"SELECT * FROM catalog{where_clause(condition)} ORDER BY key{last}").cast(CATALOG)
        if table.num_rows == 0:
            raise UsageError("nothing to extract: " + "; ".join(why_empty(place, condition) or ("no sample",)))
        classes = _classes(table, by)
        for name in classes:
            (work / name).mkdir(parents=True, exist_ok=True)
        _write_images(shards, table, by, work, window, progress)
    return ImageFolder(out, table.num_rows, classes)


def _classes(table: pa.Table, by: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in table.select(list(by)).to_pylist():
        name = folder_of(row, by)
        counts[name] = counts.get(name, 0) + 1
    if len(counts) > MOST_FOLDERS:
        raise UsageError(
            f"--by {','.join(by)}: gives {len(counts):,} folders, {MOST_FOLDERS:,} at most; take another column"
        )
    return dict(sorted(counts.items()))


def folder_of(row: dict[str, Any], by: Sequence[str]) -> str:
    """The folder of a sample's class, below the root.

    >>> folder_of({"split": "train", "body_part": None}, ["split", "body_part"])
    'train/unstated'
    """
    return "/".join(_safe(row[name]) for name in by)


def _safe(value: Any) -> str:
    """A value as the name of a folder: other values give other names, and none leads elsewhere."""
    if value is None:
        return NOT_STATED
    plain = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    # file systems that do not tell upper from lower case, long names, dots in front, and what is no letter
    safe = re.sub(r"[^\w.+-]", "_", plain)[:80].lstrip(".") or "_"
    return safe if safe == plain and safe != NOT_STATED else f"{safe}-{hashlib.sha256(plain.encode()).hexdigest()[:6]}"


def _write_images(
    shards: Shards, table: pa.Table, by: Sequence[str], work: Path, window: str | None, progress: Progress | None
) -> None:
    def write(row: dict[str, Any], image: bytes) -> None:
        (work / folder_of(row, by) / f"{row['key']}.png").write_bytes(_png(row, image, window))

    done = 0
    with atomic_file(work / "metadata.csv") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        lines = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["file_name", *CATALOG.names])
        for begin in range(0, table.num_rows, SAMPLES_AT_ONCE):
            samples = list(read_samples_of(shards, table.slice(begin, SAMPLES_AT_ONCE)))
            list(pool.map(write, [row for row, _ in samples], [image for _, image in samples]))
            for row, _ in samples:
                cells = ("|".join(value) if isinstance(value, list) else value for value in row.values())
                writer.writerow([f"{folder_of(row, by)}/{row['key']}.png", *cells])
            done += len(samples)
            if progress is not None:
                progress(done, table.num_rows)
        lines.detach()


def _png(row: dict[str, Any], image: bytes, window: str | None) -> bytes:
    if row["codec"] == "png" and window is None:
        return image
    try:
        pixels = decode(image, row["codec"])
    except ValueError:
        raise DatasetError(f"sample {row['key']}: its image cannot be decoded; run `lumid verify --deep`") from None
    if window is None:
        return encode(pixels, "png")
    shown = to_display(ImageRow(**{item.name: row[item.name] for item in fields(ImageRow)}), pixels, window)
    return encode(shown if pixels.ndim == 3 else shown[..., 0], "png")
