"""The self-regulariser of learned views: a view must still tell which image it is of (spec view_policies 2.5).

Features are taken about the mean of the clean images: pooled features of a vision transformer lie in a narrow cone, in
which even an unchanged view is hardly told from others. Measured on small transformers at 32 px, batch 256: from no
operation to the strongest the loss goes from .81 to .90 of chance about the origin, from .50 to .77 about the mean.

Its weight is no constant, since any constant is too much for one loss and too little for another: dual ascent holds the
retrieval loss at a share of the way from what crops alone lose to chance, log B. What crops lose (.5 to .7 of chance in
the networks above) is none of the policy's doing, and an absolute target below it would make the policy flee to the
identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.views.params import send

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
    centre = images.float().mean(-2, keepdim=True)
    query, keys = (F.normalize(z.float() - centre, dim=-1) for z in (views, images))
    logits = query @ keys.transpose(-1, -2) / TEMPERATURE
    if rows is None:
        rows = torch.arange(logits.shape[-1])
    own = logits[..., torch.arange(len(rows), device=logits.device), send(rows, logits.device)]
    return logits.logsumexp(-1) - own


def ascend(weight: float, excess: float) -> float:
    """The weight after a step in which the mean loss was `excess` nats above its target."""
    return min(max(weight + _RATE * excess, 0.0), _WEIGHT_MAX)
