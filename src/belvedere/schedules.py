"""Schedules per step, in float64 (spec objectives 1.5): pure functions of the training clock."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Where training stands.

    Attributes:
        step: optimiser steps done so far (0 for the first step).
        steps_per_epoch: optimiser steps of one pass over the images.
        total_steps: optimiser steps of the whole run.
    """

    step: int
    steps_per_epoch: int
    total_steps: int

    @property
    def epoch(self) -> float:
        """Epochs done, fractional."""
        return self.step / self.steps_per_epoch


def batches(images: int, batch: int) -> int:
    """Optimiser steps of an epoch: a last batch under half the size is left out, its images come in other epochs."""
    full, rest = divmod(images, batch)
    return full + (2 * rest >= batch)


def cosine(step: float, total: float, start: float, end: float) -> float:
    """Half a cosine from `start` (step 0) to `end` (at step == total, which no step of a run reaches)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def warmup_cosine(step: int, total: int, warmup: int, peak: float, end: float, start: float = 0.0) -> float:
    """Learning rate of DINO and iBOT: `warmup` steps from `start` to `peak`, both inclusive, then a cosine to `end`.

    The peak stands twice: as the last step of the warm-up and as the first of the cosine.
    """
    if step < warmup:
        return start + (peak - start) * step / (warmup - 1) if warmup > 1 else peak
    return cosine(step - warmup, total - warmup, peak, end)


def quarter_cosine(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """Learning rate of RelViT: peak x step / warmup, then a quarter of a cosine to `end` (spec patch_and_pretext 3.5).

    The cosine counts from step 0, so that the rate jumps a little below the peak where the warm-up ends.
    """
    if step < warmup:
        return peak * step / warmup
    return end + (peak - end) * math.cos(math.pi / 2 * step / total)


def ramp(position: float, length: float, start: float, end: float, points: int | None = None) -> float:
    """Straight line from `start` to `end` over `length`, constant after it.

    With `points` (the reference's per-epoch temperature) the line has that many values, both ends included; a single
    one is `start`.
    """
    if position >= length:
        return end
    last = (points - 1) if points is not None else length
    return start + (end - start) * position / last if last > 0 else start


def linear_then_cosine(step: float, total: float, warmup: float, peak: float) -> float:
    """Learning rate of SimCLR and MoCo v3: peak x step / warmup up to step == warmup, then a cosine to 0."""
    return peak * step / warmup if step < warmup else cosine(step - warmup, total - warmup, peak, 0.0)
