"""No loss of its own: the tasks are all that is learned from (RelViT's pretraining, spec patch_and_pretext 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.objectives.contract import Embeddings, Objective, Output, Term
from belvedere.schedules import Clock


class GlobalVector(nn.Module):
    """A head that passes the backbone's global vector on."""

    def forward(self, features: Features) -> Output:
        """{"cls": (N, D)}."""
        return {"cls": features.cls}


class Nothing(Objective):
    """Every image has the loss 0."""

    has_pairs: ClassVar[bool] = False
    has_loss: ClassVar[bool] = False

    def make_head(self) -> nn.Module:
        """Features -> {"cls": (N, D)}, without parameters."""
        return GlobalVector()

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """The global vectors as they are."""
        return Embeddings(online=online, target={})

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """None: no view is compared with another."""
        return []

    def view_loss(self, e: Embeddings, view: str) -> Tensor:
        """(B,) zeros that hang on the features: every process has a gradient, zero, of what no task reads."""
        vectors = e.online[view]["cls"].float()
        return torch.zeros_like(vectors).mul(vectors).sum(1)
