"""What the last block looks at: its attention from the class token, head by head (DINO, arXiv:2104.14294, figure 1)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from torch import Tensor

from belvedere.errors import UserError
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

MASS = 0.6
MOST_HEADS = 6
# In cells: room for the names of the rows, and the side of a picture.
MARGIN, SIDE = 0.55, 0.95


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


def mass_level(weights: NDArray[np.float32], mass: float = MASS) -> float:
    """The level above which (and at which) the largest values of a map hold the share `mass` of its sum."""
    ordered = np.sort(weights.ravel())[::-1].astype(np.float64)
    reached = np.searchsorted(ordered.cumsum(), mass * ordered.sum() * (1 - 1e-9))
    return float(ordered[min(reached, len(ordered) - 1)])


def draw_attention(folder: Path, encoder: Encoder, pixels: Tensor, names: list[str]) -> Picture:
    """Write attention.webp and attention.csv.

    Args:
        encoder: for the size of the pixels.
        pixels: (n, C, H, W) normalised, on the encoder's device.

    Raises:
        UserError: when the backbone has no attention to give.
    """
    if "attention" not in encoder.backbone.can:
        raise UserError(f"{encoder.backbone.architecture} has no attention between a class token and patches")
    # One image at a time: the full matrix of a large grid is hundreds of megabytes.
    maps = [attention_maps(encoder, pixels[i : i + 1]) for i in range(len(pixels))]
    heads = len(maps[0])
    shown = min(heads, MOST_HEADS) if heads > 1 else 0
    columns, rows = MARGIN + len(maps), 2 + shown
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    titles = ["image", "mean" if heads > 1 else "its head", *(f"head {i + 1}" for i in range(shown))]
    for row, title in enumerate(titles):
        put_text(axes, title, 0.05, row + 0.47, fontweight="bold")
    for column, found in enumerate(maps):
        left = MARGIN + column
        mean = found.mean(0).numpy()
        put_image(axes, printable(encoder, pixels[column]), left, 0, side=SIDE)
        for row, weights in enumerate([mean, *found[:shown].numpy()], start=1):
            put_image(axes, weights, left, row, side=SIDE, cmap="magma", vmin=0, vmax=float(weights.max()))
            _outline(axes, weights, left, row)
    save_figure(figure, folder / "attention.webp")
    write_table(folder / "attention.csv", ["image", "head", "entropy_share", "mass_area"], _numbers(maps, names))
    more = f" The first {shown} of {heads} heads are shown." if heads > max(shown, 1) else ""
    query = "class token" if encoder.backbone.has_class_token else "average patch"
    area = np.mean([float((found.mean(0).numpy() >= mass_level(found.mean(0).numpy())).mean()) for found in maps])
    return Picture(
        "attention",
        "Attention",
        f"Where the {query} looks in the last block, at twice the training size: bright is much, the line encloses "
        f"{MASS:.0%} of it. In a good network the lines follow objects and the heads differ.{more}",
        f"{len(maps)} images with the attention maps of the last block. {MASS:.0%} of the mean attention lies on "
        f"{area:.0%} of the image on average.",
        "attention.webp",
        "attention.csv",
    )


def _outline(axes: Axes, weights: NDArray[np.float32], left: float, top: float) -> None:
    """The border, along the cells, of the region that holds most of the mass."""
    inside = np.pad((weights >= mass_level(weights)).astype(int), 1)
    height, width = weights.shape
    vertical = [((x, y), (x, y + 1)) for y, x in np.argwhere(np.diff(inside, axis=1)[1:-1])]
    horizontal = [((x, y), (x + 1, y)) for y, x in np.argwhere(np.diff(inside, axis=0)[:, 1:-1])]
    corner, scale = np.array([left, top]), SIDE / np.array([width, height])
    lines = [corner + scale * np.array(line) for line in vertical + horizontal]
    for colour, thick in (("black", 2.0), ("white", 0.9)):
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=thick, capstyle="round"))


def _numbers(maps: list[Tensor], names: list[str]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, found in zip(names, maps, strict=True):
        for head, weights in [("mean", found.mean(0)), *((str(i + 1), one) for i, one in enumerate(found))]:
            entropy = float(torch.special.entr(weights).sum()) / max(math.log(weights.numel()), 1e-9)
            area = float((weights.numpy() >= mass_level(weights.numpy())).mean())
            rows.append((name, head, entropy, area))
    return rows
