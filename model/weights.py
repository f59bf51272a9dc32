"""Weights in a folder: an encoder as timm has it, and where there is one, the whole auto-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lumid.catalog.errors import UsageError
from lumid.catalog.json_files import read_json
from lumid.model.mae import SHAPES, MaskedAutoencoder
from lumid.model.recipe import ModelSettings

ENCODER, WHOLE, CONFIG, CARD = "encoder.safetensors", "mae.safetensors", "config.json", "README.md"
TIMM_NAMES = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "base": "vit_base_patch16_224", "large": "vit_large_patch16_224", "huge": "vit_huge_patch14_224"}  # fmt: skip


def timm_arguments(settings: ModelSettings) -> dict[str, Any]:
    """What ``timm.create_model`` must be called with to get the encoder: name and keyword arguments."""
    shape = SHAPES[settings.size]
    return {
        "model_name": TIMM_NAMES[settings.size],
        "img_size": settings.image_size,
        "patch_size": settings.patch_size,
        "in_chans": settings.in_chans,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "num_classes": 0,
    }


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a state dict as safetensors."""
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path, {"format": "pt"})


def load_mae(folder: Path, model: MaskedAutoencoder) -> None:
    """Put a folder's weights into a model: the whole auto-encoder, or its encoder where there is no more.

    Raises :class:`UsageError` when the folder holds none, or those of another shape.
    """
    whole, encoder = folder / WHOLE, folder / ENCODER
    target: nn.Module = model if whole.is_file() else model.encoder
    path = whole if whole.is_file() else encoder
    if not path.is_file():
        raise UsageError(f"{folder}: no weights here; give a folder that `lumid convert` or `lumid export` wrote")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        raise UsageError(f"{path}: damaged; write it again") from None
    own = target.state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if wrong or len(tensors) != len(own):
        raise UsageError(f"{path}: of another shape than the recipe's [model] ({_differs(wrong, tensors, own)})")
    target.load_state_dict(tensors, strict=True)


def read_config(folder: Path) -> dict[str, object]:
    """``config.json`` of a folder of weights: ``timm`` arguments, ``mean`` and ``std`` of its input."""
    return read_json(folder / CONFIG, "write the folder again with `lumid convert` or `lumid export`")


def _differs(wrong: list[str], tensors: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    if not wrong:
        return f"{len(tensors)} tensors instead of {len(own)}"
    name = wrong[0]
    return f"{name}: {list(tensors[name].shape) if name in tensors else 'missing'} instead of {list(own[name].shape)}"
