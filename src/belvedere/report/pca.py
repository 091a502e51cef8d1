"""PCA-RGB: what the patches are made of, the same colour meaning the same thing in all images (picture 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from belvedere.errors import UserError
from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import (
    Picture,
    cell_axes,
    new_figure,
    printable,
    put_image,
    save_figure,
    write_table,
)

A_LINE = 8
LOW, HIGH = 0.02, 0.98
"""Quantiles of the foreground that become 0 and 1."""


@dataclass(frozen=True)
class PatchColours:
    """PCA of the patch tokens of n images on a grid (h, w).

    Attributes:
        components: (n, h, w, 4) the first four, the first one positive where the foreground is.
        foreground: (n, h, w) bool, the first component above its mean.
        rgb: (n, h, w, 3) in [0, 1], the next three components.
        explained: the share of the variance that each component explains, (4,).
    """

    components: NDArray[np.float32]
    foreground: NDArray[np.bool_]
    rgb: NDArray[np.float32]
    explained: NDArray[np.float32]


def colour_patches(patches: NDArray[np.float32]) -> PatchColours:
    """PCA over the patches of all images together.

    The first component tells foreground from background; its sign is chosen so that most patches along the images'
    borders are background. Components two to four, scaled between their quantiles in the foreground, become colours.

    Args:
        patches: (n, h, w, D).

    Raises:
        UserError: when there are fewer than four directions to find, or all patches are equal.
    """
    n, height, width, dim = patches.shape
    if min(n * height * width, dim) < 4 or min(height, width) < 2:
        raise UserError(f"a grid of {height} x {width} patches is too coarse for a picture of patch tokens")
    if not patches.reshape(-1, dim).std(0).any():
        raise UserError("all patch tokens are equal: the network's output is constant")
    pca = PCA(4, svd_solver="full")
    components = pca.fit_transform(patches.reshape(-1, dim).astype(np.float64)).reshape(n, height, width, 4)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    if (components[:, border, 0] > 0).mean() > 0.5:
        components[..., 0] *= -1
    foreground = components[..., 0] > 0
    low, high = np.quantile(components[foreground][:, 1:], [LOW, HIGH], axis=0)
    rgb = ((components[..., 1:] - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return PatchColours(
        components.astype(np.float32), foreground, rgb.astype(np.float32), pca.explained_variance_ratio_
    )


def draw_pca(folder: Path, encoder: Encoder, pixels: Tensor, names: list[str]) -> Picture:
    """Write pca.webp and pca.csv.

    Args:
        encoder: for the size of the pixels.
        pixels: (n, C, H, W) normalised, on the encoder's device.

    Raises:
        UserError: as `colour_patches`.
    """
    maps = [encoder.patches(pixels[i : i + 1])[0].permute(1, 2, 0).cpu().numpy() for i in range(len(pixels))]
    found = colour_patches(np.stack(maps))
    columns, rows = min(A_LINE, len(pixels)), -(-len(pixels) // A_LINE)
    figure = new_figure(1.2 * columns, 1.2 * 3 * rows + 0.1)
    axes = cell_axes(figure, columns, 3 * rows + 0.1 / 1.2)
    low, high = np.quantile(found.components[..., 0], [LOW, HIGH])
    for i in range(len(pixels)):
        line, column = divmod(i, A_LINE)
        put_image(axes, printable(encoder, pixels[i]), column + 0.03, 3 * line, side=0.94)
        first = found.components[i, ..., 0]
        put_image(axes, first, column + 0.03, 3 * line + 1, side=0.94, cmap="gray", vmin=low, vmax=high)
        # The background is left out: its colours are stretched noise.
        inside = found.foreground[i][..., None]
        shown = np.dstack([np.where(inside, found.rgb[i], 0.5), np.where(inside, 1.0, 0.18)])
        put_image(axes, shown, column + 0.03, 3 * line + 2, side=0.94)
    save_figure(figure, folder / "pca.webp")
    grid = found.foreground.shape[1:]
    table = [
        (names[i], y, x, int(found.foreground[i, y, x]), *map(float, found.components[i, y, x]))
        for i, y, x in np.ndindex(*found.foreground.shape)
    ]
    write_table(folder / "pca.csv", ["image", "row", "column", "foreground", "c1", "c2", "c3", "c4"], table)
    shares = ", ".join(f"{100 * share:.0f} %" for share in found.explained)
    return Picture(
        "pca",
        "Patches in colour",
        "Below each image, the first principal component of its patch tokens, then the next three as red, green and "
        "blue where the first says foreground: one colour should mean one kind of part in all images. "
        f"The four components explain {shares} of the variance.",
        f"{len(pixels)} images and their {grid[0]} x {grid[1]} patch tokens coloured by a common PCA; "
        f"{found.foreground.mean():.0%} of the patches are foreground.",
        "pca.webp",
        "pca.csv",
    )
