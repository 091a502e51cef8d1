"""Position tables at other grids than their own, in two named modes (spec objectives 1.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from belvedere.errors import UserError

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


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """MoCo v3's fixed table (1, h*w, dim): sin, cos of the row, then of the column, dim/4 frequencies each (spec 4.4).

    Raises:
        UserError: when `dim` is no multiple of 4.
    """
    if dim % 4:
        raise UserError(f"backbone.width={dim}: sin-cos positions need a multiple of 4")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows = torch.arange(grid[0], dtype=torch.float64)[:, None] * frequencies
    columns = torch.arange(grid[1], dtype=torch.float64)[:, None] * frequencies
    by_row = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, grid[1], -1)
    by_column = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(grid[0], -1, -1)
    return torch.cat([by_row, by_column], 2).flatten(0, 1)[None].float()


def _resample_dino(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    maps = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    # The reference adds .1 against rounding and passes scale factors: these, and not the sizes, set the sampling
    # coordinates, so that a resize to the same size gives other values.
    scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    maps = F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)
