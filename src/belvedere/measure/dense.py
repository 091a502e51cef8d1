"""Patch by patch: images read whole at twice the training size, and pixel classes brought to the same grid.

The one frame of all dense protocols. An image is resized whole, nothing cropped, its sides rounded to whole patches
(`dense_size`), and becomes a grid of h x w tokens (`PatchReader`). Its mask keeps its own size: cell (i, j) of the grid
covers rows i H/h .. (i+1) H/h and columns j W/w .. (j+1) W/w of the mask. Downwards, to tokens, a cell takes the shares
of its pixels' classes (`class_shares`), so that thin things are not lost; upwards, to pixels, scores of cells are
interpolated to the mask's size (`classes_at_mask_size`), so that masks are never shrunk (spec evaluation 2.9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.images.masks import IGNORE
from belvedere.measure.encoder import Encoder

ENLARGED = 2.0
"""Short side of a densely read image over the training size: 480 px for networks of 224 px are the papers' habit."""
LONGEST = 2.0
"""Most that the long side is of the short one's place: a panorama is read at a lower resolution, not in more tokens."""

PIXELS_AT_ONCE = 2**24
"""Scores of pixels in memory at once, 64 MB."""


def dense_size(encoder: Encoder, image: tuple[int, int], enlarged: float = ENLARGED) -> tuple[int, int]:
    """(h, w) in which an image is read densely: its aspect kept, short side `enlarged` times the training size.

    The long side stays within `LONGEST` times that, and both are rounded to whole patches, at least one.

    Args:
        image: (h, w) of the image, in any unit.
    """
    target = enlarged * min(encoder.size)
    scale = min(target / min(image), LONGEST * target / max(image))
    return whole_patches(encoder, image[0] * scale, image[1] * scale)


def whole_patches(encoder: Encoder, height: float, width: float) -> tuple[int, int]:
    """The (h, w) nearest to this size that is a grid of whole patches, at least one a side."""
    step = math.lcm(encoder.backbone.unit, encoder.backbone.patch)
    return max(1, round(height / step)) * step, max(1, round(width / step)) * step


class PatchReader:
    """Features of every patch of an image: an encoder's tokens, or the raw pixels of the same patches, as a floor.

    Attributes:
        encoder: gives the frame (sizes, patch, normalisation) also where `raw` reads nothing but pixels.
        raw: each patch is its own pixels in a row, their mean removed.
        enlarged: short side of what is read, over the training size.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device | str = "cpu", raw: bool = False, enlarged: float = ENLARGED
    ) -> None:
        self.encoder = encoder.to(device)
        self.device = device
        self.raw = raw
        self.enlarged = enlarged

    def pixels(self, canvases: Canvases, i: int) -> Tensor:
        """(1, C, H, W) normalised pixels of the whole image i, on the device.

        Raises:
            UserError: when the images have other channels than the encoder.
        """
        image = torch.from_numpy(canvases.pixels(i).copy())[None].to(self.device)
        height, width = image.shape[1:3]
        return self.encoder.preprocess_whole(image, dense_size(self.encoder, (height, width), self.enlarged))

    def patches(self, pixels: Tensor) -> Tensor:
        """(n, D, h, w) float32 features of the patches of (n, C, H, W) normalised pixels."""
        if not self.raw:
            return self.encoder.patches(pixels)
        side = self.encoder.backbone.patch
        rows = F.unfold(pixels, side, stride=side)
        rows = rows - rows.mean(1, keepdim=True)
        return rows.reshape(len(pixels), -1, pixels.shape[2] // side, pixels.shape[3] // side)

    def read(self, canvases: Canvases, i: int) -> Tensor:
        """(D, h, w) features of image i.

        Raises:
            UserError: when they are not finite, or the images have other channels than the encoder.
        """
        return self.read_pixels(self.pixels(canvases, i), [canvases.names[i]])[0]

    def read_pixels(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """(n, D, h, w) features of (n, C, H, W) normalised pixels of the images that are called so.

        Raises:
            UserError: when they are not finite.
        """
        found = self.patches(pixels)
        broken = (~found.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if broken:
            raise UserError(
                f"{names[broken[0]]}: its features are not finite; take a checkpoint from before the run diverged"
            )
        return found


def class_shares(mask: NDArray[np.uint8], grid: tuple[int, int], classes: int) -> Tensor:
    """(h * w, classes) float32 share of each class in the pixels of every cell, cells row by row.

    Every pixel belongs to the one cell in which its centre lies. Pixels left out count for no class: a row sums to the
    share of its cell that is labelled, 0 where the mask is coarser than the grid and no pixel's centre falls in.

    Args:
        mask: (H, W) class ids, `IGNORE` for pixels left out.
    """
    rows, columns = ((np.arange(side) + 0.5) * cells // side for side, cells in zip(mask.shape, grid, strict=True))
    cell = (rows[:, None] * grid[1] + columns).astype(np.int64)
    count = grid[0] * grid[1]
    labelled = mask != IGNORE
    code = cell[labelled] * classes + mask[labelled]
    counts = np.bincount(code, minlength=count * classes).reshape(count, classes)
    pixels = np.bincount(cell.ravel(), minlength=count)
    return torch.from_numpy((counts / np.maximum(pixels, 1)[:, None]).astype(np.float32))


def classes_at_mask_size(scores: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) class of largest score at every pixel, scores bilinear between the cells' centres; of equals the lowest.

    Classes are enlarged few at a time: memory stays within some of them however many there are.

    Args:
        scores: (K, h, w) of cells.
        size: (H, W) of the mask.
    """
    best = torch.full((1, *size), -torch.inf, device=scores.device)
    label = torch.zeros((1, *size), dtype=torch.uint8, device=scores.device)
    step = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    for start in range(0, len(scores), step):
        some = F.interpolate(scores[None, start : start + step], size, mode="bilinear", align_corners=False)[0]
        value, index = some.max(0, keepdim=True)
        better = value > best
        label = torch.where(better, (index + start).to(torch.uint8), label)
        best = torch.where(better, value, best)
    return label[0].cpu().numpy()
