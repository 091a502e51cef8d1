"""ViTGAN's discriminator: a vision transformer over overlapping patches with L2 attention and kept spectral norms.

"ViTGAN", arXiv:2107.04589, section 3.2. The published code has none (it trains against StyleGAN2's): this is
the paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from belvedere.generate.attention import Attention, AttentionForm
from belvedere.generate.layers import overlapping_patches
from belvedere.generate.spectral import spectral


class Block(nn.Module):
    """A transformer's block, norms first."""

    def __init__(self, dim: int, heads: int, form: AttentionForm) -> None:
        """Tokens of `dim`, an MLP of four times as many."""
        super().__init__()

        def linear(fan_in: int, fan_out: int) -> nn.Linear:
            layer = nn.Linear(fan_in, fan_out)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            return spectral(layer, published=form.form == "published")

        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, form, linear)
        self.mlp = nn.Sequential(linear(dim, 4 * dim), nn.GELU(), linear(4 * dim, dim))

    def forward(self, h: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` to tokens."""
        h = h + self.attention(self.norm1(h))
        mixed: Tensor = h + self.mlp(self.norm2(h))
        return mixed


class Discriminator(nn.Module):
    """Images to one number each: how real they look."""

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        dim: int,
        depth: int,
        heads: int,
        form: AttentionForm,
        patch: int,
        overlap: int,
    ) -> None:
        """Square images of `size`; patches of `patch` that reach `overlap` pixels into their neighbours.

        Raises:
            ValueError: the patch does not divide the size, or the heads the width.
        """
        super().__init__()
        if size % patch:
            raise ValueError(f"patches of {patch} do not divide a side of {size}")
        self.patch, self.overlap = patch, overlap
        self.embed = nn.Linear(channels * (patch + 2 * overlap) ** 2, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, form) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, C, size, size]`, black 0 and white 1, to logits `[B]`; positive is real."""
        tokens = self.embed(overlapping_patches(2 * images - 1, self.patch, self.overlap))
        h = torch.cat([self.cls.expand(len(images), -1, -1), tokens], 1) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(h)[:, 0]))[:, 0]
        return logits
