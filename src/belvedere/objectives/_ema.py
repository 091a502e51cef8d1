"""The EMA target network: k <- m k + (1-m) q over parameters (spec objectives 1.4)."""

from __future__ import annotations

import math

import torch
from torch import nn

from belvedere.distributed import own_part


@torch.no_grad()
def ema_update(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's of the same name.

    Buffers (batch statistics) are not averaged: both networks keep their own. What only one side has (a mask token, a
    predictor) is left alone.

    Args:
        momentum: m in [0, 1]; 1 leaves the teacher as it is.
    """
    online = dict(student.named_parameters())
    pairs = [(target, online[name]) for name, target in teacher.named_parameters() if name in online]
    if pairs:
        targets, sources = ([own_part(x) for x in side] for side in zip(*pairs, strict=True))
        torch._foreach_lerp_(targets, sources, 1 - momentum)


def paced_momentum(steps: int, paper: float, paper_steps: int) -> tuple[float, str]:
    """m0 for a run of `steps`, and why: the paper's from its own length on, faster teachers in shorter runs.

    Measured over 300 steps on 20,000 small images (benchmarks/results/derivation_probes.json): .9 gains MoCo v3 a point
    of k-NN over .99.
    """
    distance = min(0.1, (1 - paper) * max(1.0, math.sqrt(paper_steps / steps)))
    return round(1 - distance, 4), f"the paper's {paper:g}; faster in runs under {paper_steps:,} steps, at least 0.9"
