"""Training recipes: typed TOML, with errors that name file, key and what is allowed."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lumid.catalog.errors import RecipeError
from lumid.catalog.settings import explain

Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSettings(_Section):
    """The auto-encoder; see :class:`lumid.model.mae.MaskedAutoencoder`."""

    size: Literal["tiny", "small", "base", "large", "huge"] = "base"
    image_size: Positive = 224
    patch_size: Positive = 16
    in_chans: Literal[1, 3] = 1
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    normalize_target: bool = True

    @model_validator(mode="after")
    def _whole_patches(self) -> ModelSettings:
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        return self


class OptimizerSettings(_Section):
    """AdamW with a linear warm-up and a cosine to zero; the learning rate is ``base_lr × batch_size / 256``."""

    steps: Positive
    batch_size: Positive
    base_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None


class DataSettings(_Section):
    """Which samples, and how they are augmented."""

    where: str = "split = 'train'"
    scale_min: Annotated[float, Field(gt=0, le=1)] = 0.2
    augment: bool = True
    canvas: Positive = 256
    threads: Positive = 2
    seed: Annotated[int, Field(ge=0)] = 0


class RunSettings(_Section):
    """Checkpoints and logs, in optimiser steps."""

    checkpoint_every: Positive = 500
    keep: Positive = 2
    log_every: Positive = 10


class TrainRecipe(_Section):
    """A training recipe; see the shipped ``tiny-cpu`` for an explained one."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings
    data: DataSettings = DataSettings()
    run: RunSettings = RunSettings()

    def canonical(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return self.model_dump(mode="json")


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
