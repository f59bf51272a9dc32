"""The figure of the paper: original, masked, reconstruction, and reconstruction with the visible patches put back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lumid.catalog.layout import write_text
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import MODALITIES
from lumid.model.augment import evaluation_input
from lumid.model.mae import MaskedAutoencoder
from lumid.model.metrics import psnr, ssim
from lumid.model.pretrain import mask_noise, read_run
from lumid.model.stream import COLUMNS, Batch, ImageStream, Selection, StreamSettings

TITLES = ("original", "masked", "reconstruction", "with visible patches")
PANEL, GAP, MARGIN, HEAD = 224, 8, 150, 40
BACKGROUND, INK, FAINT = (24, 24, 27), (236, 236, 240), (150, 150, 160)
HIDDEN_GREY = -0.6


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One row of the figure. Panels are ``float32 [channels, size, size]`` in [-1, 1]; PSNR (dB) and SSIM compare the
    last panel with the first."""

    modality: str
    key: str
    held_out: bool
    panels: tuple[Tensor, Tensor, Tensor, Tensor]
    psnr: float
    ssim: float


@dataclass(frozen=True, slots=True)
class Figure:
    """Where the figure is, and what it shows."""

    path: Path
    rows: tuple[Reconstruction, ...]


def reconstruct(run: Path, data: Path, out: Path) -> Figure:
    """Draw one image a modality, of held-out patients where there are any, into the PNG ``out``."""
    model, recipe, _ = read_run(run)
    model.eval()
    selection, held_out = choose(data)
    settings = StreamSettings(len(selection), recipe.model.in_chans, recipe.data.canvas, threads=recipe.data.threads)
    stream = ImageStream(selection, settings)
    batches = iter(stream)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    stream.close()
    rows = _rows(model, batch, evaluation_input(batch, recipe.model.image_size, torch.device("cpu")), held_out)
    image = draw(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{out} could not be written")
    lines = [
        f"{row.modality}\t{row.key}\t{'held out' if row.held_out else 'seen in training'}\t{row.psnr:.2f}\t{row.ssim:.4f}"
        for row in rows
    ]
    write_text(out.with_suffix(".tsv"), "modality\tkey\tpatient\tpsnr_db\tssim\n" + "\n".join(lines) + "\n")
    return Figure(out, tuple(rows))


def choose(data: Path) -> tuple[Selection, dict[str, bool]]:
    """One sample a modality: of a held-out patient if there is one, the sharpest-filled and largest, then by key.

    Returns them with whether each is held out, by key.
    """
    table = read_catalog(data, None, [*COLUMNS, "split", "foreground_fraction", "width", "height"])
    rows = table.to_pylist()
    best: dict[str, int] = {}
    for place, row in enumerate(rows):
        if row["modality"] not in best or _rank(row) > _rank(rows[best[row["modality"]]]):
            best[row["modality"]] = place
    places = [best[name] for name in MODALITIES if name in best]
    chosen = table.take(pa.array(places)).sort_by("key")
    held_out = {row["key"]: row["split"] in ("val", "test") for row in chosen.to_pylist()}
    return Selection(data, chosen.select(COLUMNS)), held_out


def _rank(row: dict[str, object]) -> tuple[bool, int, bool]:
    side = min(int(str(row["width"])), int(str(row["height"])))
    return row["split"] in ("val", "test"), min(side, 96), 0.2 < float(str(row["foreground_fraction"])) < 0.95


@torch.no_grad()
def _rows(model: MaskedAutoencoder, batch: Batch, images: Tensor, held_out: dict[str, bool]) -> list[Reconstruction]:
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
        rows.append(Reconstruction(modality, key, held_out[key], panels, psnr(*grey, 2.0), ssim(*grey, 2.0)))
    return sorted(rows, key=lambda row: MODALITIES.index(row.modality))


def draw(rows: list[Reconstruction]) -> npt.NDArray[np.uint8]:
    """The figure, ``uint8 [rows, columns, 3]`` RGB."""
    height = HEAD + len(rows) * (PANEL + GAP) + GAP
    width = MARGIN + 4 * (PANEL + GAP) + GAP
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    for column, title in enumerate(TITLES):
        _write(canvas, title, MARGIN + column * (PANEL + GAP), 26, 0.5, INK)
    for number, row in enumerate(rows):
        top = HEAD + number * (PANEL + GAP)
        for column, panel in enumerate(row.panels):
            left = MARGIN + column * (PANEL + GAP)
            canvas[top : top + PANEL, left : left + PANEL] = _panel(panel)
        middle = top + PANEL // 2
        score = f"{row.psnr:.1f} dB" if math.isfinite(row.psnr) else "exact"
        _write(canvas, row.modality, 16, middle - 22, 0.8, INK)
        _write(canvas, score, 16, middle + 4, 0.45, INK)
        _write(canvas, f"SSIM {row.ssim:.2f}", 16, middle + 24, 0.45, INK)
        _write(canvas, "held out" if row.held_out else "seen in training", 16, middle + 44, 0.4, FAINT)
    return canvas


def _panel(values: Tensor) -> npt.NDArray[np.uint8]:
    shown = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    shown = np.broadcast_to(shown, (*shown.shape[:2], 3))
    return np.asarray(
        cv2.resize(np.ascontiguousarray(shown), (PANEL, PANEL), interpolation=cv2.INTER_NEAREST), np.uint8
    )


def _write(
    canvas: npt.NDArray[np.uint8], text: str, left: int, baseline: int, scale: float, colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
