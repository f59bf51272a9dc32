"""Training recipes: typed TOML, with errors that name file, key and what is allowed."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lumid.catalog.errors import RecipeError
from lumid.catalog.settings import explain
from lumid.model.mae import Positions, Size, decoder_shape, visible_patches

Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSettings(_Section):
    """The auto-encoder; see :class:`lumid.model.mae.MaskedAutoencoder`. What the decoder is not told, its size says."""

    size: Size = "base"
    image_size: Positive = 224
    patch_size: Positive = 16
    in_chans: Literal[1, 3] = 1
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    normalize_target: bool = True
    positions: Positions = "sincos"
    decoder_width: Positive | None = None
    decoder_depth: Positive | None = None
    decoder_heads: Positive | None = None

    @model_validator(mode="after")
    def _fits(self) -> ModelSettings:
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        visible_patches((self.image_size // self.patch_size) ** 2, self.mask_ratio)
        decoder_shape(self.size, self.decoder_width, self.decoder_depth, self.decoder_heads)
        return self


class OptimizerSettings(_Section):
    """AdamW with a linear warm-up and a cosine to zero; the learning rate is ``base_lr × batch_size / 256``.

    ``batch_size`` is that of a step, over all devices. A length is told in steps or in epochs, not in both.
    """

    batch_size: Positive
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    base_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    spike_factor: Annotated[float, Field(gt=1)] = 4.0
    max_skipped: Positive = 20

    @model_validator(mode="after")
    def _one_length(self) -> OptimizerSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, one of them")
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError("give warmup_steps or warmup_epochs, one of them")
        return self


class DataSettings(_Section):
    """Which samples, how often, how they are read, and how they are augmented.

    ``input``: ``lumid`` windows 16 bits into [-1, 1]; ``paper`` makes the paper's of them: 8 bits, three channels,
    ImageNet's mean and deviation. ``mix_by``, ``mix_temperature``, ``mix_weights``: see
    :class:`~lumid.model.stream.Mixture`. ``access``, ``cache`` and ``cache_mb``, ``max_bad``: see
    :class:`~lumid.model.stream.StreamSettings`.
    """

    where: str = "split = 'train'"
    scale_min: Annotated[float, Field(gt=0, le=1)] = 0.2
    augment: bool = True
    input: Literal["lumid", "paper"] = "lumid"
    canvas: Positive = 256
    threads: Positive = 2
    mix_by: str | None = None
    mix_temperature: Annotated[float, Field(gt=0)] = 1.0
    mix_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    access: Literal["auto", "random", "sequential"] = "auto"
    cache: str | None = None
    cache_mb: Annotated[float, Field(gt=0)] = 10_000.0
    max_bad: Annotated[int, Field(ge=0)] = 100
    seed: Annotated[int, Field(ge=0)] = 0


class ComputeSettings(_Section):
    """How the work is done; nothing here but ``precision`` makes a run another one.

    ``micro_batch``: images that a device holds at a time, when the whole of its share does not fit; gradients of several
    are summed. ``precision``, ``compile``: ``auto`` is bf16 and on with a GPU, fp32 and off without. ``parallel``: whether
    each of several devices holds the whole model (ddp) or a part of it (fsdp). ``peak_tflops``: of a device that
    :mod:`lumid.model.flops` does not know, for the utilisation.
    """

    micro_batch: Positive | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_activations: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    peak_tflops: Annotated[float, Field(gt=0)] | None = None


class RunSettings(_Section):
    """Checkpoints and logs, in optimiser steps."""

    checkpoint_every: Positive = 500
    keep: Positive = 2
    log_every: Positive = 10
    tensorboard: bool = True


class TrainRecipe(_Section):
    """A training recipe; see the shipped ``tiny-cpu`` for an explained one."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings
    data: DataSettings = DataSettings()
    compute: ComputeSettings = ComputeSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.data.input == "paper" and self.model.in_chans != 3:
            raise ValueError('data.input = "paper" needs model.in_chans = 3')
        if self.data.mix_by is None and (self.data.mix_weights or self.data.mix_temperature != 1):
            raise ValueError("data.mix_weights and data.mix_temperature need data.mix_by, a column of the catalog")
        return self

    def canonical(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What makes a run this run: all but how it is logged, and how and by how many its work is done."""
        values = self.canonical()
        del values["run"], values["description"]
        for name in ("threads", "cache", "cache_mb", "max_bad"):
            del values["data"][name]
        values["compute"] = {"precision": self.compute.precision}
        return values

    def resolved(self, samples: int) -> TrainRecipe:
        """The recipe with its length in steps, for a selection of so many samples; an epoch is that many samples."""
        settings = self.optimizer
        steps = settings.steps or max(1, round((settings.epochs or 0) * samples / settings.batch_size))
        warmup = settings.warmup_steps or round((settings.warmup_epochs or 0) * samples / settings.batch_size)
        changed = {"steps": steps, "warmup_steps": min(warmup, steps), "epochs": None, "warmup_epochs": None}
        return self.model_copy(update={"optimizer": settings.model_copy(update=changed)})

    @property
    def steps(self) -> int:
        """Optimiser steps of a resolved recipe."""
        steps = self.optimizer.steps
        assert steps is not None, "the recipe has been resolved"
        return steps


def shipped_recipes() -> dict[str, str]:
    """Names and texts of the training recipes inside the package."""
    folder = resources.files("lumid.model") / "recipes"
    return {
        item.name.removesuffix(".toml"): item.read_text("utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(".toml")
    }


def load_recipe(name_or_path: str) -> TrainRecipe:
    """A shipped training recipe by name, or one from a TOML file. Raises :class:`RecipeError`."""
    shipped = shipped_recipes()
    path = Path(name_or_path)
    if name_or_path in shipped:
        return parse_recipe(shipped[name_or_path], f"training recipe '{name_or_path}'")
    if not path.is_file():
        raise RecipeError(
            f"{name_or_path}: no such training recipe; shipped are {', '.join(shipped)}, or give the path of a TOML file"
        )
    return parse_recipe(path.read_text("utf-8"), name_or_path)


def parse_recipe(text: str, label: str) -> TrainRecipe:
    """A training recipe from TOML; ``label`` names it in errors."""
    try:
        values = tomllib.loads(text)
        return TrainRecipe.model_validate_json(json.dumps(values, default=str))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{label}: not valid TOML: {error}") from None
    except ValidationError as error:
        raise RecipeError(
            "; ".join(f"{label}: {explain(detail, TrainRecipe)}" for detail in error.errors()[:5])
        ) from None
