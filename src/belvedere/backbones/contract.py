"""The one contract over timm models: pixels in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from belvedere.errors import UserError


@dataclass(frozen=True)
class Features:
    """What a backbone gives for N images; D is its width, T = h*w patch tokens, row-major.

    Attributes:
        cls: (N, D) class token after the final norm, or the mean of normed patches where there is none.
        patches: (N, T, D) patch tokens after the final norm.
        grid: (h, w) of the patch tokens.
        prefix: (N, P, D) all tokens before the patches, normed (class, registers, extra tokens); P may be 0.
        raw_patches: (N, T, D) patch tokens before the final norm; on demand ("raw_patches").
        norm: the final norm that makes `patches` of `raw_patches`; comes with them.
        stages: one map (N, D_s, h_s, w_s) a stage or block; on demand ("stages").
        blocks: one vector (N, D_b) a block, which sums the image up as `cls` does after the last; on demand ("blocks").
        attention: (N, heads, tokens, tokens) of the last block; on demand ("attention").
        ids: (N, T_kept) indices of the patch tokens kept; only when `keep` was given.
        mask: (N, T) bool, True where the mask token stood in for a patch; only when `mask` was given.
        places: (M,) where the masked patches lie among the N * T of all images, where that was known beforehand.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]
    prefix: Tensor
    raw_patches: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    stages: list[Tensor] | None = None
    blocks: list[Tensor] | None = None
    attention: Tensor | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None
    places: Tensor | None = None

    def masked_places(self) -> Tensor:
        """(M,) where the masked patches lie among the N * T of all images; a device is asked where they are not known.

        Raises:
            ValueError: nothing was masked.
        """
        if self.mask is None:
            raise ValueError("features without a mask have no masked patches")
        return self.mask.flatten().nonzero().squeeze(1) if self.places is None else self.places

    def detach(self) -> Features:
        """The same without gradient."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        found = {name: x.detach() if isinstance(x, Tensor) else x for name, x in found.items()}
        stages = None if self.stages is None else [stage.detach() for stage in self.stages]
        blocks = None if self.blocks is None else [block.detach() for block in self.blocks]
        return Features(**{**found, "stages": stages, "blocks": blocks})

    def split(self, sizes: Sequence[int]) -> list[Features]:
        """Cut along the images into consecutive parts of the given sizes."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self._rows(start, start + n) for start, n in zip(starts, sizes, strict=True)]

    def _rows(self, start: int, stop: int) -> Features:
        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[start:stop]

        return replace(
            self,
            cls=self.cls[start:stop],
            patches=self.patches[start:stop],
            prefix=self.prefix[start:stop],
            raw_patches=cut(self.raw_patches),
            stages=None if self.stages is None else [stage[start:stop] for stage in self.stages],
            blocks=None if self.blocks is None else [block[start:stop] for block in self.blocks],
            attention=cut(self.attention),
            ids=cut(self.ids),
            mask=cut(self.mask),
        )


def attended(features: Features) -> Tensor:
    """(N, h, w) how much the class token of features with `attention` looks at each patch, mean over heads.

    Without a class token: how much all patches do.
    """
    assert features.attention is not None
    before = features.prefix.shape[1]
    asking = features.attention[:, :, : 1 if before else None, before:]
    return asking.mean((1, 2)).reshape(-1, *features.grid)


class Backbone(nn.Module):
    """Adapter over one timm model, kept in `model` under its own parameter names, so that weights go back to timm.

    A network that timm does not have says so (`in_timm`) and keeps its own in `model`.

    Attributes:
        model: the timm model, without classifier.
        architecture: timm's name of it; with `model_args` it rebuilds the model.
        dim: width D of the features.
        patch: side of a patch in pixels (of a cell of the last feature map where a network has several).
        channels: input channels.
        size: (h, w) the position table was made for.
        has_class_token: whether `Features.cls` is a token of the model's own.
        has_positions: whether position embeddings are added that `pos_embed=False` leaves out.
        can: what may be asked of `forward`: names of its keyword arguments and of `need`.
        in_timm: whether timm alone can build the network again.
    """

    model: nn.Module
    architecture: str
    model_args: dict[str, object]
    dim: int
    patch: int
    channels: int
    size: tuple[int, int]
    has_class_token: bool
    has_positions: bool = False
    can: frozenset[str]
    in_timm: bool = True

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
        """Encode (N, C, H, W) normalised pixels; H and W are multiples of `unit`.

        Args:
            mask: (N, h, w) bool, True = the patch embedding is replaced by the mask token before positions are added.
            keep: (N, T_kept) int64 indices of the only patch tokens to encode (MAE); positions are added before.
            pos_embed: False leaves positions out (RelViT).
            extra_tokens: (E, D) or (N, E, D) tokens put between the class token and the patches, without position.
            need: any of "raw_patches", "stages", "blocks", "attention".

        Raises:
            UserError: when the model cannot do what is asked, naming it.
        """
        raise NotImplementedError

    @property
    def unit(self) -> int:
        """What the sides of an image must be a multiple of, pixels."""
        return self.patch

    @property
    def settings(self) -> dict[str, Any]:
        """What `build_backbone` makes another one of this shape and law with, beside size and channels."""
        return {}

    @property
    def patch_dim(self) -> int:
        """Width of the patch tokens; D but for networks whose global vector is all of their map."""
        return self.dim

    @property
    def block_dims(self) -> tuple[int, ...]:
        """Widths of `Features.blocks`; empty where the network cannot give them."""
        return ()

    @property
    def shardable(self) -> tuple[nn.Module, ...]:
        """The modules most weights are in, each of which `forward` calls as a whole: processes may share them out."""
        return ()

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the patch tokens of (h, w) pixels."""
        return -(-size[0] // self.patch), -(-size[1] // self.patch)

    def refuse(self, **asked: bool) -> None:
        """Raise one line for the first thing asked that this model cannot do."""
        for name, wanted in asked.items():
            if wanted and name not in self.can:
                raise UserError(
                    f"backbone {self.architecture} cannot give '{name}'; "
                    f"it can give: {', '.join(sorted(self.can)) or 'nothing extra'}"
                )
