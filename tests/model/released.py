"""State dicts as the MAE family's files have them."""

from __future__ import annotations

from torch import Tensor

from lumid.model.mae import MaskedAutoencoder


def mae_names(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """A state dict with the names of MAE's released code."""
    names = {
        "mask_token": "mask_token", "decoder_positions": "decoder_pos_embed",
        "decoder_head.weight": "decoder_pred.weight", "decoder_head.bias": "decoder_pred.bias",
    }  # fmt: skip
    return {names.get(name, name.removeprefix("encoder.")): tensor for name, tensor in model.state_dict().items()}
