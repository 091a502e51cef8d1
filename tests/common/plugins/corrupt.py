"""A user's task: the student is shown views of which the left half is gray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from belvedere.tasks.contract import Answer, Request, Scene, Task


class Corrupt(Task):
    """Replaces the objective's student views; its own loss is that the tokens stay short."""

    def requests(self, scene: Scene) -> dict[str, Request]:
        pixels = {slot: scene.views[slot].clone() for slot in ("global_a", "global_b")}
        for view in pixels.values():
            view[..., : view.shape[-1] // 2] = 0
        return {"corrupted": Request(pixels=pixels, how="replace")}

    def loss(self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Any) -> dict[str, Tensor]:
        return {"length": 0.01 * answers["corrupted"].student["global_a"].patches.square().mean((1, 2))}
