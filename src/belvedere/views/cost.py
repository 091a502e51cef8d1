"""What a training step costs, counted in forward passes of one global view (spec view_policies 1.5).

A backward pass counts as two forward ones. The model is a law for comparing policies, not a clock.
"""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def step(self) -> float:
        """The whole step: student forward and backward on all views, the teacher's forward on the global ones."""
        return 3 * (self.globals + self.locals * self.local) + (self.globals if self.teacher else 0)

    def at(self, scale: float) -> float:
        """Forward cost of a global view at another resolution."""
        smaller = 1 + round((self.tokens - 1) * scale**2)
        return forward_cost(smaller, self.width) / forward_cost(self.tokens, self.width)
