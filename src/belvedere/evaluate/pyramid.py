"""A pyramid of feature maps over any backbone, for detecting and segmenting heads (spec evaluation 2.9, 2.10).

A vision transformer has one grid: the maps after four of its blocks are brought to four resolutions (transposed
convolutions x4 and x2, as they are, max-pooling /2), as SelfPatch's code does for Mask R-CNN and Semantic FPN
(arXiv:2206.07990). Networks of several stages give their stages' maps as they are. Then torchvision's feature pyramid
network (Lin et al., arXiv:1612.03144) makes them equally wide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone
from belvedere.errors import UserError
from belvedere.measure.encoder import evaluating

LEVELS = 4
FINER: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
"""Resolutions of the four maps over that of a network's one grid."""


def library(what: str) -> Any:
    """A module of torchvision.

    Raises:
        UserError: when it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"torchvision.{what}")
    except ImportError as error:
        raise UserError(
            'the feature pyramid of detection and seg_fpn needs an extra: pip install "belvedere[detection]"'
        ) from error


class Pyramid(nn.Module):
    """Normalised pixels (N, C, H, W) -> at most four maps (N, width, h, w), the finest first, by "0" to "3".

    Attributes:
        out_channels: the maps' width, as torchvision's detectors read it.
        strides: pixels of the image between neighbours of each map, a fraction where the patch asks for one.
        backbone: trained with the rest.
    """

    def __init__(self, backbone: Backbone, width: int, at: Sequence[float]) -> None:
        """Build it over a backbone, which is not copied.

        Args:
            at: depths of the four blocks that are read, as shares of all blocks; for networks of one grid.

        Raises:
            UserError: when the backbone cannot give maps of its blocks or stages.
        """
        super().__init__()
        backbone.refuse(stages=True)
        self.backbone = backbone
        self.out_channels = width
        with evaluating(backbone):
            stages = self._stages(torch.zeros(1, backbone.channels, *backbone.size))
        if len({stage.shape[2:] for stage in stages}) == 1:
            self.levels = [max(1, round(share * len(stages))) - 1 for share in at]
            finer = FINER
            self.strides = [backbone.patch / scale for scale in FINER]
        else:
            self.levels = list(range(len(stages)))[-LEVELS:]
            finer = (1.0,) * len(self.levels)
            self.strides = [backbone.patch / 2**k for k in reversed(range(len(self.levels)))]
        widths = [stages[level].shape[1] for level in self.levels]
        self.scaled = nn.ModuleList(_scaler(w, scale) for w, scale in zip(widths, finer, strict=True))
        network = library("ops").FeaturePyramidNetwork
        self.fpn = network(widths, width)

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        stages = self.backbone(pixels, need=("stages",)).stages
        assert stages is not None
        return list(stages)

    def keep_statistics(self) -> None:
        """Leave BatchNorm's running means as they are, which small batches would spoil, and a frozen trunk."""
        frozen = not any(p.requires_grad for p in self.backbone.parameters())
        for module in self.backbone.modules():
            if frozen or isinstance(module, nn.BatchNorm2d):
                module.eval()

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """See the class."""
        stages = self._stages(pixels)
        maps = [scale(stages[level]) for scale, level in zip(self.scaled, self.levels, strict=True)]
        found: dict[str, Tensor] = self.fpn(OrderedDict((str(k), one) for k, one in enumerate(maps)))
        return found


def _scaler(width: int, scale: float) -> nn.Module:
    """From a map to one that is so many times as fine."""

    def double() -> nn.Module:
        return nn.ConvTranspose2d(width, width, 2, stride=2)

    if scale == 4:
        return nn.Sequential(double(), nn.GroupNorm(1, width), nn.GELU(), double())
    if scale == 2:
        return double()
    return nn.Identity() if scale == 1 else nn.MaxPool2d(2, ceil_mode=True)
