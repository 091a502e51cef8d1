"""KoLeo: unit vectors that keep their distance, so that they spread evenly over the sphere.

The differential-entropy estimate of Kozachenko and Leonenko as a loss ("Spreading vectors for similarity search",
Sablayrolles et al., ICLR 2019, arXiv:1806.03198), with the safeguards of DINOv2 (arXiv:2304.07193; spec
patch_and_pretext 6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.objectives._contrast import similarities

# DINOv2's, in the difference of two vectors and in the logarithm: equal vectors cost at most 18.4, not infinitely much.
EPS = 1e-8


def koleo(z: Tensor, pool: Tensor, own: Tensor) -> Tensor:
    """(B,) -log of the distance to the nearest other vector; 0 where there is no other.

    Args:
        z: (B, D) unit vectors.
        pool: (N, D) unit vectors of the whole batch, those among them; gradients reach both.
        own: (B,) the place of each vector in the pool.
    """
    if len(pool) < 2:
        return z.sum(1) * 0
    with torch.autocast(z.device.type, enabled=False):
        nearest = similarities(z, pool).detach().scatter(1, own.unsqueeze(1), -1.0).argmax(1)
        return -torch.log(F.pairwise_distance(z, pool[nearest], eps=EPS) + EPS)
