"""Encoders from anywhere, with the input that each was made for: lumid's runs and exports, MAE's files, timm's models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import urllib3
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from lumid.catalog.errors import UsageError
from lumid.model.augment import IMAGENET_MEAN, IMAGENET_STD
from lumid.model.convert import infer_settings, read_weights, split
from lumid.model.runs import CHECKPOINTS, read_run
from lumid.model.weights import CONFIG, ENCODER, read_config, timm_arguments

RANDOM = "random:"
HUB_TIMEOUT_S = 5.0
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What an encoder wants: ``float32 [batch, channels, size, size]``, of [0, 1] minus ``mean`` over ``std``; ``cubic``:
    resized bicubically, else bilinearly."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cubic: bool


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The data set that an encoder was pre-trained on, and the condition that chose its samples."""

    catalog_hash: str
    where: str


@dataclass(frozen=True, slots=True)
class Encoder:
    """A frozen encoder. ``weights_hash``: of its tensors; ``trained_on``: None where that is not known."""

    name: str
    model: nn.Module = field(repr=False)
    preprocessing: Preprocessing
    weights_hash: str
    trained_on: TrainedOn | None = None
    at_random: bool = False

    @property
    def features(self) -> int:
        """How many numbers an image becomes."""
        return int(self.model.num_features)  # type: ignore[arg-type]

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """``float32 [batch, channels, size, size]`` in [0, 1] → ``float32 [batch, features]``: pooled as the model's own head
        has it, the class token of a ViT, the mean of a convolutional network."""
        return embed(self.model, normalized(images, self.preprocessing))


def normalized(images: Tensor, wanted: Preprocessing) -> Tensor:
    """Images in [0, 1] as an encoder wants them: grey ones as so many equal channels, colour as grey where it has one."""
    images = in_channels(images, wanted.channels)
    mean, std = (torch.tensor(of, device=images.device).view(1, -1, 1, 1) for of in (wanted.mean, wanted.std))
    return (images - mean[:, : wanted.channels]) / std[:, : wanted.channels]


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Grey images as so many equal channels, colour as grey (luma of ITU-R BT.601) where there is to be one."""
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if channels == 1:
        weights = torch.tensor((0.299, 0.587, 0.114), device=images.device).view(1, 3, 1, 1)
        return (images * weights).sum(1, keepdim=True)
    return images


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """One vector an image, by the model's own pooling."""
    found = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    pooled: Tensor = found.float()
    return pooled


def feature_map(model: nn.Module, images: Tensor) -> Tensor:
    """The last features of an encoder in their places, ``float32 [batch, channels, rows, columns]``.

    One adapter for what timm's families give: tokens (ViT, DINOv2, DINOv3: class and register tokens are left out),
    channels last (Swin), channels first (ResNet, EfficientNet, ConvNeXt).
    """
    found: Tensor = model.forward_features(images)  # type: ignore[operator]
    if found.ndim == 3:
        tokens = found[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        rows, columns = model.patch_embed.dynamic_feat_size(images.shape[-2:])  # type: ignore[union-attr, operator]
        return tokens.transpose(1, 2).reshape(len(images), -1, rows, columns)
    width = int(model.num_features)  # type: ignore[arg-type]
    last = getattr(model, "output_fmt", "NCHW") == "NHWC" or (found.shape[1] != width and found.shape[-1] == width)
    return found.permute(0, 3, 1, 2).contiguous() if last else found


def load_encoder(
    spec: str, weights: Path | None = None, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Encoder:
    """An encoder by what names it, on the CPU, in evaluation mode.

    ``spec``: the folder of a `lumid pretrain` run, of `lumid export` or `lumid convert`; a ``.pth`` file of the MAE
    family; or a name of timm's, whose weights come from ``weights`` or from the hub's cache; ``random:`` before any of
    these keeps the architecture and draws the weights from ``seed``. ``options``: more for ``timm.create_model``, such as a
    rate of ``drop_path_rate``, none of which changes the weights. Raises :class:`UsageError` with what is missing.
    """
    at_random = spec.startswith(RANDOM)
    source = spec.removeprefix(RANDOM)
    more = dict(options or {})
    path = Path(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what is not loaded is drawn
        if (path / CHECKPOINTS).is_dir():
            found = _of_run(path, at_random, more)
        elif (path / CONFIG).is_file():
            found = _of_folder(path, at_random, more)
        elif path.suffix in (".pth", ".pt") and path.is_file():
            found = _of_checkpoint(path, at_random, more)
        elif path.exists() or path.suffix in (".pth", ".pt") or len(path.parts) > 1:
            raise UsageError(
                f"{source}: no encoder; give a run, a folder of `lumid export`, a .pth file or a name of timm's"
            )
        else:
            return _of_timm(source, weights, at_random, more)
    if weights is not None:
        raise UsageError(f"{source}: has its own weights; --weights is for names of timm's")
    return found


def display_name(spec: str) -> str:
    """What an encoder is called in the tables.

    >>> display_name("random:runs/first")
    'first (random)'
    """
    source = spec.removeprefix(RANDOM)
    path = Path(source)
    name = path.stem if path.suffix in (".pth", ".pt") else path.resolve().name if path.is_dir() else path.name
    return f"{name} (random)" if spec.startswith(RANDOM) else name


def hash_of(model: nn.Module) -> str:
    """SHA-256 of a model's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _of_run(path: Path, at_random: bool, more: Mapping[str, Any]) -> Encoder:
    mae, recipe, state = read_run(path)
    arguments = timm_arguments(recipe.model)
    model = timm.create_model(**arguments, **more)
    if not at_random:
        model.load_state_dict(mae.encoder.state_dict(), strict=True)
    wanted = _lumids(arguments, recipe.data.input)
    return _finished(path.resolve().name, model, wanted, at_random, TrainedOn(state.catalog_hash, recipe.data.where))


def _of_folder(path: Path, at_random: bool, more: Mapping[str, Any]) -> Encoder:
    try:
        config: dict[str, Any] = read_config(path)
        arguments: dict[str, Any] = config["timm"]
        model = timm.create_model(**arguments, **more)
        if not at_random:
            model.load_state_dict(load_file(path / ENCODER), strict=True)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise UsageError(
            f"{path}: damaged, or no encoder; write it again with `lumid export` or `lumid convert`"
        ) from None
    data = config.get("recipe", {}).get("data", {})
    if not data:  # converted from another's checkpoint: what it was trained on is not known
        wanted = Preprocessing(arguments["img_size"], arguments["in_chans"], IMAGENET_MEAN, IMAGENET_STD, cubic=True)
        return _finished(path.resolve().name, model, wanted, at_random)
    wanted = _lumids(arguments, data.get("input", "lumid"))
    return _finished(
        path.resolve().name, model, wanted, at_random, TrainedOn(config["catalog_hash"], data.get("where") or "")
    )


def _of_checkpoint(path: Path, at_random: bool, more: Mapping[str, Any]) -> Encoder:
    encoder, decoder, _ = split(path, read_weights(path))
    settings = infer_settings(path, encoder, decoder)
    model = timm.create_model(**timm_arguments(settings), **more)
    try:
        if not at_random:
            model.load_state_dict(encoder, strict=True)
    except RuntimeError:
        raise UsageError(f"{path}: its tensors are not those of a ViT of its size") from None
    wanted = Preprocessing(settings.image_size, settings.in_chans, IMAGENET_MEAN, IMAGENET_STD, cubic=True)
    return _finished(path.stem, model, wanted, at_random)


def _of_timm(name: str, weights: Path | None, at_random: bool, more: Mapping[str, Any]) -> Encoder:
    if not timm.is_model(name.partition(".")[0]):
        close = ", ".join(timm.list_models(f"*{name.partition('.')[0][:12]}*")[:3])
        raise UsageError(f"{name}: neither a file nor a model of timm's{f'; did you mean {close}?' if close else ''}")
    options: dict[str, Any] = {"num_classes": 0, "pretrained": not at_random, **more}
    if weights is not None:
        if not weights.is_file():
            raise UsageError(f"{weights}: no such file of weights")
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    if "dinov2" in name:
        options["img_size"] = 224  # its own 518 is for dense tasks; the paper's tables are at 224
    known = timm.get_pretrained_cfg(name)
    if not at_random and weights is None and not _at_hand(known):
        wanted = f"model.safetensors of {known.hf_hub_id}" if known is not None and known.hf_hub_id else "its weights"
        raise UsageError(
            f"{name}: not in the hub's cache, and the hub does not answer; fetch {wanted} and give it with --weights FILE"
        )
    before = torch.random.get_rng_state()
    try:
        model = timm.create_model(name, **options)
    except Exception:  # the hub's client raises whatever its transport does, and timm whatever the file makes it
        raise UsageError(
            f"{name}: the weights cannot be had, or are of another model; give them with --weights FILE"
        ) from None
    if not at_random:
        torch.random.set_rng_state(before)
        drawn = timm.create_model(name, **{**options, "pretrained": False})
        if count := _not_loaded(model, drawn):
            raise UsageError(f"{name}: {count} tensors are not in the weights, which are of another model")
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    wanted_input = Preprocessing(
        int(options.get("img_size", config["input_size"][-1])),
        int(config["input_size"][0]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"] == "bicubic",
    )
    return _finished(name, model, wanted_input, at_random)


def _not_loaded(model: nn.Module, drawn: nn.Module) -> int:
    """How many weights are still as they were drawn: timm passes over what a file lacks."""
    random = dict(drawn.named_parameters())
    return sum(torch.equal(one, random[name]) for name, one in model.named_parameters() if one.ndim > 1)


def _at_hand(known: Any) -> bool:
    """Whether a model's weights are in the hub's cache, or the hub can be reached, which its client takes a minute to deny."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository = None if known is None else known.hf_hub_id
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    if repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib3.PoolManager().request("HEAD", constants.ENDPOINT, retries=False, timeout=HUB_TIMEOUT_S)
    except urllib3.exceptions.HTTPError:
        return False
    return True


def _lumids(arguments: dict[str, Any], input_of: str) -> Preprocessing:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if input_of == "paper" else (HALF, HALF)
    return Preprocessing(arguments["img_size"], arguments["in_chans"], mean, std, cubic=input_of == "paper")


def _finished(
    name: str, model: nn.Module, wanted: Preprocessing, at_random: bool, trained_on: TrainedOn | None = None
) -> Encoder:
    model = model.eval().requires_grad_(False)
    if at_random:
        return Encoder(f"{name} (random)", model, wanted, hash_of(model), at_random=True)
    return Encoder(name, model, wanted, hash_of(model), trained_on)


def describe(encoder: Encoder) -> str:
    """All that decides what features an image has, as JSON: part of the key of a cache."""
    wanted = encoder.preprocessing
    facts = {"weights": encoder.weights_hash, "size": wanted.size, "channels": wanted.channels, "mean": wanted.mean,
             "std": wanted.std, "cubic": wanted.cubic, "model": type(encoder.model).__name__}  # fmt: skip
    return json.dumps(facts, sort_keys=True)
