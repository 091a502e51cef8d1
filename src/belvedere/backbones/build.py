"""From a name and a size to a backbone; all but scattering networks are timm's, which can take every tensor back."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from belvedere.backbones.contract import Backbone
from belvedere.backbones.pos_embed import Positions
from belvedere.backbones.resnet import ConvNet
from belvedere.backbones.scattering import ScatNet
from belvedere.backbones.swin import Swin, windows_for
from belvedere.backbones.vit import Init, ViT, init_dino_, init_moco_v3_
from belvedere.errors import UserError
from belvedere.scatnet import BLOCKS, ScatNetName, read_name

# timm's modules whose models fulfil the contract.
TRANSFORMERS, CONVNETS, SWINS = ["vision_transformer", "deit"], ["resnet"], ["swin_transformer"]
SHORT_NAMES = {f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")}
SHORT_NAMES |= {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")}
# Blocks of a Swin's stages; those of the third are what its depth changes.
FIRST_STAGES, LAST_STAGE = (2, 2), 2

INITS = {"dino": init_dino_, "mocov3": init_moco_v3_}


def build_backbone(
    name: str,
    *,
    size: tuple[int, int],
    channels: int,
    patch: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    drop_path: float = 0.0,
    freeze_patch: bool = False,
    class_token: bool | None = None,
    pos_embed: bool = True,
    positions: Positions = "dino",
    mask_token: bool = False,
    init: Init = "dino",
    seed: int | None = None,
) -> Backbone:
    """A freshly initialised backbone.

    Args:
        name: `vit_tiny`, `vit_small`, `vit_base`, `vit_large`, `swin_tiny`, `swin_small`, `swin_base`, timm's name of a
            VisionTransformer, a SwinTransformer or a ResNet, or a scattering network (`scatnet30`,
            `scatnet8_l4_j2_norm`; see `belvedere.scatnet`).
        size: (h, w) in pixels that the position table is made for.
        channels: of the images.
        patch, width, depth, heads: of a transformer; None keeps the named model's own. Heads follow the width, 64
            channels a head. A Swin has `patch` and `width` in its first stage and 32 channels a head; its depth counts
            all blocks, of which its third stage has all but 6. A convolutional network has a fixed stride and does not
            read `patch`; a scattering network's is 2^J, and nothing else is taken.
        drop_path: rate of stochastic depth of the last block, in [0, 1); it grows from 0 at the first (spec 1.3).
        freeze_patch: keep the random patch projection as it is (MoCo v3, spec 4.4).
        class_token: whether a transformer has one; None keeps the named model's own habit. Without it the global vector
            is the mean of the normed patches.
        pos_embed: False gives a transformer no position embeddings at all (RelViT). Other networks have none anyway; a
            Swin's relative ones are part of its attention and stay.
        positions: how the position table is resampled at other grids.
        mask_token: give the backbone a mask token, so that it takes `mask`.
        init: the law a transformer's weights are drawn from, DINO's (and iBOT's) or MoCo v3's.
        seed: of the weights; None draws one. The global generator is left as it was.

    Raises:
        UserError: for an unknown name, a size that the patch does not divide, a width that the heads do not divide,
            or an option that the named model cannot have.
    """
    scatnet = read_name(name)
    architecture = str(scatnet) if scatnet else _architecture(name)
    unasked = {"width": width, "depth": depth, "heads": heads, "freeze_patch": freeze_patch}
    unasked |= {"class_token": class_token is True}
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        if scatnet:
            _refuse(str(scatnet), "a convolutional network", unasked)
            _refuse_masks(str(scatnet), mask_token)
            return _scatnet(scatnet, size, channels, drop_path, patch)
        if is_model_in_modules(architecture, TRANSFORMERS):
            shape = {"patch": patch, "width": width, "depth": depth, "heads": heads}
            model_args = _vit_args(architecture, size, channels, shape, class_token, pos_embed)
            model = _drawn(architecture, model_args, drop_path, init)
            backbone = ViT(model, architecture, model_args, positions=positions, mask_token=mask_token, init=init)
            if freeze_patch:
                model.patch_embed.proj.requires_grad_(False)
            return backbone
        if is_model_in_modules(architecture, SWINS):
            asked = {"heads": heads, "class_token": class_token is True}  # heads follow the width
            _refuse(architecture, "a Swin", asked)
            _refuse_masks(architecture, mask_token)
            model_args = _swin_args(architecture, size, channels, patch, width, depth)
            swin = _drawn(architecture, model_args, drop_path, init)
            swin.patch_embed.proj.requires_grad_(not freeze_patch)
            return Swin(swin, architecture, model_args, init)
        if is_model_in_modules(architecture, CONVNETS):
            _refuse(architecture, "a convolutional network", unasked)
            _refuse_masks(architecture, mask_token)
            return _convnet(architecture, size, channels, drop_path)
    raise UserError(
        f"backbone.name '{name}': only timm's VisionTransformer, SwinTransformer and ResNet families and scatnet30 are "
        "supported"
    )


def shape_of(architecture: str, **model_args: object) -> Any:
    """timm's network on the meta device: shapes without values, and without the time that drawing them takes there."""
    if is_model_in_modules(architecture, [*TRANSFORMERS, *SWINS]):
        model_args["weight_init"] = "skip"
    with torch.device("meta"):
        return timm.create_model(architecture, **model_args)


def _drawn(architecture: str, model_args: Mapping[str, object], drop_path: float, init: Init) -> Any:
    """timm's transformer with weights of that law, or without any where the device is meta."""
    if torch.get_default_device().type == "meta":
        return shape_of(architecture, **model_args, drop_path_rate=drop_path)
    model = timm.create_model(architecture, **model_args, drop_path_rate=drop_path)
    INITS[init](model)
    return model


# What settings that are not given are read off; a run asks some ten times.
_named = cache(shape_of)


def _architecture(name: str) -> str:
    """timm's name.

    Raises:
        UserError: for an unknown name, or one with a tag of pretrained weights.
    """
    architecture, dot, _ = SHORT_NAMES.get(name, name).partition(".")
    if not timm.is_model(architecture):
        known = [*SHORT_NAMES, *(f"scatnet{blocks}" for blocks in BLOCKS), *timm.list_models()]
        raise UserError(
            f"unknown backbone.name '{name}': did you mean '{get_close_matches(name, known, n=1, cutoff=0.0)[0]}'?"
        )
    if dot:
        raise UserError(f"backbone.name '{name}' names trained weights: write '{architecture}' for a fresh model")
    return architecture


def _vit_args(
    architecture: str,
    size: tuple[int, int],
    channels: int,
    shape: dict[str, int | None],
    class_token: bool | None,
    pos_embed: bool,
) -> dict[str, object]:
    """The arguments with which timm rebuilds the transformer; plain JSON data."""
    named = _named(architecture)
    if type(named) is not VisionTransformer:
        raise UserError(f"backbone.name '{architecture}': this variant of the vision transformer is not supported")
    patch = shape["patch"] or named.patch_embed.patch_size[0]
    width = shape["width"] or named.embed_dim
    heads = shape["heads"] or (heads_for(width) if shape["width"] else named.blocks[0].attn.num_heads)
    if size[0] % patch or size[1] % patch:
        raise UserError(f"image size {size[0]} x {size[1]}: backbone.patch {patch} does not divide it")
    if width % heads:
        raise UserError(f"backbone.width {width}: backbone.heads {heads} does not divide it")
    has_class_token = named.has_class_token if class_token is None else class_token
    arguments: dict[str, object] = {
        "img_size": list(size),
        "in_chans": channels,
        "num_classes": 0,
        "patch_size": patch,
        "embed_dim": width,
        "depth": shape["depth"] or len(named.blocks),
        "num_heads": heads,
        "global_pool": "token" if has_class_token else "avg",
        "fc_norm": False,  # the final norm belongs to every token, not to the pooled vector
        "dynamic_img_size": True,  # so that timm alone takes other sizes too
    }
    # Written down only where it is not the named model's own habit.
    if class_token is not None:
        arguments["class_token"] = class_token
    if not pos_embed:
        arguments["pos_embed"] = "none"
    return arguments


def heads_for(width: int, channels: int = 64) -> int:
    """Heads of 64 channels as every published ViT has, fewer where the width is no multiple."""
    return max(heads for heads in range(1, max(1, width // channels) + 1) if width % heads == 0)


def _scatnet(name: ScatNetName, size: tuple[int, int], channels: int, drop_path: float, patch: int | None) -> ScatNet:
    if patch not in (None, name.stride):
        raise UserError(f"backbone.patch={patch}: {name} has a fixed stride of {name.stride} pixels, leave it out")
    return ScatNet(name, channels=channels, size=size, drop_path=drop_path)


def _swin_args(
    architecture: str, size: tuple[int, int], channels: int, patch: int | None, width: int | None, depth: int | None
) -> dict[str, object]:
    """The arguments with which timm rebuilds the Swin; plain JSON data."""
    named = _named(architecture)
    windows = {side for stage in named.layers for side in stage.blocks[0].window_size}
    if type(named) is not SwinTransformer or len(windows) > 1:
        raise UserError(f"backbone.name '{architecture}': this variant of the Swin transformer is not supported")
    patch = patch or int(named.patch_embed.patch_size[0])
    depths = [len(stage.blocks) for stage in named.layers]
    if depth is not None:
        depths = [*FIRST_STAGES, depth - sum(FIRST_STAGES) - LAST_STAGE, LAST_STAGE]
        if depths[2] < 1:
            raise UserError(f"backbone.depth {depth}: a Swin has 2, 2, depth - 6 and 2 blocks, so it needs at least 7")
    heads = heads_for(width or named.embed_dim, 32)
    return {
        "img_size": list(size),
        "in_chans": channels,
        "num_classes": 0,
        "patch_size": patch,
        "embed_dim": width or named.embed_dim,
        "depths": depths,
        "num_heads": [heads * 2**stage for stage in range(len(depths))],
        "window_size": _windows(size, patch, len(depths), max(windows)),
        "strict_img_size": False,  # so that timm alone takes other sizes too
    }


def _windows(size: tuple[int, int], patch: int, stages: int, largest: int) -> list[list[int]]:
    """Windows that fill every map at the training size.

    Raises:
        UserError: when there are none, naming a size near by that has them.
    """
    if size[0] % patch or size[1] % patch:
        raise UserError(f"image size {size[0]} x {size[1]}: backbone.patch {patch} does not divide it")
    found = windows_for(size, patch, stages, largest)
    if found is None:
        sides = [_nearest_fit(side, patch, stages, largest) for side in size]
        raise UserError(
            f"image size {size[0]} x {size[1]}: windows of 2 to {largest} do not fill the maps of a Swin with "
            f"backbone.patch {patch}; take {sides[0]} x {sides[1]}"
        )
    return found


def _nearest_fit(side: int, patch: int, stages: int, largest: int) -> int:
    """The nearest side, pixels, whose maps windows fill."""
    fitting = [fit for fit in range(patch, 2 * side + 1, patch) if windows_for((fit, fit), patch, stages, largest)]
    return min(fitting, key=lambda fit: abs(fit - side))


def _refuse(architecture: str, what: str, asked: dict[str, int | bool | None]) -> None:
    for option, value in asked.items():
        if value:
            raise UserError(f"backbone.{option}: {what} ({architecture}) has none, leave it out")


def _refuse_masks(architecture: str, mask_token: bool) -> None:
    if mask_token:
        raise UserError(f"backbone.name '{architecture}': a network of several maps has no patches to mask, use a ViT")


def _convnet(architecture: str, size: tuple[int, int], channels: int, drop_path: float) -> ConvNet:
    model_args: dict[str, object] = {"in_chans": channels, "num_classes": 0}
    model = timm.create_model(architecture, **model_args, drop_path_rate=drop_path)
    return ConvNet(model, architecture, model_args, channels=channels, size=size)
