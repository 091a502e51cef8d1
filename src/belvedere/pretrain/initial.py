"""What starting from given weights decides: the network's shape, and how pixels are normalised."""

from __future__ import annotations

from typing import Any

from belvedere.backbones.build import SHORT_NAMES
from belvedere.backbones.weights import Weights, read_weights
from belvedere.config import Config, Resolved
from belvedere.errors import UserError
from belvedere.pretrain.compose import pair


def start_from(resolved: Resolved) -> tuple[Resolved, Weights | None]:
    """Read the weights that `backbone.weights` names, if any, and fill in the settings that belong to them.

    Raises:
        UserError: when they cannot be read, or a setting contradicts them.
    """
    if not resolved.config.backbone.weights:
        return resolved, None
    weights = read_weights(resolved.config.backbone.weights)
    return _with_shape(resolved, weights), weights


def require_weights(resolved: Resolved) -> None:
    """Refuse settings that protect given weights where none are given.

    Raises:
        UserError: naming the setting.
    """
    config = resolved.config
    if config.backbone.weights:
        return
    protecting = {
        "train.freeze_trunk": config.train.freeze_trunk > 0,
        "health.stop_below_start": config.health.stop_below_start,
    }
    for key in (key for key, on in protecting.items() if on):
        raise UserError(
            f"{key} ({resolved.origin[key]}): protects weights to start from; "
            "give them with --init timm:NAME, --init RUN or --init FILE.pth"
        )


def note_changes(resolved: Resolved, weights: Weights) -> Resolved:
    """Say with the weights what is changed of them: positions of another grid, a first convolution of other channels.

    `resolved` is settled.
    """
    config, said = resolved.config, weights.about
    if weights.grid is not None:
        height, width = pair(config.views.size)
        grid = height // int(config.backbone.patch), width // int(config.backbone.patch)
        if grid != weights.grid:
            (old_h, old_w), (new_h, new_w) = weights.grid, grid
            said += f"; positions of {old_h} x {old_w} resampled to {new_h} x {new_w}"
    if adds_positions(config, weights):
        said += "; fresh position embeddings are added"
    if config.images.channels != weights.channels:
        said += f"; first convolution from {weights.channels} to {config.images.channels} channels, as timm does"
    return resolved.with_values({"backbone.weights": (weights.word, said)})


def _with_shape(resolved: Resolved, weights: Weights) -> Resolved:
    why = f"from --init {weights.word}"
    values: dict[str, tuple[Any, str]] = {"backbone.weights": (weights.word, weights.about)}
    _check_positions(resolved, weights)
    shape = {name: value for name, value in weights.shape.items() if name != "pos_embed"}
    if adds_positions(resolved.config, weights):
        del shape["init"]
        if resolved.config.backbone.init == "auto":
            values["backbone.init"] = "dino", "fresh positions that are small and trained, as RelViT adds them"
    for name, value in shape.items():
        key, given = f"backbone.{name}", getattr(resolved.config.backbone, name)
        origin = resolved.origin.get(key, "default")
        # The law of drawing weights says how positions are made; a recipe's does not bind weights that were drawn.
        free = given in ("auto", None) or (name == "init" and origin != "command line")
        if not free and _full(given) != _full(value):
            raise UserError(
                f"{key}={given} ({origin}): the weights of --init {weights.word} have {value}; leave it out"
            )
        if free:
            values[key] = value, why
    images = resolved.config.images
    if images.channels == "auto":
        values["images.channels"] = weights.channels, why
    if images.channels in ("auto", weights.channels):
        statistics = {"images.mean": weights.mean, "images.std": weights.std}
        auto = {key for key in resolved.auto_keys() if key in statistics}
        values |= {key: (list(statistics[key]), why) for key in auto}
    return resolved.with_values(values)


def adds_positions(config: Config, weights: Weights) -> bool:
    """Whether a network with position embeddings starts from weights that were trained without (RelViT)."""
    return config.backbone.pos_embed and not weights.has_positions


def _check_positions(resolved: Resolved, weights: Weights) -> None:
    """Refuse to drop positions: what is above them in the network was trained to read them.

    Raises:
        UserError: naming the setting.
    """
    if not resolved.config.backbone.pos_embed and weights.has_positions:
        raise UserError(
            f"backbone.pos_embed=False ({resolved.origin['backbone.pos_embed']}): the weights of --init {weights.word} "
            "were trained with position embeddings; set backbone.pos_embed=true, or leave --init out"
        )


def _full(value: Any) -> Any:
    return SHORT_NAMES.get(value, value) if isinstance(value, str) else value
