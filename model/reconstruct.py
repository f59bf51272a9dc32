"""The figure of the paper: original, masked, reconstruction, and reconstruction with the visible patches put back; and how
close the last comes to the first, over images of held-out patients.

Where a model was trained on normalised patches, its decoder says how the pixels of a patch differ, not how bright it is:
mean and deviation of every patch are then the original's. The baseline knows as much and no more: it fills every hidden
patch with its own mean, or, where the decoder predicts pixels, with the mean of what is visible.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.layout import atomic_file, storage_errors, write_text
from lumid.catalog.places import Anywhere, identity
from lumid.catalog.query import run_sql, text, where_clause
from lumid.catalog.schema import MODALITIES
from lumid.model.feed import as_shown, mask_noise, once, plain_input
from lumid.model.mae import MaskedAutoencoder
from lumid.model.metrics import psnr, ssim
from lumid.model.runs import read_run
from lumid.model.stream import Selection, select

TITLES = ("original", "masked", "reconstruction", "with visible patches")
PANEL, GAP, MARGIN, HEAD = 224, 8, 150, 40
BACKGROUND, INK, FAINT = (24, 24, 27), (236, 236, 240), (150, 150, 160)
HIDDEN_GREY = -0.6
SCORES = "reconstruction.json"
IMAGES = 64
"""Images of a modality that are scored, of those trained on and of the others each."""
BATCH = 16
CPU = torch.device("cpu")
RANGE = 2.0
"""Of the values of an image, from -1 to 1."""


class Seen(StrEnum):
    """What a run knew of an image."""

    TRAINED = "trained on"
    HELD_OUT = "held out"
    NEITHER = "not trained on"


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One image. Panels are ``float32 [channels, size, size]`` in [-1, 1]; PSNR (dB) and SSIM compare the last panel with
    the first, ``hidden_psnr`` their hidden pixels alone, ``baseline_psnr`` the baseline with the first."""

    modality: str
    key: str
    seen: Seen
    panels: tuple[Tensor, Tensor, Tensor, Tensor]
    psnr: float
    ssim: float
    hidden_psnr: float
    baseline_psnr: float


@dataclass(frozen=True, slots=True)
class Score:
    """Mean and standard deviation over the images of a modality that a run saw or did not; PSNR in dB."""

    modality: str
    seen: str
    images: int
    psnr_db: float
    psnr_db_sd: float
    ssim: float
    ssim_sd: float
    hidden_psnr_db: float
    baseline_psnr_db: float


@dataclass(frozen=True, slots=True)
class Figure:
    """Where the figure and the scores are, and what they say."""

    path: Path
    scores_path: Path
    rows: tuple[Reconstruction, ...]
    scores: tuple[Score, ...]


def reconstruct(
    run: Path,
    data: Anywhere,
    out: Path,
    where: str | None = None,
    *,
    images: int = IMAGES,
    report: Callable[[int, int], None] | None = None,
) -> Figure:
    """Draw two images a modality into the PNG ``out``, one that the run was trained on and one that it was not, and score
    up to ``images`` of each kind; the scores go into ``reconstruction.json`` of the run.

    ``where`` leaves only the samples that meet a SQL condition; ``report``: images done, of how many. Raises
    :class:`~lumid.catalog.errors.LumidError` when there is no checkpoint or no such sample.
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
    selection, seen, shown = choose(data, where, recipe.data.where if own else None, images)
    shown_as = partial(as_shown, recipe=recipe)
    found: list[Reconstruction] = []
    for batch, counted in once(selection, recipe, min(BATCH, len(selection))):
        readable = [place for place in range(counted) if batch.valid[place]]
        keys = [batch.keys[place] for place in readable]
        images_of = plain_input(batch, recipe, CPU)[readable]
        found += _rows(model, keys, batch.modality[readable], images_of, seen, shown_as) if readable else []
        if report is not None:
            report(len(found), len(selection))
    found.sort(key=lambda row: (MODALITIES.index(row.modality), row.seen is not Seen.TRAINED))
    rows = [row for row in found if row.key in shown]
    if not rows:
        raise DatasetError(f"{data}: none of the images to show could be read; see `lumid verify {data}`")
    scores = score(found)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            file.write(_png(draw(rows)))
        known = {"data_catalog_hash": given, "step": state.step, "where": where}
        facts = known | {"patch_statistics_of_the_original": model.normalize_target}
        modalities = [asdict(one) for one in scores]
        write_text(run / SCORES, json.dumps(facts | {"modalities": modalities}, indent=1) + "\n")
    return Figure(out, run / SCORES, tuple(rows), tuple(scores))


def choose(
    data: Anywhere, where: str | None, trained_on: str | None, images: int
) -> tuple[Selection, dict[str, Seen], frozenset[str]]:
    """Samples of every modality: up to ``images`` of those that ``trained_on`` names, and as many of the others, of
    held-out patients if there are any.

    Returns them, what the run knew of each, by key, and the keys of the two a modality that are shown: the largest,
    neither empty nor full, then by key. ``trained_on`` is None for a data set that the run never saw.
    """
    rows = run_sql(
        data,
        f"""WITH all_of_them AS (SELECT *, coalesce(({trained_on or "false"}\n), false) AS trained,
                 split IN ('val', 'test') AS held_out FROM catalog{where_clause(where)}),
            ranked AS (SELECT key, trained, held_out,
                row_number() OVER (PARTITION BY modality, trained ORDER BY held_out DESC, key) AS place,
                row_number() OVER (PARTITION BY modality, trained ORDER BY held_out DESC,
                    least(width, height, 96) DESC, foreground_fraction BETWEEN 0.2 AND 0.95 DESC, key) AS prominence,
                max(held_out) OVER (PARTITION BY modality, trained) AS any_held_out FROM all_of_them)
        SELECT key, trained, held_out, prominence = 1 AS shown FROM ranked
        WHERE prominence = 1 OR (place <= {int(images)} AND (trained OR held_out = any_held_out))""",
    ).to_pylist()
    seen = {
        row["key"]: Seen.TRAINED if row["trained"] else Seen.HELD_OUT if row["held_out"] else Seen.NEITHER
        for row in rows
    }
    shown = frozenset(row["key"] for row in rows if row["shown"])
    keys = ", ".join(text(key) for key in seen)
    return select(data, f"key IN ({keys})" if keys else where), seen, shown


def score(rows: Sequence[Reconstruction]) -> list[Score]:
    """Means by modality and by what the run knew, in the order of the rows."""
    groups: dict[tuple[str, Seen], list[Reconstruction]] = {}
    for row in rows:
        groups.setdefault((row.modality, row.seen), []).append(row)
    return [
        Score(
            modality, seen.value, len(group),
            *_mean_and_deviation([row.psnr for row in group]), *_mean_and_deviation([row.ssim for row in group]),
            _mean_and_deviation([row.hidden_psnr for row in group])[0],
            _mean_and_deviation([row.baseline_psnr for row in group])[0],
        )
        for (modality, seen), group in groups.items()
    ]  # fmt: skip


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Of those that are finite: an image of one grey is reconstructed exactly, and has no PSNR."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 0.0
    return statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else 0.0


@torch.no_grad()
def _rows(
    model: MaskedAutoencoder,
    keys: Sequence[str],
    modality: Tensor,
    images: Tensor,
    seen: dict[str, Seen],
    shown: Callable[[Tensor], Tensor] = lambda images: images,
) -> list[Reconstruction]:
    # what is hidden of an image is a function of its key: the same in every figure of it
    noise = torch.cat([mask_noise(int(key[:8], 16), 0, range(1), model.patches) for key in keys])
    output = model(images, noise)
    predicted, patches = output.predicted, model.patchify(images)
    mean = patches.mean(-1, keepdim=True)
    if model.normalize_target:
        predicted = predicted * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + mean
    else:
        seen_pixels = (~output.mask)[..., None]
        mean = (patches * seen_pixels).sum((1, 2), keepdim=True) / (
            seen_pixels.sum(1, keepdim=True) * patches.shape[-1]
        )
    hidden = model.unpatchify(output.mask[..., None].expand_as(predicted).float()) > 0
    images, painted = shown(images), shown(model.unpatchify(predicted)).clamp(-1, 1)
    masked = torch.where(hidden, torch.full_like(images, HIDDEN_GREY), images)
    filled = torch.where(hidden, painted, images)
    plain = torch.where(hidden, shown(model.unpatchify(mean.expand_as(predicted))), images)
    return [
        Reconstruction(
            MODALITIES[int(modality[place])],
            key,
            seen[key],
            (images[place], masked[place], painted[place], filled[place]),
            psnr(filled[place], images[place], RANGE),
            ssim(filled[place].mean(0), images[place].mean(0), RANGE),
            psnr(painted[place][hidden[place]], images[place][hidden[place]], RANGE),
            psnr(plain[place], images[place], RANGE),
        )
        for place, key in enumerate(keys)
    ]


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    good, buffer = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert good, "an image in memory can be encoded"
    return buffer.tobytes()


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
