"""The image operations of learned and RandAugment policies: batched, per-sample, differentiable in their magnitude.

Spec view_policies 2.4. Every operation maps pixels `[B, C, H, W]` in [0, 1], magnitudes `[B]` in [0, 1] and signs `[B]`
(+1 or -1) to pixels of the same shape in [0, 1]; magnitude 0 is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """One operation of a space.

    Attributes:
        apply: (pixels, magnitude, sign) -> pixels.
        signed: whether it goes in two directions; then a sign is drawn, otherwise `apply` ignores it.
        smooth: whether the derivative by the magnitude is that of the real operation (not of thresholds, spec 2.3).
        colour: whether it exists for three channels only.
    """

    name: str
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    signed: bool = False
    smooth: bool = True
    colour: bool = False
