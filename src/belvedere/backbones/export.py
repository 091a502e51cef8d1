"""A backbone as a folder: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it where timm has its like."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from belvedere.backbones.build import shape_of
from belvedere.backbones.contract import Backbone
from belvedere.backbones.vit import ViT
from belvedere.errors import UserError
from belvedere.images.cutting import WHOLE, Cutting

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def export_timm(backbone: Backbone, folder: str | Path, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write `model.safetensors` and `config.json`, each at once or not at all.

    Args:
        folder: is made when absent; other files in it are left alone.
        mean, std: one number a channel in [0, 1], with which the pixels were normalised.

    Raises:
        UserError: when timm has no such network, or cannot rebuild this one, naming the first tensor that differs.
    """
    _require_timm(backbone)
    save_backbone(backbone, folder, mean=mean, std=std)


def save_backbone(backbone: Backbone, folder: str | Path, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """As `export_timm`, but for networks that timm does not have too: those only `belvedere.load` reads.

    Raises:
        UserError: when timm has the network and cannot rebuild this one.
    """
    state = _state_of(backbone.model)
    if backbone.in_timm:
        _check_rebuilds(backbone.architecture, backbone.model_args, state)
    _write(Path(folder), state, _config(backbone, mean, std))


def save_classifier(
    backbone: Backbone,
    linear: nn.Linear,
    folder: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    cutting: Cutting = WHOLE,
) -> None:
    """As `export_timm`, with a linear layer on the global vector as timm's own classifier, and the classes' names.

    Args:
        cutting: what was made of the files that it was trained on.

    Raises:
        UserError: when timm has no such network, or cannot rebuild this one.
    """
    _require_timm(backbone)
    model_args = {**backbone.model_args, "num_classes": len(classes)}
    named: str = shape_of(backbone.architecture, **model_args).pretrained_cfg["classifier"]
    state = _state_of(backbone.model) | {f"{named}.{name}": x for name, x in _state_of(linear).items()}
    _check_rebuilds(backbone.architecture, model_args, state)
    config = _config(backbone, mean, std)
    config |= {"num_classes": len(classes), "label_names": list(classes), "model_args": model_args}
    config["cutting"] = asdict(cutting)
    config["pretrained_cfg"] |= {"num_classes": len(classes), "classifier": named}
    _write(Path(folder), state, config)


def check_heads(folder: Path, heads: object) -> None:
    """Refuse weights that were trained with another number of attention heads: they load, and compute nonsense.

    Args:
        folder: that this module wrote; shapes of tensors do not show heads, so its `config.json` is asked.
        heads: timm's `num_heads` of the network that they are put into, None where it has none.

    Raises:
        UserError: naming both numbers, or `config.json` where it is damaged.
    """
    config = folder / CONFIG
    if not config.is_file():
        return
    try:
        trained = json.loads(config.read_text(encoding="utf-8"))["model_args"].get("num_heads")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UserError(f"{config}: is damaged; continue the run with --resume to write it again") from None
    if trained != heads:
        raise UserError(f"{folder}: its weights have {trained} attention heads ({CONFIG}), its configuration {heads}")


def _require_timm(backbone: Backbone) -> None:
    if not backbone.in_timm:
        raise UserError(f"export timm: {backbone.architecture} is no network that timm has; use belvedere.load(RUN)")


def _state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}


def _write(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{WEIGHTS}.part"
    weights.write_bytes(save(state, metadata={"format": "pt"}))
    beside = folder / f"{CONFIG}.part"
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in (weights, beside):  # or power failure could leave names without content
        with file.open("rb+") as written:
            os.fsync(written.fileno())
    os.replace(weights, folder / WEIGHTS)
    os.replace(beside, folder / CONFIG)


def _check_rebuilds(architecture: str, model_args: Mapping[str, object], state: Mapping[str, Tensor]) -> None:
    twin = shape_of(architecture, **model_args)
    own = {name: tuple(tensor.shape) for name, tensor in state.items()}
    rebuilt = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    different = [name for name in sorted(own.keys() | rebuilt.keys()) if own.get(name) != rebuilt.get(name)]
    if different:
        raise UserError(
            f"export timm: {architecture} as timm builds it differs from this model "
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
