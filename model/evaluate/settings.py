"""How protocols that train more than a linear layer go about it; every field can be set from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from lumid.catalog.errors import UsageError


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Fine-tuning of a whole encoder with a new head, by AdamW and a cosine.

    ``rate``: for 256 images a batch; ``layer_decay``: of the rate, from each layer to the one before (Clark et al. 2020);
    ``drop_path``: stochastic depth (Huang et al. 2016); ``mixup``: its alpha, 0 for none (Zhang et al. 2018); ``scale``: the
    least share of an image that a crop takes; ``flip``: left and right for every other image; ``patience``: epochs
    without a better validation after which it ends.
    """

    epochs: int = 50
    batch: int = 64
    rate: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: int = 5
    drop_path: float = 0.1
    mixup: float = 0.0
    scale: float = 0.5
    flip: bool = True
    patience: int = 12

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "batch", "patience")
        _at_least(self, 0, "rate", "weight_decay", "warmup", "mixup", "drop_path")
        for name in ("layer_decay", "scale"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} must lie above 0 and not above 1")


@dataclass(frozen=True, slots=True)
class Probing:
    """The segmentation head over a frozen encoder's feature maps, by AdamW and a cosine; ``patience`` as in fine-tuning."""

    epochs: int = 60
    batch: int = 16
    rate: float = 1e-3
    weight_decay: float = 0.01
    patience: int = 15

    def __post_init__(self) -> None:
        _at_least(self, 1, "epochs", "batch", "patience")
        _at_least(self, 0, "rate", "weight_decay")


Settings = TypeVar("Settings", FineTuning, Probing)


def set_fields(settings: Settings, given: Sequence[str]) -> Settings:
    """Settings with some ``name=value`` of the command line. Raises :class:`UsageError`."""
    kinds = {one.name: type(getattr(settings, one.name)) for one in fields(settings)}
    values: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in kinds:
            meant = difflib.get_close_matches(name, kinds, 1)
            hint = f"; did you mean {meant[0]}?" if meant else f"; there are {', '.join(kinds)}"
            raise UsageError(f"{name}: no such setting{hint}")
        try:
            values[name] = {"true": True, "false": False}[value] if kinds[name] is bool else kinds[name](value)
        except (KeyError, ValueError):
            raise UsageError(f"{text}: {name} takes {'true or false' if kinds[name] is bool else 'a number'}") from None
    return replace(settings, **values)


def _at_least(settings: object, least: float, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= least:
            raise UsageError(f"{name} must be {least} or more")
