"""Files of a training run and of weights, small and whole, to be mutated. Needs PyTorch."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from lumid.catalog.cite import CollectionUse
from lumid.model.checkpoint import RunState
from lumid.model.provenance import Provenance
from lumid.model.recipe import load_recipe
from lumid.model.stream import StreamState


@cache
def files(folder: str) -> dict[str, bytes]:
    """Each by its name."""
    path = Path(folder) / "seed.safetensors"
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path, metadata={"rows": '{"weight": [0, 2, 2]}'})
    pth = io.BytesIO()
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 8), "pos_embed": torch.zeros(1, 5, 8)}}, pth)
    use = CollectionUse(
        collection="lung",
        source="idc",
        source_version="v1",
        license="CC BY 4.0",
        doi="10.7937/x",
        samples=5,
        patients=2,
        series=3,
    )
    scores = {"modalities": [{"modality": "CT", "images": 3, "mse": 0.1}], "patch_statistics_of_the_original": True}
    config = {"timm": {"model_name": "vit_tiny_patch16_224", "img_size": 32}, "mean": 0.5, "std": 0.5}
    state = RunState(1, StreamState(), load_recipe("tiny-cpu").canonical(), "0" * 64, 1.0, 0.5)
    plain: dict[str, object] = {
        "state.json": asdict(state),
        "data.json": asdict(Provenance((use,), {"CT": 5})),
        "summary.json": {"validation_loss": 0.5, "validation_loss_by_modality": {"CT": 0.5}},
        "reconstruction.json": scores,
        "config.json": config,
        "run.json": {"recipe": load_recipe("tiny-cpu").identity(), "catalog_hash": "0" * 64},
        "metrics.jsonl": {"step": 1, "loss": 0.5},
    }
    packed = {name: json.dumps(value).encode() for name, value in plain.items()}
    return packed | {"model.safetensors": path.read_bytes(), "weights.pth": pth.getvalue()}
