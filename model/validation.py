"""The loss on patients that are held out, without augmentation and with masks that are always the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lumid.catalog.places import Anywhere
from lumid.catalog.schema import MODALITIES
from lumid.model.feed import held_out, mask_noise, once, own_places, plain_input
from lumid.model.mae import MaskedAutoencoder
from lumid.model.parallel import Parallel, autocast, micro_batches
from lumid.model.recipe import TrainRecipe


@dataclass(frozen=True, slots=True)
class Validation:
    """Mean loss over the images that could be read, all and by modality."""

    loss: float
    loss_by_modality: dict[str, float]
    images: int


@torch.no_grad()
def validate(
    wrapped: nn.Module, model: MaskedAutoencoder, data: Anywhere, recipe: TrainRecipe, parallel: Parallel
) -> Validation | None:
    """Called by every process, each of which takes its share; None when no patients are held out."""
    selection = held_out(data)
    if selection is None:
        return None
    batch_size, _ = micro_batches(recipe.optimizer.batch_size, parallel.world, recipe.compute.micro_batch)
    sums = torch.zeros(len(MODALITIES), 2, dtype=torch.float64, device=parallel.device)
    was_training = model.training
    wrapped.eval()
    for number, (batch, counted) in enumerate(once(selection, recipe, batch_size, parallel.rank, parallel.world)):
        places = own_places(number, batch_size, parallel.rank, parallel.world)
        noise = mask_noise(0, 0, places, model.patches).to(parallel.device)
        with autocast(recipe.compute, parallel.device):
            losses = wrapped(plain_input(batch, recipe, parallel.device), noise).loss_by_image
        counts = batch.valid & (torch.arange(batch_size) < counted)
        counts = counts.to(parallel.device)
        both = torch.stack([torch.where(counts, losses.double(), 0.0), counts.double()], dim=1)
        sums.index_add_(0, batch.modality.to(parallel.device), both)
    wrapped.train(was_training)
    totals = parallel.sum(sums).cpu()
    loss, images = totals.sum(0).tolist()
    by_modality = {
        name: round(total / count, 6) for name, (total, count) in zip(MODALITIES, totals.tolist(), strict=True) if count
    }
    return Validation(loss / images, by_modality, int(images)) if images else None
