"""A user's task: name each patch's mean colour from its token, and agree with the teacher's opinion of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task


class Options(BaseModel):
    """Settings of the toy."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float = 1.0


class MeanColour(Task):
    """Reads the tokens of the global views on both branches; keeps an EMA copy of its head."""

    Options = Options
    ema = ("head",)

    def __init__(self, options: Any, around: Surroundings) -> None:
        super().__init__(options, around)
        self.patch = around.patch
        self.head = nn.Linear(around.dim, around.channels)

    def requests(self, scene: Scene) -> dict[str, Request]:
        return {"tokens": Request(slots=("global_a", "global_b"), branch="both")}

    def loss(
        self,
        answers: Mapping[str, Answer],
        scene: Scene,
        teacher_heads: Mapping[str, nn.Module],
    ) -> dict[str, Tensor]:
        colour, agreement = [], []
        for slot, found in answers["tokens"].student.items():
            truth = F.avg_pool2d(scene.views[slot], self.patch).flatten(2).transpose(1, 2)
            said = self.head(found.patches).float()
            with torch.no_grad():
                target = teacher_heads["head"](answers["tokens"].target[slot].patches).float()
            colour.append((said - truth).square().mean((1, 2)))
            agreement.append((said - target).square().mean((1, 2)))
        weight = self.options.weight
        return {"colour": weight * sum(colour), "agreement": 0.1 * weight * sum(agreement)}
