"""What a scattering network reads in place of pixels: its coefficients (spec patch_and_pretext 5.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from belvedere.backbones.scattering import ScatNet
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

ANGLES = 4
"""Directions drawn of each scale, evenly among them."""
MARGIN, SIDE = 0.95, 0.94


def degrees(index: int, angles: int) -> float:
    """In which direction wavelet number `index` of `angles` answers to change: 0 to the right, clockwise, under 180."""
    return 180 * (index + 1) / angles % 180


def draw_scattering(folder: Path, encoder: Encoder, pixels: Tensor, names: list[str]) -> Picture:
    """Write scattering.webp and scattering.csv.

    Args:
        encoder: for the size of the pixels.
        pixels: (n, C, H, W) normalised, on the encoder's device.

    Raises:
        UserError: when the backbone is no scattering network.
    """
    backbone = encoder.backbone
    if not isinstance(backbone, ScatNet):
        raise UserError(f"{backbone.architecture} has no scattering coefficients")
    coefficients = backbone.coefficients(pixels)
    # The mean over colours: their edges lie mostly at the same places.
    found = coefficients.mean(1).cpu().numpy()
    angles, scales = backbone.name.angles, backbone.name.scales
    first = found[:, 1 : 1 + angles * scales].reshape(len(found), scales, angles, *found.shape[2:])
    rows = []
    for scale in (0, scales - 1) if scales > 1 else (0,):
        for angle in np.linspace(0, angles, min(ANGLES, angles), endpoint=False).astype(int):
            rows.append((f"order 1: {2**scale} px,\nangle {degrees(angle, angles):.0f}°", first[:, scale, angle]))
    if scales > 1:
        rows.append(("order 2:\nall together", found[:, 1 + angles * scales :].mean(1)))
    figure = new_figure(9.6, 9.6 * (2 + len(rows)) / (MARGIN + len(pixels)))
    axes = cell_axes(figure, MARGIN + len(pixels), 2 + len(rows))
    for row, (title, images) in enumerate((("image", pixels), ("order 0:\nblurred", coefficients[:, :, 0]))):
        put_text(axes, title, 0.03, row + 0.47, fontweight="bold")
        for column, image in enumerate(images):
            put_image(axes, printable(encoder, image), MARGIN + column, row, side=SIDE)
    for row, (title, maps) in enumerate(rows, start=2):
        put_text(axes, title, 0.03, row + 0.47, fontweight="bold")
        how = {"cmap": "magma", "vmin": 0, "vmax": float(maps.max())}
        for column in range(len(pixels)):
            put_image(axes, maps[column], MARGIN + column, row, side=SIDE, **how)
    save_figure(figure, folder / "scattering.webp")
    energy = np.square(first).mean((3, 4))
    table = [
        (names[i], 2**scale, degrees(angle, angles), float(energy[i, scale, angle]))
        for i, scale, angle in np.ndindex(*energy.shape)
    ]
    write_table(folder / "scattering.csv", ["image", "scale_px", "angle_degrees", "energy"], table)
    count = found.shape[1]
    return Picture(
        "scattering",
        "Scattering coefficients",
        f"What the trained layers read in place of pixels, at twice the training size: {count} fixed maps a colour, of "
        "which nothing is learned. Order 1 is bright where the image changes in one direction at one scale "
        f"({angles} directions, {scales} scales), order 2 where such changes come and go. "
        "Rows have a brightness of their own, and show the mean over colours.",
        f"{len(pixels)} images with maps of their scattering coefficients, order by order.",
        "scattering.webp",
        "scattering.csv",
    )
