"""The initialisation, positions and schedules of MoCo v3, which our SimCLR on a transformer uses (spec 1.5, 4.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from core_helpers import Load, assert_close

from belvedere.backbones.build import build_backbone
from belvedere.backbones.pos_embed import sincos_positions
from belvedere.schedules import cosine, linear_then_cosine


def test_sincos_positions(golden: Load) -> None:
    g = golden("moco_v3_sincos")
    for name in g.names:
        grid, dim = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[:2])
        table = torch.cat([torch.zeros(1, 1, dim), sincos_positions((grid, grid), dim)], 1)
        assert_close(table[..., ::8] if name.endswith("every8th") else table, g[name], 1e-5)


def test_initial_weights(golden: Load) -> None:
    g = golden("moco_v3_init_stats")
    model = build_backbone("vit_small", size=(224, 224), channels=3, init="mocov3", seed=0).model
    own = dict(model.named_parameters())
    bounds = g.hparams["bounds"]
    for i, name in enumerate(g.arrays["names"].tolist()):
        weight = own[name]
        assert weight.numel() == g.arrays["numel"][i]
        if weight.numel() > 10_000:
            assert weight.std().item() == pytest.approx(g.arrays["std"][i], rel=0.03)
        if name.endswith("weight") and weight.ndim > 1:
            kind = next(
                kind for kind in ("qkv", "proj", "fc", "patch") if kind in name.replace("patch_embed.proj", "patch")
            )
            assert weight.abs().max().item() <= bounds[kind] * (1 + 1e-6)
        if weight.numel() > 1 and g.arrays["std"][i] == 0:
            assert torch.equal(weight, torch.full_like(weight, float(g.arrays["mean"][i])))
    assert not model.pos_embed.requires_grad


def test_schedules(golden: Load) -> None:
    g = golden("moco_v3_schedules")
    h = g.hparams
    epochs = g.arrays["epoch"]
    lr = [linear_then_cosine(e, h["epochs"], h["warmup_epochs"], h["lr_peak"]) for e in epochs]
    momentum = [cosine(e, h["epochs"], h["momentum_base"], 1.0) for e in epochs]
    np.testing.assert_allclose(lr, g.arrays["lr"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(momentum, g.arrays["momentum"], rtol=0, atol=1e-10)
