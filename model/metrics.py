"""How close one image is to another: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor

SSIM_SIGMA = 1.5


def psnr(image: Tensor, reference: Tensor, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images.

    ``image``, ``reference``: of one shape; ``data_range``: greatest possible difference of two values.
    """
    error = float((image.double() - reference.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(image: Tensor, reference: Tensor, data_range: float) -> float:
    """Structural similarity as Wang et al. (2004) define it, by scikit-image: Gaussian window of 11 pixels and σ 1.5,
    K1 0.01, K2 0.03, mean over the places where the window lies inside the image.

    ``image``, ``reference``: ``[rows, columns]``, at least 11 × 11.
    """
    pair = (np.asarray(values.double().cpu()) for values in (image, reference))
    return float(
        structural_similarity(
            *pair, data_range=data_range, gaussian_weights=True, sigma=SSIM_SIGMA, use_sample_covariance=False
        )
    )
