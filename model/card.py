"""The card of an encoder: how it is loaded, what it was trained on and under which licences, how, and how well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lumid.catalog.cite import PAPER_TEXT, non_commercial_line, unstated_line
from lumid.model.checkpoint import RunState
from lumid.model.provenance import Provenance
from lumid.model.recipe import TrainRecipe

INPUT = (
    "Input: intensities in [0, 1], minus 0.5, over 0.5. CT: a window in HU, in evaluation [-1000, 1000]; 8-bit images: their "
    "whole range; others: from the 1st to the 99th percentile of the image. `lumid.model.augment` does it."
)

BASELINE = {True: "its own mean, as the decoder is given too.", False: "the mean of what is visible."}
FRONT_MATTER = """---
library_name: timm
tags: [masked-autoencoder, medical-imaging, vit]
pipeline_tag: image-feature-extraction
license: other
license_name: see-data
---"""


@dataclass(frozen=True, slots=True)
class Results:
    """What is known of how good a run is: its summary, and the scores of its reconstructions, by modality;
    ``borrowed``: those were given the brightness of the hidden patches."""

    validation_loss: float | None
    validation_loss_by_modality: Mapping[str, float]
    reconstruction: tuple[Mapping[str, Any], ...]
    borrowed: bool


def card(
    recipe: TrainRecipe,
    state: RunState,
    provenance: Provenance | None,
    results: Results,
    arguments: Mapping[str, object],
    parameters: int,
) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    sections = [
        FRONT_MATTER,
        f"# {recipe.name}: a ViT encoder pre-trained as a masked auto-encoder on medical images",
        f"{recipe.description[:1].upper()}{recipe.description[1:]}." if recipe.description else "",
        _load(arguments, parameters),
        INPUT,
        _data(recipe, state, provenance),
        _training(recipe, state),
        _results(state, results),
        "## Limits\n\nNot a medical device. Trained to fill in hidden patches, it knows nothing of diagnoses until it is probed or "
        "fine-tuned, on data of its own split by patient.",
        f"## Citation\n\nThe method and the data set's composition are those of: {PAPER_TEXT} The weights are not the paper's. "
        "Cite the collections above by their DOIs as well.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _load(arguments: Mapping[str, object], parameters: int) -> str:
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name != "model_name")
    return "\n".join(
        [
            "```python",
            "import timm",
            "from safetensors.torch import load_file",
            f"encoder = timm.create_model({arguments['model_name']!r}, {call})",
            'encoder.load_state_dict(load_file("encoder.safetensors"), strict=True)',
            "```",
            "",
            f"{parameters / 1e6:.1f} M parameters, float32. `encoder.forward_features(images)`: class token, then patches.",
        ]
    )


def _data(recipe: TrainRecipe, state: RunState, provenance: Provenance | None) -> str:
    lines = [
        "## Data",
        "",
        f"Selection `{recipe.data.where}` of the data set whose catalog has the hash `{state.catalog_hash}`.",
    ]
    if provenance is None:
        return "\n".join([*lines, "Collections and licences were not recorded with this run."])
    modalities = ", ".join(f"{name} {count:,}" for name, count in provenance.modalities.items())
    notes = [non_commercial_line(provenance.collections), unstated_line(provenance.collections)]
    lines += [
        f"{provenance.samples:,} samples: {modalities}.",
        "",
        *(f"**{note}**" for note in notes if note),
        "",
        "| collection | licence | DOI | samples | patients |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {use.collection} | {use.license or 'not stated'} | {use.doi_url or ''} | {use.samples:,} | {use.patients:,} |"
        for use in provenance.collections
    ]
    return "\n".join(lines)


def _training(recipe: TrainRecipe, state: RunState) -> str:
    model, optimizer = recipe.model, recipe.optimizer
    images = state.step * optimizer.batch_size
    seen = f"step {state.step:,} of {recipe.steps:,}, {images:,} images (epoch {state.stream.epoch})"
    rows = {
        "recipe": recipe.name,
        "length": seen,
        "model": f"{model.size}, {model.image_size} px, patches of {model.patch_size}, {model.in_chans} channel(s)",
        "masked": f"{model.mask_ratio:.0%} of the patches, {model.positions} positions",
        "target": "pixels, normalised by patch" if model.normalize_target else "pixels",
        "AdamW": f"batch {optimizer.batch_size:,}, base lr {optimizer.base_lr:g} × batch / 256, β ({optimizer.beta1}, "
        f"{optimizer.beta2}), weight decay {optimizer.weight_decay}, {optimizer.warmup_steps} warm-up steps, cosine to 0",
        "augmentation": f"crops of {recipe.data.scale_min:.0%} to 100 %, flips, random windows"
        if recipe.data.augment
        else "none",
        "seed": str(recipe.data.seed),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *table, "", "The whole recipe is in `config.json`."])


def _results(state: RunState, results: Results) -> str:
    lines = ["## Results", "", f"Training loss {state.first_loss:.4f} → {state.last_loss:.4f}."]
    if state.guard.skipped:
        lines.append(f"{state.guard.skipped:,} steps were left out because their loss was no number or leapt.")
    if results.validation_loss is not None:
        by_modality = ", ".join(f"{name} {loss:.4f}" for name, loss in results.validation_loss_by_modality.items())
        lines.append(f"Loss on held-out patients {results.validation_loss:.4f} ({by_modality}).")
    if results.reconstruction:
        lines += [
            "",
            "Reconstruction of hidden patches, visible ones put back"
            + (", mean and deviation of a patch taken from the original:" if results.borrowed else ":"),
            "",
            "| modality | seen | images | PSNR (dB) | SSIM | PSNR of the baseline (dB) |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['modality']} | {row['seen']} | {row['images']} | {row['psnr_db']:.2f} ± {row['psnr_db_sd']:.2f} | "
            f"{row['ssim']:.3f} ± {row['ssim_sd']:.3f} | {row['baseline_psnr_db']:.2f} |"
            for row in results.reconstruction
        ]
        lines += ["", "The baseline fills every hidden patch with one grey: " + BASELINE[results.borrowed]]
    return "\n".join(lines)
