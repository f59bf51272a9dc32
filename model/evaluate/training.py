"""Protocols that train a network: a whole encoder on images with labels or masks, and a segmentation head on feature maps.

All three are one loop: epochs in an order drawn by the seed, the epoch chosen on validation, the test asked once, a
checkpoint after every epoch, so that a killed job goes on where it was and gives the same predictions.
"""

from __future__ import annotations

import copy
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from lumid.catalog.layout import storage_errors
from lumid.model.augment import Crop, linear, random_crop, transform
from lumid.model.evaluate.encoders import Encoder, feature_map, normalized
from lumid.model.evaluate.features import Report
from lumid.model.evaluate.metrics import LEVELS, mask_curves, measure_masks, quality_of
from lumid.model.evaluate.rows import Rows
from lumid.model.evaluate.settings import FineTuning, Probing
from lumid.model.evaluate.tasks.base import Kind

Labels = npt.NDArray[Any]
DECODER = (256, 128, 64, 32)
"""Channels after each doubling of the paper's segmentation head."""
EVALUATION_BATCH = 64


@dataclass(frozen=True, slots=True)
class Split:
    """Images, or feature maps, of a split, with their labels, or masks ``uint8 [n, side, side]``."""

    inputs: Rows
    labels: Labels | Rows = field(repr=False)

    def __len__(self) -> int:
        return len(self.inputs)

    def targets(self, places: npt.NDArray[np.int64]) -> Tensor:
        """Those of some images."""
        found = self.labels.take(places) if isinstance(self.labels, Rows) else self.labels[places]
        return torch.from_numpy(np.ascontiguousarray(found))


@dataclass(frozen=True, slots=True)
class Material:
    """What a protocol that trains a network is given. ``scratch``: where its checkpoint is, None for none."""

    kind: Kind
    classes: int
    train: Split
    val: Split
    test: Split
    device: torch.device
    scratch: Path | None = None
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """Scores of validation and test, ``float64 [n, classes]`` or, of masks, ``uint8 [n, side, side]``, and what was chosen."""

    val: npt.NDArray[Any]
    test: npt.NDArray[Any]
    chosen: dict[str, float]


class SegmentationHead(nn.Module):
    """The paper's: four times {transposed convolution 2 × 2, stride 2 → convolution 3 × 3 → GELU}, then 1 × 1 to one channel.

    ``float32 [batch, features, rows, columns]`` → logits ``[batch, 16 rows, 16 columns]``.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((features, *DECODER), DECODER, strict=False):
            layers += [nn.ConvTranspose2d(before, after, 2, 2), nn.Conv2d(after, after, 3, padding=1), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(DECODER[-1], 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.layers(features)
        return logits[:, 0]


class Segmenter(nn.Module):
    """An encoder's feature map under the segmentation head."""

    def __init__(self, encoder: nn.Module, features: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, SegmentationHead(features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, as :class:`SegmentationHead` has them."""
        logits: Tensor = self.head(feature_map(self.encoder, images))
        return logits


def segmentation_probe(material: Material, settings: Probing, seed: int) -> Trained:
    """The segmentation head on feature maps that do not change (:class:`Split` holds these)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SegmentationHead(material.train.inputs.values.shape[1]).to(material.device)
    optimizer = torch.optim.AdamW(head.parameters(), settings.rate, weight_decay=settings.weight_decay)

    def prepared(split: Split, places: npt.NDArray[np.int64], _: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return _floats(split, places, material.device), split.targets(places).to(material.device)

    plan = _Plan(settings.epochs, settings.batch, settings.patience, 0, settings.rate)
    return _fit(head, optimizer, material, prepared, plan, seed)


def fine_tune(encoder: Encoder, material: Material, settings: FineTuning, seed: int) -> Trained:
    """The whole encoder with a new head: a linear layer over the model's own pooling, or the segmentation head.

    The encoder's weights are changed; load it with ``drop_path_rate`` to have stochastic depth.
    """
    masks = material.kind == "masks"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = encoder.model.requires_grad_(True)
        if masks:
            width = feature_map(model, torch.zeros(1, *_input_shape(encoder))).shape[1]
            model = Segmenter(model, width)
        else:
            model.reset_classifier(material.classes)  # type: ignore[operator]
    model = model.to(material.device)
    rate = settings.rate * settings.batch / 256
    optimizer = torch.optim.AdamW(_groups(model, settings), rate)
    size = encoder.preprocessing.size

    def prepared(split: Split, places: npt.NDArray[np.int64], random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        images, targets = _floats(split, places, material.device), split.targets(places).to(material.device)
        crop = _crop(images, settings, random)
        found = normalized(_resampled(images, crop, size), encoder.preprocessing)
        if masks:
            targets = _resampled(targets[:, None].float(), crop, targets.shape[-1])[:, 0]
        return found, targets

    plan = _Plan(settings.epochs, settings.batch, settings.patience, settings.warmup, rate, settings.mixup)
    return _fit(model, optimizer, material, prepared, plan, seed)


# ---- the loop


@dataclass(frozen=True, slots=True)
class _Plan:
    epochs: int
    batch: int
    patience: int
    warmup: int
    rate: float
    mixup: float = 0.0


_Prepare = Callable[[Split, npt.NDArray[np.int64], torch.Generator | None], tuple[Tensor, Tensor]]


@dataclass(slots=True)
class _Progress:
    """Where a fitting is: what a checkpoint holds beside model and optimiser."""

    epoch: int = 0
    quality: float = -math.inf
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)


def _fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    material: Material,
    prepared: _Prepare,
    plan: _Plan,
    seed: int,
) -> Trained:
    progress = _restored(material.scratch, model, optimizer)
    steps = math.ceil(len(material.train) / plan.batch)
    while progress.epoch < plan.epochs and progress.epoch - progress.best_epoch < plan.patience:
        random = torch.Generator().manual_seed(seed * 100_003 + progress.epoch)
        _epoch(model, optimizer, material, prepared, plan, random, progress.epoch, steps)
        quality = _quality(material, _scores(model, material.val, material, prepared))
        progress.epoch += 1
        if quality > progress.quality:
            progress.quality, progress.best_epoch = quality, progress.epoch
            progress.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        _save(material.scratch, model, optimizer, progress)
        if material.report is not None:
            material.report(progress.epoch, plan.epochs)
    model.load_state_dict(progress.best)
    val, test = (_scores(model, split, material, prepared) for split in (material.val, material.test))
    if material.scratch is not None:
        material.scratch.unlink(missing_ok=True)
    return Trained(val, test, {"epoch": progress.best_epoch, "epochs": progress.epoch, "validation": progress.quality})


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    material: Material,
    prepared: _Prepare,
    plan: _Plan,
    random: torch.Generator,
    epoch: int,
    steps: int,
) -> None:
    model.train()
    with torch.random.fork_rng(devices=[]):  # drop path draws from the global generator
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=random)))
        for number, places in enumerate(torch.split(torch.randperm(len(material.train), generator=random), plan.batch)):
            if len(places) == 1 and steps > 1:
                continue  # a batch of one has no variance for BatchNorm
            for group in optimizer.param_groups:
                group["lr"] = _rate(plan, epoch + number / steps) * group.get("lr_scale", 1.0)
            inputs, targets = prepared(material.train, places.numpy(), random)
            share = _mixed(plan.mixup, random)
            if share < 1:
                inputs = share * inputs + (1 - share) * inputs.flip(0)
            with torch.autocast(material.device.type, torch.bfloat16, enabled=material.device.type == "cuda"):
                outputs = model(inputs).float()
            loss = share * _loss(outputs, targets, material.kind)
            if share < 1:
                loss = loss + (1 - share) * _loss(outputs, targets.flip(0), material.kind)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _mixed(alpha: float, random: torch.Generator) -> float:
    """The share of an image that is its own: of a beta distribution."""
    if not alpha:
        return 1.0
    seed = int(torch.randint(2**31, (1,), generator=random))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _rate(plan: _Plan, epoch: float) -> float:
    if epoch < plan.warmup:
        return plan.rate * (epoch + 1e-3) / plan.warmup
    return plan.rate * 0.5 * (1 + math.cos(math.pi * (epoch - plan.warmup) / max(1, plan.epochs - plan.warmup)))


def _loss(outputs: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    """Cross-entropy; of several labels binary cross-entropy; of masks that and 1 minus the soft Dice of each image."""
    if kind == "multiclass":
        return nn.functional.cross_entropy(outputs, targets)
    if kind == "multilabel":
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets.float())
    logits, truth = _at_side(outputs, targets.shape[-1]), targets.float()
    said = logits.sigmoid()
    dice = (2 * (said * truth).sum((1, 2)) + 1) / (said.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return nn.functional.binary_cross_entropy_with_logits(logits, truth) + (1 - dice).mean()


@torch.inference_mode()
def _scores(model: nn.Module, split: Split, material: Material, prepared: _Prepare) -> npt.NDArray[Any]:
    model.eval()
    found = []
    for begin in range(0, len(split), EVALUATION_BATCH):
        inputs, targets = prepared(split, np.arange(begin, min(begin + EVALUATION_BATCH, len(split))), None)
        with torch.autocast(material.device.type, torch.bfloat16, enabled=material.device.type == "cuda"):
            outputs = model(inputs).float()
        if material.kind == "masks":
            levels = _at_side(outputs, targets.shape[-1]).sigmoid().mul_(LEVELS - 1).round_()
            found.append(levels.to(torch.uint8).cpu().numpy())
        else:
            found.append(outputs.double().cpu().numpy())
    return np.concatenate(found)


def _quality(material: Material, scores: npt.NDArray[Any]) -> float:
    """On validation: mean Dice of masks, else as :func:`quality_of` has it."""
    if material.kind == "masks":
        truth = material.val.targets(np.arange(len(material.val))).numpy().astype(bool)
        return float(measure_masks(*mask_curves(truth, scores))["dice"][0])
    assert not isinstance(material.val.labels, Rows), "labels are an array"
    return quality_of(material.kind, material.val.labels, scores)


def _save(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, progress: _Progress) -> None:
    if path is None:
        return
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": progress.best,
                      "epoch": progress.epoch, "quality": progress.quality, "best_epoch": progress.best_epoch}  # fmt: skip
            torch.save(values, temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _restored(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    """Where a killed job was; the beginning where there is no checkpoint, or none that can be read."""
    if path is None or not path.is_file():
        return _Progress()
    before = copy.deepcopy(model.state_dict())
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(values["model"])
        optimizer.load_state_dict(values["optimizer"])
        return _Progress(values["epoch"], values["quality"], values["best_epoch"], values["best"])
    except Exception:  # whatever a damaged file makes torch say
        model.load_state_dict(before)
        return _Progress()


# ---- inputs


def _floats(split: Split, places: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(split.inputs.take(places)).to(device).float()


def _input_shape(encoder: Encoder) -> tuple[int, int, int]:
    wanted = encoder.preprocessing
    return wanted.channels, wanted.size, wanted.size


def _crop(images: Tensor, settings: FineTuning, random: torch.Generator | None) -> Crop:
    """A random crop and flip, or the whole image where there is no generator."""
    count = len(images)
    size = torch.full((count, 2), float(images.shape[-1]), device=images.device)
    if random is None:
        nothing, everything = torch.zeros(count, device=images.device), torch.ones(count, device=images.device)
        return Crop(size, nothing, nothing, everything, everything, nothing.bool())
    draws = torch.rand(count, 8, generator=random).to(images.device)
    if not settings.flip:
        draws[:, 4] = 1
    return random_crop(size, draws, (settings.scale, 1.0))


def _resampled(images: Tensor, crop: Crop, side: int) -> Tensor:
    low, high = torch.zeros(len(images), device=images.device), torch.ones(len(images), device=images.device)
    return transform(images, low, high, crop, side, linear)


def _at_side(logits: Tensor, side: int) -> Tensor:
    if logits.shape[-1] == side:
        return logits
    return nn.functional.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def _groups(model: nn.Module, settings: FineTuning) -> list[dict[str, Any]]:
    """Parameters by layer, each with its share of the rate; a segmentation head is the last."""
    encoder = model.encoder if isinstance(model, Segmenter) else model
    spared = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()  # type: ignore[operator]
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        encoder, settings.weight_decay, no_weight_decay_list=spared, layer_decay=settings.layer_decay
    )
    if isinstance(model, Segmenter):
        groups.append({"params": list(model.head.parameters()), "weight_decay": settings.weight_decay, "lr_scale": 1.0})
    return groups
