"""What a training step costs, counted in forward passes of one global view (spec view_policies 1.5).

A backward pass counts as two forward ones. The model is a law for comparing policies, not a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from belvedere.views.slots import Slot


def forward_cost(tokens: int, width: int) -> float:
    """Multiplications of one transformer block on one view: the matrices, and the attention between all tokens."""
    return 12.0 * tokens * width**2 + 2.0 * tokens**2 * width


@dataclass(frozen=True)
class Work:
    """What one image costs in a step of a recipe with the `random` policy.

    Attributes:
        globals, locals: views of either size.
        local: forward cost of a local view, in global ones.
        teacher: whether a second network sees the global views.
        tokens, width: of a global view, to tell what a smaller one costs.
    """

    globals: int
    locals: int
    local: float
    teacher: bool
    tokens: int
    width: int

    @classmethod
    def of(cls, slots: Sequence[Slot], patch: int, width: int, teacher: bool) -> Work:
        """The work of a recipe's slots for a network with patches of side `patch` and features of `width`."""
        shared = [slot for slot in slots if slot.is_target]
        others = [slot for slot in slots if not slot.is_target]
        tokens = _tokens(shared[0], patch)
        local = forward_cost(_tokens(others[0], patch), width) / forward_cost(tokens, width) if others else 0.0
        return cls(len(shared), len(others), local, teacher, tokens, width)

    @property
    def step(self) -> float:
        """The whole step: student forward and backward on all views, the teacher's forward on the global ones."""
        return 3 * (self.globals + self.locals * self.local) + (self.globals if self.teacher else 0)

    def at(self, scale: float) -> float:
        """Forward cost of a global view at another resolution."""
        smaller = 1 + round((self.tokens - 1) * scale**2)
        return forward_cost(smaller, self.width) / forward_cost(self.tokens, self.width)


def _tokens(slot: Slot, patch: int) -> int:
    return 1 + (slot.size[0] // patch) * (slot.size[1] // patch)
