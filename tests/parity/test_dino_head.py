"""DINO's head and initialisation against the official code (spec objectives 1.1, 5.3)."""

from __future__ import annotations

import torch
from core_helpers import Load, assert_close
from torch import nn

from belvedere.backbones.build import build_backbone
from belvedere.objectives._heads import PrototypeHead


def test_head(golden: Load) -> None:
    g = golden("dino_head")
    for case, config in g.hparams["configs"].items():
        head = PrototypeHead(
            config["in_dim"],
            config["out_dim"],
            hidden=config["hidden_dim"],
            bottleneck=config["bottleneck_dim"],
            layers=config["nlayers"],
            use_bn=config["use_bn"],
            norm_last_layer=config["norm_last_layer"],
        )
        head.load_state_dict(g.state(f"{case}.state."))
        x = g[f"{case}.x"].requires_grad_()
        y = head.project(x)
        (y * g[f"{case}.upstream"]).sum().backward()
        assert_close(y, g[f"{case}.y"], 2e-5)
        assert_close(x.grad, g[f"{case}.grad_x"], 1e-4)
        trained = {name: p for name, p in head.named_parameters() if p.requires_grad}
        assert set(trained) == set(g.arrays[f"{case}.trainable"].tolist())
        for name, p in trained.items():
            assert_close(p.grad, g[f"{case}.grad.{name}"], 1e-4)


def test_initialisation(golden: Load) -> None:
    g = golden("dino_init_stats")
    backbone = build_backbone("vit_small", size=(224, 224), channels=3, patch=16, seed=0)
    assert sum(p.numel() for p in backbone.parameters()) == g.hparams["total_params_vit_small"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = PrototypeHead(backbone.dim, 4096)
    own = dict(backbone.model.named_parameters()) | dict(nn.ModuleDict({"head": head}).named_parameters())
    rows = zip(*[g.arrays[key].tolist() for key in ("names", "numel", "mean", "std", "min", "max")], strict=True)
    for name, numel, mean, std, low, high in rows:
        p = own[name].detach()
        assert p.numel() == numel, name
        if low == high:
            assert p.min().item() == low, name
            assert p.max().item() == high, name
            continue
        if numel > 10_000:
            assert abs(p.std().item() / std - 1) < 0.03, name
        assert abs(p.mean().item() - mean) < 5 * std * (2 / numel) ** 0.5, name
        if name.startswith("patch_embed") or name.endswith("weight_v"):  # uniform: torch's default, 1/sqrt(fan in)
            bound = 1 / own[name.replace("bias", "weight")][0].numel() ** 0.5
            assert max(-low, high) <= bound * (1 + 1e-6)
            assert 0.95 * bound < p.abs().max().item() <= bound * (1 + 1e-6), name
