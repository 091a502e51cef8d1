"""What the goldens of the core objectives share: the README's measure of closeness, and tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor

from belvedere.backbones.vit import ViT

Load = Callable[[str], Any]


def gap(actual: Tensor, expected: Tensor) -> float:
    """max|a-b| / max(1, max|b|): the measure that the README states tolerances in."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual, expected = actual.detach().double(), expected.double()
    return (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    found = gap(actual, expected)
    assert found <= tolerance, f"gap {found:.3g} above {tolerance:.3g}"


def tiny_vit(
    *,
    size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    mask_token: bool = False,
    class_token: bool = True,
) -> ViT:
    """The reference's vision transformer at toy size; its state has timm's names."""
    args: dict[str, object] = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio,
        "num_classes": 0,
    }
    if not class_token:
        args |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    return ViT(timm.create_model("vit_tiny_patch16_224", **args), "vit_tiny_patch16_224", args, mask_token=mask_token)


def to_branch(state: dict[str, Any]) -> dict[str, Any]:
    """Reference names to a branch's: the backbone's parameters lie in `backbone.model`, iBOT's mask token beside it."""
    renamed = {name.replace("backbone.", "backbone.model.", 1): value for name, value in state.items()}
    return {name.replace("model.masked_embed", "mask_token"): value for name, value in renamed.items()}


def without_key_bias(name: str, x: Tensor) -> Tensor:
    """The key part of a qkv bias has gradient 0, and Adam makes steps of its rounding noise: left out."""
    return torch.cat([part for i, part in enumerate(x.chunk(3)) if i != 1]) if name.endswith("qkv.bias") else x
