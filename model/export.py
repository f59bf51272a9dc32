"""The encoder alone, as timm has it: weights as safetensors, and a card that says what it was trained on and how."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.json_files import read_json, typed
from lumid.catalog.layout import storage_errors, write_text
from lumid.catalog.places import Anywhere, identity
from lumid.model.card import Results, card
from lumid.model.provenance import read_provenance
from lumid.model.reconstruct import SCORES
from lumid.model.runs import SUMMARY, read_run
from lumid.model.weights import CARD, CONFIG, ENCODER, save_weights, timm_arguments

MEND = "remove it: a card then does without"


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the encoder and its card are."""

    weights: Path
    card: Path
    config: Path


def export_encoder(run: Path, out: Path, data: Anywhere | None = None) -> Exported:
    """Write ``encoder.safetensors``, ``config.json`` and ``README.md`` (the model card) into ``out``.

    ``data``: checked to be the data set of the run, if given. Raises :class:`LumidError` when it is not.
    """
    model, recipe, state = read_run(run)
    if data is not None and identity(data) != state.catalog_hash:
        raise LumidError(f"{data}: is not the data set that {run} was trained on; give that one, or none")
    arguments = timm_arguments(recipe.model)
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    text = card(recipe, state, read_provenance(run), results(run), arguments, parameters)
    config = {
        "timm": arguments,
        "mean": 0.5,
        "std": 0.5,
        "catalog_hash": state.catalog_hash,
        "step": state.step,
        "recipe": state.recipe,
    }
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        save_weights(out / ENCODER, model.encoder.state_dict())
        write_text(out / CONFIG, json.dumps(config, indent=1) + "\n")
        write_text(out / CARD, text)
    return Exported(out / ENCODER, out / CARD, out / CONFIG)


def results(run: Path) -> Results:
    """What the run's folder knows of how good it is."""
    summary, scores = _json(run / SUMMARY), _json(run / SCORES)
    try:
        return typed(
            Results(
                summary.get("validation_loss"),
                summary.get("validation_loss_by_modality", {}),
                tuple(scores.get("modalities", ())),
                bool(scores.get("patch_statistics_of_the_original", False)),
            )
        )
    except (TypeError, ValueError):
        raise DatasetError(f"{run}: {SUMMARY} or {SCORES} is damaged; {MEND}") from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json(path, MEND)
