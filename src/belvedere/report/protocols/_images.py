"""Images as the pictures of protocols show them: the whole canvas in a square, rows of them, and names cut to fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from belvedere.images.canvases import Canvases
from belvedere.report.drawing import cell_axes, new_figure, put_frame, put_image, put_text, save_figure

SIDE = 96


class Thumbnails:
    """Centre squares of canvases, at most 96 px, for the eye: gray of one or two channels, the first three of more."""

    def __init__(self, canvases: Canvases, side: int = SIDE) -> None:
        self.canvases = canvases
        self.side = side

    def __getitem__(self, i: int) -> NDArray[np.float32]:
        """(s, s) or (s, s, 3) in [0, 1]."""
        pixels = torch.from_numpy(self.canvases.pixels(i).copy()).float() / 255
        pixels = pixels.mean(2, keepdim=True) if pixels.shape[2] < 3 else pixels[..., :3]
        short = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - short) // 2, (pixels.shape[1] - short) // 2
        square = pixels[top : top + short, left : left + short].permute(2, 0, 1)[None]
        if short > self.side:
            square = F.interpolate(square, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        image: NDArray[Any] = square[0].permute(1, 2, 0).squeeze(2).clamp(0, 1).numpy()
        return image


def shortened(text: str, most: int) -> str:
    """A name of at most so many characters, its end kept: file names differ there; line ends and tabs are spaces."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= most else "…" + text[1 - most :]


def draw_rows(path: Path, rows: Sequence[tuple[str, str, Sequence[NDArray[Any]]]], head: float = 0.3) -> None:
    """Draw rows of images, each below its title and in frames of its colour."""
    columns = max(len(images) for _, _, images in rows)
    height = len(rows) * (1 + head)
    # A title needs a few images' width, however few there are.
    width = max(columns, 5)
    figure = new_figure(0.82 * width, 0.82 * height)
    axes = cell_axes(figure, width, height)
    for line, (title, colour, images) in enumerate(rows):
        top = line * (1 + head)
        put_text(axes, title, 0.03, top + head / 2, size=8)
        for place, pixels in enumerate(images):
            put_image(axes, pixels, place + 0.03, top + head, side=0.94)
            put_frame(axes, place + 0.03, top + head, colour, side=0.94, width=1.4)
    save_figure(figure, path)
