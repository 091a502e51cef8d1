"""Activation checkpointing: a transformer block keeps its input only and is computed again for its gradients.

"Training Deep Nets with Sublinear Memory Cost", Chen et al., 2016, arXiv:1604.06174, with a segment a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from belvedere.backbones.contract import Backbone
from belvedere.errors import UserError


def recompute_blocks(backbone: Backbone) -> None:
    """Have the backbone's blocks computed again in the backward pass; losses and gradients stay the same.

    Random numbers within a block (drop path) are drawn again as they were.

    Raises:
        UserError: the backbone has no transformer blocks.
    """
    if not backbone.shardable:
        raise UserError(
            f"train.recompute=true: backbone {backbone.architecture} has no transformer blocks to compute again; "
            "leave it away"
        )
    for block in backbone.shardable:
        block.forward = _recomputed(block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward; in evaluation, where weights may be others for a moment, and without gradients as it was."""

    def run(*given: Any, **named: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *given, use_reentrant=False, **named)
        return forward(*given, **named)

    return run
