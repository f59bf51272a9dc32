"""The auto-encoder: counts, masks, loss, inverses, gradients, and parity with an independent implementation."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from lumid.model.mae import SHAPES, MaskedAutoencoder, random_mask, sincos_positions


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


def test_images_that_do_not_count_do_not() -> None:
    model = tiny()
    images, noise = torch.rand(3, 1, 32, 32), torch.rand(3, 16)
    with torch.no_grad():
        output = model(images, noise, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(output.loss, output.loss_by_image[[0, 2]].mean())


def test_gradients_reach_everything_that_is_trained() -> None:
    model = tiny()
    model(torch.rand(2, 1, 32, 32), torch.rand(2, 16)).loss.backward()
    for name, parameter in model.named_parameters():
        if name in ("encoder.pos_embed", "decoder_positions"):
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

    shape = SHAPES[model.size]
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
            z = block(z, f"decoder_blocks.{number}", shape.decoder_heads, 1e-5)
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
