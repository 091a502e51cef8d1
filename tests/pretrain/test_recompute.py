"""Blocks that are computed again: the same losses and weights, fewer activations kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.pretrain.recompute import recompute_blocks
from tiny import SWIN, tiny_canvases, tiny_trainer, train

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dino": ("dino", {"backbone__drop_path": 0.3}),
    "ibot with a task": ("ibot", {"tasks": ["selfpatch"]}),
    "hard simclr": ("simclr", {"views__policy": "hard"}),
    "masks by attention": ("ibot", {"objective__mask_shape": "high"}),
    "swin": ("dino", {**SWIN, "tasks": ["regions"]}),
    "learned views through frozen weights": (
        "simclr",
        {"views__policy": "learned", "views__estimator": "hybrid", "views__warmup": 0, "views__freeze": 0},
    ),
    "mae": ("none", {"tasks": ["mae"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_run(case: str) -> None:
    recipe, settings = CASES[case]
    runs = []
    for recompute in (False, True):
        trainer, feed = tiny_trainer(recipe, tiny_canvases(), train__recompute=recompute, **settings)
        losses = [report.loss for report in train(trainer, feed, 0, 3)]
        runs.append((losses, {name: x.clone() for name, x in trainer.method.state_dict().items()}))
    (losses, weights), (again, same) = runs
    assert again == losses
    assert weights.keys() == same.keys()
    assert all(torch.equal(x, same[name]) for name, x in weights.items())


def test_fewer_activations_are_kept() -> None:
    kept = []
    for recompute in (False, True):
        backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=6, heads=2, seed=0)
        if recompute:
            recompute_blocks(backbone)
        held = dict[int, int]()

        def note(x: Tensor, held: dict[int, int] = held) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            backbone(torch.randn(8, 3, 32, 32))
        weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        kept.append(sum(size for place, size in held.items() if place not in weights))
    assert kept[1] < 0.3 * kept[0]


def test_a_network_without_blocks_is_refused() -> None:
    backbone = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    with pytest.raises(UserError, match=r"^train.recompute=true: backbone resnet18 has no transformer blocks"):
        recompute_blocks(backbone)
