"""How close one image is to another: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def psnr(image: Tensor, reference: Tensor, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    ``image``, ``reference``: of one shape; ``data_range``: greatest possible difference of two values.
    """
    error = float((image.double() - reference.double()).square().mean())
    return float("inf") if error == 0 else float(10 * torch.log10(torch.tensor(data_range**2 / error)))


def ssim(image: Tensor, reference: Tensor, data_range: float) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels and σ 1.5, K1 0.01, K2 0.03, mean over
    the places where the window lies inside the image.

    ``image``, ``reference``: ``[rows, columns]``, at least 11 × 11.
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum())[None, None]

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(values[None, None], kernel)

    x, y = image.double(), reference.double()
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ratio = (
        (2 * mean_x * mean_y + c1)
        * (2 * covariance + c2)
        / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    )
    return float(ratio.mean())
