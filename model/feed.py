"""From a data set to what a training step takes: the one place where training meets the stream.

What is hidden of a sample is a function of (seed, step, place in the batch) alone, as its crop is one of its place in the
epoch: neither depends on how many devices share the batch, or in how many pieces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from lumid.catalog.errors import LumidError
from lumid.catalog.places import Anywhere
from lumid.model.augment import IMAGENET_MEAN, IMAGENET_STD, evaluation_input, paper_input, training_input
from lumid.model.parallel import Parallel, micro_batches
from lumid.model.recipe import TrainRecipe
from lumid.model.stream import Batch, ImageStream, Mixture, Selection, StreamSettings, StreamState, select

MAX_VALIDATION = 512
"""Held-out images of a validation: the first by key, which is a fair sample."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a device takes at a time.

    ``images``: ``float32 [batch, channels, size, size]``; ``noise``: ``float32 [batch, patches]``, whose smallest stay
    visible; ``valid``: ``bool [batch]``, false for an image that could not be read; all three on the device.
    ``modality``: ``int64 [batch]`` index into ``MODALITIES``, on the host; ``places``: theirs in the step's batch; ``state``: of the stream, after it.
    """

    images: Tensor
    noise: Tensor
    valid: Tensor
    modality: Tensor
    keys: tuple[str, ...]
    places: range
    state: StreamState


class Feed:
    """The pieces of a selection that fall to this process, step after step, without end."""

    def __init__(self, data: Anywhere, recipe: TrainRecipe, parallel: Parallel, state: StreamState, step: int) -> None:
        self._recipe, self._parallel, self._step = recipe, parallel, step
        self.batch, self.pieces = micro_batches(recipe.optimizer.batch_size, parallel.world, recipe.compute.micro_batch)
        settings = StreamSettings(
            batch_size=self.batch,
            channels=recipe.model.in_chans,
            canvas=recipe.data.canvas,
            seed=recipe.data.seed,
            threads=recipe.data.threads,
            max_bad=recipe.data.max_bad,
            mixture=mixture_of(recipe),
            access=recipe.data.access,
            cache=Path(recipe.data.cache).expanduser() if recipe.data.cache else None,
            cache_mb=recipe.data.cache_mb,
            rank=parallel.rank,
            world=parallel.world,
        )
        mixed = () if recipe.data.mix_by is None else (recipe.data.mix_by,)
        self._stream = ImageStream(select(data, recipe.data.where, also=mixed), settings, state)
        self._batches: Iterator[Batch] = iter(self._stream)
        self._ready: Piece | None = None
        self.waited_s = 0.0
        """Seconds that the loop has waited for the stream, also while the device was still busy."""

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.close()  # type: ignore[attr-defined]
        self._stream.close()

    def next_step(self) -> Iterator[Piece]:
        """The pieces of the next step."""
        for number in range(self.pieces):
            piece, self._ready = self._ready or self._take(number), None
            yield piece
        self._step += 1

    def prepare(self) -> None:
        """Have the next step's first piece ready: called while the device is still busy with this one."""
        self._ready = self._take(0)

    def _take(self, number: int) -> Piece:
        before = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - before
        return self._piece(batch, number)

    def _piece(self, batch: Batch, number: int) -> Piece:
        device, model = self._parallel.device, self._recipe.model
        places = own_places(number, self.batch, self._parallel.rank, self._parallel.world)
        patches = (model.image_size // model.patch_size) ** 2
        noise = mask_noise(self._recipe.data.seed, self._step, places, patches)
        return Piece(
            images=model_input(batch, self._recipe, device),
            noise=_to(noise, device),
            valid=_to(batch.valid, device),
            modality=batch.modality,
            keys=batch.keys,
            places=places,
            state=batch.state,
        )


def mixture_of(recipe: TrainRecipe) -> Mixture | None:
    """How often what is drawn, where the recipe says."""
    data = recipe.data
    return None if data.mix_by is None else Mixture(data.mix_by, data.mix_temperature, data.mix_weights or None)


def model_input(batch: Batch, recipe: TrainRecipe, device: torch.device) -> Tensor:
    """What the model trains on, ``float32 [batch, channels, size, size]``: augmented images, unless the recipe says no."""
    if not recipe.data.augment:
        return plain_input(batch, recipe, device)
    if recipe.data.input == "paper":
        return paper_input(batch, recipe.model.image_size, device, scale=(recipe.data.scale_min, 1.0))
    return training_input(batch, recipe.model.image_size, device, scale=(recipe.data.scale_min, 1.0))


def plain_input(batch: Batch, recipe: TrainRecipe, device: torch.device) -> Tensor:
    """The same without anything random, for validation and reconstruction."""
    if recipe.data.input == "paper":
        return paper_input(batch, recipe.model.image_size, device, training=False)
    return evaluation_input(batch, recipe.model.image_size, device)


def as_shown(images: Tensor, recipe: TrainRecipe) -> Tensor:
    """What the model sees as what is displayed, ``[batch, channels, rows, columns]`` in [-1, 1]."""
    if recipe.data.input == "lumid":
        return images
    mean, deviation = (torch.tensor(of, device=images.device).view(1, 3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    return (images * deviation + mean) * 2 - 1


def own_places(number: int, batch: int, rank: int, world: int) -> range:
    """The places in a step's batch of the ``number``-th piece of a rank: every ``world``-th, as the stream deals them."""
    first = number * world * batch
    return range(first + rank, first + world * batch, world)


def mask_noise(seed: int, step: int, places: range, patches: int) -> Tensor:
    """``float32 [places, patches]``, uniform: of the images at those places of a step's batch.

    A counter-based generator: the numbers of a place are the same whichever others are asked for with it.
    """
    blocks = -(-patches // 8)  # a counter gives four words of 64 bits, eight numbers
    counter = np.array([places.start * blocks, 0, step, 0], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=(seed << 64) + (1 << 33), counter=counter))
    numbers = generator.random((places.stop - places.start, blocks * 8), dtype=np.float32)
    return torch.from_numpy(numbers[:: places.step, :patches].copy())


def held_out(data: Anywhere) -> Selection | None:
    """Samples of the patients that are held out for validation; None when there are none."""
    try:
        selection = select(data, "split = 'val'")
    except LumidError:
        return None
    return replace(selection, table=selection.table.slice(0, MAX_VALIDATION))


def once(
    selection: Selection, recipe: TrainRecipe, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, int]]:
    """All samples of a selection once, over all ranks, in batches; how many of a batch, from its beginning, count.

    Those beyond are the first samples again: every rank gets as many batches.
    """
    settings = StreamSettings(
        batch_size, recipe.model.in_chans, recipe.data.canvas, threads=recipe.data.threads, rank=rank, world=world
    )
    stream = ImageStream(selection, settings)
    batches = iter(stream)
    try:
        for number in range(-(-len(selection) // (batch_size * world))):
            places = own_places(number, batch_size, rank, world)
            yield next(batches), sum(place < len(selection) for place in places)
    finally:
        batches.close()  # type: ignore[attr-defined]
        stream.close()


def _to(values: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
