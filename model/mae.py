"""A masked auto-encoder (He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022), written from the paper.

The encoder is timm's ``VisionTransformer`` itself, so its weights are a timm state dict as they are. It sees only the
visible patches; a light decoder fills in the masked ones; the loss is the squared error on those alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

Size = Literal["tiny", "small", "base", "large", "huge"]


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


@dataclass(frozen=True, slots=True)
class Output:
    """Loss (mean), loss of each image ``[batch]``, predicted patches ``[batch, patches, patch² · channels]``, and the
    mask ``bool [batch, patches]``, true where a patch was hidden."""

    loss: Tensor
    loss_by_image: Tensor
    predicted: Tensor
    mask: Tensor


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder and loss. ``image_size`` must be a multiple of ``patch_size``."""

    def __init__(
        self, size: Size = "base", *, image_size: int = 224, patch_size: int = 16, in_chans: int = 1,
        mask_ratio: float = 0.75, normalize_target: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        shape = SHAPES[size]
        self.size, self.image_size, self.patch_size, self.in_chans = size, image_size, patch_size, in_chans
        self.mask_ratio, self.normalize_target = mask_ratio, normalize_target
        self.encoder = VisionTransformer(
            img_size=image_size, patch_size=patch_size, in_chans=in_chans, num_classes=0, embed_dim=shape.width,
            depth=shape.depth, num_heads=shape.heads, class_token=True, global_pool="token",
        )  # fmt: skip
        self.grid = image_size // patch_size
        self.encoder.pos_embed = nn.Parameter(sincos_positions(self.grid, shape.width), requires_grad=False)
        self.decoder_embed = nn.Linear(shape.width, shape.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.decoder_width))
        self.decoder_positions = nn.Parameter(sincos_positions(self.grid, shape.decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(shape.decoder_width, shape.decoder_heads, qkv_bias=True) for _ in range(shape.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(shape.decoder_width, eps=1e-6)
        self.decoder_head = nn.Linear(shape.decoder_width, patch_size**2 * in_chans)
        self._initialize()

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

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after the last norm, class token first: ``[batch, 1 + visible, width]``.

        ``keep``: ``int64 [batch, visible]``, the patches that are seen; all when None.
        """
        positions = self._positions
        tokens = self.encoder.patch_embed(images) + positions[:, 1:]
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        first = (self._class_token + positions[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.encoder.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.encoder.norm(tokens)
        return encoded

    def decode(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """Predicted patches from the visible tokens; ``restore`` is the inverse of the shuffle that hid the rest."""
        tokens = self.decoder_embed(encoded)
        hidden = restore.shape[1] - (tokens.shape[1] - 1)
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.to(tokens.dtype).expand(len(tokens), hidden, -1)], dim=1)
        ordered = shuffled.gather(1, restore[..., None].expand(-1, -1, shuffled.shape[-1]))
        tokens = torch.cat([tokens[:, :1], ordered], dim=1) + self.decoder_positions
        for block in self.decoder_blocks:
            tokens = block(tokens)
        predicted: Tensor = self.decoder_head(self.decoder_norm(tokens))[:, 1:]
        return predicted

    def target(self, images: Tensor) -> Tensor:
        """What the decoder is to predict: the patches, each normalised by its own mean and deviation if so set."""
        patches = self.patchify(images)
        if not self.normalize_target:
            return patches
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def forward(self, images: Tensor, noise: Tensor, weight: Tensor | None = None) -> Output:
        """Hide, encode, decode, compare.

        ``images``: ``[batch, channels, size, size]``; ``noise``: ``[batch, patches]``, uniform, whose smallest values
        stay visible; ``weight``: ``[batch]``, 0 for images that do not count.
        """
        keep, restore, mask = random_mask(noise, self.mask_ratio)
        predicted = self.decode(self.encode(images, keep), restore)
        error = (predicted.float() - self.target(images.float())).square().mean(-1)
        by_image = (error * mask).sum(1) / mask.sum(1)
        if weight is None:
            return Output(by_image.mean(), by_image, predicted, mask)
        return Output((by_image * weight).sum() / weight.sum().clamp(min=1), by_image, predicted, mask)


def random_mask(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches stay visible: ``keep [batch, visible]``, ``restore [batch, patches]``, ``mask bool [batch, patches]``.

    ``restore`` undoes the shuffle: gathering the shuffled patches by it gives them in their places.
    """
    visible = round(noise.shape[1] * (1 - ratio))
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
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
