"""What the last block looks at, image by image, head by head (DINO, arXiv:2104.14294, figures 1 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from belvedere.measure.encoder import Encoder

MASS = 0.6
"""Share of the attention inside an attention mask."""


def attention_maps(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Attention of the last block over the patches of one image; each map sums to 1.

    The query is the class token, or the mean over all patches where there is none. Other prefix tokens (registers) are
    left out of the keys.

    Args:
        pixels: (1, C, H, W) normalised.

    Returns:
        (heads, h, w) float32 on the CPU.

    Raises:
        UserError: when the backbone has no attention to give.
    """
    height, width = pixels.shape[2] // encoder.backbone.patch, pixels.shape[3] // encoder.backbone.patch
    attention = encoder.attention(pixels)[0].cpu()
    prefix = attention.shape[-1] - height * width
    rows = attention[:, 0, prefix:] if encoder.backbone.has_class_token else attention[:, prefix:, prefix:].mean(1)
    return (rows / rows.sum(1, keepdim=True)).reshape(-1, height, width)


def attention_masks(maps: Tensor, mass: float = MASS) -> Tensor:
    """(heads, h, w) bool: the cells of largest attention that together hold the share `mass` of it.

    Args:
        maps: (heads, h, w) of any sum.
    """
    rows = maps.flatten(1)
    rows = rows / rows.sum(1, keepdim=True)
    values, order = rows.sort(dim=1)
    inside = values.cumsum(1) > 1 - mass
    return torch.zeros_like(inside).scatter_(1, order, inside).reshape(maps.shape)
