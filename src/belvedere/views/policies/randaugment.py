"""RandAugment: operations of one strength, drawn with equal chance, after crop and flip.

"RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", Cubuk et al., CVPR Workshops 2020,
arXiv:1909.13719 (spec view_policies 3). The strength and its spread are timm's `m` and `mstd` over 10; unlike timm,
every operation drawn is applied.
"""

from __future__ import annotations

from numpy.typing import ArrayLike
from pydantic import Field

from belvedere.views.params import ViewParams
from belvedere.views.policies._programs import ProgramOptions, ProgramPolicy
from belvedere.views.program import draw, with_program


class RandAugmentOptions(ProgramOptions):
    """Settings of RandAugment."""

    n_ops: int = Field(2, ge=1)
    """Operations a view, one after the other; the same one may come twice."""
    magnitude: float = Field(0.9, ge=0, le=1)
    """Strength of every operation, as a share of its range."""
    magnitude_std: float = Field(0.05, ge=0)
    """Standard deviation of the strength, cut to [0, 1]."""


class RandAugment(ProgramPolicy):
    """Crop and flip by the recipe, then `n_ops` operations in place of its jitter, grayscale, blur and solarize."""

    Options = RandAugmentOptions
    options: RandAugmentOptions

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """The random policy's record with a program for every view."""
        params = super().propose(index, sizes, epoch, seed)
        drawn = draw(params, self.options.n_ops)
        magnitude = (self.options.magnitude + self.options.magnitude_std * drawn.noise).clamp(0, 1)
        return with_program(params, (drawn.which * len(self.operations)).long(), magnitude, drawn.sign)
