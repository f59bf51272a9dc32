"""AdamW and its schedule, and how large the gradient is."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lumid.model.recipe import TrainRecipe

TOKENS = ("cls_token", "mask_token", "pos_embed", "decoder_positions")


def build_optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.AdamW:
    """Fused AdamW; no weight decay on what is not a matrix (biases, norms), nor on tokens and positions."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    spared = {name for name, parameter in named if parameter.ndim == 1 or name.endswith(TOKENS)}
    groups = [
        {
            "params": [parameter for name, parameter in named if name not in spared],
            "weight_decay": recipe.optimizer.weight_decay,
        },
        {"params": [parameter for name, parameter in named if name in spared], "weight_decay": 0.0},
    ]
    betas = (recipe.optimizer.beta1, recipe.optimizer.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def learning_rate(step: int, recipe: TrainRecipe) -> float:
    """The rate of a step, from 0: linear warm-up to ``base_lr × batch_size / 256``, then a cosine to zero."""
    settings = recipe.optimizer
    warmup = settings.warmup_steps or 0
    peak = settings.base_lr * settings.batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def limit_gradient(model: nn.Module, limit: float | None) -> Tensor:
    """The gradient's norm over all parameters and devices, a scalar; the gradient is scaled down to ``limit`` if larger."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if limit is None:
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    else:
        norm = nn.utils.clip_grad_norm_(parameters, limit)
    whole: Tensor = (
        norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    )  # sharded gradients have a sharded norm
    return whole.detach()
