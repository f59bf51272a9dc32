"""A masked auto-encoder (He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022), written from the paper.

The encoder is timm's ``VisionTransformer`` itself, so its weights are a timm state dict as they are. It sees only the
visible patches, and only those are embedded; a light decoder fills in the masked ones; the loss is the squared error on
those alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Size = Literal["tiny", "small", "base", "large", "huge"]
Positions = Literal["sincos", "learned"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Width, depth and heads of encoder and decoder, and the timm model that the encoder is."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


SHAPES: dict[Size, Shape] = {
    "tiny": Shape(192, 6, 3, 128, 2, 4),
    "small": Shape(384, 12, 6, 256, 4, 8),
    "base": Shape(768, 12, 12, 512, 8, 16),
    "large": Shape(1024, 24, 16, 512, 8, 16),
    "huge": Shape(1280, 32, 16, 512, 8, 16),
}
"""``base`` to ``huge`` are the paper's; ``tiny`` and ``small`` are for CPUs and for trying things."""
SIZES: tuple[Size, ...] = get_args(Size)


def decoder_shape(size: Size, width: int | None = None, depth: int | None = None, heads: int | None = None) -> Shape:
    """The shape of a size, with another decoder where one is given.

    Raises :class:`ValueError` when the decoder's width is no multiple of 4 and of its heads.
    """
    own = SHAPES[size]
    wide = width or own.decoder_width
    # heads of another width keep their own width, so that only their number changes
    shape = replace(
        own,
        decoder_width=wide,
        decoder_depth=depth or own.decoder_depth,
        decoder_heads=heads or max(1, wide * own.decoder_heads // own.decoder_width),
    )
    if wide % 4 or wide % shape.decoder_heads:
        raise ValueError(f"decoder_width {wide} must be a multiple of 4 and of its {shape.decoder_heads} heads")
    return shape


@dataclass(frozen=True, slots=True)
class Output:
    """Loss (mean), loss of each image ``[batch]``, predicted patches ``[batch, patches, patch² · channels]``, and the
    mask ``bool [batch, patches]``, true where a patch was hidden."""

    loss: Tensor
    loss_by_image: Tensor
    predicted: Tensor
    mask: Tensor


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and loss. ``image_size`` must be a multiple of ``patch_size``.

    ``positions``: fixed sines and cosines (the paper's), or learned. ``checkpoint_activations``: blocks forget what they
    computed and compute it again for the gradient, a third more work for a fraction of the memory.
    """

    def __init__(
        self, size: Size = "base", *, image_size: int = 224, patch_size: int = 16, in_chans: int = 1,
        mask_ratio: float = 0.75, normalize_target: bool = True, positions: Positions = "sincos",
        decoder_width: int | None = None, decoder_depth: int | None = None, decoder_heads: int | None = None,
        checkpoint_activations: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.shape = shape = decoder_shape(size, decoder_width, decoder_depth, decoder_heads)
        self.size, self.image_size, self.patch_size, self.in_chans = size, image_size, patch_size, in_chans
        self.mask_ratio, self.normalize_target = mask_ratio, normalize_target
        self.checkpoint_activations = checkpoint_activations
        self.grid = image_size // patch_size
        self.visible = visible_patches(self.patches, mask_ratio)
        self.encoder = VisionTransformer(
            img_size=image_size, patch_size=patch_size, in_chans=in_chans, num_classes=0, embed_dim=shape.width,
            depth=shape.depth, num_heads=shape.heads, class_token=True, global_pool="token", weight_init="skip",
        )  # fmt: skip
        self.encoder.pos_embed = self._make_positions(positions, shape.width)
        self.decoder_embed = nn.Linear(shape.width, shape.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.decoder_width))
        self.decoder_positions = self._make_positions(positions, shape.decoder_width)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # as in timm's encoder
        self.decoder_blocks = nn.ModuleList(
            Block(shape.decoder_width, shape.decoder_heads, qkv_bias=True, norm_layer=norm)
            for _ in range(shape.decoder_depth)
        )
        self.decoder_norm = norm(shape.decoder_width)
        self.decoder_head = nn.Linear(shape.decoder_width, patch_size**2 * in_chans)
        self._initialize()

    def _make_positions(self, kind: Positions, width: int) -> nn.Parameter:
        if kind == "sincos":
            return nn.Parameter(sincos_positions(self.grid, width), requires_grad=False)
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + self.patches, width), std=0.02))

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.encoder.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.view(projection.shape[0], -1))  # a patch embedding is a linear layer
        nn.init.normal_(self._class_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def _class_token(self) -> Tensor:
        token = self.encoder.cls_token
        assert token is not None, "the encoder was made with a class token"
        return token

    @property
    def _positions(self) -> Tensor:
        positions = self.encoder.pos_embed
        assert positions is not None, "the encoder was given its positions"
        return positions

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid**2

    def patchify(self, images: Tensor) -> Tensor:
        """``[batch, channels, size, size]`` → ``[batch, patches, patch² · channels]``."""
        batch, channels = images.shape[:2]
        cut = images.reshape(batch, channels, self.grid, self.patch_size, self.grid, self.patch_size)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, self.patches, -1)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`patchify`."""
        batch = patches.shape[0]
        cut = patches.reshape(batch, self.grid, self.grid, self.patch_size, self.patch_size, self.in_chans)
        return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, self.in_chans, self.image_size, self.image_size)

    def embed(self, patches: Tensor) -> Tensor:
        """timm's patch embedding of patches that are cut already: ``[…, patch² · channels]`` → ``[…, width]``."""
        projection = self.encoder.patch_embed.proj
        # a convolution whose stride is its size is a linear layer; its weights are [width, channels, rows, columns]
        ordered = patches.reshape(*patches.shape[:-1], -1, self.in_chans).mT.flatten(-2)
        return F.linear(ordered, projection.weight.flatten(1), projection.bias)

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after the last norm, class token first: ``[batch, 1 + visible, width]``.

        ``keep``: ``int64 [batch, visible]``, the patches that are seen; all when None.
        """
        return self._encode(self.patchify(images), keep)

    def _encode(self, patches: Tensor, keep: Tensor | None) -> Tensor:
        positions = self._positions
        places = positions[:, 1:].expand(len(patches), -1, -1)
        if keep is not None:  # before the embedding: what is hidden costs nothing
            patches, places = _rows(patches, keep), _rows(places, keep)
        first = (self._class_token + positions[:, :1]).expand(len(patches), -1, -1)
        tokens = torch.cat([first, self.embed(patches) + places], dim=1)
        tokens = self._through(self.encoder.blocks, tokens)
        encoded: Tensor = self.encoder.norm(tokens)
        return encoded

    def decode(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """Predicted patches from the visible tokens; ``restore`` is the inverse of the shuffle that hid the rest."""
        tokens = self.decoder_embed(encoded)
        hidden = restore.shape[1] - (tokens.shape[1] - 1)
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.to(tokens.dtype).expand(len(tokens), hidden, -1)], dim=1)
        tokens = torch.cat([tokens[:, :1], _rows(shuffled, restore)], dim=1) + self.decoder_positions
        tokens = self._through(self.decoder_blocks, tokens)
        predicted: Tensor = self.decoder_head(self.decoder_norm(tokens)[:, 1:])
        return predicted

    def _through(self, blocks: nn.ModuleList | nn.Sequential, tokens: Tensor) -> Tensor:
        again = self.checkpoint_activations and torch.is_grad_enabled()
        for block in blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)
        return tokens

    def target(self, images: Tensor) -> Tensor:
        """What the decoder is to predict: the patches, each normalised by its own mean and deviation if so set."""
        return self._target(self.patchify(images))

    def _target(self, patches: Tensor) -> Tensor:
        if not self.normalize_target:
            return patches
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        """Hide, encode, decode, compare.

        ``images``: ``[batch, channels, size, size]``; ``noise``: ``[batch, patches]``, uniform, whose smallest values
        stay visible.
        """
        keep, restore, mask = random_mask(noise, self.mask_ratio)
        patches = self.patchify(images)
        predicted = self.decode(self._encode(patches, keep), restore)
        error = (predicted.float() - self._target(patches.float())).square().mean(-1)
        by_image = (error * mask).sum(1) / mask.sum(1)
        return Output(by_image.mean(), by_image, predicted, mask)


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """Those tokens of each image: ``[batch, tokens, width]``, ``int64 [batch, n]`` → ``[batch, n, width]``."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def visible_patches(patches: int, ratio: float) -> int:
    """How many patches stay visible. Raises :class:`ValueError` where that would be none or all."""
    visible = round(patches * (1 - ratio))
    if not 0 < visible < patches:
        raise ValueError(
            f"mask_ratio {ratio} leaves {visible} of {patches} patches visible; it must leave some of them"
        )
    return visible


def random_mask(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches stay visible: ``keep [batch, visible]``, ``restore [batch, patches]``, ``mask bool [batch, patches]``.

    ``restore`` undoes the shuffle: gathering the shuffled patches by it gives them in their places.
    """
    visible = visible_patches(noise.shape[1], ratio)
    shuffle = noise.argsort(dim=1)
    place = torch.arange(noise.shape[1], device=noise.device).expand_as(shuffle)
    restore = torch.empty_like(shuffle).scatter_(1, shuffle, place)
    return shuffle[:, :visible], restore, restore >= visible


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, ``float32 [1, 1 + grid², width]``, zeros for the class token.

    A quarter of the width each: sine and cosine of the row, sine and cosine of the column, at frequencies
    10000^(-i / (width / 4)) (Vaswani et al. 2017, in two dimensions).
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4")
    frequency = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = wave[:, None].expand(grid, grid, -1)
    columns = wave[None].expand(grid, grid, -1)
    patches = torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width)
    return torch.cat([torch.zeros(1, 1, width), patches.float()], dim=1)
