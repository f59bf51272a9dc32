from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay
from torch import nn

from lumid.catalog.errors import UsageError
from lumid.model.convert import convert
from lumid.model.evaluate.baselines import BASELINES
from lumid.model.evaluate.encoders import Preprocessing, embed, feature_map, hash_of, load_encoder, normalized
from lumid.model.export import export_encoder
from lumid.model.mae import MaskedAutoencoder
from lumid.model.runs import read_run
from tests.model.released import mae_names

SHAPES = {
    "resnet50.a1_in1k": (2048, 7, 7),
    "tf_efficientnetv2_s.in1k": (1280, 10, 10),
    "convnext_base.fb_in1k": (1024, 7, 7),
    "convnextv2_base.fcmae_ft_in1k": (1024, 7, 7),
    "vit_base_patch16_224.augreg_in1k": (768, 14, 14),
    "swin_base_patch4_window7_224.ms_in1k": (1024, 7, 7),
    "vit_base_patch16_224.mae": (768, 14, 14),
    "vit_base_patch14_dinov2.lvd142m": (768, 16, 16),
    "vit_base_patch16_dinov3.lvd1689m": (768, 16, 16),
}


def test_the_baselines_are_those_of_the_table() -> None:
    assert {one.timm for one in BASELINES} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_every_baseline_has_features_and_a_map_of_them(name: str) -> None:
    """On the meta device, which knows shapes and has no memory: of 90 million weights none is made."""
    wanted = timm.get_pretrained_cfg(name)
    size = 224 if "dinov2" in name else wanted.input_size[-1]
    with torch.device("meta"):
        options = {"img_size": size} if "dinov2" in name else {}
        model = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=0.1, **options).eval()
        images = torch.zeros(2, 3, size, size)
        assert tuple(feature_map(model, images).shape) == (2, *SHAPES[name])
        assert tuple(embed(model, images).shape) == (2, model.num_features)
        model.reset_classifier(5)
        assert tuple(model(images).shape) == (2, 5)
    scales = {group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.75)}
    assert max(scales) == 1
    assert len(scales) > 5, "layers are told apart"


class Tokens(nn.Module):
    """A ViT whose tokens say where they are."""

    num_prefix_tokens = 5
    patch_embed = timm.layers.PatchEmbed(32, 8, 1, 4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        places = torch.arange(16.0).view(1, 16, 1).expand(len(images), -1, 3)
        return torch.cat([torch.full((len(images), 5, 3), -1.0), places], 1)


def test_tokens_come_back_to_their_places_without_class_and_registers() -> None:
    found = feature_map(Tokens(), torch.zeros(2, 1, 32, 32))
    assert found.shape == (2, 3, 4, 4)
    assert torch.equal(found[1, 2], torch.arange(16.0).view(4, 4))


def test_channels_last_are_told_from_channels_first() -> None:
    """Of a Swin transformer the map's mean is what its own head pools."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=64).eval()
        resnet = timm.create_model("resnet10t", num_classes=0).eval()
        images = torch.randn(2, 3, 64, 64)
    for model in (swin, resnet):
        with torch.no_grad():
            assert torch.allclose(feature_map(model, images).mean((2, 3)), embed(model, images), atol=1e-5)


def test_grey_and_colour_become_what_an_encoder_takes() -> None:
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    three = Preprocessing(4, 3, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), cubic=True)
    one = Preprocessing(4, 1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), cubic=False)
    assert torch.allclose(normalized(grey, three)[:, 2], (grey[:, 0] - 0.3) / 0.7)
    assert torch.allclose(normalized(grey, one), grey * 2 - 1)
    luma = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]
    assert torch.allclose(normalized(colour, one)[:, 0], luma * 2 - 1)


def test_a_run_and_its_export_are_one_encoder(trained: Path, tmp_path: Path) -> None:
    export_encoder(trained, tmp_path / "out")
    run, exported = load_encoder(str(trained)), load_encoder(str(tmp_path / "out"))
    mae, _, state = read_run(trained)
    assert run.weights_hash == exported.weights_hash == hash_of(mae.encoder)
    assert run.preprocessing == exported.preprocessing == Preprocessing(32, 1, (0.5,) * 3, (0.5,) * 3, cubic=False)
    assert run.trained_on == exported.trained_on
    assert run.trained_on is not None
    assert run.trained_on.catalog_hash == state.catalog_hash
    images = torch.rand(3, 1, 32, 32)
    mae.eval()
    with torch.no_grad():
        tokens = mae.encoder.forward_features(images * 2 - 1)
    assert torch.allclose(run.embed(images), tokens[:, 0], atol=1e-5), "the class token"
    random = load_encoder(f"random:{trained}")
    assert random.at_random
    assert random.trained_on is None
    assert random.weights_hash != run.weights_hash
    assert random.weights_hash == load_encoder(f"random:{trained}").weights_hash


@pytest.mark.parametrize("wrapped", [True, False])
def test_checkpoints_of_the_released_form_load_and_convert(tmp_path: Path, wrapped: bool) -> None:
    """``{"model": …}`` with the decoder's keys, as MAE's and MedMAE's files are."""
    torch.manual_seed(1)
    mae = MaskedAutoencoder("tiny", image_size=64, in_chans=3, decoder_width=32, decoder_depth=1, decoder_heads=16)
    path = tmp_path / "medmae.pth"
    torch.save({"model": mae_names(mae), "epoch": 7} if wrapped else mae_names(mae), path)
    found = load_encoder(str(path))
    assert found.weights_hash == hash_of(mae.encoder)
    assert found.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert found.trained_on is None
    convert(path, tmp_path / "folder")
    assert load_encoder(str(tmp_path / "folder")).weights_hash == found.weights_hash


def test_names_of_timm_take_their_weights_from_a_file(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=0)
    save_file(model.state_dict(), tmp_path / "resnet.safetensors")
    found = load_encoder("resnet10t.c3_in1k", tmp_path / "resnet.safetensors")
    assert found.weights_hash == hash_of(model)
    assert found.preprocessing.size == 176
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="of another model"):
        load_encoder("resnet10t.c3_in1k", tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        load_encoder("resnet10t.c3_in1k", tmp_path / "absent.safetensors")


def test_offline_it_says_which_file_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"model.safetensors of timm/vit_base_patch16_224.mae .*--weights FILE"):
        load_encoder("vit_base_patch16_224.mae")


def test_what_is_no_encoder_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    torch.manual_seed(0)
    odd = mae_names(MaskedAutoencoder("tiny", image_size=32, in_chans=3, decoder_width=32, decoder_depth=1))
    without = {name: value for name, value in odd.items() if "decoder_blocks" not in name}
    torch.save({"model": without}, tmp_path / "odd.pth")
    names = [str(tmp_path / name) for name in ("empty", "broken.pth", "odd.pth")]
    for spec in (*names, "absent.pth", "resnet5", "a/b"):
        with pytest.raises(UsageError) as caught:
            load_encoder(spec)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="did you mean"):
        load_encoder("vit_base_patch16_22")
