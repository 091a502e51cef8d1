"""Pairs of crops that overlap little: redrawn until their IoU is under a threshold.

The static policy of the code released with "Beyond Random Augmentations: Pretraining with Hard Views", Ferreira et
al., ICLR 2025, arXiv:2310.03940 (spec view_policies 1.7): the null model of hard views, because what those select
overlaps little too, and no forward pass is spent on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from belvedere.errors import UserError
from belvedere.schedules import Clock, cosine, ramp
from belvedere.views.draws import substreams, unit, words
from belvedere.views.params import ViewParams
from belvedere.views.policy import ViewPolicy
from belvedere.views.sample import draw_boxes
from belvedere.views.slots import Slot

TRIES = 512
BOX = ("top", "left", "h", "w")
# Tries of a round times images; only thresholds that hardly any pair meets come near it.
_ROUND = 2**16


class IoUOptions(ViewPolicy.Options):
    """Settings of the IoU policy."""

    start: float = Field(0.3, ge=0, le=1)
    """Largest IoU of a pair of crops after the warm-up."""
    end: float | None = Field(None, ge=0, le=1)
    """Largest IoU at the end of training, for linear and cosine."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the threshold goes from start to end."""
    warmup: float = Field(0.0, ge=0)
    """Epochs in which any IoU will do."""
    prob: float = Field(1.0, ge=0, le=1)
    """Probability that a pair has to keep to the threshold; the others stay as they are drawn. The released code takes
    the probability of skipping instead: 1 - prob."""


class IoU(ViewPolicy):
    """The recipe's views, of which the global ones are redrawn two by two: first and second, third and fourth, ...

    Only the crops are redrawn, both of a pair at once and up to 512 times; the first try is what the random policy
    draws. A pair that never fits keeps the crops of lowest IoU.
    """

    Options = IoUOptions
    options: IoUOptions

    def __init__(self, options: Any, slots: tuple[Slot, ...], channels: int) -> None:
        """Pair the global views.

        Raises:
            UserError: when there is no pair, or the schedule and its end contradict each other.
        """
        super().__init__(options, slots, channels)
        globals_ = [slot for slot in slots if slot.is_target]
        self.pairs = list(zip(globals_[::2], globals_[1::2], strict=False))
        if not self.pairs:
            raise UserError("views.policy=iou: pairs global views, so views.globals must be at least 2")
        if options.schedule == "constant" and options.end is not None:
            raise UserError("views.end: needs views.schedule=linear or cosine; constant stays at views.start")
        if options.schedule != "constant" and options.end is None:
            raise UserError(f"views.schedule={options.schedule}: needs views.end, the largest IoU at the end")
        self.threshold = 1.0 if options.warmup > 0 else options.start
        self._held, self._above = 0, 0

    def begin_step(self, clock: Clock) -> None:
        """Set this step's threshold."""
        begin = self.options.warmup * clock.steps_per_epoch
        step, length = clock.step - begin, clock.total_steps - begin
        if step < 0:
            self.threshold = 1.0
        elif self.options.end is None:
            self.threshold = self.options.start
        elif self.options.schedule == "linear":
            self.threshold = ramp(step, length, self.options.start, self.options.end)
        else:
            self.threshold = cosine(step, length, self.options.start, self.options.end)

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """The random policy's record with other crops where a pair overlapped too much."""
        params = super().propose(index, sizes, epoch, seed)
        for pair in self.pairs:
            params = self._redrawn(params, pair)
        return params

    def _redrawn(self, params: ViewParams, pair: tuple[Slot, Slot]) -> ViewParams:
        """The record with the crops of one pair redrawn where need be."""
        names = [slot.name for slot in pair]
        views, rows = params.select(names), torch.tensor([[params.slot(name)] for name in names])
        boxes = {name: getattr(params, name).clone() for name in BOX}
        drawn = unit(words(substreams(_keys(views)[0], "iou/held"), 1))[:, 0]
        held, lowest = torch.from_numpy(drawn < self.options.prob), views.iou(0, 1)
        tries = 1
        while tries < TRIES and len(over := (held & (lowest > self.threshold)).nonzero()[:, 0]):
            # As many again each round: most pairs need a few tries, some need hundreds.
            count = min(tries, TRIES - tries, max(1, _ROUND // len(over)))
            best = self._best(views.take(over), pair, range(tries, tries + count))
            found = best.iou(0, 1)
            lower = found < lowest[over]
            lowest[over[lower]] = found[lower]
            for name, box in boxes.items():
                box[rows, over[lower]] = getattr(best, name)[:, lower]
            tries += count
        self._held += int(held.sum())
        self._above += int((held & (lowest > self.threshold)).sum())
        return replace(params, **boxes)

    def _best(self, views: ViewParams, pair: tuple[Slot, Slot], tries: range) -> ViewParams:
        """Of these tries the first that fits, or else the one of lowest IoU, image by image."""
        tried = _tried(views, pair, tries)
        iou = tried.iou(0, 1).view(len(tries), -1)
        fits = iou <= self.threshold
        best = torch.where(fits.any(0), fits.int().argmax(0), iou.argmin(0))
        return tried.take(best * len(views.index) + torch.arange(len(views.index)))

    def log(self) -> dict[str, float]:
        """The threshold, and the share of the pairs held to it that no try could bring under it."""
        above = self._above / max(1, self._held)
        self._held, self._above = 0, 0
        return {"iou/threshold": self.threshold, "iou/above": above}


def _keys(params: ViewParams) -> NDArray[np.uint64]:
    return params.key.numpy().view(np.uint64)


def _tried(views: ViewParams, pair: tuple[Slot, Slot], tries: range) -> ViewParams:
    """The record of the images once for each try, try after try, with the crops of that try."""
    keys = np.concatenate([substreams(_keys(views), f"iou/{number}") for number in tries], axis=1)
    again = views.take(torch.arange(len(views.index)).repeat(len(tries)))
    canvas = torch.stack([again.src_h, again.src_w], 1).numpy().astype(np.int64)
    top, left, h, w = (torch.from_numpy(side).to(torch.int32) for side in draw_boxes(pair, keys, canvas))
    return replace(again, top=top, left=left, h=h, w=w)
