"""Which patches of a view are masked: iBOT's laws `block` (BEiT's blocks) and `random` (spec objectives 6.4).

And AttMask's `high`, `hint` and `low`, by what the teacher looks at: "What to Hide from Your Students: Attention-Guided
Masked Image Modeling", Kakogeorgiou et al., ECCV 2022, arXiv:2203.12719 (spec patch_and_pretext 8).

A mask comes from the view's own stream of random numbers (`ViewParams.key`, a hash of seed, epoch, image and slot): it
does not depend on the batch, on a resume or on the process, and it follows a candidate view that is chosen. An
objective that masks nothing declares no law.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.views.draws import substreams, unit, words
from belvedere.views.params import ViewParams, send

Shape = Literal["block", "random", "high", "hint", "low"]
ATTENDED = ("high", "hint", "low")
Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
# uniforms(chosen, t) -> [len(chosen), 4] draws in [0, 1) for try number t of the masks at these positions.
Uniforms = Callable[[NDArray[np.int64], int], Floats]

TRIES = 10
LOG_ASPECT = math.log(0.3), math.log(1 / 0.3)
# Of all patches, how many `hint` shows of those attended to most, and among how many it draws them.
SHOWN, AMONG = 0.1, 0.2


@dataclass(frozen=True)
class MaskLaw:
    """How much is masked, and in which shape.

    One entry of `ratio` is picked uniformly for each view and image; the share of patches to mask is then uniform in
    `ratio - var .. ratio + var` of that entry. `block` masks rectangles and stays at or a little below the share,
    `random` masks single patches. `high` masks those that the teacher attends to most and `low` those least; `hint` is
    `high` but for a few of the very first.

    Raises:
        ValueError: lists of different lengths, none at all, or a share that could leave [0, 1].
    """

    shape: Shape
    ratio: tuple[float, ...]
    var: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what is no law."""
        if not self.ratio or len(self.ratio) != len(self.var):
            raise ValueError("one var for each ratio, and at least one ratio")
        if any(not 0 <= r - v <= r + v <= 1 for r, v in zip(self.ratio, self.var, strict=True)):
            raise ValueError("ratio - var and ratio + var must lie in 0 .. 1")

    @property
    def attends(self) -> bool:
        """Whether masks follow the teacher's attention (`attended_masks`) and not the view alone (`draw_masks`)."""
        return self.shape in ATTENDED

    @property
    def share_masked(self) -> float:
        """Probability that a share above 0 is drawn."""
        return sum(r > 0 for r in self.ratio) / len(self.ratio)


def draw_masks(law: MaskLaw, params: ViewParams, patch: int) -> dict[str, Tensor]:
    """Masks of all views of a record, slot -> (N, h, w) bool on the CPU, True = masked.

    Args:
        law: of the masks.
        params: the views.
        patch: side of a patch in pixels; a grid is a view's size in whole patches.
    """
    grids = [(height // patch, width // patch) for height, width in params.size]
    masks = (masks_of(law, own, grid) for own, grid in zip(_streams(params), grids, strict=True))
    return {slot: torch.from_numpy(mask) for slot, mask in zip(params.slots, masks, strict=True)}


def attended_masks(law: MaskLaw, params: ViewParams, attention: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks by attention, slot -> (N, h, w) bool on its device, True = masked.

    Args:
        law: one that `attends`.
        params: the views.
        attention: slot -> (N, h, w) how much each patch is attended to.
    """
    own = dict(zip(params.slots, _streams(params), strict=True))
    return {slot: by_attention(law, own[slot], found) for slot, found in attention.items()}


def by_attention(law: MaskLaw, keys: NDArray[np.uint64], attention: Tensor) -> Tensor:
    """One mask `[M, h, w]` for each of M streams and maps of attention `[M, h, w]`."""
    scores = attention.flatten(1)
    cells = scores.shape[1]
    count = send(torch.from_numpy(np.floor(_targets(law, keys, cells))), scores.device)[:, None]
    rank = scores.argsort(dim=1, descending=law.shape != "low", stable=True).argsort(dim=1)
    masks = rank < count
    if law.shape == "hint":
        draws = send(torch.from_numpy(unit(words(keys, cells, start=2))), scores.device)
        draws = draws.masked_fill(rank >= int(AMONG * cells), 1.0)
        masks &= draws.argsort(dim=1).argsort(dim=1) >= int(SHOWN * cells)
    return masks.view(attention.shape)


def masks_of(law: MaskLaw, keys: NDArray[np.uint64], grid: tuple[int, int]) -> Masks:
    """One mask `[M, h, w]` for each of M streams."""
    target = _targets(law, keys, grid[0] * grid[1])
    if law.shape == "random":
        return _scattered(np.floor(target), unit(words(keys, grid[0] * grid[1], start=2)), grid)
    return block_masks(target, grid, lambda chosen, t: unit(words(keys[chosen], 4, start=2 + 4 * t)))


def _streams(params: ViewParams) -> NDArray[np.uint64]:
    """One stream `[S, N]` for each slot and image."""
    return substreams(params.key.cpu().numpy().view(np.uint64), "mask")


def _targets(law: MaskLaw, keys: NDArray[np.uint64], cells: int) -> Floats:
    """Real numbers `[M]` of cells to mask."""
    picked, within = unit(words(keys, 2)).T
    entry = np.floor(picked * len(law.ratio)).astype(np.int64)
    ratio, var = np.array(law.ratio)[entry], np.array(law.var)[entry]
    targets: Floats = (ratio - var + 2 * var * within) * cells
    return targets


def _scattered(count: Floats, draws: Floats, grid: tuple[int, int]) -> Masks:
    """`count` cells each `[M]`: those of the smallest draws `[M, h * w]`."""
    rank = draws.argsort(1).argsort(1)
    return (rank < count[:, None]).reshape(-1, *grid)


def block_masks(target: Floats, grid: tuple[int, int], uniforms: Uniforms) -> Masks:
    """Rectangles one after another until `target` cells `[M]` are masked, or ten tries for the next one have failed.

    BEiT's algorithm on all masks at once: every round is one try of every mask that is not done.

    Args:
        target: real numbers of cells that are not exceeded.
        grid: (h, w).
        uniforms: draws for area, aspect ratio, top and left of a try.
    """
    height, width = grid
    masks = np.zeros((len(target), height, width), dtype=bool)
    masked = np.zeros(len(target))
    failed = np.zeros(len(target), dtype=np.int64)
    low = (min(height, width) // 3) ** 2
    rows, columns = np.arange(height)[:, None], np.arange(width)
    active, t = np.flatnonzero(target > 0), 0
    while len(active):
        area, aspect, place_y, place_x = uniforms(active, t).T
        room = target[active] - masked[active]
        area = low + (room - low) * area  # the bounds may be reversed
        aspect = np.exp(LOG_ASPECT[0] + (LOG_ASPECT[1] - LOG_ASPECT[0]) * aspect)
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        top, left = np.floor(place_y * (height - h + 1)), np.floor(place_x * (width - w + 1))
        y, x = rows - top[:, None, None], columns - left[:, None, None]
        block = (y >= 0) & (y < h[:, None, None]) & (x >= 0) & (x < w[:, None, None])
        joined = masks[active] | block
        new = joined.sum((1, 2)) - masked[active]
        taken = (h < height) & (w < width) & (new > 0) & (new <= room)
        masks[active[taken]] = joined[taken]
        masked[active[taken]] += new[taken]
        failed[active] = np.where(taken, 0, failed[active] + 1)
        active = active[(failed[active] < TRIES) & (masked[active] < target[active])]
        t += 1
    return masks
