"""Pixels altered patch by patch: mega-patches, crops and colours, noise (spec patch_and_pretext 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from belvedere.tasks.contract import Scene
from belvedere.views.eager import colour
from belvedere.views.params import send
from belvedere.views.reference import crop_resize, resize_matrix
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

CROP = 1.15
"""Side of a patch over that of its crop."""
JITTER, JITTER_P, GRAY_P = (0.4, 0.4, 0.4, 0.1), 0.8, 0.2


def random_cuts(scene: Scene, purpose: str, side: int, parts: int) -> Tensor:
    """(B, parts + 1) int64 bounds in patches of `parts` pieces of a side: different cuts, all equally likely."""
    cuts = 1 + scene.uniform(purpose, (side - 1,)).argsort(1)[:, : parts - 1].sort(1).values
    ends = torch.tensor([0, side]).expand(len(cuts), 2)
    return torch.cat([ends[:, :1], cuts, ends[:, 1:]], 1)


def mega_patches(pixels: Tensor, rows: Tensor, columns: Tensor, patch: int) -> Tensor:
    """Cut images into rectangles of whole patches and resize each one to a patch, antialiased.

    Args:
        pixels: (B, C, H, W).
        rows, columns: (B, S + 1) bounds of the rectangles, in patches. RelViT's code draws both and uses the rows' for
            both axes; here each axis has its own.

    Returns:
        (B, C, S patch, S patch).
    """

    def weights(bounds: Tensor, side: int) -> Tensor:
        bounds = send(bounds.to(pixels.dtype), pixels.device) * patch
        return resize_matrix(bounds[:, :-1], bounds.diff(dim=1), patch, side, "bilinear").flatten(1, 2)

    down, across = weights(rows, pixels.shape[2]), weights(columns, pixels.shape[3])
    return down[:, None] @ pixels @ across[:, None].mT


def crop_and_recolour(
    pixels: Tensor, patch: int, scene: Scene, purpose: str, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Every patch by itself: a random crop of 1 / 1.15 of its side resized back, colour jitter, grayscale.

    RelViT's code jitters normalised pixels, which clamps away what is darker than the mean; here the jitter comes
    before normalising.

    Args:
        pixels: (B, C, H, W) normalised with `mean` and `std`, whose sides are multiples of `patch`.

    Returns:
        (B, C, H, W) normalised.
    """
    middle, spread = (send(torch.tensor(numbers).view(-1, 1, 1), pixels.device) for numbers in (mean, std))
    patches = _to_patches((pixels * spread + middle).clamp(0, 1), patch)
    law = _law(patch, pixels.shape[1])
    slots = [replace(law, name=f"{purpose}.{k}") for k in range(len(patches))]
    views = scene.views.params
    params = sample_views(slots, views.index, torch.full((len(views.index), 2), patch), views.epoch, views.seed)
    top, left, h, w = (send(x.flatten(), pixels.device) for x in (params.top, params.left, params.h, params.w))
    levels = 255 * crop_resize(patches.flatten(0, 1), top, left, h, w, (patch, patch), "bilinear")
    colour(levels, params, range(len(slots)))
    done = _from_patches((levels / 255).view_as(patches), pixels.shape[2] // patch)
    return (done - middle) / spread


def _law(patch: int, channels: int) -> Slot:
    """The law of a patch as of a view; saturation, hue and gray exist for three channels only."""
    share, in_colour = (round(patch / CROP) / patch) ** 2, channels == 3
    return Slot(
        name="",
        size=(patch, patch),
        scale=(share, share),
        ratio=(1.0, 1.0),
        flip=0.0,
        jitter=JITTER if in_colour else (*JITTER[:2], 0.0, 0.0),
        jitter_p=JITTER_P,
        gray_p=GRAY_P if in_colour else 0.0,
    )


def replace_by_noise(pixels: Tensor, patch: int, scene: Scene, purpose: str, share: float) -> Tensor:
    """Replace that share of the patches of (B, C, H, W) normalised pixels by N(0, 1) noise."""
    height, width = pixels.shape[2] // patch, pixels.shape[3] // patch
    replaced = scene.uniform(f"{purpose}.replaced", (1, height, width)) < share
    uniform = scene.uniform(f"{purpose}.noise", tuple(pixels.shape[1:]))
    noise = send(torch.special.ndtri(uniform.clamp(min=2.0**-54)).to(pixels.dtype), pixels.device)
    where = send(replaced.repeat_interleave(patch, 2).repeat_interleave(patch, 3), pixels.device)
    return torch.where(where, noise, pixels)


def _to_patches(pixels: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (N, B, C, patch, patch), row-major."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)


def _from_patches(patches: Tensor, rows: int) -> Tensor:
    """The inverse of `_to_patches`."""
    count, batch, channels, patch, _ = patches.shape
    cells = patches.reshape(rows, count // rows, batch, channels, patch, patch).permute(2, 3, 0, 4, 1, 5)
    return cells.reshape(batch, channels, rows * patch, count // rows * patch)
