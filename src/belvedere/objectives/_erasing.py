"""Random erasing: a rectangle of some views filled with noise.

"Random Erasing Data Augmentation", Zhong et al., AAAI 2020, arXiv:1708.04896, as timm's `RandomErasing` of mode "pixel"
with its usual numbers, which DeiT trains with (arXiv:2012.12877): a standard normal number for every normalised pixel
and channel. Unlike there, draws depend on seed, epoch, image and slot alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.views import draws
from belvedere.views.params import ViewParams, send
from belvedere.views.views import Views

AREA, RATIO, ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10
"""Of the rectangle: its share of the area, its height / width, and proposals until one is smaller than the view."""


def erase(views: Views, probability: float) -> Views:
    """Erase a rectangle of every view with a probability; views of one image are drawn apart."""
    pixels = {slot: views[slot].clone() for slot in views.names}
    for slot, images in pixels.items():
        for row, (top, left, height, width) in rectangles(views.params, slot, images.shape[-2:], probability).items():
            noise = _noise(views.params, slot, row, (images.shape[1], height, width))
            images[row, :, top : top + height, left : left + width] = send(noise.to(images.dtype), images.device)
    return views.replace(pixels=pixels)


def rectangles(
    record: ViewParams, slot: str, size: tuple[int, ...], probability: float
) -> dict[int, tuple[int, int, int, int]]:
    """Row of the batch -> top, left, height and width in pixels of what is erased there."""
    drawn = draws.uniform(record.seed, record.epoch, record.index, f"erasing/{slot}", (1 + 4 * ATTEMPTS,))
    proposals = drawn[:, 1:].reshape(-1, ATTEMPTS, 4)
    chosen = np.flatnonzero(drawn[:, 0] < probability).tolist()
    found = {row: _first_that_fits(proposals[row], size) for row in chosen}
    return {row: rectangle for row, rectangle in found.items() if rectangle is not None}


def _first_that_fits(proposals: NDArray[np.float64], size: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Each proposal is four draws: of area, ratio, top and left."""
    for area, ratio, down, across in proposals.tolist():
        pixels = (AREA[0] + area * (AREA[1] - AREA[0])) * size[0] * size[1]
        shape = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
        height, width = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if height < size[0] and width < size[1]:
            return int(down * (size[0] - height + 1)), int(across * (size[1] - width + 1)), height, width
    return None


def _noise(record: ViewParams, slot: str, row: int, shape: tuple[int, int, int]) -> Tensor:
    """(C, h, w) standard normal."""
    own = record.index[row : row + 1]
    uniform = draws.uniform(record.seed, record.epoch, own, f"erasing noise/{slot}", shape)
    # A draw can be 0, whose quantile is infinite.
    normal: Tensor = torch.special.ndtri(torch.from_numpy(uniform[0]).clamp(min=2.0**-54))
    return normal
