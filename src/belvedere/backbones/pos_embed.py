"""Position tables at other grids than their own, in two named modes (spec objectives 1.2)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

Positions = Literal["dino", "timm"]


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: Positions) -> Tensor:
    """The patch part of a learned position table on another grid; differentiable, so local crops train the table.

    Args:
        table: (1, h*w, D) embeddings of the `old` grid (h, w), row-major.
        new: (h', w') of the wanted grid.
        mode: "dino", as the official DINO and iBOT code; "timm", as `timm`'s antialiased resampling.

    Returns:
        (1, h'*w', D); `table` itself where the grids are equal.
    """
    if old == new:
        return table
    if mode == "timm":
        resampled: Tensor = resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=0)
        return resampled
    return _resample_dino(table, old, new)


def _resample_dino(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    maps = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    # The reference adds .1 against rounding and passes scale factors: these, and not the sizes, set the sampling
    # coordinates, so that a resize to the same size gives other values.
    scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    maps = F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)
