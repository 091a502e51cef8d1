"""Pictures of generated images: a grid of many, or a file each."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from belvedere.atomic import write_atomically
from belvedere.errors import UserError
from belvedere.generate.quality import to_uint8

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
GRID_SIDE = 768
"""Pixels of a grid's side, about: small images are enlarged by a whole number."""


def grid(images: Tensor) -> Image.Image:
    """Images `[N, C, h, w]` in [0, 1] in rows, enlarged; the first channel in gray unless there are 3."""
    levels = to_uint8(images if images.shape[1] == 3 else images[:, :1]).numpy()
    count, height, width, channels = levels.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, channels), 255, np.uint8)
    for place, image in enumerate(levels):
        row, column = divmod(place, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    picture = Image.fromarray(sheet if channels == 3 else sheet[..., 0])
    larger = max(1, GRID_SIDE // max(picture.size))
    return picture.resize((picture.width * larger, picture.height * larger), Image.Resampling.NEAREST)


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    write_atomically(path, lambda beside: picture.save(beside, format="PNG"))


def write_each(images: Tensor, folder: Path, first: int = 0) -> None:
    """Images `[N, C, h, w]` in [0, 1] as PNG files that are named by their numbers.

    Raises:
        UserError: when a PNG cannot have so many channels, or the folder cannot be written.
    """
    if images.shape[1] not in MODES:
        raise UserError(f"images of {images.shape[1]} channels cannot be PNG files, which have 1 to 4")
    for number, levels in enumerate(to_uint8(images).numpy(), first):
        save(_picture(levels), folder / f"{number:06}.png")


def _picture(levels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
