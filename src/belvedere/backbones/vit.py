"""Vision transformers: the contract over timm's `VisionTransformer`, token by token (spec objectives 1.1, 1.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone, Features
from belvedere.backbones.pos_embed import Positions, resample_positions, sincos_positions
from belvedere.errors import UserError

Init = Literal["dino", "mocov3"]


class ViT(Backbone):
    """Adapter over a timm vision transformer, with or without class token and registers.

    Attributes:
        positions: how the position table is resampled at other grids.
        init: the law its weights were drawn from, "dino" or "mocov3".
        mask_token: (1, D) stands in for masked patches, or None; owned here, so that `model` stays a pure timm state.
    """

    def __init__(
        self,
        model: VisionTransformer,
        architecture: str,
        model_args: dict[str, object],
        *,
        positions: Positions = "dino",
        mask_token: bool = False,
        init: Init = "dino",
    ) -> None:
        super().__init__()
        self.model = model
        self.init: Init = init
        self.architecture = architecture
        self.model_args = model_args
        self.positions: Positions = positions
        self.dim = model.embed_dim
        self.patch = model.patch_embed.patch_size[0]
        self.channels = model.in_chans
        self.size = model.patch_embed.img_size
        self.has_class_token = model.has_class_token
        self.has_positions = model.pos_embed is not None
        self.mask_token = nn.Parameter(torch.zeros(1, self.dim)) if mask_token else None
        can = {"keep", "pos_embed", "extra_tokens", "raw_patches", "stages", "blocks"}
        if mask_token:
            can.add("mask")
        if hasattr(getattr(model.blocks[-1], "attn", None), "qkv"):
            can.add("attention")
        self.can = frozenset(can)

    @property
    def _vit(self) -> Any:
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        """See `Backbone.settings`."""
        return {
            "patch": self.patch,
            "width": self.dim,
            "depth": len(self._vit.blocks),
            "heads": self._vit.blocks[0].attn.num_heads,
            "class_token": self.model_args.get("class_token"),
            "pos_embed": self._vit.pos_embed is not None,
            "positions": self.positions,
            "init": self.init,
        }

    @property
    def block_dims(self) -> tuple[int, ...]:
        """See `Backbone.block_dims`."""
        return (self.dim,) * len(self._vit.blocks)

    @property
    def shardable(self) -> tuple[nn.Module, ...]:
        """See `Backbone.shardable`."""
        return tuple(self._vit.blocks)

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
        """Encode (N, C, H, W) pixels; see `Backbone.forward`. `stages` are block outputs before the final norm,
        `blocks` the class token of each after it (the mean of its normed patches where there is none).

        Raises:
            UserError: when the patch does not divide H or W, the channels differ, or the model cannot do what is asked.
        """
        self.refuse(
            mask=mask is not None,
            keep=keep is not None,
            pos_embed=not pos_embed,
            extra_tokens=extra_tokens is not None,
            **dict.fromkeys(need, True),
        )
        if keep is not None and "stages" in need:
            raise UserError("'stages' are maps of the whole grid: they cannot be had with 'keep'")
        grid = self._grid(pixels)
        prefix, patches = self._tokens(pixels, mask)
        if pos_embed and self._vit.pos_embed is not None:
            prefix, patches = self._add_positions(prefix, patches, grid)
        if keep is not None:
            patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, self.dim))
        if extra_tokens is not None:
            extra = extra_tokens.to(prefix.dtype).expand(pixels.shape[0], -1, -1)
            prefix = torch.cat([prefix, extra], dim=1)
        tokens = self._vit.norm_pre(self._vit.pos_drop(torch.cat([prefix, patches], dim=1)))
        features = self._encode(tokens, prefix.shape[1], grid, need, keep)
        return features if mask is None else replace(features, mask=mask.flatten(1))

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        channels, height, width = pixels.shape[1:]
        if channels != self.channels:
            raise UserError(f"backbone {self.architecture} reads {self.channels} channels, the images have {channels}")
        if height % self.patch or width % self.patch:
            raise UserError(f"image size {height} x {width}: not a multiple of the patch size {self.patch}")
        return height // self.patch, width // self.patch

    def _tokens(self, pixels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prefix (N, P, D) and patch embeddings (N, T, D), without positions."""
        vit = self._vit
        patches = vit.patch_embed.norm(vit.patch_embed.proj(pixels).flatten(2).transpose(1, 2))
        if mask is not None:
            assert self.mask_token is not None
            patches = torch.where(mask.flatten(1).unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        own = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if not own:
            return patches[:, :0], patches
        return torch.cat(own, dim=1).expand(pixels.shape[0], -1, -1), patches

    def _add_positions(self, prefix: Tensor, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        table = self._vit.pos_embed
        in_table = table.shape[1] - self._vit.patch_embed.num_patches  # prefix tokens with a position: all or none
        if in_table:
            prefix = prefix + table[:, :in_table]
        own_grid = self._vit.patch_embed.grid_size
        return prefix, patches + resample_positions(table[:, in_table:], own_grid, grid, self.positions)

    def _encode(
        self, tokens: Tensor, prefix: int, grid: tuple[int, int], need: Sequence[str], keep: Tensor | None
    ) -> Features:
        stages, blocks, attention = [], [], list[Tensor]()
        for block in self._vit.blocks:
            if "attention" in need and block is self._vit.blocks[-1]:
                tokens = _noting_attention(block, tokens, attention)
            else:
                tokens = block(tokens)
            if "stages" in need:
                stages.append(tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), self.dim, *grid))
            if "blocks" in need:
                blocks.append(self._global_vector(tokens, prefix))
        normed = self._vit.norm(tokens)
        patches = normed[:, prefix:]
        return Features(
            cls=normed[:, 0] if self.has_class_token else patches.mean(1),
            patches=patches,
            grid=grid,
            prefix=normed[:, :prefix],
            raw_patches=tokens[:, prefix:] if "raw_patches" in need else None,
            norm=self._vit.norm if "raw_patches" in need else None,
            stages=stages if "stages" in need else None,
            blocks=blocks if "blocks" in need else None,
            attention=attention[0] if attention else None,
            ids=keep,
        )

    def _global_vector(self, tokens: Tensor, prefix: int) -> Tensor:
        vit = self._vit
        vector: Tensor = vit.norm(tokens[:, 0]) if self.has_class_token else vit.norm(tokens[:, prefix:]).mean(1)
        return vector


def _noting_attention(block: Any, tokens: Tensor, attention: list[Tensor]) -> Tensor:
    """A block's output, with its attention appended: within its call, the only time when all weights of it are here."""
    note = block.attn.register_forward_hook(lambda attn, given, _: attention.append(_attention(attn, given[0])))
    try:
        encoded: Tensor = block(tokens)
    finally:
        note.remove()
    return encoded


def _attention(attn: Any, normed: Tensor) -> Tensor:
    """(N, heads, tokens, tokens) softmax(q k^T / sqrt(d)) of a block; timm's fused kernel does not give it."""
    n, count, _ = normed.shape
    qkv = attn.qkv(normed).reshape(n, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
    weights: Tensor = (query @ key.transpose(-2, -1) * attn.scale).softmax(-1)
    return weights


@torch.no_grad()
def init_dino_(model: nn.Module) -> None:
    """Initialise as DINO and iBOT (spec objectives 1.1): Linear N(0, .02) with bias 0, tokens and positions N(0, .02).

    The patch convolution keeps torch's own uniform initialisation. Draws from torch's generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if isinstance(model, VisionTransformer):
        for tokens in (model.cls_token, model.reg_token, model.pos_embed):
            if tokens is not None:
                nn.init.normal_(tokens, std=0.02)


def init_moco_v3_(model: nn.Module) -> None:
    """Initialise as MoCo v3 (spec objectives 4.4): Xavier-uniform Linears, q, k, v as three; fixed sin-cos positions.

    The patch projection is uniform within sqrt(6 / (C P^2 + D)), all biases 0, the class token N(0, 1e-6). The position
    table is no longer trained. Draws from torch's generator.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            parts = 3 if name.endswith("qkv") else 1
            bound = math.sqrt(6 / (module.out_features // parts + module.in_features))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection: Any = model.get_submodule("patch_embed.proj")
    bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
    if isinstance(model, VisionTransformer):
        _init_moco_v3_tokens_(model)


def _init_moco_v3_tokens_(model: VisionTransformer) -> None:
    if model.cls_token is not None:
        nn.init.normal_(model.cls_token, std=1e-6)
    if model.pos_embed is None:
        return
    table = sincos_positions(model.patch_embed.grid_size, model.embed_dim)
    model.pos_embed.data[:, -table.shape[1] :] = table
    model.pos_embed.data[:, : -table.shape[1]] = 0
    model.pos_embed.requires_grad_(False)


def set_plain_attention(model: nn.Module, plain: bool) -> None:
    """Switch every attention of a timm model to softmax(QK^T)V written out, or back to the fused kernel.

    bf16 on a CPU wants it plain: the fused kernel is several times slower there.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = not plain
