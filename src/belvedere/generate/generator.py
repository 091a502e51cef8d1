"""ViTGAN's generator: a latent code modulates a transformer over places; every token paints its own patch.

"ViTGAN", arXiv:2107.04589, section 3.3; the blocks as its code has them (spec patch_and_pretext 7). The patch of a
token is an implicit function of the pixel's place (after CIPS, arXiv:2011.13775), the code's option without
convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.generate.attention import Attention, AttentionForm
from belvedere.generate.layers import EqualLinear, SelfModulatedNorm, Sine, leaky, places
from belvedere.generate.spectral import spectral

MAPPING_LAYERS, MAPPING_PACE = 8, 0.01
PAINT_LAYERS = 3


class Mapping(nn.Module):
    """Eight slow equalised linears from noise to the latent code (StyleGAN)."""

    def __init__(self, dim: int) -> None:
        """Noise and code of `dim` numbers."""
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(dim, dim, lr_factor=MAPPING_PACE) for _ in range(MAPPING_LAYERS))

    def forward(self, z: Tensor) -> Tensor:
        """Noise `[B, dim]` to codes `[B, dim]`."""
        w = z * (z.square().mean(-1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = leaky(layer(w))
        return w


class Block(nn.Module):
    """Attention and MLP after self-modulated norms; the skip carries the normalised input, as in the code."""

    def __init__(
        self, dim: int, heads: int, hidden: int, form: AttentionForm, linear: Callable[[int, int], nn.Linear]
    ) -> None:
        """Tokens and codes of `dim`, an MLP of `hidden`."""
        super().__init__()
        self.norm1, self.norm2 = SelfModulatedNorm(dim, dim), SelfModulatedNorm(dim, dim)
        self.attention = Attention(dim, heads, form, linear)
        self.mlp = nn.Sequential(linear(dim, hidden), nn.SiLU(), linear(hidden, dim))

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` and codes `[B, dim]` to tokens."""
        h = self.norm1(h, w)
        h = self.norm2(h + self.attention(h), w)
        mixed: Tensor = h + self.mlp(h)
        return mixed


class ModulatedLinear(nn.Module):
    """StyleGAN2's modulated 1 x 1 convolution: the style scales the inputs, and the outputs keep unit variance."""

    def __init__(self, in_features: int, out_features: int, style: int, *, demodulate: bool = True) -> None:
        """A style of `style` numbers; without `demodulate` the outputs are not brought back (the colours)."""
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.style = EqualLinear(style, in_features)
        nn.init.ones_(self.style.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Pixels `[T, P, in]` and one style a row `[T, style]` to `[T, P, out]`."""
        weight = self.weight / math.sqrt(self.weight.shape[1])
        scale = self.style(style)
        y: Tensor = (x * scale[:, None]) @ weight.mT
        if self.demodulate:
            y = y * (scale.square() @ weight.square().mT + 1e-8).rsqrt()[:, None]
        return y + self.bias


class PatchPainter(nn.Module):
    """The colours of each pixel of a token's patch, from the pixel's place and the token as style."""

    at: Tensor

    def __init__(self, dim: int, hidden: int, patch: int, channels: int) -> None:
        """Patches of `patch` pixels a side, layers of `hidden`."""
        super().__init__()
        self.register_buffer("at", places(patch), persistent=False)
        self.sine = Sine(hidden)
        self.layers = nn.ModuleList(ModulatedLinear(hidden, hidden, dim) for _ in range(PAINT_LAYERS))
        self.colour = ModulatedLinear(hidden, channels, dim, demodulate=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[T, dim]` to patches `[T, P, channels]`, P pixels row by row."""
        x = self.sine(self.at).expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = leaky(layer(x, tokens))
        colours: Tensor = self.colour(x, tokens)
        return colours


class Generator(nn.Module):
    """Noise to images.

    Attributes:
        dim: numbers of the noise, of the code and of a token.
    """

    at: Tensor

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        dim: int,
        depth: int,
        heads: int,
        painter: int,
        form: AttentionForm,
        grid: int = 8,
    ) -> None:
        """Images of `size` pixels a side from `grid * grid` tokens.

        Raises:
            ValueError: the grid does not divide the size, or the heads the width.
        """
        super().__init__()
        if size % grid:
            raise ValueError(f"a grid of {grid} does not divide a side of {size}")
        self.dim, self.grid = dim, grid

        def linear(fan_in: int, fan_out: int) -> nn.Linear:
            return spectral(EqualLinear(fan_in, fan_out), published=form.form == "published")

        self.register_buffer("at", places(grid), persistent=False)
        self.mapping = Mapping(dim)
        self.position = Sine(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, 4 * dim, form, linear) for _ in range(depth))
        self.norm = SelfModulatedNorm(dim, dim)
        self.painter = PatchPainter(dim, painter, size // grid, channels)

    def forward(self, z: Tensor) -> Tensor:
        """Noise `[B, dim]`, standard normal, to images `[B, channels, size, size]`, black 0 and white 1."""
        w = self.mapping(z)
        h = self.position(self.at).expand(len(z), -1, -1)
        for block in self.blocks:
            h = block(h, w)
        patches = self.painter(self.norm(h, w).flatten(0, 1))
        columns = patches.unflatten(0, (len(z), -1)).permute(0, 3, 2, 1).flatten(1, 2)
        side = math.isqrt(patches.shape[1])
        return 0.5 * F.fold(columns, (side * self.grid,) * 2, side, stride=side) + 0.5
