"""What a learned policy remembers of its rewards: their spread, and what each operation brought."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# As long a memory as the policy's Adam has of squared gradients.
MEMORY = 0.99


class Rewards:
    """Running statistics of advantages, rewards above the mean of their global batch."""

    def __init__(self, operations: int) -> None:
        self._variance = torch.full((), torch.nan)
        # By operation: how often it was applied, with what advantage, and that squared; then the sum of squared
        # weights, for the standard error.
        self._table = torch.zeros(4, operations)

    @staticmethod
    def sums(advantage: Tensor, op: Tensor, operations: int) -> Tensor:
        """This process' share `[1 + 3 K]` of what `update` takes, to be added over processes.

        Args:
            advantage: `[N]` of every image.
            op: `[V, N, S]` operations of its views, NOTHING where there is none.
        """
        positions = torch.arange(operations)
        applied = (op[..., None] == positions).sum((0, 2)).to(advantage.dtype)
        moments = torch.stack([torch.ones_like(advantage), advantage, advantage**2])
        return torch.cat([(advantage**2).sum()[None], (moments @ applied).flatten()])

    def update(self, sums: Tensor, images: float) -> float:
        """Take in the sums of a global batch of `images`; returns the running standard deviation."""
        variance = sums[0] / images
        self._variance = variance if self._variance.isnan() else self._variance.lerp(variance, 1 - MEMORY)
        new = sums[1:].view(3, -1)
        forget = torch.tensor([MEMORY, MEMORY, MEMORY, MEMORY**2])[:, None]
        self._table = forget * self._table + torch.cat([new, new[:1]])
        return max(float(self._variance.sqrt()), 1e-6)

    def table(self) -> tuple[Tensor, Tensor]:
        """Mean advantage `[K]` of each operation, and its standard error; NaN for one that was never applied."""
        weight, total, squares, squared_weight = self._table
        mean = total / weight
        variance = (squares / weight - mean**2).clamp(min=0)
        return mean, (variance * squared_weight).sqrt() / weight

    def state_dict(self) -> dict[str, Any]:
        """The statistics, as tensors."""
        return {"variance": self._variance.clone(), "table": self._table.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._variance, self._table = state["variance"].clone(), state["table"].clone()
