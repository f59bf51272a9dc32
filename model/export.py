"""The encoder alone, as timm has it: weights as safetensors, and a card that says what it was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import write_text
from lumid.catalog.places import Anywhere, identity
from lumid.catalog.query import run_sql
from lumid.model.mae import SHAPES
from lumid.model.pretrain import read_run
from lumid.model.recipe import ModelSettings

TIMM_NAMES = {"tiny": "vit_tiny_patch16_224", "small": "vit_small_patch16_224", "base": "vit_base_patch16_224", "large": "vit_large_patch16_224", "huge": "vit_huge_patch14_224"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the encoder and its card are."""

    weights: Path
    card: Path
    config: Path


def timm_arguments(settings: ModelSettings) -> dict[str, object]:
    """What ``timm.create_model`` must be called with to get the encoder: name and keyword arguments."""
    shape = SHAPES[settings.size]
    return {
        "model_name": TIMM_NAMES[settings.size],
        "img_size": settings.image_size,
        "patch_size": settings.patch_size,
        "in_chans": settings.in_chans,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "num_classes": 0,
    }


def export_encoder(run: Path, out: Path, data: Anywhere | None = None) -> Exported:
    """Write ``encoder.safetensors``, ``config.json`` and ``README.md`` (the model card) into ``out``.

    ``data``: the data set of the run, for the card's licences; it must be the one that the run was trained on.
    """
    model, recipe, state = read_run(run)
    if data is not None and identity(data) != state.catalog_hash:
        raise LumidError(f"{data}: is not the data set that {run} was trained on; give that one, or none")
    out.mkdir(parents=True, exist_ok=True)
    weights, config, card = out / "encoder.safetensors", out / "config.json", out / "README.md"
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.encoder.state_dict().items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    arguments = timm_arguments(recipe.model)
    write_text(
        config,
        json.dumps(
            {"timm": arguments, "mean": 0.5, "std": 0.5, "catalog_hash": state.catalog_hash, "recipe": state.recipe},
            indent=1,
        )
        + "\n",
    )
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if name != "model_name")
    lines = [
        f"# {recipe.name}: a ViT encoder pre-trained as a masked auto-encoder",
        "",
        "```python",
        "import timm",
        "from safetensors.torch import load_file",
        f"encoder = timm.create_model({arguments['model_name']!r}, {call})",
        'encoder.load_state_dict(load_file("encoder.safetensors"), strict=True)',
        "```",
        "",
        "Input: intensities in [0, 1] (CT: a window in HU; other modalities: 1st to 99th percentile), minus 0.5, over 0.5.",
        "",
        f"- steps: {state.step:,} of {recipe.optimizer.steps:,}, batch {recipe.optimizer.batch_size}; training loss {state.first_loss:.4f} → {state.last_loss:.4f}",
        f"- selection: `{recipe.data.where}`",
        f"- catalog hash of the data set: `{state.catalog_hash}`",
    ]
    if data is not None:
        lines += ["", *_data_lines(data, recipe.data.where)]
    write_text(card, "\n".join(lines) + "\n")
    return Exported(weights, card, config)


def _data_lines(data: Anywhere, where: str) -> list[str]:
    rows = run_sql(
        data,
        f"SELECT collection, coalesce(license, 'not stated') AS license, coalesce(doi, '') AS doi, count(*) AS samples FROM catalog WHERE ({where}\n) GROUP BY 1, 2, 3 ORDER BY 1",
    ).to_pylist()
    total = sum(row["samples"] for row in rows)
    restricted = sum(row["samples"] for row in rows if "NC" in row["license"].upper().replace("-", " ").split())
    lines = [
        f"Trained on {total:,} samples; {restricted / max(total, 1):.1%} of them under a non-commercial licence.",
        "",
        "| collection | licence | DOI | samples |",
        "|---|---|---|---|",
    ]
    return lines + [f"| {row['collection']} | {row['license']} | {row['doi']} | {row['samples']:,} |" for row in rows]
