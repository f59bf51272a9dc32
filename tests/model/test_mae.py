"""The auto-encoder: counts, masks, loss, inverses, gradients, and parity with an independent implementation."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lumid.model.flops import forward_flops, peak_flops, training_flops
from lumid.model.mae import SHAPES, MaskedAutoencoder, Size, decoder_shape, random_mask, sincos_positions


def tiny(**settings: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder("tiny", **({"image_size": 32, "patch_size": 8} | settings))  # type: ignore[arg-type]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_base_encoder_has_85_8_million_parameters() -> None:
    model = MaskedAutoencoder("base", in_chans=3)
    assert count(model.encoder) / 1e6 == pytest.approx(85.8, abs=0.05)
    assert count(model) / 1e6 == pytest.approx(111.7, abs=0.3)
    assert model.patches == 196


@pytest.mark.parametrize("size", SHAPES)
def test_shapes_are_consistent(size: str) -> None:
    shape = SHAPES[size]  # type: ignore[index]
    assert shape.width % shape.heads == 0
    assert shape.decoder_width % shape.decoder_heads == 0


def test_masks_hide_three_quarters_uniformly() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4000, 64, generator=generator)
    keep, restore, mask = random_mask(noise, 0.75)
    assert keep.shape == (4000, 16)
    assert (mask.sum(1) == 48).all()
    share = mask.float().mean(0)
    assert (share - 0.75).abs().max() < 0.03
    # what is kept is what is not masked
    assert not mask.gather(1, keep).any()
    assert (restore.sort(1).values == torch.arange(64)).all()


def test_restore_undoes_the_shuffle() -> None:
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    _, restore, _ = random_mask(noise, 0.5)
    values = torch.arange(16).expand(3, 16)
    shuffled = values.gather(1, noise.argsort(1))
    assert torch.equal(shuffled.gather(1, restore), values)


def test_unpatchify_is_the_inverse_of_patchify() -> None:
    model = tiny(in_chans=3)
    images = torch.rand(2, 3, 32, 32)
    patches = model.patchify(images)
    assert patches.shape == (2, 16, 192)
    assert torch.equal(model.unpatchify(patches), images)
    # the second patch is the one to the right of the first, its values row by row, channels last
    assert torch.equal(patches[0, 1], images[0, :, :8, 8:16].permute(1, 2, 0).reshape(-1))


def test_the_loss_is_on_masked_patches_only() -> None:
    model = tiny(normalize_target=False)
    images, noise = torch.rand(2, 1, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        output = model(images, noise)
        error = (output.predicted - model.patchify(images)).square().mean(-1)
        by_hand = torch.stack([error[place][output.mask[place]].mean() for place in range(2)])
    torch.testing.assert_close(output.loss_by_image, by_hand)
    torch.testing.assert_close(output.loss, by_hand.mean())


def test_visible_pixels_are_all_that_the_encoder_sees() -> None:
    model = tiny().eval()
    images, noise = torch.rand(1, 1, 32, 32), torch.rand(1, 16)
    _, _, mask = random_mask(noise, 0.75)
    changed = torch.where(
        model.unpatchify(mask[..., None].expand(1, 16, 64).float()) > 0, torch.rand_like(images), images
    )
    with torch.no_grad():
        torch.testing.assert_close(model(images, noise).predicted, model(changed, noise).predicted)


def test_normalised_targets_have_mean_0_and_deviation_1() -> None:
    target = tiny().target(torch.rand(2, 1, 32, 32))
    assert target.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(target.std(-1), torch.ones(2, 16), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"positions": "learned"}, {"in_chans": 3}, {"checkpoint_activations": True}, {"normalize_target": False}],
)
def test_gradients_reach_everything_that_is_trained(settings: dict[str, object]) -> None:
    model = tiny(**settings)
    fixed = () if settings.get("positions") == "learned" else ("encoder.pos_embed", "decoder_positions")
    images = torch.rand(4, model.in_chans, 32, 32)
    model(images, torch.rand(4, 16)).loss.backward()
    check_gradients(model, fixed)


def check_gradients(model: MaskedAutoencoder, fixed: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        if name in fixed:
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_positions_are_sines_and_cosines() -> None:
    positions = sincos_positions(3, 8)
    assert positions.shape == (1, 10, 8)
    assert not positions[0, 0].any()
    row, column = 2, 1
    expected = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100), math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]  # fmt: skip
    torch.testing.assert_close(positions[0, 1 + row * 3 + column], torch.tensor(expected))


def independent_loss(model: MaskedAutoencoder, images: Tensor, noise: Tensor) -> Tensor:
    """The method once more, image by image with loops and plain attention, sharing only the weights."""
    weights = dict(model.named_parameters())
    losses = []
    patch, grid = model.patch_size, model.grid

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt() * weights[
            name + ".weight"
        ] + weights[name + ".bias"]

    def block(x: Tensor, name: str, heads: int, eps: float) -> Tensor:
        q, k, v = linear(norm(x, f"{name}.norm1", eps), f"{name}.attn.qkv").chunk(3, -1)
        width = x.shape[-1] // heads
        out = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            out.append(((q[:, part] @ k[:, part].T) / math.sqrt(width)).softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(out, -1), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2", eps), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + linear(hidden, f"{name}.mlp.fc2")

    shape = model.shape
    for image, draw in zip(images, noise, strict=True):
        cut = [
            image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] for r in range(grid) for c in range(grid)
        ]
        order = draw.argsort().tolist()
        visible = order[: round(len(cut) * (1 - model.mask_ratio))]
        kernel = weights["encoder.patch_embed.proj.weight"].flatten(1)
        tokens = [
            kernel @ cut[place].flatten()
            + weights["encoder.patch_embed.proj.bias"]
            + weights["encoder.pos_embed"][0, 1 + place]
            for place in visible
        ]
        x = torch.stack([weights["encoder.cls_token"][0, 0] + weights["encoder.pos_embed"][0, 0], *tokens])
        for number in range(shape.depth):
            x = block(x, f"encoder.blocks.{number}", shape.heads, 1e-6)
        y = linear(norm(x, "encoder.norm", 1e-6), "decoder_embed")
        full = [weights["mask_token"][0, 0]] * len(cut)
        for token, place in zip(y[1:], visible, strict=True):
            full[place] = token
        z = torch.stack([y[0], *full]) + weights["decoder_positions"][0]
        for number in range(shape.decoder_depth):
            z = block(z, f"decoder_blocks.{number}", shape.decoder_heads, 1e-6)
        predicted = linear(norm(z, "decoder_norm", 1e-6), "decoder_head")[1:]
        errors = []
        for place in set(range(len(cut))) - set(visible):
            target = cut[place].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((predicted[place] - target).square().mean())
        losses.append(torch.stack(errors).mean())
    return torch.stack(losses).mean()


def test_the_loss_is_that_of_an_independent_implementation() -> None:
    model = tiny()
    images, noise = torch.rand(2, 1, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images, noise).loss, independent_loss(model, images, noise), rtol=1e-5, atol=1e-6
        )


def test_the_encoder_is_a_timm_model_as_it_is() -> None:
    model = tiny().eval()
    other = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, in_chans=1, depth=6, num_heads=3, num_classes=0
    )
    other.load_state_dict(model.encoder.state_dict(), strict=True)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(other.eval().forward_features(images), model.encode(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_embedded_as_timm_does(channels: int) -> None:
    model = tiny(in_chans=channels)
    images = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(model.patchify(images)), model.encoder.patch_embed(images))


def test_forgetting_activations_changes_no_gradient() -> None:
    images, noise = torch.rand(2, 1, 32, 32), torch.rand(2, 16)
    gradients = []
    for again in (False, True):
        model = tiny(checkpoint_activations=again)
        model(images, noise).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_forgetting_activations_saves_memory() -> None:
    """What autograd keeps between forward and backward, in bytes."""
    kept = {}
    for again in (False, True):
        model, total = tiny(checkpoint_activations=again), 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.rand(8, 1, 32, 32), torch.rand(8, 16))
        kept[again] = total
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_a_mask_that_hides_nothing_or_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        tiny(mask_ratio=ratio)


def test_the_decoder_can_be_another() -> None:
    model = tiny(decoder_width=64, decoder_depth=3, decoder_heads=2)
    assert len(model.decoder_blocks) == 3
    assert model.decoder_head.in_features == 64
    model(torch.rand(1, 1, 32, 32), torch.rand(1, 16)).loss.backward()
    assert decoder_shape("base", 256).decoder_heads == 8, "heads keep their width of 32"
    with pytest.raises(ValueError, match="multiple"):
        decoder_shape("base", 100, None, 3)


def test_learned_positions_are_learnt_and_exported_by_their_name() -> None:
    model = tiny(positions="learned")
    before = model.encoder.state_dict()["pos_embed"].clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.rand(2, 1, 32, 32), torch.rand(2, 16)).loss.backward()
    optimizer.step()
    assert not torch.equal(before, model.encoder.state_dict()["pos_embed"])


def test_attention_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDPA chooses flash attention on a GPU; a block that multiplied by hand would not."""
    calls, real = [], F.scaled_dot_product_attention

    def counted(*args: Tensor, **options: float) -> Tensor:
        calls.append(args[0].shape)
        return real(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model = tiny()
    model(torch.rand(2, 1, 32, 32), torch.rand(2, 16))
    shape = model.shape
    assert (
        calls
        == [(2, shape.heads, 1 + model.visible, shape.width // shape.heads)] * shape.depth
        + [(2, shape.decoder_heads, 1 + model.patches, shape.decoder_width // shape.decoder_heads)]
        * shape.decoder_depth
    )


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ("tiny", {"image_size": 32, "patch_size": 8}),
        ("tiny", {"image_size": 48, "patch_size": 8, "in_chans": 3, "mask_ratio": 0.6, "positions": "learned"}),
        ("small", {"image_size": 64, "patch_size": 16, "decoder_width": 128, "decoder_depth": 3}),
    ],
)
def test_flops_are_those_that_torch_counts(size: Size, settings: dict[str, object]) -> None:
    model = MaskedAutoencoder(size, **settings)  # type: ignore[arg-type]
    images, noise = torch.rand(3, model.in_chans, model.image_size, model.image_size), torch.rand(3, model.patches)
    with sdpa_kernel(SDPBackend.MATH):  # the counter knows no CPU kernel of attention; products it does
        with FlopCounterMode(display=False) as counter:
            loss = model(images, noise).loss
        assert counter.get_total_flops() == 3 * forward_flops(model)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert counter.get_total_flops() + backward.get_total_flops() == 3 * training_flops(model)


def test_flops_of_the_base_model_by_hand() -> None:
    model = MaskedAutoencoder("base", in_chans=3)
    encoder = 2 * 49 * 768 * 768 + 12 * (24 * 50 * 768**2 + 4 * 50**2 * 768)
    decoder = 2 * 50 * 768 * 512 + 8 * (24 * 197 * 512**2 + 4 * 197**2 * 512) + 2 * 196 * 512 * 768
    assert forward_flops(model) == encoder + decoder


def test_peaks_are_found_by_the_devices_name() -> None:
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("a device of tomorrow") is None
