"""Which region of another view each region was matched with (EsViT, arXiv:2106.09785, section 4 and figure 5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import (
    Picture,
    cell_axes,
    new_figure,
    printable,
    put_image,
    put_text,
    save_figure,
    write_table,
)

IMAGES, A_LINE = 6, 3
LINES = 4
"""Regions a side that get a line: more lines than 4 x 4 hide what they run over."""
COLOURS = matplotlib.colormaps["plasma"]
# In cells: the gap between the two views of a pair, the width and the height of a pair.
GAP, PAIR, ROW, SCALE = 0.22, 2.4, 1.42, 0.36
# The right view hangs lower, or the lines of one row would lie on each other.
LOWER = 0.3


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Write regions.webp and regions.csv from what `tasks/regions.py` shows.

    Args:
        encoder: for mean and std of the pixels.
    """
    match, cosine = shown["match"].long(), shown["cosine"]
    grid, target_grid = (_grid(shown[name]) for name in ("source_grid", "target_grid"))
    images = min(IMAGES, len(match))
    rows = -(-images // A_LINE)
    columns, height = PAIR * min(A_LINE, images), ROW * rows + SCALE
    figure = new_figure(9.6, 9.6 * height / columns)
    axes = cell_axes(figure, columns, height)
    law = Normalize(*np.quantile(cosine[:images].numpy(), [0.02, 0.98]))
    for n in range(images):
        line, place = divmod(n, A_LINE)
        left, top = PAIR * place + 0.04, ROW * line + 0.04
        put_image(axes, printable(encoder, shown["source"][n]), left, top)
        put_image(axes, printable(encoder, shown["target"][n]), left + 1 + GAP, top + LOWER)
        for region in _spread(grid):
            start = _centre(region, grid, left, top)
            end = _centre(int(match[n, region]), target_grid, left + 1 + GAP, top + LOWER)
            _put_line(axes, start, end, COLOURS(law(float(cosine[n, region]))))
    _put_scale(axes, law, columns, height)
    save_figure(figure, folder / "regions.webp")
    write_table(
        folder / "regions.csv",
        ["image", "region", "row", "column", "row_of_match", "column_of_match", "cosine"],
        _rows(match, cosine, grid, target_grid),
    )
    used = float(torch.stack([found.unique().numel() / torch.tensor(target_grid).prod() for found in match]).mean())
    return [
        Picture(
            "regions",
            "Regions matched between two views",
            "Two views of one image each. A line leads from a region of the left view to the region of the right view "
            "whose features from the teacher are nearest to its own, which it learns to predict; bright lines are "
            "similar. In a good network lines join the same part of a thing wherever both views show it: they run side "
            "by side, or cross each other where one view is mirrored; when all end in one place, regions say nothing "
            "of their own. "
            f"On average {used:.0%} of a view's regions are somebody's match, over {len(match)} images.",
            f"{images} pairs of views with lines between matched regions on grids of {grid[0]} x {grid[1]}; the mean "
            f"cosine of a match is {float(cosine.mean()):.2f}.",
            "regions.webp",
            "regions.csv",
        )
    ]


def _grid(numbers: Tensor) -> tuple[int, int]:
    height, width = (int(side) for side in numbers)
    return height, width


def _spread(grid: tuple[int, int]) -> list[int]:
    """Numbers of at most LINES x LINES regions, evenly spread over a grid."""
    rows, columns = ({int(k) for k in _places(side)} for side in grid)
    return [row * grid[1] + column for row in sorted(rows) for column in sorted(columns)]


def _places(side: int) -> NDArray[np.int64]:
    count = min(side, LINES)
    return ((np.arange(count) + 0.5) * side / count).astype(np.int64)


def _centre(region: int, grid: tuple[int, int], left: float, top: float) -> tuple[float, float]:
    """The middle of a region of a view in a cell of side 1."""
    row, column = divmod(region, grid[1])
    return left + (column + 0.5) / grid[1], top + (row + 0.5) / grid[0]


def _put_line(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: tuple[float, ...]) -> None:
    across, down = zip(start, end, strict=True)
    # A dark edge keeps bright lines visible on bright images.
    axes.plot(across, down, color="black", linewidth=1.9, alpha=0.55, solid_capstyle="round")
    axes.plot(across, down, color=colour, linewidth=1.1, solid_capstyle="round")
    axes.plot(*start, marker="o", markersize=2.6, color=colour, markeredgecolor="black", markeredgewidth=0.4)
    axes.plot(*end, marker="s", markersize=2.6, color=colour, markeredgecolor="black", markeredgewidth=0.4)


def _put_scale(axes: Axes, law: Normalize, columns: float, height: float) -> None:
    """Which colour is which cosine."""
    steps, wide = 40, 1.4
    left, top = columns - wide - 0.5, height - 0.22
    for k in range(steps):
        colour = COLOURS((k + 0.5) / steps)
        axes.add_patch(Rectangle((left + k * wide / steps, top - 0.05), wide / steps, 0.1, color=colour, linewidth=0))
    put_text(axes, f"cosine {law.vmin:.2f}", left - 0.06, top, size=7, ha="right")
    put_text(axes, f"{law.vmax:.2f}", left + wide + 0.06, top, size=7)


def _rows(
    match: Tensor, cosine: Tensor, grid: tuple[int, int], target_grid: tuple[int, int]
) -> list[tuple[int | float, ...]]:
    """Every region of every image with its match."""
    return [
        (n, region, *divmod(region, grid[1]), *divmod(int(match[n, region]), target_grid[1]), float(cosine[n, region]))
        for n in range(len(match))
        for region in range(match.shape[1])
    ]
