"""Training recipes: what they may say, and what is said of what they may not."""

from __future__ import annotations

import pytest
import torch

from lumid.catalog.errors import RecipeError
from lumid.model.recipe import load_recipe, parse_recipe, shipped_recipes
from lumid.model.runs import make_model
from tests.model.runs import RECIPE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE.replace('"tiny"', '"gigantic"'), ["model.size", "'gigantic'", "'tiny'"]),
        (RECIPE.replace("patch_size = 8", "patch_size = 7"), ["model", "multiple"]),
        (RECIPE.replace("patch_size = 8", "patch_size = 8\nmask_ratio = 0.99"), ["model", "mask_ratio"]),
        (RECIPE.replace("patch_size = 8", "patch_size = 8\ndecoder_width = 66"), ["model", "decoder_width 66"]),
        (RECIPE + "chekpoint = 3", ["run.chekpoint", "checkpoint_every"]),
        (RECIPE.replace("steps = 40\n", "", 1), ["optimizer", "steps or epochs"]),
        (RECIPE.replace("steps = 40\n", "steps = 40\nepochs = 2\n", 1), ["optimizer", "steps or epochs"]),
        (RECIPE.replace("warmup_steps", "warmup_epochs = 1\nwarmup_steps"), ["optimizer", "warmup_steps or warmup_epochs"]),
        (RECIPE.replace("batch_size = 8\n", ""), ["optimizer.batch_size", "missing"]),
        (RECIPE + '[compute]\nparallel = "tensor"', ["compute.parallel", "'ddp'", "'fsdp'"]),
        ("name =", ["TOML"]),
    ],
)  # fmt: skip
def test_recipe_errors_name_file_key_and_what_is_allowed(text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "f.toml")
    for word in ["f.toml", *words]:
        assert word in str(caught.value)


def test_shipped_recipes_load() -> None:
    assert {"tiny-cpu", "lumid-vitb", "paper"} <= set(shipped_recipes())
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert parse_recipe(shipped_recipes()[name], name) == recipe


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = load_recipe("paper").resolved(2_600_000)
    with torch.device("meta"):
        model = make_model(recipe.model.model_copy(update={"positions": "learned"}))
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert parameters / 1e6 == pytest.approx(85.8, abs=0.05)
    assert (recipe.model.mask_ratio, model.patches, model.visible) == (0.75, 196, 49)
    assert (model.shape.decoder_depth, model.shape.decoder_width, model.shape.decoder_heads) == (8, 512, 16)
    assert recipe.steps == round(1000 * 2_600_000 / 4096)
    assert recipe.optimizer.warmup_steps == round(40 * 2_600_000 / 4096)
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.weight_decay) == (0.9, 0.95, 0.05)


def test_epochs_are_of_the_selection() -> None:
    text = RECIPE.replace("steps = 40", "epochs = 2.5", 1).replace("warmup_steps = 4", "warmup_epochs = 0.5")
    recipe = parse_recipe(text, "f").resolved(800)
    assert (recipe.steps, recipe.optimizer.warmup_steps) == (250, 50)
    assert recipe.resolved(3) == recipe, "resolved once, it does not change"


def test_a_runs_identity_leaves_out_how_the_work_is_done() -> None:
    recipe = parse_recipe(RECIPE, "f")
    same = [
        RECIPE + "keep = 9\ntensorboard = false",
        RECIPE + '[compute]\nmicro_batch = 2\nparallel = "fsdp"\ncompile = "off"',
        RECIPE.replace("[data]", "[data]\nthreads = 7"),
    ]
    other = [
        RECIPE + '[compute]\nprecision = "bf16"',
        RECIPE.replace("batch_size = 8", "batch_size = 16"),
        RECIPE.replace("[data]", "[data]\nseed = 1"),
    ]
    assert all(parse_recipe(text, "f").identity() == recipe.identity() for text in same)
    assert all(parse_recipe(text, "f").identity() != recipe.identity() for text in other)
