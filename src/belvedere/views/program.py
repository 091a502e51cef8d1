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
from belvedere.views.params import ViewParams, send
from belvedere.views.sample import SOLARIZE_OFF

OP, MAGNITUDE, SIGN = "op", "magnitude", "sign"
NOTHING = -1


class OperationProgram:
    """`render.Program` that applies the operations that a record names, stage after stage.

    Differentiable in the magnitudes (where the operation is) and in the pixels. Where nobody asks for a derivative, the
    compiled renderer can do the same in the pass that makes the crops: `compiled` tells it how.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        kinds = [[*operation.kind, operation.signed] for operation in self.operations]
        self._kinds = torch.tensor(kinds, dtype=torch.float32, device="cpu")

    def compiles(self, params: ViewParams) -> bool:
        """Whether `native.render_programs` can do it: it knows the operations, and no derivative is asked for."""
        learned = params.extras[MAGNITUDE].requires_grad and torch.is_grad_enabled()
        return not learned and bool((self._kinds[:, 0] >= 0).all())

    def compiled(self, params: ViewParams, slots: Sequence[int]) -> Tensor:
        """The programs `[len(slots) * N, S, 3]` of some slots, as `native.render_programs` reads them."""
        op, magnitude, sign = (params.extras[name][list(slots)].flatten(0, 1) for name in (OP, MAGNITUDE, SIGN))
        kind, reach, signed = self._kinds[op.clamp(min=0)].unbind(-1)
        kind = kind.masked_fill(op == NOTHING, NOTHING)
        return torch.stack([kind, magnitude.detach(), torch.where(signed > 0, sign * reach, reach)], -1).float()

    def shown(self, params: ViewParams, slots: Sequence[int], spreads: Tensor) -> None:
        """What `native.render_programs` says of the views that it made of some slots: `[len(slots) * N, 2]`."""

    def __call__(self, pixels: Tensor, params: ViewParams, slot: int) -> Tensor:
        """Pixels `[N, C, h, w]` in [0, 1] of one slot after their programs."""
        op = params.extras[OP][slot]
        magnitude, sign = (send(params.extras[name][slot], pixels.device) for name in (MAGNITUDE, SIGN))
        for stage in range(op.shape[1]):
            pixels = self._stage(pixels, op[:, stage].cpu(), magnitude[:, stage], sign[:, stage])
        return pixels

    def _stage(self, pixels: Tensor, op: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
        """Each operation once, on all the images that have it, which sorting by operation puts beside each other."""
        order = op.argsort(stable=True)
        counts = torch.bincount(op - NOTHING, minlength=1 + len(self.operations)).tolist()
        there, back = (send(places, pixels.device) for places in (order, order.argsort()))
        columns = (torch.split(x.index_select(0, there), counts) for x in (pixels, magnitude, sign))
        parts = []
        for operation, (some, amount, way) in zip((None, *self.operations), zip(*columns, strict=True), strict=True):
            if len(some):
                parts.append(some if operation is None else operation.apply(some, amount, way))
        return torch.cat(parts).index_select(0, back)


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
