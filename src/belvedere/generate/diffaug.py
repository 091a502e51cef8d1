"""DiffAug: what real and generated images go through before the discriminator (arXiv:2006.10738, ViTGAN section 4).

Put together from our own view operations, which are differentiable, twice where the penalty on gradients needs it.
Every draw comes from (seed, step, place in the batch), so a resumed run augments alike. Brightness is a factor, as
everywhere in this library; DiffAug's own adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.generate.settings import Augment
from belvedere.views.draws import uniform
from belvedere.views.reference import brightness, contrast, resize_matrix, saturation

GRAY = 0.5
"""What lies outside an image that was shifted, and in a square that was cut out."""
# (operation, half the range of its factor around 1)
_COLOURS = ((brightness, 0.5), (saturation, 1.0), (contrast, 0.5))
_DRAWS = 4 + 2 * len(_COLOURS) + 3


@dataclass
class DiffAug:
    """The augmentation of one step: every call draws anew, and calls number themselves.

    Attributes:
        seed, step: what the draws depend on.
        calls: calls so far.
    """

    options: Augment
    seed: int
    step: int
    calls: int = field(default=0)

    def __call__(self, x: Tensor) -> Tensor:
        """Images `[N, C, H, W]`, black 0 and white 1, augmented."""
        drawn = uniform(self.seed, self.step, np.arange(len(x)), f"diffaug {self.calls}", (_DRAWS,))
        self.calls += 1
        u = torch.from_numpy(drawn).float().to(x.device)
        x = shift_and_flip(x, self.options, u[:, :4])
        x = colour(x, self.options.colour_p, u[:, 4:10])
        return cut_out(x, self.options, u[:, 10:13])


def shift_and_flip(x: Tensor, options: Augment, u: Tensor) -> Tensor:
    """Whole pixels up to a share of the side, then mirrored; `u [N, 4]` in [0, 1)."""
    height, width = x.shape[2:]
    moved = u[:, 0] < options.shift_p
    down, across = round(options.shift * height), round(options.shift * width)
    top = torch.where(moved, (u[:, 1] * (2 * down + 1)).floor(), float(down))
    left = torch.where(moved, (u[:, 2] * (2 * across + 1)).floor(), float(across))
    padded = F.pad(x, (across, across, down, down), value=GRAY)
    whole = torch.ones_like(top)
    rows = resize_matrix(top, height * whole, height, padded.shape[2], "bilinear")
    columns = resize_matrix(left, width * whole, width, padded.shape[3], "bilinear", u[:, 3] < options.flip)
    return rows[:, None] @ padded @ columns[:, None].mT


def colour(x: Tensor, p: float, u: Tensor) -> Tensor:
    """Brightness, saturation (of three channels) and contrast, each with probability `p`; `u [N, 6]` in [0, 1).

    What a generator paints beyond black and white stays beyond: the operations end there, and with them its gradient.
    """
    shown = x.clamp(0, 1)
    beyond = x - shown
    for place, (operation, reach) in enumerate(_COLOURS):
        if operation is not saturation or x.shape[1] == 3:
            fires, factor = u[:, 2 * place] < p, 1 + reach * (2 * u[:, 2 * place + 1] - 1)
            shown = torch.where(fires[:, None, None, None], operation(shown, factor), shown)
    return shown + beyond


def cut_out(x: Tensor, options: Augment, u: Tensor) -> Tensor:
    """A gray square of a share of the side, its centre anywhere; `u [N, 3]` in [0, 1)."""
    inside = []
    for axis, place in ((2, u[:, 1]), (3, u[:, 2])):
        extent = x.shape[axis]
        middle = (place * extent).floor()[:, None]
        inside.append((torch.arange(extent, device=x.device) - middle + 0.5).abs() < options.cutout * extent / 2)
    fires = (u[:, 0] < options.cutout_p)[:, None, None, None]
    return torch.where(fires & inside[0][:, None, :, None] & inside[1][:, None, None, :], GRAY, x)
