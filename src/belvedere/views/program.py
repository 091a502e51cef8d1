"""Programs: what operations a view goes through, as part of its record, in place of jitter, grayscale, blur, solarize.

A program of S stages lies in `ViewParams.extras`: the operation of each stage (a position in the space, or NOTHING),
its magnitude and its sign, all `[V, N, S]`. All draws come from the view's own stream of random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from belvedere.views.draws import substreams, unit, words
from belvedere.views.operations import Operation
from belvedere.views.params import ViewParams
from belvedere.views.sample import SOLARIZE_OFF

OP, MAGNITUDE, SIGN = "op", "magnitude", "sign"
NOTHING = -1


class OperationProgram:
    """`render.Program` that applies the operations that a record names, stage after stage.

    Differentiable in the magnitudes (where the operation is) and in the pixels.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)

    def __call__(self, pixels: Tensor, params: ViewParams, slot: int) -> Tensor:
        """Pixels `[N, C, h, w]` in [0, 1] of one slot after their programs."""
        op = params.extras[OP][slot]
        magnitude, sign = (params.extras[name][slot].to(pixels.device) for name in (MAGNITUDE, SIGN))
        for stage in range(op.shape[1]):
            pixels = self._stage(pixels, op[:, stage], magnitude[:, stage], sign[:, stage])
        return pixels

    def _stage(self, pixels: Tensor, op: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
        """Each operation once, on all the images that have it."""
        parts, places = [], []
        for position in range(NOTHING, len(self.operations)):
            chosen = (op == position).nonzero()[:, 0].to(pixels.device)
            if len(chosen):
                some = pixels.index_select(0, chosen)
                if position != NOTHING:
                    some = self.operations[position].apply(some, magnitude[chosen], sign[chosen])
                parts.append(some)
                places.append(chosen)
        return torch.cat(parts).index_select(0, torch.cat(places).argsort())


@dataclass(frozen=True)
class Draws:
    """Random numbers of every view's program, float32.

    Attributes:
        which: `[V, N, S]` uniform in [0, 1), for the operation.
        amount: `[V, N, S]` uniform in [0, 1), for the magnitude; `noise` is the same number as a standard normal one.
        sign: `[V, N, S]` +1 or -1.
        further: `[V, N, S]` uniform in [0, 1), for whether a stage is applied.
    """

    which: Tensor
    amount: Tensor
    sign: Tensor
    further: Tensor

    @property
    def noise(self) -> Tensor:
        """`[V, N, S]` standard normal."""
        normal: Tensor = torch.special.ndtri(self.amount.double().clamp(1e-12, 1 - 1e-12))
        return normal.float()


def draw(params: ViewParams, stages: int) -> Draws:
    """The numbers that a policy makes programs of `stages` operations from; the same for the same view for ever."""
    keys = substreams(params.key.cpu().numpy().view(np.uint64), "program")
    uniform = torch.from_numpy(unit(words(keys, 4 * stages))).float().clamp(max=1 - 2**-24)
    which, amount, sign, further = torch.split(uniform, stages, dim=-1)
    return Draws(which, amount, torch.where(sign < 0.5, -1.0, 1.0), further)


def with_program(params: ViewParams, op: Tensor, magnitude: Tensor, sign: Tensor, **extras: Tensor) -> ViewParams:
    """The record with these programs `[V, N, S]` (and further extras), and all that they replace switched off."""
    off = torch.zeros_like(params.jitter)
    one = torch.ones_like(params.brightness)
    return replace(
        params,
        jitter=off,
        brightness=one,
        contrast=one,
        saturation=one,
        hue=0 * one,
        gray=off,
        sigma=0 * one,
        solarize=SOLARIZE_OFF * one,
        extras={**params.extras, OP: op, MAGNITUDE: magnitude, SIGN: sign, **extras},
    )


def clean(params: ViewParams, slot: str) -> ViewParams:
    """One view an image at a slot's size: the whole image, no flip, no operation."""
    only = params.select([slot])
    return replace(
        only,
        top=torch.zeros_like(only.top),
        left=torch.zeros_like(only.left),
        h=only.src_h.expand_as(only.h).to(only.h.dtype),
        w=only.src_w.expand_as(only.w).to(only.w.dtype),
        flip=torch.zeros_like(only.flip),
        extras={**only.extras, OP: torch.full_like(only.extras[OP], NOTHING)},
    )
