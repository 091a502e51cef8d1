"""The self-regulariser of learned views: a view must still tell which image it is of (spec view_policies 2.5).

Its weight is no constant, since any constant is too much for one loss and too little for another: dual ascent holds the
retrieval loss at a share of chance, log B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.2
WEIGHT_START = 1.5
_WEIGHT_MAX = 20.0
_RATE = 0.1


def retrieval_loss(views: Tensor, images: Tensor, rows: Tensor | None = None) -> Tensor:
    """InfoNCE of an image among the B, asked for by the features of its view: `[..., n]` nats, chance is log B.

    Args:
        views: `[..., n, D]` features of views.
        images: `[..., B, D]` features of the clean images.
        rows: `[n]` which image each view is of; by default view k is of image k.
    """
    query, keys = (F.normalize(z.float(), dim=-1) for z in (views, images))
    logits = query @ keys.transpose(-1, -2) / TEMPERATURE
    if rows is None:
        rows = torch.arange(logits.shape[-1])
    own = logits[..., torch.arange(len(rows), device=logits.device), rows.to(logits.device)]
    return logits.logsumexp(-1) - own


def ascend(weight: float, excess: float) -> float:
    """The weight after a step in which the mean loss was `excess` nats above its target."""
    return min(max(weight + _RATE * excess, 0.0), _WEIGHT_MAX)
