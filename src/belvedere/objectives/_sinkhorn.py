"""Sinkhorn-Knopp: assignments of a batch in which every prototype gets an equal share.

SwAV (Caron et al., NeurIPS 2020, arXiv:2006.09882, section 3.1); in place of DINO's centring in DINOv2
(arXiv:2304.07193, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from belvedere.distributed import gather_rows

ROUNDS = 3


@torch.no_grad()
def sinkhorn(logits: Tensor, rounds: int = ROUNDS) -> Tensor:
    """(N, K) logits over temperature, of this process -> (N, K) probabilities.

    Columns, over the rows of all processes, and rows are normalised in turn, the rows last; in logarithms, so that no
    sharpness overflows.
    """
    log_prob = logits
    for _ in range(rounds):
        shares = log_prob.logsumexp(0, keepdim=True)
        log_prob = log_prob - gather_rows(shares)[0].logsumexp(0, keepdim=True)
        log_prob = log_prob - log_prob.logsumexp(1, keepdim=True)
    return log_prob.exp()
