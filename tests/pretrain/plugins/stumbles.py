"""A user's objective that stumbles: SimCLR with an ordinary loss and an infinite gradient at some steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from belvedere.objectives.contract import Embeddings
from belvedere.objectives.simclr import SimClr

STUMBLES_AT = (3, 4, 12)


class Stumbles(SimClr):
    """Fine but for three steps."""

    def embed(self, online: Any, target: Any, clock: Any, labels: Any = None) -> Embeddings:
        e = super().embed(online, target, clock, labels)
        return replace(e, settings={**e.settings, "slope": float("inf") if clock.step in STUMBLES_AT else 1.0})

    def per_image(self, e: Embeddings) -> Tensor:
        losses = super().per_image(e)
        if losses.requires_grad:
            losses.register_hook(lambda gradient: gradient * e.settings["slope"])
        return losses
