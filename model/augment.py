"""From a batch of stored 16-bit images to the encoder's input, on the device, in one pass.

Intensities become [0, 1] by a window (CT: in HU, drawn at random in training; the rest: from the 1st to the 99th
percentile of the image, or the whole range of 8 bits), then [-1, 1]. Crop, resize and flip are one resampling: two small
matrices an image, which average what they shrink, so that fine structure does not turn into moiré.
Every random number comes with the sample, so what a sample looks like does not depend on batch, rank or restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lumid.model.stream import Batch

EVAL_WINDOW_HU = (-1000.0, 1000.0)
LOW_HU = (-1024.0, -200.0)
HIGH_HU = (300.0, 1500.0)
PAPER_WINDOW_HU = (-1024.0, 3072.0)
PAPER_MAX_SUV = 25.5
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of each image as fractions of its rows and columns, ``float32 [batch]`` each, and whether to flip.

    ``size``: rows and columns of the images, ``[batch, 2]``.
    """

    size: Tensor
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
    crop = random_crop(batch.size.to(device, non_blocking=True), draws, scale)
    return transform(_stored(batch, device), low, high, crop, image_size, linear).mul_(2).sub_(1)


def evaluation_input(batch: Batch, image_size: int, device: torch.device, *, bicubic: bool = False) -> Tensor:
    """Images without anything random: the largest centred square, resized. Shape and range as in training."""
    low, high = _window(batch, device, None)
    crop = centre_crop(batch.size.to(device, non_blocking=True))
    kernel = cubic if bicubic else linear
    return transform(_stored(batch, device), low, high, crop, image_size, kernel).mul_(2).sub_(1)


def paper_input(
    batch: Batch,
    image_size: int,
    device: torch.device,
    *,
    training: bool = True,
    scale: tuple[float, float] = (0.2, 1.0),
) -> Tensor:
    """The paper's input, ``float32 [batch, 3, image_size, image_size]``: images of 8 bits as three equal channels (colour as
    it is), cropped at random to whole pixels, resized bicubically to 8 bits again, flipped, normalised with ImageNet's
    mean and standard deviation.

    CT is (HU + 1024) / 4096 × 255, SUVbw 10 × SUV, the rest the whole range of its bits; without ``training`` the crop is
    the largest centred square. Values are those of Pillow's resizing to one grey level of 255, to
    two where halves are rounded.
    """
    size = batch.size.to(device, non_blocking=True)
    draws = batch.draws.to(device, non_blocking=True)
    crop = whole_pixels(random_crop(size, draws, scale) if training else centre_crop(size))
    low, high = _paper_window(batch, device)
    stored, shape = _stored(batch, device), (-1, 1, 1, 1)
    grey = ((stored - low.view(shape)) / (high - low).view(shape)).clamp_(0, 1).mul_(255).round_()
    zero, white = torch.zeros_like(low), torch.full_like(high, 255)
    resized = transform(grey, zero, white, crop, image_size, cubic, eight_bits=True)
    resized = resized.mul_(255).round_().div_(255).expand(-1, 3, -1, -1)
    mean, deviation = (torch.tensor(of, device=device).view(1, 3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized - mean) / deviation


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
    return Crop(size, draws[:, 2] * (1 - height), draws[:, 3] * (1 - width), height, width, draws[:, 4] < 0.5)


def centre_crop(size: Tensor) -> Crop:
    """The largest centred square of each image."""
    rows, columns = size[:, 0].float(), size[:, 1].float()
    side = torch.minimum(rows, columns)
    height, width = side / rows, side / columns
    return Crop(size, (1 - height) / 2, (1 - width) / 2, height, width, torch.zeros_like(rows, dtype=torch.bool))


def whole_pixels(crop: Crop) -> Crop:
    """The crop with its edges on the edges of pixels, at least one pixel wide and high."""
    rows, columns = crop.size[:, 0].float(), crop.size[:, 1].float()
    height = torch.minimum((crop.height * rows).round().clamp(min=1), rows)
    width = torch.minimum((crop.width * columns).round().clamp(min=1), columns)
    top = torch.minimum((crop.top * rows).round(), rows - height)
    left = torch.minimum((crop.left * columns).round(), columns - width)
    return Crop(crop.size, top / rows, left / columns, height / rows, width / columns, crop.flip)


def transform(
    stored: Tensor,
    low: Tensor,
    high: Tensor,
    crop: Crop,
    image_size: int,
    kernel: Kernel,
    *,
    eight_bits: bool = False,
) -> Tensor:
    """Window, crop, resize and flip: ``float32 [batch, channels, image_size, image_size]`` in [0, 1].

    ``stored``: ``float32 [batch, channels, canvas, canvas]``; ``low``, ``high``: what becomes 0 and 1, ``[batch]``.
    Of an image's pixels only those are looked at that are in it; the canvas beyond an image never shines in. With
    ``eight_bits`` it is as Pillow does it: only pixels of the crop count, and what a pass along the rows gives is
    rounded to 255 levels before the pass along the columns.
    """
    shape = (-1, 1, 1, 1)
    scale = 1 / (high - low)
    windowed = (stored * scale.view(shape) - (low * scale).view(shape)).clamp_(0, 1)
    canvas = stored.shape[-1]
    never = torch.zeros_like(crop.flip)
    rows = resampling(crop.top, crop.height, crop.size[:, 0], canvas, image_size, kernel, never, eight_bits)
    columns = resampling(crop.left, crop.width, crop.size[:, 1], canvas, image_size, kernel, crop.flip, eight_bits)
    with torch.autocast(stored.device.type, enabled=False):  # 8 bits of mantissa are too few for an image
        if not eight_bits:
            return (rows[:, None] @ windowed @ columns[:, None].mT).clamp_(0, 1)
        along_rows = (windowed @ columns[:, None].mT).clamp_(0, 1).mul_(255).round_().div_(255)
        return (rows[:, None] @ along_rows).clamp_(0, 1)


def resampling(
    start: Tensor,
    extent: Tensor,
    size: Tensor,
    canvas: int,
    image_size: int,
    kernel: Kernel,
    flip: Tensor,
    inside_crop: bool,
) -> Tensor:
    """The matrix that takes one side of an image to the encoder's: ``float32 [batch, image_size, canvas]``, rows sum to 1.

    ``start``, ``extent``: of the crop, as fractions of ``size``, the pixels of that side; ``flip``: from the far end. When
    shrinking, the kernel is stretched to cover what becomes one pixel, as Pillow's ``resize`` does.
    """
    size = size.float()
    start, extent = start * size, extent * size
    step = extent / image_size
    stretch = step.clamp(min=1)
    places = torch.arange(image_size, device=start.device, dtype=torch.float32)
    places = torch.where(flip[:, None], image_size - 1 - places[None], places[None])
    centre = start[:, None] + (places + 0.5) * step[:, None]
    pixel = torch.arange(canvas, device=start.device, dtype=torch.float32)[None, None] + 0.5
    weights = kernel((pixel - centre[:, :, None]) / stretch[:, None, None])
    first, last = (start, start + extent) if inside_crop else (torch.zeros_like(size), size)
    weights = weights * ((pixel > first[:, None, None]) & (pixel < last[:, None, None]))
    return weights / weights.sum(-1, keepdim=True)


def linear(distance: Tensor) -> Tensor:
    """The triangle: bilinear interpolation."""
    return (1 - distance.abs()).clamp_(min=0)


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution (1981) with a = -0.5, which Pillow calls bicubic."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _stored(batch: Batch, device: torch.device) -> Tensor:
    """The stored values, ``float32 [batch, channels, canvas, canvas]``; 16 bits travel."""
    pixels = batch.pixels.to(device, non_blocking=True)
    # int16 holds the bits of uint16: & 0xFFFF undoes the sign
    return (pixels.to(torch.int32) & 0xFFFF).float()


def _paper_window(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """The stored values that are 0 and 255 in the paper's images, ``float32 [batch]`` each."""
    slope, intercept = batch.slope.to(device), batch.intercept.to(device)
    hounsfield, suv, white = batch.hounsfield.to(device), batch.suv.to(device), batch.white.to(device)
    low = torch.where(hounsfield, (PAPER_WINDOW_HU[0] - intercept) / slope, torch.zeros_like(white))
    high = torch.where(suv, (PAPER_MAX_SUV - intercept) / slope, white)
    return low, torch.where(hounsfield, (PAPER_WINDOW_HU[1] - intercept) / slope, high)


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
