"""TrivialAugment: one operation of any strength, after crop and flip; nothing to tune.

"TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", Mueller and Hutter, ICCV 2021, arXiv:2103.10158
(spec view_policies 3): the null model of policies that are learned.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from belvedere.views.operations import Space, space
from belvedere.views.params import ViewParams
from belvedere.views.policy import ViewPolicy
from belvedere.views.program import OperationProgram, draw, with_program
from belvedere.views.slots import Slot


class TrivialOptions(ViewPolicy.Options):
    """Settings of TrivialAugment."""

    space: Space = "autoaugment"
    """The operations it draws from."""


class Trivial(ViewPolicy):
    """Crop and flip by the recipe, then one operation in place of its jitter, grayscale, blur and solarize."""

    Options = TrivialOptions
    options: TrivialOptions

    def __init__(self, options: Any, slots: tuple[Slot, ...], channels: int) -> None:
        """Take the operations that these channels allow."""
        super().__init__(options, slots, channels)
        self.operations = space(options.space, channels)
        self.program = OperationProgram(self.operations)

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """The random policy's record with a program of one operation for every view."""
        params = super().propose(index, sizes, epoch, seed)
        drawn = draw(params, 1)
        return with_program(params, (drawn.which * len(self.operations)).long(), drawn.amount, drawn.sign)
