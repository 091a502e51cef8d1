"""Swin transformers: the contract over timm's `SwinTransformer`, stage by stage (EsViT, spec patch_and_pretext 2.1).

A map is padded to whole windows *before* it is shifted, as EsViT's code does and timm's own forward does not; where
nothing is to be padded, both are the same. Windows are chosen so that nothing is at the size a network is trained at
(`windows_for`), so timm alone gives the same features there; on other sizes this module is EsViT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone, Features
from belvedere.backbones.vit import Init
from belvedere.errors import UserError


class Swin(Backbone):
    """Adapter over a timm Swin: the cells of the last map are the patches, `cls` is their normed mean, no prefix.

    Positions are relative inside a window, so there is no table to resample and none to leave out.
    """

    can = frozenset({"raw_patches", "stages", "blocks"})
    has_class_token = False

    def __init__(
        self, model: SwinTransformer, architecture: str, model_args: dict[str, object], init: Init = "dino"
    ) -> None:
        """Wrap `model`, built without classifier and with `strict_img_size=False`; `init` is the law of its weights."""
        super().__init__()
        self.model = model
        self.init: Init = init
        self.architecture = architecture
        self.model_args = model_args
        self.dim = model.num_features
        self._side = int(model.patch_embed.patch_size[0])
        self.patch = self._side * 2 ** (len(model.layers) - 1)
        self.channels = model.in_chans
        height, width = model.patch_embed.img_size
        self.size = (int(height), int(width))

    @property
    def _swin(self) -> Any:
        return self.model

    @property
    def unit(self) -> int:
        """Side of a patch of the first map: later maps are padded to even sides where they are halved."""
        return self._side

    @property
    def settings(self) -> dict[str, Any]:
        """See `Backbone.settings`."""
        width, depth = int(self._swin.embed_dim), sum(len(stage.blocks) for stage in self._swin.layers)
        return {"patch": self._side, "width": width, "depth": depth, "init": self.init}

    @property
    def block_dims(self) -> tuple[int, ...]:
        """See `Backbone.block_dims`."""
        width = int(self._swin.embed_dim)
        return tuple(width << k for k, stage in enumerate(self._swin.layers) for _ in range(len(stage.blocks)))

    @property
    def shardable(self) -> tuple[nn.Module, ...]:
        """See `Backbone.shardable`: of each block, what `_block` calls; norms are small."""
        return tuple(part for stage in self._swin.layers for block in stage.blocks for part in (block.attn, block.mlp))

    def forward(
        self,
        pixels: Tensor,
        *,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        pos_embed: bool = True,
        extra_tokens: Tensor | None = None,
        need: Sequence[str] = (),
    ) -> Features:
        """Encode (N, C, H, W) pixels; see `Backbone.forward`. `stages` are all stages' maps, before the last norm.
        `blocks` are the means of all blocks' maps, through the final norm in the last stage, whose width alone it fits.

        Raises:
            UserError: for what only a plain vision transformer can do, a wrong number of channels, or sides that are no
                multiple of `unit`.
        """
        self.refuse(
            mask=mask is not None,
            keep=keep is not None,
            pos_embed=not pos_embed,
            extra_tokens=extra_tokens is not None,
            **dict.fromkeys(need, True),
        )
        self._check(pixels)
        x = self._swin.patch_embed(pixels)
        stages, blocks = [], []
        for stage in self._swin.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = _block(block, x)
                if "blocks" in need:
                    last = stage is self._swin.layers[-1]
                    blocks.append((self._swin.norm(x) if last else x).mean((1, 2)))
            stages.append(x)
        tokens = x.flatten(1, 2)
        patches = self._swin.norm(tokens)
        return Features(
            cls=patches.mean(1),
            patches=patches,
            grid=(x.shape[1], x.shape[2]),
            prefix=patches[:, :0],
            raw_patches=tokens if "raw_patches" in need else None,
            norm=self._swin.norm if "raw_patches" in need else None,
            stages=[found.permute(0, 3, 1, 2) for found in stages] if "stages" in need else None,
            blocks=blocks if "blocks" in need else None,
        )

    def _check(self, pixels: Tensor) -> None:
        channels, height, width = pixels.shape[1:]
        if channels != self.channels:
            raise UserError(f"backbone {self.architecture} reads {self.channels} channels, the images have {channels}")
        if height % self._side or width % self._side:
            raise UserError(f"image size {height} x {width}: not a multiple of the patch size {self._side}")


def _block(block: Any, x: Tensor) -> Tensor:
    """A transformer block on a map (N, h, w, D)."""
    x = x + block.drop_path1(_attend(block, block.norm1(x)))
    mixed: Tensor = x + block.drop_path2(block.mlp(block.norm2(x)))
    return mixed


def _attend(block: Any, x: Tensor) -> Tensor:
    """Attention inside shifted windows of a normed map (N, h, w, D): pad, shift, attend, shift back, crop.

    Padded cells are zeros behind the norm and ordinary keys, as in the reference.
    """
    height, width = x.shape[1:3]
    (tall, wide), (down, right) = block.window_size, block.shift_size
    x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
    if down or right:
        x = x.roll((-down, -right), (1, 2))
    windows = window_partition(x, (tall, wide)).flatten(1, 2)
    attended = block.attn(windows, mask=block.get_attn_mask(x)).unflatten(1, (tall, wide))
    x = window_reverse(attended, (tall, wide), x.shape[1], x.shape[2])
    if down or right:
        x = x.roll((down, right), (1, 2))
    return x[:, :height, :width]


def grids_of(size: tuple[int, int], patch: int, stages: int) -> list[tuple[int, int]]:
    """(h, w) of the maps of all stages for (h, w) pixels: each is half the one before, rounded up."""
    return [(-(-size[0] // (patch << k)), -(-size[1] // (patch << k))) for k in range(stages)]


def windows_for(size: tuple[int, int], patch: int, stages: int, largest: int) -> list[list[int]] | None:
    """[h, w] of the windows of every stage: per axis the largest up to `largest` that fills that map without rest.

    At 224 pixels and patches of 4 these are the papers' 7 in every stage.

    Returns:
        None where a map can only be filled with windows of one cell, which see nothing of each other.
    """
    found = [[_window(side, largest) for side in grid] for grid in grids_of(size, patch, stages)]
    whole = all(
        window > 1 or side == 1
        for grid, windows in zip(grids_of(size, patch, stages), found, strict=True)
        for side, window in zip(grid, windows, strict=True)
    )
    return found if whole else None


def _window(side: int, largest: int) -> int:
    return max(window for window in range(1, largest + 1) if side % window == 0)
