"""Corruption of views as a pure function of draws: SiT's group masking, and the four blocks of its first version.

Spec patch_and_pretext 4 and 4.1; arXiv:2104.03602. Where the blocks lie and what fills them depends on the seed, the
epoch, the image and the view. Foreign blocks come from another view of the same micro-batch: which row of it is drawn
like the rest, but which image lies there is the batch's doing. So two processes of B / 2 images put their blocks where
one process of B does, and fill them with other images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from belvedere.views import draws, reference
from belvedere.views.params import send

Size = tuple[int, int]
Filling = Literal["zeros", "noise", "copy"]
Masks = NDArray[np.bool_]
LARGEST = 0.3
"""Blocks of group masking have less than this share of a side."""
AT_ONCE = 32
"""Blocks that are drawn together."""


@dataclass(frozen=True)
class Stream:
    """Draws for some images: functions of seed, epoch, image and purpose alone.

    Attributes:
        index: (N,) numbers of the images.
        name: what every purpose begins with.
    """

    seed: int
    epoch: int
    index: ArrayLike
    name: str

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
        """(N, *shape) in [0, 1)."""
        return draws.uniform(self.seed, self.epoch, self.index, f"{self.name} {purpose}", shape)

    def integers(self, purpose: str, high: int) -> NDArray[np.int64]:
        """(N,) in [0, high)."""
        return draws.integers(self.seed, self.epoch, self.index, f"{self.name} {purpose}", high)

    def rows(self, chosen: NDArray[np.int64]) -> Stream:
        """The same for some of the images."""
        return Stream(self.seed, self.epoch, np.asarray(self.index)[chosen], self.name)

    def endless(self, purpose: str, row: int) -> Iterator[NDArray[np.float64]]:
        """Draws in [0, 1) of one image, four at a time, as many as are wanted."""
        part = 0
        own = self.rows(np.array([row]))
        while True:
            yield from own.uniform(f"{purpose} {part}", (AT_ONCE, 4))[0]
            part += 1


class Block(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def area(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


# --- where ------------------------------------------------------------------------------------------------------------


def aligned(top: int, left: int, height: int, width: int, size: Size, align: int) -> Block:
    """The block of raw integers: corner rounded down, sides cut at the border and rounded, in steps of `align`."""
    top, left = top // align * align, left // align * align
    height, width = min(height, size[0] - top), min(width, size[1] - left)
    return Block(top, left, round(height / align) * align, round(width / align) * align)


def group_block(uniform: NDArray[np.float64], size: Size, align: int) -> Block:
    """A block of group masking from four draws: sides in [align, .3 side), corner in [0, side - align)."""
    down, across = (int(share * (side - align)) for share, side in zip(uniform[:2], size, strict=True))
    height, width = (
        align + int(share * (int(LARGEST * side) - align)) for share, side in zip(uniform[2:], size, strict=True)
    )
    return aligned(down, across, height, width, size, align)


def reach(size: Size, align: int) -> float:
    """The share of a view that blocks of group masking can cover: with `align` > 1 the last row may be out of reach.

    Returns:
        0 where there is no block of that alignment at all.
    """
    covered = 1.0
    for side in size:
        if int(LARGEST * side) <= align or side <= align:
            return 0.0
        top = (side - align - 1) // align * align
        covered *= min(side, top + round(min(int(LARGEST * side) - 1, side - top) / align) * align) / side
    return covered


def cover(blocks: Iterable[Block], share: float, size: Size) -> tuple[Masks, list[Block]]:
    """(H, W) the union of the first blocks that reach a share of a view, and those blocks."""
    mask = np.zeros(size, bool)
    used: list[Block] = []
    missing = share * size[0] * size[1]
    source = iter(blocks)
    while missing > 0:
        block = next(source)
        used.append(block)
        missing -= block.height * block.width - int(mask[block.area].sum())
        mask[block.area] = True
    return mask, used


def group_masks(stream: Stream, purpose: str, most: float, size: Size, align: int) -> tuple[Masks, list[list[Block]]]:
    """(N, H, W) masks of which a share U(min(.5, most), most) or a little more is True, and the blocks of each."""
    low = min(0.5, most)
    shares = low + (most - low) * stream.uniform(f"{purpose} share")
    masks = np.zeros((len(shares), *size), bool)
    blocks = []
    for row, share in enumerate(shares):
        endless = (group_block(uniform, size, align) for uniform in stream.endless(purpose, row))
        masks[row], used = cover(endless, float(share), size)
        blocks.append(used)
    return masks, blocks


def side_block(uniform: NDArray[np.float64], size: Size, low: float, high: float) -> Block:
    """A block with sides of a share in [low, high) of the view's, anywhere in it, from four draws."""
    height, width = (
        max(1, round((low + (high - low) * share) * side)) for share, side in zip(uniform[2:], size, strict=True)
    )
    return Block(int(uniform[0] * (size[0] - height + 1)), int(uniform[1] * (size[1] - width + 1)), height, width)


def scattered_masks(stream: Stream, purpose: str, size: Size) -> Masks:
    """(N, H, W) masks of small blocks whose areas add up to U(0, .3) of a view, overlaps counted twice (v1)."""
    shares = 0.3 * stream.uniform(f"{purpose} share")
    masks = np.zeros((len(shares), *size), bool)
    for row, share in enumerate(shares):
        missing = share * size[0] * size[1]
        for uniform in stream.endless(purpose, row):
            block = side_block(uniform, size, 0.05, 0.25)
            masks[row][block.area] = True
            missing -= block.height * block.width
            if missing <= 0:
                break
    return masks


def one_block(stream: Stream, purpose: str, size: Size) -> Masks:
    """(N, H, W) masks of one block each, with sides of 5 to 100 % (v1's gray and blurred blocks)."""
    found = stream.uniform(purpose, (4,))
    masks = np.zeros((len(found), *size), bool)
    for row, uniform in enumerate(found):
        masks[row][side_block(uniform, size, 0.05, 1.0).area] = True
    return masks


# --- with what --------------------------------------------------------------------------------------------------------


def noise(stream: Stream, purpose: str, like: Tensor) -> Tensor:
    """N(0, 1) of the shape of `like`, one image a row of the stream."""
    uniform = stream.uniform(purpose, tuple(like.shape[1:])) + 2.0**-54  # never 0, of which the quantile is infinite
    normal: Tensor = torch.special.ndtri(torch.from_numpy(uniform))
    return send(normal.to(like.dtype), like.device)


def copied(stream: Stream, views: Tensor, blocks: list[list[Block]]) -> Tensor:
    """(N, C, H, W) views whose blocks hold other places of the same clean view, a later block over earlier ones."""
    height, width = views.shape[2:]
    result = views.clone()
    for row, used in enumerate(blocks):
        for block, uniform in zip(used, stream.endless("copy", row), strict=False):
            top, left = int(uniform[0] * (height - block.height + 1)), int(uniform[1] * (width - block.width + 1))
            source = Block(top, left, block.height, block.width)
            result[row][:, *block.area] = views[row][:, *source.area]
    return result


def fill(stream: Stream, views: Tensor, masks: Tensor, blocks: list[list[Block]], types: tuple[Filling, ...]) -> Tensor:
    """The views with their blocks filled: one type an image, drawn from the list (4.1).

    Args:
        views: (N, C, H, W).
        masks: (N, 1, H, W) bool, the union of an image's blocks.
    """
    result = views.clone()
    picked = stream.integers("type", len(types))
    for number, filling in enumerate(types):
        rows = np.flatnonzero(picked == number)
        own, there = stream.rows(rows), _there(views, rows)
        some = views[there]
        if filling == "zeros":
            filled = torch.zeros_like(some)
        elif filling == "noise":
            filled = noise(own, "noise", some)
        else:
            filled = copied(own, some, [blocks[row] for row in rows])
        result[there] = torch.where(masks[there], filled, some)
    return result


def corrupt_groups(
    stream: Stream, views: Tensor, drop: float, replace: float, types: tuple[Filling, ...], align: int
) -> tuple[Tensor, Tensor]:
    """SiT v2 and v3: every view loses blocks; then with probability 1 / (types + 1) it is the clean view instead, with
    blocks of another row of the batch at the same place (4.1). That row may be its own: then nothing changes.

    Args:
        views: (B, C, H, W), normalised.
        drop, replace: largest share of a view that either replaces; 0 is off.
        align: blocks lie on this raster, pixels.

    Returns:
        The corrupted views and (B, 1, H, W) bool masks of what was touched.
    """
    size = (views.shape[2], views.shape[3])
    masks, blocks = group_masks(stream, "drop", drop, size, align)
    mask = _on(views, masks)
    corrupted = fill(stream, views, mask, blocks, types)
    if replace:
        rows = np.flatnonzero(stream.uniform("replaced") < 1 / (len(types) + 1))
        there, donors = _there(views, rows), _there(views, stream.integers("donor", len(views))[rows])
        foreign = _on(views, group_masks(stream.rows(rows), "replace", replace, size, align)[0])
        corrupted[there] = torch.where(foreign, views[donors], views[there])
        mask[there] = foreign
    return corrupted, mask


def corrupt_blocks(
    stream: Stream, views: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """SiT v1: a gray block, a blurred block, blocks of noise and foreign blocks, one after the other in every view.

    Gray exists for three channels only. Returns as `corrupt_groups`.
    """
    size = (views.shape[2], views.shape[3])
    x, touched = views, torch.zeros_like(views[:, :1], dtype=torch.bool)
    steps = [("blur", one_block), ("noise", scattered_masks), ("foreign", scattered_masks)]
    for purpose, place in [("gray", one_block), *steps] if views.shape[1] == 3 else steps:
        mask = _on(views, place(stream, purpose, size))
        if purpose == "gray":
            numbers = send(torch.tensor([mean, std], dtype=views.dtype), views.device)
            shift, scale = numbers.view(2, -1, 1, 1)
            other = (reference.luma(x * scale + shift) - shift) / scale
        elif purpose == "blur":
            other = _blurred(stream, x)
        elif purpose == "noise":
            other = noise(stream, "noise pixels", x)
        else:
            other = views[_there(views, stream.integers("donor", len(views)))]
        x, touched = torch.where(mask, other, x), touched | mask
    return x, touched


def _blurred(stream: Stream, x: Tensor) -> Tensor:
    """Each view under its own Gaussian: a kernel of 3 to 15 pixels, sigma .1 to 5.1 (v1)."""
    radii = np.minimum(1 + stream.integers("blur radius", 7), min(x.shape[2:]) - 1)
    sigma = send(torch.from_numpy(0.1 + 5 * stream.uniform("blur sigma")).to(x.dtype), x.device)
    result = x.clone()
    for radius in np.unique(radii):
        rows = _there(x, np.flatnonzero(radii == radius))
        result[rows] = reference.gaussian_blur(x[rows], sigma[rows], radius=int(radius))
    return result


def _there(views: Tensor, rows: NDArray[np.int64]) -> Tensor:
    """Rows where the views are."""
    return send(torch.from_numpy(rows), views.device)


def _on(views: Tensor, masks: Masks) -> Tensor:
    """(N, 1, H, W) masks where the views are."""
    return send(torch.from_numpy(masks).unsqueeze(1), views.device)
