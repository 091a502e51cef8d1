"""Convolutional networks: the contract over timm's ResNet family; the cells of the last map are the patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone, Features
from belvedere.errors import UserError


class ConvNet(Backbone):
    """Adapter over a timm convolutional network: `cls` is the pooled map, `patches` its cells, `prefix` is empty."""

    can = frozenset({"stages"})
    has_class_token = False

    def __init__(
        self,
        model: nn.Module,
        architecture: str,
        model_args: dict[str, object],
        *,
        channels: int,
        size: tuple[int, int],
    ) -> None:
        """Wrap `model`, built without classifier for `channels`; `size` (h, w) is what it is trained at."""
        super().__init__()
        self.model = model
        self.architecture = architecture
        self.model_args = model_args
        self.dim = int(self._net.num_features)
        self.patch = int(self._net.feature_info[-1]["reduction"])
        self.channels = channels
        self.size = size

    @property
    def unit(self) -> int:
        """Any size: every map is half the one before, rounded up."""
        return 1

    @property
    def _net(self) -> Any:
        return self.model

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
        """Encode (N, C, H, W) pixels of any size; see `Backbone.forward`. `stages` are the stem's map and each stage's.

        Raises:
            UserError: for what only a transformer can do, or a wrong number of channels.
        """
        self.refuse(
            mask=mask is not None,
            keep=keep is not None,
            pos_embed=not pos_embed,
            extra_tokens=extra_tokens is not None,
            **dict.fromkeys(need, True),
        )
        if pixels.shape[1] != self.channels:
            raise UserError(
                f"backbone {self.architecture} reads {self.channels} channels, the images have {pixels.shape[1]}"
            )
        stages: list[Tensor] | None = None
        if "stages" in need:
            maps, stages = self._net.forward_intermediates(pixels)
        else:
            maps = self._net.forward_features(pixels)
        return Features(
            cls=torch.flatten(self._net.global_pool(maps), 1),
            patches=maps.flatten(2).transpose(1, 2),
            grid=(maps.shape[2], maps.shape[3]),
            prefix=maps.new_zeros((maps.shape[0], 0, self.dim)),
            stages=stages,
        )
