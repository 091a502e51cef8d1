"""A user's task: the order of rows from tokens without positions, on pixels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task


class UpsideDown(Task):
    """Was the view turned upside down?"""

    def __init__(self, options: Any, around: Surroundings) -> None:
        super().__init__(options, around)
        self.head = nn.Linear(around.dim, 1)

    def requests(self, scene: Scene) -> dict[str, Request]:
        pixels = {"upright": scene.views["global_a"], "turned": scene.views["global_a"].flip(-2)}
        return {"both": Request(pixels=pixels, pos_embed=False)}

    def loss(self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Any) -> dict[str, Tensor]:
        found = answers["both"].student
        said = torch.stack([self.head(found[name].patches.mean(1)).squeeze(1) for name in ("upright", "turned")])
        return {"turned": nn.functional.softplus(said * torch.tensor([[1.0], [-1.0]])).sum(0)}
