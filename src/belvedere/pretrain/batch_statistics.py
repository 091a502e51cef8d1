"""Running statistics of BatchNorm, which a forward moves before anybody knows whether its step is to count."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class BatchStatistics:
    """What the BatchNorms below some modules had seen before a step; one NaN in it would stay in them for good."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Take note of the buffers; the modules stay where they are, on their device."""
        norms = (m for top in modules for m in top.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]

    def keep(self) -> None:
        """Copy them, on their device: nothing waits for it."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def put_back(self) -> None:
        """Make them what they were when they were kept."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
