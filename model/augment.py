"""From a batch of stored 16-bit images to the encoder's input, on the device, in one pass.

Intensities become [0, 1] by a window (CT: in HU, drawn at random in training; the rest: from the 1st to the 99th
percentile of the image, or the whole range of 8 bits), then [-1, 1]. Crop, resize and flip are one resampling.
Every random number comes with the sample, so what a sample looks like does not depend on batch, rank or restart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lumid.model.stream import Batch

EVAL_WINDOW_HU = (-1000.0, 1000.0)
LOW_HU = (-1024.0, -200.0)
HIGH_HU = (300.0, 1500.0)
OVERSAMPLE = 2
"""Samples a side that are averaged to one pixel: keeps fine structure from turning into moiré when shrinking."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of each image as fractions of its rows and columns, ``float32 [batch]`` each, and whether to flip."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


def training_input(
    batch: Batch, image_size: int, device: torch.device, *, scale: tuple[float, float] = (0.2, 1.0)
) -> Tensor:
    """Augmented images, ``float32 [batch, channels, image_size, image_size]`` in [-1, 1]."""
    draws = batch.draws.to(device, non_blocking=True)
    low, high = _window(batch, device, draws)
    return _resample(batch, low, high, random_crop(batch.size.to(device), draws, scale), image_size, device)


def evaluation_input(batch: Batch, image_size: int, device: torch.device) -> Tensor:
    """Images without anything random: the largest centred square, resized. Shape and range as in training."""
    low, high = _window(batch, device, None)
    return _resample(batch, low, high, centre_crop(batch.size.to(device)), image_size, device)


def random_crop(size: Tensor, draws: Tensor, scale: tuple[float, float]) -> Crop:
    """A crop of random area (``scale`` of the image) and aspect (3/4 to 4/3), and a flip for every other sample.

    ``size``: ``[batch, 2]`` rows and columns; ``draws``: ``[batch, 8]`` uniform numbers, of which five are used.
    The method is RandomResizedCrop's (Szegedy et al. 2015); a side that would stick out is cut to the image's.
    """
    rows, columns = size[:, 0].float(), size[:, 1].float()
    area = (scale[0] + draws[:, 0] * (scale[1] - scale[0])) * rows * columns
    aspect = torch.exp((draws[:, 1] * 2 - 1) * torch.log(torch.tensor(4 / 3, device=draws.device)))
    height = torch.minimum((area / aspect).sqrt(), rows) / rows
    width = torch.minimum((area * aspect).sqrt(), columns) / columns
    return Crop(draws[:, 2] * (1 - height), draws[:, 3] * (1 - width), height, width, draws[:, 4] < 0.5)


def centre_crop(size: Tensor) -> Crop:
    """The largest centred square of each image."""
    rows, columns = size[:, 0].float(), size[:, 1].float()
    side = torch.minimum(rows, columns)
    height, width = side / rows, side / columns
    return Crop((1 - height) / 2, (1 - width) / 2, height, width, torch.zeros_like(rows, dtype=torch.bool))


def _window(batch: Batch, device: torch.device, draws: Tensor | None) -> tuple[Tensor, Tensor]:
    """The stored values that become black and white, ``float32 [batch]`` each."""
    slope, intercept = batch.slope.to(device), batch.intercept.to(device)
    low, high, white = batch.low.to(device), batch.high.to(device), batch.white.to(device)
    if draws is None:
        low_hu = torch.full_like(low, EVAL_WINDOW_HU[0])
        high_hu = torch.full_like(low, EVAL_WINDOW_HU[1])
    else:
        low_hu = LOW_HU[0] + draws[:, 5] * (LOW_HU[1] - LOW_HU[0])
        high_hu = HIGH_HU[0] + draws[:, 6] * (HIGH_HU[1] - HIGH_HU[0])
        jitter = (draws[:, 7] - 0.5) * 0.2 * (high - low)  # brightness, a tenth of the range either way
        low, high = low + jitter, high + jitter
    whole = (white <= 255) | (high - low < 1)
    low = torch.where(whole, torch.zeros_like(low), low)
    high = torch.where(whole, white, high)
    hounsfield = batch.hounsfield.to(device)
    return torch.where(hounsfield, (low_hu - intercept) / slope, low), torch.where(
        hounsfield, (high_hu - intercept) / slope, high
    )


def _resample(batch: Batch, low: Tensor, high: Tensor, crop: Crop, image_size: int, device: torch.device) -> Tensor:
    pixels = batch.pixels.to(device, non_blocking=True)
    # int16 holds the bits of uint16: & 0xFFFF undoes the sign
    values = (pixels.to(torch.int32) & 0xFFFF).float()
    shape = (-1, 1, 1, 1)
    values = ((values - low.view(shape)) / (high - low).view(shape)).clamp_(0, 1).mul_(2).sub_(1)
    canvas = pixels.shape[-1]
    size = batch.size.to(device).float()
    steps = (torch.arange(image_size * OVERSAMPLE, device=device, dtype=torch.float32) + 0.5) / (
        image_size * OVERSAMPLE
    )
    across = torch.where(crop.flip[:, None], 1 - steps[None], steps[None].expand(len(crop.flip), -1))
    # pixel coordinates inside the image, kept half a pixel off its edge so that padding never shines in
    y = ((crop.top[:, None] + steps[None] * crop.height[:, None]) * size[:, :1]).clamp(min=0.5)
    x = ((crop.left[:, None] + across * crop.width[:, None]) * size[:, 1:]).clamp(min=0.5)
    y, x = torch.minimum(y, size[:, :1] - 0.5), torch.minimum(x, size[:, 1:] - 0.5)
    side = image_size * OVERSAMPLE
    columns = (x * 2 / canvas - 1)[:, None, :].expand(-1, side, -1)
    rows = (y * 2 / canvas - 1)[:, :, None].expand(-1, -1, side)
    grid = torch.stack([columns, rows], dim=-1)
    sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, OVERSAMPLE)
