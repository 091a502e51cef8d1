"""What policies share that give every view a program of operations in place of the recipe's colours."""

from __future__ import annotations

from typing import Any

from belvedere.views.operations import Space, space
from belvedere.views.policy import ViewPolicy
from belvedere.views.program import OperationProgram
from belvedere.views.slots import Slot


class ProgramOptions(ViewPolicy.Options):
    """Where operations come from."""

    space: Space = "autoaugment"
    """The operations it draws from."""


class ProgramPolicy(ViewPolicy):
    """Crop and flip by the recipe; a subclass draws the programs."""

    def __init__(self, options: Any, slots: tuple[Slot, ...], channels: int) -> None:
        """Take the operations that these channels allow."""
        super().__init__(options, slots, channels)
        self.operations = space(options.space, channels)
        self.program = OperationProgram(self.operations)
