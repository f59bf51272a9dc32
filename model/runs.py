"""The folder of a run: whose it is, its model, and where it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import nn

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.json_files import read_json
from lumid.catalog.layout import storage_errors, write_text
from lumid.catalog.places import Anywhere
from lumid.model.checkpoint import (
    RunState,
    latest_checkpoint,
    load_optimizer,
    load_random,
    load_weights,
    read_state,
    remove_leftovers,
)
from lumid.model.mae import MaskedAutoencoder
from lumid.model.parallel import Parallel
from lumid.model.provenance import PROVENANCE, find_provenance, write_provenance
from lumid.model.recipe import ModelSettings, TrainRecipe
from lumid.model.weights import load_mae

WORD = re.compile(r"[A-Za-z0-9_.+/-]{0,60}")
ABOUT, CHECKPOINTS, SUMMARY = "run.json", "checkpoints", "summary.json"


def make_model(settings: ModelSettings, *, checkpoint_activations: bool = False) -> MaskedAutoencoder:
    """The model of a recipe's ``[model]``, with random weights."""
    return MaskedAutoencoder(
        settings.size,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        in_chans=settings.in_chans,
        mask_ratio=settings.mask_ratio,
        normalize_target=settings.normalize_target,
        positions=settings.positions,
        decoder_width=settings.decoder_width,
        decoder_depth=settings.decoder_depth,
        decoder_heads=settings.decoder_heads,
        checkpoint_activations=checkpoint_activations,
    )


def build_model(recipe: TrainRecipe, weights: Path | None = None) -> MaskedAutoencoder:
    """The recipe's model, with weights that are a function of its seed, or those of a folder of converted ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.data.seed)
        model = make_model(recipe.model, checkpoint_activations=recipe.compute.checkpoint_activations)
    if weights is not None:
        load_mae(weights, model)
    return model


def begin(
    run: Path,
    data: Anywhere,
    recipe: TrainRecipe,
    catalog_hash: str,
    parallel: Parallel,
    *,
    fresh: bool,
    weights: Path | None,
) -> None:
    """Make the folder this run's, or find that it is. Called by every process; one looks and writes for all.

    Raises :class:`UsageError` when it holds another run, or something else, or (``fresh``) any run at all.
    """
    identity: dict[str, object] = {"recipe": recipe.identity(), "catalog_hash": catalog_hash}
    if weights is not None:
        identity["weights"] = str(weights.resolve())
    failure: LumidError | None = None
    if parallel.leads:
        try:
            with storage_errors(run):
                _claim(run, identity, fresh=fresh)
                remove_leftovers(run / CHECKPOINTS)
                if not (run / PROVENANCE).is_file():
                    write_provenance(run, find_provenance(data, recipe.data.where))
        except LumidError as error:
            failure = error
    parallel.agree(failure)


def restore(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, parallel: Parallel) -> RunState | None:
    """Put model, optimiser and generators where the newest checkpoint has them; None for a run that has none."""
    checkpoint = latest_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        return None
    load_weights(checkpoint, model)
    load_optimizer(checkpoint, model, optimizer)
    load_random(checkpoint, parallel)
    return read_state(checkpoint)


def read_run(run: Path) -> tuple[MaskedAutoencoder, TrainRecipe, RunState]:
    """The model of a run's newest checkpoint, on the CPU, with its recipe and state."""
    checkpoint = latest_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        raise UsageError(f"{run}: no checkpoint here; give the folder of a `lumid pretrain` run")
    state = read_state(checkpoint)
    try:
        recipe = TrainRecipe.model_validate_json(json.dumps(state.recipe))
    except ValueError:
        raise DatasetError(f"{checkpoint}: its recipe is damaged, or of another version of lumid") from None
    model = build_model(recipe)
    load_weights(checkpoint, model)
    return model, recipe, state


def _claim(run: Path, identity: dict[str, object], *, fresh: bool) -> None:
    about = run / ABOUT
    if about.is_file():
        if fresh:
            raise UsageError(f"{run}: holds a run already; choose another --out, or go on with --resume auto")
        found = read_json(about, "copy it from another copy of the run, or choose another --out")
        if found != identity:
            raise UsageError(
                f"{run}: holds a run of another recipe or data set ({_difference(found, identity)}); choose another --out"
            )
    elif run.exists() and any(run.iterdir()):
        raise UsageError(f"{run}: is not empty and holds no run; choose another --out")
    else:
        write_text(about, json.dumps(identity, indent=1) + "\n")


def _difference(found: object, wanted: object, key: str = "") -> str:
    """The first key in which two runs differ, with its two values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *(name for name in found if name not in wanted)]:
            if found.get(name) != wanted.get(name):
                return _difference(found.get(name), wanted.get(name), f"{key}.{name}".removeprefix(".recipe."))
    name = key.strip(".")
    return f"{name if WORD.fullmatch(name) else 'something'} was {_shown(found)}, is {_shown(wanted)}"


def _shown(value: object) -> str:
    """A value of a run's, where it is a number or a word; the run may be a stranger's."""
    plain = value is None or isinstance(value, bool | int | float) or WORD.fullmatch(str(value))
    return repr(value) if plain else "something else"
