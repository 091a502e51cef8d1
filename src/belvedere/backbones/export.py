"""A backbone as a folder: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it where timm has its like."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from belvedere.backbones.contract import Backbone
from belvedere.backbones.vit import ViT
from belvedere.errors import UserError


def export_timm(backbone: Backbone, folder: str | Path, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write `model.safetensors` and `config.json`, each at once or not at all.

    Args:
        folder: is made when absent; other files in it are left alone.
        mean, std: one number a channel in [0, 1], with which the pixels were normalised.

    Raises:
        UserError: when timm has no such network, or cannot rebuild this one, naming the first tensor that differs.
    """
    if not backbone.in_timm:
        raise UserError(f"export timm: {backbone.architecture} is no network that timm has; use belvedere.load(RUN)")
    save_backbone(backbone, folder, mean=mean, std=std)


def save_backbone(backbone: Backbone, folder: str | Path, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """As `export_timm`, but for networks that timm does not have too: those only `belvedere.load` reads.

    Raises:
        UserError: when timm has the network and cannot rebuild this one.
    """
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in backbone.model.state_dict().items()}
    if backbone.in_timm:
        _check_rebuilds(backbone, state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors.part"
    weights.write_bytes(save(state, metadata={"format": "pt"}))
    config = folder / "config.json.part"
    config.write_text(json.dumps(_config(backbone, mean, std), indent=2) + "\n", encoding="utf-8")
    os.replace(weights, folder / "model.safetensors")
    os.replace(config, folder / "config.json")


def _check_rebuilds(backbone: Backbone, state: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        twin = timm.create_model(backbone.architecture, **backbone.model_args)
    own = {name: tuple(tensor.shape) for name, tensor in state.items()}
    rebuilt = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    different = [name for name in sorted(own.keys() | rebuilt.keys()) if own.get(name) != rebuilt.get(name)]
    if different:
        raise UserError(
            f"export timm: {backbone.architecture} as timm builds it differs from this model "
            f"({len(different)} tensors, first '{different[0]}'), so timm could not load it"
        )


def _config(backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {
        "architecture": backbone.architecture,
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": backbone.model_args,
        # timm resamples positions in its own way at other sizes; who reads this field can follow the run's.
        "positions": backbone.positions if isinstance(backbone, ViT) else None,
        "pretrained_cfg": {
            "input_size": [backbone.channels, *backbone.size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
        },
    }
