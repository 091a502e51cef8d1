"""What the last block looks at: its attention from the class token, head by head (DINO, arXiv:2104.14294, figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from torch import Tensor

from belvedere.errors import UserError
from belvedere.measure.attention import MASS, attention_maps
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

MOST_HEADS, FEW_HEADS = 6, 3
"""Rows of heads: of one network, and of each of several."""
# In cells: room for the names of the rows, and the side of a picture.
MARGIN, SIDE = 0.55, 0.95


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
    maps = _maps_of(encoder, pixels)
    heads = len(maps[0])
    shown = _heads_shown(heads, MOST_HEADS)
    columns, rows = MARGIN + len(maps), 2 + shown
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    _put_images(axes, encoder, pixels)
    _put_maps(axes, maps, shown, 1)
    save_figure(figure, folder / "attention.webp")
    write_table(folder / "attention.csv", ["image", "head", "entropy_share", "mass_area"], _numbers(maps, names))
    more = f" The first {shown} of {heads} heads are shown." if heads > max(shown, 1) else ""
    query = "class token" if encoder.backbone.has_class_token else "average patch"
    area = np.mean([_area(found.mean(0).numpy()) for found in maps])
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


def draw_comparison(
    folder: Path, encoders: Sequence[tuple[str, Encoder]], images: Sequence[Tensor], names: list[str]
) -> Picture:
    """Write comparison.webp and comparison.csv: the attention of several networks on the same images, below each other.

    Args:
        encoders: (name of the run, network) of each, at the size of its pixels.
        images: uint8 `[h, w, C]` canvases, on the encoders' device.

    Raises:
        UserError: when a backbone has no attention to give.
    """
    pixels = [encoder.preprocess(list(images)) for _, encoder in encoders]
    found = [_maps_of(encoder, own) for (_, encoder), own in zip(encoders, pixels, strict=True)]
    shown = [_heads_shown(len(maps[0]), FEW_HEADS) for maps in found]
    columns, rows = MARGIN + len(images), 1 + sum(1.3 + count for count in shown)
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    _put_images(axes, encoders[0][1], pixels[0])
    top = 1.0
    table: list[tuple[object, ...]] = []
    for (name, _), maps, count in zip(encoders, found, shown, strict=True):
        put_text(axes, name, 0.05, top + 0.16, size=11, fontweight="bold")
        _put_maps(axes, maps, count, top + 0.3)
        table += [(name, *row) for row in _numbers(maps, names)]
        top += 1.3 + count
    save_figure(figure, folder / "comparison.webp")
    write_table(folder / "comparison.csv", ["run", "image", "head", "entropy_share", "mass_area"], table)
    areas = [np.mean([_area(one.mean(0).numpy()) for one in maps]) for maps in found]
    told = ", ".join(f"{name} {area:.0%}" for (name, _), area in zip(encoders, areas, strict=True))
    return Picture(
        "comparison",
        "Attention of both runs",
        f"Where each network looks in its last block, on the same images: bright is much, the line encloses {MASS:.0%} "
        "of it. The better network's lines follow objects more closely, and its heads differ more. Share of the image "
        f"inside the line of the mean over heads: {told}.",
        f"{len(images)} images with the attention maps of {len(encoders)} runs.",
        "comparison.webp",
        "comparison.csv",
    )


def _maps_of(encoder: Encoder, pixels: Tensor) -> list[Tensor]:
    """Attention maps (heads, h, w) of each image."""
    if "attention" not in encoder.backbone.can:
        raise UserError(f"{encoder.backbone.architecture} has no attention between a class token and patches")
    # One image at a time: the full matrix of a large grid is hundreds of megabytes.
    return [attention_maps(encoder, pixels[i : i + 1]) for i in range(len(pixels))]


def _heads_shown(heads: int, most: int) -> int:
    """How many heads get a row of their own; the only one is its mean."""
    return min(heads, most) if heads > 1 else 0


def _put_images(axes: Axes, encoder: Encoder, pixels: Tensor) -> None:
    put_text(axes, "image", 0.05, 0.47, fontweight="bold")
    for column, image in enumerate(pixels):
        put_image(axes, printable(encoder, image), MARGIN + column, 0, side=SIDE)


def _put_maps(axes: Axes, maps: Sequence[Tensor], shown: int, top: float) -> None:
    """A row of means over heads and one for each head that is shown, an image a column."""
    titles = ["mean" if len(maps[0]) > 1 else "its head", *(f"head {i + 1}" for i in range(shown))]
    for row, title in enumerate(titles):
        put_text(axes, title, 0.05, top + row + 0.47, fontweight="bold")
    for column, found in enumerate(maps):
        left = MARGIN + column
        for row, weights in enumerate([found.mean(0).numpy(), *found[:shown].numpy()]):
            put_image(axes, weights, left, top + row, side=SIDE, cmap="magma", vmin=0, vmax=float(weights.max()))
            outline(axes, weights, left, top + row)


def _area(weights: NDArray[np.float32]) -> float:
    """Share of a map that holds most of its mass."""
    return float((weights >= mass_level(weights)).mean())


def outline(axes: Axes, weights: NDArray[np.float32], left: float, top: float, side: float = SIDE) -> None:
    """The border, along the cells, of the region that holds most of the mass."""
    inside = np.pad((weights >= mass_level(weights)).astype(int), 1)
    height, width = weights.shape
    vertical = [((x, y), (x, y + 1)) for y, x in np.argwhere(np.diff(inside, axis=1)[1:-1])]
    horizontal = [((x, y), (x + 1, y)) for y, x in np.argwhere(np.diff(inside, axis=0)[:, 1:-1])]
    corner, scale = np.array([left, top]), side / np.array([width, height])
    lines = [corner + scale * np.array(line) for line in vertical + horizontal]
    for colour, thick in (("black", 2.0), ("white", 0.9)):
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=thick, capstyle="round"))


def _numbers(maps: list[Tensor], names: list[str]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, found in zip(names, maps, strict=True):
        for head, weights in [("mean", found.mean(0)), *((str(i + 1), one) for i, one in enumerate(found))]:
            entropy = float(torch.special.entr(weights).sum()) / max(math.log(weights.numel()), 1e-9)
            rows.append((name, head, entropy, _area(weights.numpy())))
    return rows
