"""TrivialAugment: one operation of any strength, after crop and flip; nothing to tune.

"TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", Mueller and Hutter, ICCV 2021, arXiv:2103.10158
(spec view_policies 3): the null model of policies that are learned.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from belvedere.views.params import ViewParams
from belvedere.views.policies._programs import ProgramOptions, ProgramPolicy
from belvedere.views.program import draw, with_program


class TrivialOptions(ProgramOptions):
    """Settings of TrivialAugment."""


class Trivial(ProgramPolicy):
    """Crop and flip by the recipe, then one operation in place of its jitter, grayscale, blur and solarize."""

    Options = TrivialOptions
    options: TrivialOptions

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """The random policy's record with a program of one operation for every view."""
        params = super().propose(index, sizes, epoch, seed)
        drawn = draw(params, 1)
        return with_program(params, (drawn.which * len(self.operations)).long(), drawn.amount, drawn.sign)
