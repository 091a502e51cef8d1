"""A user's objective that breaks: SimCLR whose loss is no number from step 5 on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from belvedere.objectives.contract import Embeddings
from belvedere.objectives.simclr import SimClr

BREAKS_AT = 5


class Breaks(SimClr):
    """Fine for five steps."""

    def embed(self, online: Any, target: Any, clock: Any, labels: Any = None) -> Embeddings:
        e = super().embed(online, target, clock, labels)
        return replace(e, settings={**e.settings, "factor": float("nan") if clock.step >= BREAKS_AT else 1.0})

    def per_image(self, e: Embeddings) -> Tensor:
        return super().per_image(e) * e.settings["factor"]
