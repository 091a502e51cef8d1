"""Views of writing: crops and blur by the recipe, then strokes made thinner and thicker at random.

Raven, Matei and Fink, "Self-Supervised Vision Transformers for Writer Retrieval", ICDAR 2024 (spec patch_and_pretext
8). With a chance each, a view is eroded and dilated by 3 x 3 kernels of its own: the middle, and each of the eight
around it with a chance of .3. `global_b` is dilated first, every other view eroded first. Ink is light, as after
`images.binarize`; of dark ink, erosion makes strokes thicker.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from belvedere.views import eager
from belvedere.views.draws import substreams, unit, words
from belvedere.views.params import ViewParams, send
from belvedere.views.policy import ViewPolicy
from belvedere.views.slots import Slot

EROSION, DILATION = "erosion", "dilation"
"""Extras `[V, N, 9]`, bool: the kernel of each view, row by row; one that is left alone has the middle only."""
MIDDLE = 4


class InkOptions(ViewPolicy.Options):
    """The chances; the defaults are the paper's."""

    erosion_p: float = Field(0.5, ge=0, le=1)
    dilation_p: float = Field(0.5, ge=0, le=1)
    kernel_p: float = Field(0.3, ge=0, le=1)
    """That one of the eight cells around the middle belongs to a kernel."""


class Ink(ViewPolicy):
    """The random policy, with strokes of other widths."""

    Options = InkOptions
    options: InkOptions

    def __init__(self, options: InkOptions, slots: tuple[Slot, ...], channels: int) -> None:
        """Render with `stroked`."""
        super().__init__(options, slots, channels)
        self.program = stroked

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """The random policy's record with two kernels for every view."""
        params = super().propose(index, sizes, epoch, seed)
        keys = substreams(params.key.cpu().numpy().view(np.uint64), "ink")
        drawn = torch.from_numpy(unit(words(keys, 18)))
        chances = (self.options.erosion_p, self.options.dilation_p)
        kernels = [
            self._kernel(some, chance) for some, chance in zip(torch.split(drawn, 9, dim=-1), chances, strict=True)
        ]
        return replace(params, extras={**params.extras, EROSION: kernels[0], DILATION: kernels[1]})

    def _kernel(self, drawn: Tensor, chance: float) -> Tensor:
        """[V, N, 9] kernels of uniform draws: the middle one says whether there is any."""
        around = (drawn < self.options.kernel_p) & (drawn[..., MIDDLE, None] < chance)
        around[..., MIDDLE] = True
        return around


def stroked(pixels: Tensor, params: ViewParams, slot: int) -> Tensor:
    """`render.Program`: the recipe's colours and blur, then erosion and dilation of one slot."""
    levels = pixels * 255
    eager.colour(levels, params, [slot])
    pixels = levels / 255
    steps = [(erode, EROSION), (dilate, DILATION)]
    if params.slots[slot].partition(".")[0] == "global_b":
        steps.reverse()
    for step, name in steps:
        pixels = step(pixels, send(params.extras[name][slot], pixels.device))
    return pixels


def dilate(x: Tensor, kernel: Tensor) -> Tensor:
    """The largest of the pixels under each image's kernel, `[N, C, H, W]` by `[N, 9]` bool with the middle in it.

    What lies outside of the image does not count.
    """
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    height, width = x.shape[2:]
    largest = x
    for cell in range(9):
        top, left = divmod(cell, 3)
        here = kernel[:, cell, None, None, None]
        moved = padded[:, :, top : top + height, left : left + width]
        largest = torch.where(here, torch.maximum(largest, moved), largest)
    return largest


def erode(x: Tensor, kernel: Tensor) -> Tensor:
    """The smallest of the pixels under each image's kernel; see `dilate`."""
    return -dilate(-x, kernel)
