"""The loss of the real loop is, step by step, that of an implementation that shares nothing with it but the data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lumid.model.feed import Feed
from lumid.model.optimizer import build_optimizer, learning_rate
from lumid.model.parallel import Parallel
from lumid.model.pretrain import Listener, pretrain
from lumid.model.recipe import parse_recipe
from lumid.model.runs import build_model
from lumid.model.stream import StreamState
from tests.model.simple_mae import SimpleAdamW, SimpleMae

RECIPE = """
name = "parity"
[model]
size = "tiny"
image_size = 32
patch_size = 8
decoder_width = 64
decoder_depth = 1
[optimizer]
steps = STEPS
batch_size = 8
base_lr = 1e-2
warmup_steps = 20
clip_grad_norm = 1.0
[data]
canvas = 64
[run]
log_every = 1
checkpoint_every = 1000
tensorboard = false
"""


@pytest.mark.parametrize("steps", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_the_loss_is_that_of_an_independent_implementation(steps: int, data: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.replace("STEPS", str(steps)), "test")
    ours: list[float] = []
    listener = Listener(lambda step: ours.append(step.loss), print)
    pretrain(data, tmp_path / "run", recipe, Parallel(), listener, lambda: False)

    simple = SimpleMae(build_model(recipe))
    optimizer = SimpleAdamW(simple, recipe.optimizer.weight_decay, 0.9, 0.95)
    theirs = []
    with Feed(data, recipe, Parallel(), StreamState(), 0) as feed:
        for step in range(steps):
            (piece,) = feed.next_step()
            loss = simple(piece.images, piece.noise)
            loss.backward()
            warming = (step + 1) / 20
            cooling = (1 + math.cos(math.pi * (step - 20) / (steps - 20))) / 2
            optimizer.step(1e-2 * 8 / 256 * (warming if step < 20 else cooling))
            theirs.append(float(loss.detach()))

    assert len(ours) == len(theirs) == steps
    apart = [abs(one - other) / other for one, other in zip(ours, theirs, strict=True)]
    assert max(apart[:20]) < 1e-5
    assert max(apart) < 1e-3
    assert sum(ours[-20:]) < 0.9 * sum(ours[:20]), "it learns, or agreement says little"


def test_the_optimiser_is_fused_and_as_fast_as_the_schedule_says() -> None:
    recipe = parse_recipe(RECIPE.replace("STEPS", "200"), "test")
    optimizer = build_optimizer(build_model(recipe), recipe)
    assert all(group["fused"] for group in optimizer.param_groups)
    assert learning_rate(19, recipe) == 1e-2 * 8 / 256
