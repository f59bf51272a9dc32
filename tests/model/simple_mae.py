"""The method once more, as a textbook would write it: PyTorch's own transformer layers, a convolution for the patches,
masks by a set of indices, an optimiser in five lines. Shares no code with lumid; weights are copied in to begin equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lumid.model.mae import MaskedAutoencoder


def layer(width: int, heads: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )


class SimpleMae(nn.Module):
    """Encoder, decoder and loss for images of one channel."""

    def __init__(self, other: MaskedAutoencoder) -> None:
        super().__init__()
        shape, self.patch, self.ratio = other.shape, other.patch_size, other.mask_ratio
        self.embed = nn.Conv2d(1, shape.width, self.patch, self.patch)
        self.token = nn.Parameter(torch.zeros(shape.width))
        self.encoder = nn.ModuleList(layer(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.bridge = nn.Linear(shape.width, shape.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(shape.decoder_width))
        self.decoder = nn.ModuleList(
            layer(shape.decoder_width, shape.decoder_heads) for _ in range(shape.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(shape.decoder_width, eps=1e-6)
        self.head = nn.Linear(shape.decoder_width, self.patch**2)
        self.register_buffer("places", sines(other.grid, shape.width))
        self.register_buffer("decoder_places", sines(other.grid, shape.decoder_width))
        self.copy(other)

    @torch.no_grad()
    def copy(self, other: MaskedAutoencoder) -> None:
        weights = other.state_dict()
        pairs: list[tuple[Tensor, str]] = [
            (self.embed.weight, "encoder.patch_embed.proj.weight"),
            (self.embed.bias, "encoder.patch_embed.proj.bias"),  # type: ignore[list-item]
            (self.token, "encoder.cls_token"),
            (self.mask_token, "mask_token"),
        ]
        for mine, theirs in (
            (self.norm, "encoder.norm"), (self.bridge, "decoder_embed"), (self.decoder_norm, "decoder_norm"), (self.head, "decoder_head"),
        ):  # fmt: skip
            pairs += [(mine.weight, f"{theirs}.weight"), (mine.bias, f"{theirs}.bias")]
        for blocks, name in ((self.encoder, "encoder.blocks"), (self.decoder, "decoder_blocks")):
            for number, block in enumerate(blocks):
                assert isinstance(block, nn.TransformerEncoderLayer)
                prefix = f"{name}.{number}"
                pairs += [
                    (block.self_attn.in_proj_weight, f"{prefix}.attn.qkv.weight"),
                    (block.self_attn.in_proj_bias, f"{prefix}.attn.qkv.bias"),
                ]
                for mine, theirs in (
                    (block.self_attn.out_proj, "attn.proj"), (block.linear1, "mlp.fc1"), (block.linear2, "mlp.fc2"),
                    (block.norm1, "norm1"), (block.norm2, "norm2"),
                ):  # fmt: skip
                    pairs += [(mine.weight, f"{prefix}.{theirs}.weight"), (mine.bias, f"{prefix}.{theirs}.bias")]
        for tensor, name in pairs:
            tensor.copy_(weights[name].reshape(tensor.shape))

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2) + self.places
        batch, count, _ = patches.shape
        kept = round(count * (1 - self.ratio))
        ranking = [sorted(range(count), key=draws.__getitem__) for draws in noise.tolist()]
        visible = torch.tensor([sorted(places[:kept]) for places in ranking])
        hidden = torch.tensor([sorted(places[kept:]) for places in ranking])
        image = torch.arange(batch)[:, None]
        tokens = torch.cat([self.token.expand(batch, 1, -1), patches[image, visible]], 1)
        for block in self.encoder:
            tokens = block(tokens)
        seen = self.bridge(self.norm(tokens))
        whole = self.mask_token.repeat(batch, count, 1)
        whole[image, visible] = seen[:, 1:]
        tokens = torch.cat([seen[:, :1], whole + self.decoder_places], 1)
        for block in self.decoder:
            tokens = block(tokens)
        predicted = self.head(self.decoder_norm(tokens))[:, 1:][image, hidden]
        side = self.patch
        squares = images[:, 0].unfold(1, side, side).unfold(2, side, side).reshape(batch, count, -1)[image, hidden]
        target = (squares - squares.mean(2, keepdim=True)) / (squares.var(2, keepdim=True) + 1e-6) ** 0.5
        return ((predicted - target) ** 2).mean()


def sines(grid: int, width: int) -> Tensor:
    quarter = width // 4
    table = torch.zeros(grid * grid, width)
    for row in range(grid):
        for column in range(grid):
            for number in range(quarter):
                angle = 10000 ** (-number / quarter)
                for part, value in enumerate((math.sin(column * angle), math.cos(column * angle), math.sin(row * angle), math.cos(row * angle))):  # fmt: skip
                    table[row * grid + column, part * quarter + number] = value
    return table


class SimpleAdamW:
    """Loshchilov and Hutter (2019), algorithm 2, decay on matrices alone, the gradient's norm limited to 1."""

    def __init__(self, model: nn.Module, decay: float, beta1: float, beta2: float) -> None:
        self.parameters = list(model.parameters())
        self.moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in self.parameters]
        self.decay, self.beta1, self.beta2, self.steps = decay, beta1, beta2, 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.steps += 1
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for one, gradient, (mean, square) in zip(self.parameters, gradients, self.moments, strict=True):
            gradient = gradient * min(1.0, 1 / (norm + 1e-6))
            mean += (1 - self.beta1) * (gradient - mean)
            square += (1 - self.beta2) * (gradient * gradient - square)
            if one.ndim > 1:
                one *= 1 - rate * self.decay
            one -= (
                rate * (mean / (1 - self.beta1**self.steps)) / ((square / (1 - self.beta2**self.steps)).sqrt() + 1e-8)
            )
            assert one.grad is not None
            one.grad = None
