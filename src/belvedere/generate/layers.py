"""Layers of ViTGAN's two networks: equalised linears, self-modulated norm, overlapping patches.

"ViTGAN", arXiv:2107.04589, sections 3.2 and 3.3; spec patch_and_pretext 7. The names of weights are torch's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2


def leaky(x: Tensor) -> Tensor:
    """StyleGAN's activation: leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, LEAK) * math.sqrt(2)


class EqualLinear(nn.Linear):
    """A linear layer whose weight is scaled as it runs, so that all layers learn at one pace (StyleGAN).

    The stored weight is standard normal; what multiplies is `weight * lr_factor / sqrt(in_features)`.
    """

    def __init__(self, in_features: int, out_features: int, *, lr_factor: float = 1.0) -> None:
        """Draw the weight; the bias starts at 0."""
        self.lr_factor = lr_factor
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Standard normal, larger where the layer learns slowly."""
        nn.init.normal_(self.weight, std=1 / self.lr_factor)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        scale = self.lr_factor / math.sqrt(self.in_features)
        return F.linear(x, self.weight * scale, self.bias * self.lr_factor)


class SelfModulatedNorm(nn.Module):
    """LayerNorm whose gain and shift come from the latent code (section 3.3, equation 15)."""

    def __init__(self, dim: int, code: int) -> None:
        """A network of `dim` features, a latent code of `code`."""
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-3, elementwise_affine=False)
        self.gamma = EqualLinear(code, dim)
        self.beta = EqualLinear(code, dim)

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` and codes `[B, code]` to tokens."""
        gain, shift = self.gamma(w)[:, None], self.beta(w)[:, None]
        modulated: Tensor = self.norm(h) * (1 + gain) + shift
        return modulated


class Sine(nn.Module):
    """Places in [-1, 1] as sines of learned frequencies: `[..., 2]` to `[..., dim]`."""

    def __init__(self, dim: int) -> None:
        """Frequencies start uniform in +-sqrt(9/2)."""
        super().__init__()
        self.linear = nn.Linear(2, dim)
        nn.init.uniform_(self.linear.weight, -math.sqrt(9 / 2), math.sqrt(9 / 2))

    def forward(self, places: Tensor) -> Tensor:
        """The sines."""
        return torch.sin(self.linear(places))


def places(side: int) -> Tensor:
    """Coordinates `[side * side, 2]` (x, y) of a square grid in [-1, 1], row by row."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def overlapping_patches(images: Tensor, patch: int, overlap: int) -> Tensor:
    """Windows of `patch + 2 * overlap` pixels at a stride of `patch`, zeros beyond the border (section 3.2).

    Args:
        images: `[B, C, H, W]` whose sides `patch` divides.

    Returns:
        `[B, N, C * (patch + 2 * overlap) ** 2]`: as many tokens as without overlap, channel by channel.
    """
    return F.unfold(images, patch + 2 * overlap, padding=overlap, stride=patch).mT
