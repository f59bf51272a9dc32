"""How much work a training step is, counted from the shapes, and how much a device can do: model FLOPs utilisation.

A multiply-add is two operations. Counted are matrix products, attention included, of one forward and one backward pass;
what activation checkpointing computes a second time is not the model's work (Chowdhery et al., PaLM, 2022, appendix B).
"""

from __future__ import annotations

from lumid.model.mae import MaskedAutoencoder

PEAK_TFLOPS = {
    "B200": 2250.0, "B100": 1750.0, "H200": 989.4, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "H800": 989.4,
    "A100": 312.0, "A800": 312.0, "A40": 149.7, "A30": 165.0, "A10G": 70.0, "A10": 125.0, "L40S": 362.0, "L40": 181.0,
    "L4": 121.0, "RTX 6000 Ada": 364.2, "RTX A6000": 154.8, "RTX 4090": 165.2, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bfloat16 products with float32 sums, 10¹² operations a second, from the makers' data sheets; the first name that a
device's name contains counts."""


def block_flops(tokens: int, width: int) -> int:
    """Forward pass of a transformer block with an MLP of four times the width, one image."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def embedding_flops(model: MaskedAutoencoder) -> int:
    """Forward pass of the patch embedding of the visible patches, one image."""
    return 2 * model.visible * model.patch_size**2 * model.in_chans * model.shape.width


def forward_flops(model: MaskedAutoencoder) -> int:
    """Forward pass of one image through encoder (visible patches) and decoder (all)."""
    shape, seen, everything = model.shape, 1 + model.visible, 1 + model.patches
    encoder = embedding_flops(model) + shape.depth * block_flops(seen, shape.width)
    between = 2 * seen * shape.width * shape.decoder_width
    head = 2 * model.patches * shape.decoder_width * model.patch_size**2 * model.in_chans
    return encoder + between + shape.decoder_depth * block_flops(everything, shape.decoder_width) + head


def training_flops(model: MaskedAutoencoder) -> int:
    """Forward and backward pass of one image. Backward is twice the forward: gradients of inputs and of weights; the
    embedding's input is pixels, which need none."""
    return 3 * forward_flops(model) - embedding_flops(model)


def peak_flops(device_name: str) -> float | None:
    """Operations a second of a device, by its name; None for one that is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989400000000000.0
    """
    return next((tera * 1e12 for name, tera in PEAK_TFLOPS.items() if name in device_name), None)
