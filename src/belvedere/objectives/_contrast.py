"""What contrastive losses share: float32 similarities, and the numbers their health is read from."""

from __future__ import annotations

import torch
from torch import Tensor


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """(..., A, B) dot products in float32, also under autocast: a small temperature magnifies rounding."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.mT


def own_rows(rows: Tensor, start: float) -> Tensor:
    """(B,) positions of this process' images among those of all."""
    return int(start) + torch.arange(len(rows), device=rows.device)


@torch.no_grad()
def contrast(cosines: Tensor, own: Tensor, temperature: float) -> dict[str, Tensor]:
    """How often the own candidate is the nearest, how sure the answer is (nats, at most ln N), and the mean cosines.

    Args:
        cosines: (B, N) of B anchors and N candidates.
        own: (B,) each anchor's own candidate.
    """
    log_prob = torch.log_softmax(cosines / temperature, dim=1)
    positive = cosines.gather(1, own.unsqueeze(1))
    return {
        "contrastive_accuracy": (cosines.argmax(1) == own).float().mean(),
        "student_entropy": -(log_prob.exp() * log_prob).sum(1).mean(),
        "positive_cosine": positive.mean(),
        "negative_cosine": (cosines.sum() - positive.sum()) / max(1, cosines.numel() - len(own)),
    }
