"""A user's view policy: of several candidates for the two global views, the pair with the highest score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from belvedere.views.params import ViewParams
from belvedere.views.policy import Render, Score, ViewPolicy
from belvedere.views.sample import sample_views


class Picky(ViewPolicy):
    """Proposes candidates, and selects with the objective's score."""

    class Options(BaseModel):
        """Settings of the toy."""

        model_config = ConfigDict(extra="forbid", frozen=True)
        candidates: int = 2

    def _names(self, slot: str) -> list[str]:
        count = self.options.candidates if slot in ("global_a", "global_b") else 1
        return [slot, *(f"{slot}.{k}" for k in range(1, count))]

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        slots = [replace(slot, name=name) for slot in self.slots for name in self._names(slot.name)]
        return sample_views(slots, index, sizes, epoch, seed)

    def select(self, params: ViewParams, render: Render, score: Score) -> ViewParams:
        pairs = [(a, b) for a in self._names("global_a") for b in self._names("global_b")]
        best = score(render(params, 1.0), pairs).argmax(0)
        choice: list[Any] = []
        for slot in self.slots:
            side = ("global_a", "global_b").index(slot.name) if slot.name in ("global_a", "global_b") else None
            rows = [params.slot(slot.name if side is None else pair[side]) for pair in pairs]
            choice.append(torch.tensor(rows)[best])
        return params.gather(torch.stack(choice), [slot.name for slot in self.slots])
