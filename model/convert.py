"""Checkpoints of the MAE family (``.pth``, with the names of MAE's own code, which MedMAE's has too) as safetensors.

Only weights are loaded: a file that holds anything else than tensors and plain values is refused, and no code in it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import ValidationError
from torch import Tensor

from lumid.catalog.errors import UsageError
from lumid.catalog.layout import storage_errors, write_text
from lumid.model.mae import SHAPES, Size, sincos_positions
from lumid.model.recipe import ModelSettings
from lumid.model.runs import make_model
from lumid.model.weights import CARD, CONFIG, ENCODER, WHOLE, save_weights, timm_arguments

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD = re.compile(r"(head|fc_norm|head_drop)\.")
DECODER = {
    "mask_token": "mask_token",
    "decoder_pos_embed": "decoder_positions",
    "decoder_pred.weight": "decoder_head.weight",
    "decoder_pred.bias": "decoder_head.bias",
}
"""Names of MAE's decoder that differ from lumid's; ``decoder_embed``, ``decoder_blocks`` and ``decoder_norm`` do not."""
SAME = re.compile(r"decoder_(embed|norm|blocks\.\d+)\.")


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of a file: the folder, its size and the parameters of the encoder; whether the decoder was there too;
    tensors that belong to a task's head and were left out."""

    folder: Path
    size: Size
    encoder_parameters: int
    has_decoder: bool
    left_out: tuple[str, ...]


def convert(source: Path, out: Path) -> Converted:
    """Write ``encoder.safetensors`` (timm's names), ``config.json``, ``README.md`` and, where the decoder is there,
    ``mae.safetensors`` into ``out``.

    Raises :class:`UsageError` when the file is no such checkpoint, or holds more than weights.
    """
    tensors = read_weights(source)
    encoder, decoder, left_out = split(source, tensors)
    settings = infer_settings(source, encoder, decoder)
    arguments = timm_arguments(settings)
    model = timm.create_model(**arguments)
    _check(source, encoder, model.state_dict())
    whole = {f"encoder.{name}": tensor for name, tensor in encoder.items()} | decoder
    if decoder:
        _check(source, whole, make_model(settings).state_dict())
    count = sum(tensor.numel() for tensor in encoder.values())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    config = {
        "timm": arguments,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "model": settings.model_dump(mode="json"),
        "source": {"file": source.name, "sha256": digest},
    }
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        save_weights(out / ENCODER, encoder)
        if decoder:
            save_weights(out / WHOLE, whole)
        write_text(out / CONFIG, json.dumps(config, indent=1) + "\n")
        write_text(out / CARD, _card(source.name, digest, settings, arguments, count))
    return Converted(out, settings.size, count, bool(decoder), left_out)


def read_weights(source: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth`` file, bare or under ``model``, in float32."""
    try:
        # argparse.Namespace: the training options, which such files keep beside the weights; it holds plain values
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols, which are read or refused all the same
            raw: Any = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{source}: no such file") from None
    except pickle.UnpicklingError:
        raise UsageError(
            f"{source}: holds more than weights, and lumid runs no code from a file; save it again as "
            "torch.save({'model': model.state_dict()}, ...) where you trust it"
        ) from None
    except Exception:  # whatever a damaged file makes torch say
        raise UsageError(f"{source}: not a PyTorch checkpoint, or a damaged one") from None
    state = raw.get("model", raw.get("state_dict", raw)) if isinstance(raw, dict) else raw
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{source}: no state dict in it, neither bare nor under 'model'")
    return {name.removeprefix("module."): tensor.float() for name, tensor in state.items()}


def split(source: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Encoder with timm's names, decoder with lumid's, and the names of what belongs to a task's head."""
    encoder: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        if HEAD.match(name):
            left_out.append(name)
        elif name in DECODER:
            decoder[DECODER[name]] = tensor
        elif SAME.match(name):
            decoder[name] = tensor
        else:
            encoder[name] = tensor
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(encoder):
        raise UsageError(f"{source}: not of the MAE family: no class token, positions or patch embedding in it")
    return encoder, decoder, tuple(left_out)


def infer_settings(source: Path, encoder: dict[str, Tensor], decoder: dict[str, Tensor]) -> ModelSettings:
    """The model's shape, from its tensors'."""
    width, channels, patch = encoder["patch_embed.proj.weight"].shape[:3]
    depth = _depth(encoder, "blocks")
    size = next((size for size, shape in SHAPES.items() if (shape.width, shape.depth) == (width, depth)), None)
    if size is None or channels not in (1, 3):
        raise UsageError(
            f"{source}: {depth} blocks of width {width} and {channels} channels are none of "
            + ", ".join(f"{name} ({shape.depth} × {shape.width})" for name, shape in SHAPES.items())
            + ", with 1 or 3 channels"
        )
    positions = encoder["pos_embed"]
    grid = math.isqrt(positions.shape[1] - 1)
    fixed = grid**2 == positions.shape[1] - 1 and torch.allclose(positions, sincos_positions(grid, width), atol=1e-4)
    values: dict[str, Any] = {
        "size": size,
        "image_size": grid * patch,
        "patch_size": patch,
        "in_chans": channels,
        "positions": "sincos" if fixed else "learned",
    }
    if decoder:
        values |= {
            "decoder_width": decoder["mask_token"].shape[-1] if "mask_token" in decoder else 0,
            "decoder_depth": _depth(decoder, "decoder_blocks"),
            "decoder_heads": 16,  # of every released MAE; no tensor's shape tells
        }
    try:
        return ModelSettings.model_validate(values)
    except ValidationError:
        raise UsageError(f"{source}: of a shape that is no MAE's: {_shape(values)}") from None


def _shape(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _depth(tensors: dict[str, Tensor], blocks: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith(f"{blocks}.")), default=-1)


def _check(source: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    wrong = sorted(
        name for name in wanted.keys() | found.keys()
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape
    )  # fmt: skip
    if wrong:
        raise UsageError(f"{source}: not as the MAE family has it: {', '.join(wrong[:3])}{' …' * (len(wrong) > 3)}")


def _card(name: str, digest: str, settings: ModelSettings, arguments: dict[str, object], count: int) -> str:
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if key != "model_name")
    lines = [
        f"# {name}, as a timm encoder",
        "",
        f"ViT, {count / 1e6:.1f} M parameters, converted from `{name}` (SHA-256 `{digest}`). The weights are its authors',",
        "and so is their licence: MAE's and MedMAE's are CC BY-NC 4.0.",
        "",
        "```python",
        "import timm",
        "from safetensors.torch import load_file",
        f"encoder = timm.create_model({arguments['model_name']!r}, {call})",
        'encoder.load_state_dict(load_file("encoder.safetensors"), strict=True)',
        "```",
        "",
        f"Input: {settings.in_chans} × {settings.image_size} × {settings.image_size}, in [0, 1], minus "
        f"{IMAGENET_MEAN}, over {IMAGENET_STD} (ImageNet's, as MAE's and MedMAE's code has it).",
    ]
    return "\n".join(lines) + "\n"
