"""MAE: most patches are taken away, the encoder sees the rest, and a small decoder paints what is missing.

"Masked Autoencoders Are Scalable Vision Learners", He et al., CVPR 2022, arXiv:2111.06377 (spec patch_and_pretext 9).
With `objective.name=none` it is the paper's method (recipe `mae`); beside an objective, that objective's student sees
the same few patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.backbones.pos_embed import sincos_positions
from belvedere.errors import UserError
from belvedere.objectives._options import Count, NotNegative
from belvedere.objectives.contract import is_global
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task
from belvedere.views.params import send

# Width of an attention head of the decoder, the paper's 512 / 16.
HEAD = 32
EPS = 1e-6


class MaeOptions(BaseModel):
    """Settings of the masking and the decoder; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: NotNegative = 1.0
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that is taken away."""
    norm_pixels: bool = True
    """Each patch's pixels are standardised by their own mean and deviation before they are compared."""
    width: Count | None = None
    """Of the decoder; by default two thirds of the encoder's, in whole heads of 32, as 512 of ViT-B's 768."""
    depth: Count = 8
    """Blocks of the decoder."""


def draw_masks(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Which patches stay, by their noise: the lowest.

    Args:
        noise: (B, T) draws, one a patch.
        ratio: share that is taken away; int(T (1 - ratio)) stay, but at least one.

    Returns:
        (B, T_kept) indices that stay, in the order of their noise; (B, T) the place of every patch among these, then
        the missing ones, so that a place from T_kept on says that a patch is taken away.
    """
    count = max(1, int(noise.shape[1] * (1 - ratio)))
    order = noise.argsort(dim=1)
    return order[:, :count], order.argsort(dim=1)


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) pixels as (B, T, patch * patch * C) patches, row by row, channels last within a patch."""
    rows = pixels.unfold(2, patch, patch).unfold(3, patch, patch)
    return rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse: (B, T, patch * patch * C) -> (B, C, h, w)."""
    cells = patches.reshape(len(patches), *grid, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def standardised(patches: Tensor) -> Tensor:
    """Patches less their mean, over their deviation (unbiased)."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + EPS).sqrt()


def masked_error(painted: Tensor, wanted: Tensor, missing: Tensor) -> Tensor:
    """(B,) mean squared error over the missing patches; an image's number of these is the same for all.

    Args:
        painted, wanted: (B, T, P) patches.
        missing: (B, T) bool.
    """
    error = (painted.float() - wanted.float()).square().mean(-1)
    return (error * missing).sum(1) / missing.sum(1).clamp(min=1)


class Decoder(nn.Module):
    """Kept tokens and mask tokens in their places, with fixed positions, through a few blocks to pixels."""

    positions: Tensor

    def __init__(self, dim: int, width: int, depth: int, patch: int, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        norm = partial(nn.LayerNorm, eps=EPS)
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(
            *[Block(width, width // HEAD, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        )
        self.norm = norm(width)
        self.paint = nn.Linear(width, patch * patch * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, features: Features, restore: Tensor) -> Tensor:
        """(B, T, patch * patch * C) painted patches of all places.

        Args:
            features: of the kept patches.
            restore: (B, T) the place of every patch among kept, then missing ones.
        """
        tokens = self.embed(torch.cat([features.prefix, features.patches], dim=1))
        prefix = features.prefix.shape[1]
        kept = tokens[:, prefix:]
        missing = self.mask_token.to(kept.dtype).expand(len(kept), restore.shape[1] - kept.shape[1], -1)
        placed = torch.cat([kept, missing], dim=1).gather(1, restore.unsqueeze(-1).expand(-1, -1, kept.shape[2]))
        tokens = self.blocks(torch.cat([tokens[:, :prefix], placed + self.positions.to(kept.dtype)], dim=1))
        painted: Tensor = self.paint(self.norm(tokens[:, prefix:]))
        return painted


class Mae(Task):
    """Mean squared error of the missing patches of every global view."""

    Options = MaeOptions

    def __init__(self, options: MaeOptions, around: Surroundings) -> None:
        """Build the decoder.

        Raises:
            UserError: when the network cannot leave patches out, or the objective masks patches itself.
        """
        super().__init__(options, around)
        self.slots = tuple(slot for slot in around.sizes if is_global(slot))
        if "keep" not in around.can:
            raise UserError("task mae: this network cannot leave patches out; take a vision transformer")
        if "mask" in around.can:
            raise UserError(
                f"task mae: objective {around.objective} masks patches itself, which mae takes away; take another one"
            )
        width = options.width or max(1, round(around.dim * 2 / 3 / HEAD)) * HEAD
        if width % HEAD:
            raise UserError(f"task.mae.width={width}: give a multiple of {HEAD}, the width of a head")
        grid = around.grids[self.slots[0]]  # of all global views
        self.decoder = Decoder(around.dim, width, options.depth, around.patch, around.channels, grid)

    @classmethod
    def replaces(cls, options: Any, objective: str) -> bool:
        """Always."""
        return True

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The global views without their missing patches, in the place of the objective's; notes: slot -> places."""
        pixels = {slot: scene.views[slot] for slot in self.slots}
        masks = {slot: self._masks(scene, slot) for slot in self.slots}
        keep = {slot: kept for slot, (kept, _) in masks.items()}
        places = {slot: restore for slot, (_, restore) in masks.items()}
        return {"visible": Request(pixels=pixels, keep=keep, how="replace", note=places)}

    def _masks(self, scene: Scene, slot: str) -> tuple[Tensor, Tensor]:
        height, width = self.around.grids[slot]
        noise = send(scene.uniform(f"mae {slot}", (height * width,)), scene.views[slot].device)
        return draw_masks(noise, self.options.mask_ratio)

    def _painted(self, answer: Answer, slot: str) -> tuple[Tensor, Tensor]:
        """(B, T, P) painted patches of a view, and (B, T) bool, True where one was missing."""
        features, restore = answer.student[slot], answer.request.note[slot]
        return self.decoder(features, restore), restore >= features.patches.shape[1]

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"pixels": (B,) weight x `masked_error`, mean over the global views}."""
        losses = []
        for slot in self.slots:
            painted, missing = self._painted(answers["visible"], slot)
            # A learned policy's views carry a gradient, and what is to be painted is not for it to change.
            wanted = patchify(scene.views[slot].detach(), self.around.patch)
            wanted = standardised(wanted) if self.options.norm_pixels else wanted
            losses.append(masked_error(painted, wanted, missing))
        return {"pixels": self.options.weight * torch.stack(losses).mean(0)}

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """Of the first view: "original", "corrupted", "reconstructed" (B, C, h, w), "mask" (B, 1, h, w).

        What is painted of standardised patches has the mean and deviation of the true ones; then "means" shows every
        patch at its mean level, which the network was told.
        """
        slot, patch = self.slots[0], self.around.patch
        wanted, grid = patchify(scene.views[slot], patch), self.around.grids[slot]
        painted, missing = self._painted(answers["visible"], slot)
        painted = painted.float()
        if self.options.norm_pixels:
            deviation = (wanted.var(-1, keepdim=True) + EPS).sqrt()
            painted = painted * deviation + wanted.mean(-1, keepdim=True)
        hidden = missing.unsqueeze(-1).expand_as(wanted)
        pictures = {
            "original": wanted,
            "corrupted": wanted.masked_fill(hidden, 0.0),
            "reconstructed": torch.where(hidden, painted, wanted),
        }
        if self.options.norm_pixels:
            pictures["means"] = wanted.mean(-1, keepdim=True).expand_as(wanted)
        found = {name: unpatchify(patches, grid, patch) for name, patches in pictures.items()}
        return found | {"mask": unpatchify(hidden[..., : patch * patch].float(), grid, patch)}
