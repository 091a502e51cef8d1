"""Learned weights of the objective and of the tasks, as SiT's first two versions have them (spec patch_and_pretext 4).

Every loss L has a number s of its own, 1 at the start, that is trained with the rest: "exp" counts exp(-s) L + s / 2
(v1), "square" counts L / (2 s^2) + log(1 + s^2) (v2). A loss that stays high gets less weight, at a price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from belvedere.errors import UserError

Rule = Literal["exp", "square"]
OBJECTIVE = "objective"


class Weighting(nn.Module):
    """One trained number for the objective and one for each task, for all of its losses together.

    Attributes:
        s: "objective" or a task's name -> scalar.
    """

    def __init__(
        self, rule: Rule, tasks: Sequence[str], objective: bool = True, below_zero: Sequence[str] = ()
    ) -> None:
        """Of the tasks' losses, and of the objective's where it has one; `below_zero` names those that may be negative.

        Raises:
            UserError: when there are not two losses to weigh against each other, or one may be negative: the larger
                its weight the lower the sum, without end.
        """
        super().__init__()
        if below_zero:
            raise UserError(
                f"train.weighting={rule}: learns weights of losses above zero only, and {' and '.join(below_zero)} can "
                "be below; leave it out, or weigh tasks by their own option, as task.selfpatch.weight=0.1"
            )
        self.rule = rule
        names = [*([OBJECTIVE] if objective else []), *tasks]
        if len(names) < 2:
            raise UserError(f"train.weighting={rule}: learns weights of several losses, and there is one; add tasks")
        self.s = nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in names})

    def forward(self, per_image: Tensor, tasks: Mapping[str, Tensor]) -> Tensor:
        """(B,) weighted sum, prices included, of the objective's (B,) losses and those of tasks by "task.loss"."""
        parts = {OBJECTIVE: per_image} if OBJECTIVE in self.s else {}
        for name, loss in tasks.items():
            owner = name.partition(".")[0]
            parts[owner] = parts[owner] + loss if owner in parts else loss
        return torch.stack([self._weight(name) * loss + self._price(name) for name, loss in parts.items()]).sum(0)

    def _weight(self, name: str) -> Tensor:
        s: Tensor = self.s[name]
        return torch.exp(-s) if self.rule == "exp" else 0.5 / s.square()

    def _price(self, name: str) -> Tensor:
        s: Tensor = self.s[name]
        return s / 2 if self.rule == "exp" else torch.log1p(s.square())

    @torch.no_grad()
    def scalars(self) -> dict[str, Tensor]:
        """{"weight/objective": ..., "weight/TASK": ...} for the log."""
        return {f"weight/{name}": self._weight(name) for name in self.s}
