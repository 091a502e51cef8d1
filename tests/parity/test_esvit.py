"""EsViT's Swin and its region loss against the published code (spec patch_and_pretext 2)."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Load, assert_close
from timm.models.swin_transformer import SwinTransformer

from belvedere.backbones.swin import Swin
from parity_golden import Golden


def golden_swin(g: Golden) -> Swin:
    """The reference's weights in timm's names: what halves a map stands before a stage, not behind the one before."""
    model = SwinTransformer(
        img_size=int(g["img_size"]),
        patch_size=int(g["patch_size"]),
        num_classes=0,
        embed_dim=int(g["embed_dim"]),
        depths=g["depths"].tolist(),
        num_heads=g["num_heads"].tolist(),
        window_size=int(g["window_size"]),
        strict_img_size=False,
        drop_path_rate=0.0,
    )
    state = g.state("param.")
    moved = {name.replace("layers.0.downsample", "layers.1.downsample"): x for name, x in state.items()}
    model.load_state_dict(moved)
    return Swin(model, "swin_tiny_patch4_window7_224", {}).eval()
