"""Helpers of the view tests that are not fixtures."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from belvedere.views.params import ViewParams
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot


def plain(photos: Tensor, size: tuple[int, int] | None = None, interpolation: str = "bicubic") -> ViewParams:
    """One slot `v` that does nothing: whole image, every colour operation off."""
    height, width = photos.shape[1:3]
    slot = Slot("v", size or (height, width), (1.0, 1.0), flip=0, jitter_p=0, gray_p=0)
    record = sample_views([slot], range(len(photos)), [(height, width)] * len(photos), epoch=0, seed=0)
    return replace(
        record,
        interpolation=(interpolation,),
        top=torch.zeros_like(record.top),
        left=torch.zeros_like(record.left),
        h=torch.full_like(record.h, height),
        w=torch.full_like(record.w, width),
    )


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels in [0, 1]."""
    return float(-10 * torch.log10(((a.double() - b.double()) ** 2).mean().clamp(min=1e-30)))
