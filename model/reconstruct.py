"""The figure of the paper: original, masked, reconstruction, and reconstruction with the visible patches put back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import write_text
from lumid.catalog.places import Anywhere, identity
from lumid.catalog.query import run_sql, text, where_clause
from lumid.catalog.schema import MODALITIES
from lumid.model.augment import evaluation_input
from lumid.model.mae import MaskedAutoencoder
from lumid.model.metrics import psnr, ssim
from lumid.model.pretrain import mask_noise, read_run
from lumid.model.stream import Batch, ImageStream, Selection, StreamSettings, select

TITLES = ("original", "masked", "reconstruction", "with visible patches")
PANEL, GAP, MARGIN, HEAD = 224, 8, 150, 40
BACKGROUND, INK, FAINT = (24, 24, 27), (236, 236, 240), (150, 150, 160)
HIDDEN_GREY = -0.6


class Seen(StrEnum):
    """What a run knew of an image."""

    TRAINED = "trained on"
    HELD_OUT = "held out"
    NEITHER = "not trained on"


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One row of the figure. Panels are ``float32 [channels, size, size]`` in [-1, 1]; PSNR (dB) and SSIM compare the
    last panel with the first."""

    modality: str
    key: str
    seen: Seen
    panels: tuple[Tensor, Tensor, Tensor, Tensor]
    psnr: float
    ssim: float


@dataclass(frozen=True, slots=True)
class Figure:
    """Where the figure is, and what it shows."""

    path: Path
    rows: tuple[Reconstruction, ...]


def reconstruct(run: Path, data: Anywhere, out: Path, where: str | None = None) -> Figure:
    """Draw two images a modality into the PNG ``out``: one that the run was trained on, one that it was not.

    ``where`` leaves only the samples that meet a SQL condition. Raises :class:`~lumid.catalog.errors.LumidError` when
    there is no checkpoint or no such sample.
    """
    model, recipe, state = read_run(run)
    model.eval()
    trained, given = state.catalog_hash, identity(data)
    catalog, _, part = trained.partition(":")
    if given != trained and part and given.partition(":")[0] == catalog:
        raise LumidError(
            f"{run}: was trained on a subset of this data set: give that one as --data, to tell what it has seen"
        )
    own = given.partition(":")[0] == catalog
    selection, seen = choose(data, where, recipe.data.where if own else None)
    settings = StreamSettings(len(selection), recipe.model.in_chans, recipe.data.canvas, threads=recipe.data.threads)
    stream = ImageStream(selection, settings)
    batches = iter(stream)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    stream.close()
    rows = _rows(model, batch, evaluation_input(batch, recipe.model.image_size, torch.device("cpu")), seen)
    image = draw(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f"{out} could not be written")
    lines = [f"{row.modality}\t{row.key}\t{row.seen}\t{row.psnr:.2f}\t{row.ssim:.4f}" for row in rows]
    write_text(out.with_suffix(".tsv"), "modality\tkey\tseen\tpsnr_db\tssim\n" + "\n".join(lines) + "\n")
    return Figure(out, tuple(rows))


def choose(data: Anywhere, where: str | None, trained_on: str | None) -> tuple[Selection, dict[str, Seen]]:
    """Two samples a modality: one of those that ``trained_on`` names, and one of the others, of a held-out patient if
    there is one; the largest, neither empty nor full, then by key.

    Returns them, and what the run knew of each, by key. ``trained_on`` is None for a data set that the run never saw.
    """
    rows = run_sql(
        data,
        f"""WITH all_of_them AS (SELECT *, coalesce(({trained_on or "false"}\n), false) AS trained
                 FROM catalog{where_clause(where)})
        SELECT key, trained, split IN ('val', 'test') AS held_out FROM all_of_them
        QUALIFY row_number() OVER (PARTITION BY modality, trained ORDER BY held_out DESC,
            least(width, height, 96) DESC, foreground_fraction BETWEEN 0.2 AND 0.95 DESC, key) = 1""",
    ).to_pylist()
    keys = ", ".join(text(row["key"]) for row in rows)
    seen = {
        row["key"]: Seen.TRAINED if row["trained"] else Seen.HELD_OUT if row["held_out"] else Seen.NEITHER
        for row in rows
    }
    return select(data, f"key IN ({keys})" if keys else where), seen


@torch.no_grad()
def _rows(model: MaskedAutoencoder, batch: Batch, images: Tensor, seen: dict[str, Seen]) -> list[Reconstruction]:
    noise = mask_noise(0, 0, 0, len(images), model.patches)
    output = model(images, noise)
    predicted = output.predicted
    if model.normalize_target:  # the decoder then predicts each patch up to mean and deviation: take the originals'
        patches = model.patchify(images)
        predicted = predicted * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    painted = model.unpatchify(predicted).clamp(-1, 1)
    hidden = model.unpatchify(output.mask[..., None].expand_as(predicted).float())
    masked = torch.where(hidden > 0, torch.full_like(images, HIDDEN_GREY), images)
    filled = torch.where(hidden > 0, painted, images)
    rows = []
    for place in range(len(images)):
        panels = (images[place], masked[place], painted[place], filled[place])
        grey = filled[place].mean(0), images[place].mean(0)
        key = batch.keys[place]
        modality = MODALITIES[int(batch.modality[place])]
        rows.append(Reconstruction(modality, key, seen[key], panels, psnr(*grey, 2.0), ssim(*grey, 2.0)))
    return sorted(rows, key=lambda row: (MODALITIES.index(row.modality), row.seen is not Seen.TRAINED))


def draw(rows: list[Reconstruction]) -> npt.NDArray[np.uint8]:
    """The figure, ``uint8 [rows, columns, 3]`` RGB; pixels are enlarged by a whole factor."""
    size = rows[0].panels[0].shape[-1]
    enlarge = max(1, PANEL // size)
    panel = size * enlarge
    height = HEAD + len(rows) * (panel + GAP) + GAP
    width = MARGIN + 4 * (panel + GAP) + GAP
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    for column, title in enumerate(TITLES):
        _write(canvas, title, MARGIN + column * (panel + GAP), 26, 0.5, INK)
    for number, row in enumerate(rows):
        top = HEAD + number * (panel + GAP)
        for column, values in enumerate(row.panels):
            left = MARGIN + column * (panel + GAP)
            canvas[top : top + panel, left : left + panel] = _panel(values, enlarge)
        middle = top + panel // 2
        score = f"{row.psnr:.1f} dB" if math.isfinite(row.psnr) else "exact"
        _write(canvas, row.modality, 16, middle - 22, 0.8, INK)
        _write(canvas, score, 16, middle + 4, 0.45, INK)
        _write(canvas, f"SSIM {row.ssim:.2f}", 16, middle + 24, 0.45, INK)
        _write(canvas, row.seen.value, 16, middle + 44, 0.4, FAINT)
    return canvas


def _panel(values: Tensor, enlarge: int) -> npt.NDArray[np.uint8]:
    shown = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.asarray(shown.repeat(enlarge, 0).repeat(enlarge, 1), np.uint8)


def _write(
    canvas: npt.NDArray[np.uint8], text: str, left: int, baseline: int, scale: float, colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
