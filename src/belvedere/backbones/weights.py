"""Weights that a run starts from: timm's, those of an earlier run, or an official DINO, iBOT or MoCo v3 checkpoint.

Every tensor finds its place or the file is refused: a backbone that is loaded in part trains and looks healthy, and is
silently worse than the one that was meant. The names in the official files equal timm's but for a prefix (spec
objectives 1.1); which network of a checkpoint is taken is what its paper evaluates (spec objectives 7).
"""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv, is_model_in_modules
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from belvedere import config as configuration
from belvedere.backbones.build import CONVNETS, TRANSFORMERS, build_backbone
from belvedere.backbones.contract import Backbone
from belvedere.backbones.pos_embed import resample_positions
from belvedere.backbones.vit import ViT
from belvedere.config import Config
from belvedere.errors import UserError
from belvedere.scatnet import read_name

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (width, depth) -> name and heads. The official files do not hold the number of heads and their shapes do not show it.
NAMED = {
    (192, 12): ("vit_tiny", 3),
    (384, 12): ("vit_small", 6),
    (768, 12): ("vit_base", 12),
    (1024, 24): ("vit_large", 16),
}
MOCO_V3_SMALL_HEADS = 12
PATCH, POSITIONS = "patch_embed.proj.weight", "pos_embed"


@dataclass(frozen=True)
class Weights:
    """Trained weights of a backbone and what they were trained as.

    Attributes:
        word: how the user named them.
        about: what was taken of it, for the user to read.
        state: every tensor of the backbone under timm's name.
        shape: values of the `backbone.` settings that the weights belong to.
        channels: input channels.
        grid: (h, w) of the position table; None where there is none.
        mean, std: with which the pixels were normalised, one number a channel in [0, 1].
        mask_token: (1, D) of an iBOT student, or None.
    """

    word: str
    about: str
    state: dict[str, Tensor]
    shape: dict[str, Any]
    channels: int
    grid: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mask_token: Tensor | None = field(default=None, repr=False)

    @property
    def has_positions(self) -> bool:
        """False for those of a transformer that was trained without position embeddings."""
        return bool(self.shape.get("pos_embed", True))


def read_weights(word: str) -> Weights:
    """The weights that `--init WORD` names.

    Args:
        word: `timm:NAME` (also `timm:local-dir:FOLDER`), the folder of a finished run, or an official `.pth` file.

    Raises:
        UserError: when there are no such weights, or a single tensor has no place in the network they belong to.
    """
    if word.startswith("timm:"):
        return _read_timm(word, word.removeprefix("timm:"))
    path = Path(word)
    if path.is_dir():
        return _read_run(word, path)
    if path.is_file():
        return _read_checkpoint(word, path)
    hint = f"did you mean timm:{word}?" if timm.is_model(word) else "give timm:NAME, a run's folder or a .pth file"
    raise UserError(f"--init {word}: there is no such file or folder; {hint}")


def load_weights(weights: Weights, backbone: Backbone) -> None:
    """Put the weights into a backbone of their shape; positions are resampled to its grid in its own mode.

    A backbone keeps its own fresh positions where the weights were trained without (RelViT's fine-tuning).
    The first convolution is adapted to another number of channels as timm does: repeated, or summed to one, and scaled.

    Raises:
        UserError: when weights that are not of three channels, or a scattering network's, meet images of another
            number.
    """
    state = dict(weights.state)
    if backbone.channels != weights.channels:
        if not backbone.in_timm:
            raise UserError(
                f"--init {weights.word}: reads {weights.channels} channels and the run {backbone.channels}; "
                f"the first layer of a scattering network cannot be adapted, set images.channels={weights.channels}"
            )
        cfg: Any = backbone.model.pretrained_cfg
        first = f"{cfg['first_conv']}.weight"
        state[first] = _with_channels(weights, state[first], backbone.channels)
    if weights.grid is not None and isinstance(backbone, ViT):
        table = state[POSITIONS]
        prefix = table.shape[1] - math.prod(weights.grid)
        patches = resample_positions(table[:, prefix:].float(), weights.grid, grid_of(backbone), backbone.positions)
        state[POSITIONS] = torch.cat([table[:, :prefix], patches], 1)
    elif isinstance(backbone, ViT) and not weights.has_positions and backbone.has_positions:
        state[POSITIONS] = backbone.model.get_parameter(POSITIONS).detach()
    backbone.model.load_state_dict(state)
    if weights.mask_token is not None and isinstance(backbone, ViT) and backbone.mask_token is not None:
        backbone.mask_token.data.copy_(weights.mask_token)


def grid_of(backbone: Backbone) -> tuple[int, int]:
    """(h, w) patches of the size that a backbone is trained at."""
    return backbone.size[0] // backbone.patch, backbone.size[1] // backbone.patch


def _with_channels(weights: Weights, kernel: Tensor, channels: int) -> Tensor:
    if weights.channels != 3:
        raise UserError(
            f"--init {weights.word}: reads {weights.channels} channels and the run {channels}; "
            f"set images.channels={weights.channels}, only weights of 3 channels can be adapted"
        )
    adapted: Tensor = adapt_input_conv(channels, kernel)
    return adapted


# --- timm, and runs, which are timm folders ---------------------------------------------------------------------------


def _read_timm(word: str, name: str) -> Weights:
    architecture = name.partition(".")[0]
    if not name.startswith(("local-dir:", "hf-hub:")):
        _check_name(word, architecture)
    model = _load_timm(word, name)
    cfg = model.pretrained_cfg
    classifiers = cfg.get("classifier") or ()
    dropped = tuple(f"{one}." for one in ((classifiers,) if isinstance(classifiers, str) else classifiers))
    state = {key: x.detach() for key, x in model.state_dict().items() if not key.startswith(dropped)}
    shape: dict[str, Any] = {"name": cfg.get("architecture") or architecture}
    size, grid = cfg["input_size"][1:], None
    if type(model) is VisionTransformer:
        size, heads = model.patch_embed.img_size, model.blocks[0].attn.num_heads
        shape |= {"patch": model.patch_embed.patch_size[0], "width": model.embed_dim}
        shape |= {"depth": len(model.blocks), "heads": heads, "init": "dino"}
        shape |= {"class_token": model.has_class_token, "pos_embed": model.pos_embed is not None}
        grid = model.patch_embed.grid_size if model.pos_embed is not None else None
    channels = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d)).in_channels
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    weights = Weights(word, "timm's weights without the classifier", state, shape, channels, grid, mean, std)
    _check_function(weights, model.eval(), tuple(size))
    return weights


def _check_name(word: str, architecture: str) -> None:
    """Refuse what timm does not know or we do not support, before anything is downloaded."""
    if not timm.is_model(architecture):
        known = [f"timm:{one}" for one in timm.list_pretrained(["vit_*", "deit*", "resnet*"])]
        near = get_close_matches(word, known, n=1, cutoff=0.0)[0]
        raise UserError(f"--init {word}: timm has no such model; did you mean {near}?")
    if not is_model_in_modules(architecture, TRANSFORMERS + CONVNETS):
        raise UserError(f"--init {word}: only timm's VisionTransformer and ResNet families are supported")


def _load_timm(word: str, name: str) -> Any:
    """timm's model with its own classifier: only then timm insists that every tensor matches."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # its retries without a network are lines that say nothing more
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, the hub, the file or timm
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--init {word}: timm cannot load it ({lines[0][:200]})") from error
    finally:
        hub.setLevel(level)


def _check_function(weights: Weights, model: Any, size: tuple[int, ...]) -> None:
    """Refuse what the network that we build computes differently, since names and shapes show no activation or norm."""
    backbone = _twin(weights, size).eval()
    twin: Any = backbone.model
    _check_all_match(weights, twin)
    load_weights(weights, backbone)
    pixels = torch.linspace(-1, 1, weights.channels * math.prod(size)).reshape(1, weights.channels, *size)
    with torch.no_grad():
        wanted, ours = model.forward_features(pixels), twin.forward_features(pixels)
    if wanted.shape != ours.shape or not torch.allclose(wanted, ours, atol=1e-4, rtol=1e-3):
        raise UserError(
            f"--init {weights.word}: has settings beyond patch, width, depth and heads that are not supported"
        )


def _read_run(word: str, folder: Path) -> Weights:
    if not (folder / "config.yaml").is_file():
        timm_hint = f"; for a timm folder write timm:local-dir:{word}" if (folder / "config.json").is_file() else ""
        raise UserError(f"--init {word}: is no run folder (it has no config.yaml){timm_hint}")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"--init {word}: has no model.safetensors yet; finish that run with --resume")
    config = configuration.from_yaml(folder / "config.yaml").config
    if read_name(config.backbone.name) is not None:
        return _read_scatnet(word, folder, config)
    found = _read_timm(word, f"local-dir:{folder}")
    init = config.backbone.init
    assert init != "auto"  # a finished run's configuration is settled
    shape = found.shape | ({"init": init} if "init" in found.shape else {})
    return replace(found, about="the run's exported weights", shape=shape)


def _read_scatnet(word: str, folder: Path, config: Config) -> Weights:
    """A run's scattering network, which timm does not know."""
    mean, std, channels = config.images.mean, config.images.std, config.images.channels
    assert mean != "auto"
    assert std != "auto"
    assert channels != "auto"
    shape = {"name": config.backbone.name}
    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"--init {word}: its model.safetensors is damaged ({error})") from error
    weights = Weights(word, "the run's exported weights", state, shape, channels, None, mean, std)
    stride = int(config.backbone.patch)
    _check_all_match(weights, _twin(weights, (4 * stride, 4 * stride)).model)
    return weights


# --- official checkpoints ---------------------------------------------------------------------------------------------


def _read_checkpoint(word: str, path: Path) -> Weights:
    content = _unpickle(word, path)
    kind, found = _network(word, content)
    tensors = {_bare(name): x for name, x in found.items()}
    mask_token = tensors.pop("masked_embed", None)
    if mask_token is None and "student" in content:
        mask_token = {_bare(name): x for name, x in _tensors(word, content["student"]).items()}.get("masked_embed")
    if mask_token is not None:
        kind = kind.replace("a DINO checkpoint", "an iBOT checkpoint")
    state = {name: x for name, x in tensors.items() if not name.startswith(("head.", "fc."))}
    left = "" if len(state) == len(tensors) else ", its head left out"
    shape = _shape(word, state, moco_v3="MoCo v3" in kind)
    first = state[PATCH if PATCH in state else "conv1.weight"]
    if mask_token is not None and mask_token.shape != (1, first.shape[0]):
        raise UserError(f"--init {word}: masked_embed is {tuple(mask_token.shape)} and not {(1, first.shape[0])}")
    weights = Weights(
        word=word,
        about=f"{kind}{left}",
        state=state,
        shape=shape,
        channels=first.shape[1],
        grid=_square_grid(word, state),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mask_token=mask_token,
    )
    side = weights.grid[0] * shape["patch"] if weights.grid else 224
    with torch.device("meta"):
        _check_all_match(weights, _twin(weights, (side, side)).model)
    return weights


def _unpickle(word: str, path: Path) -> Mapping[str, Any]:
    """What a file holds; nothing in it can run code (the official ones keep their arguments as a plain Namespace)."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for unsafe files
        raise UserError(f"--init {word}: is damaged, or holds more than tensors and numbers") from error
    if isinstance(content, dict) and "trainer" in content:
        raise UserError(f"--init {word}: is the checkpoint of a run; give the run's folder {path.parent}")
    if not isinstance(content, dict) or not content:
        raise UserError(f"--init {word}: is no checkpoint of DINO, iBOT or MoCo v3")
    return content


def _network(word: str, content: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """What kind of file it is, and the tensors of the network in it that its paper evaluates."""
    if isinstance(content.get("teacher"), dict):
        return "the teacher of a DINO checkpoint", _tensors(word, content["teacher"])
    found = _tensors(word, content.get("state_dict", content))
    base = {name: x for name, x in found.items() if name.removeprefix("module.").startswith("base_encoder.")}
    if base:
        return "the base encoder of a MoCo v3 checkpoint", base
    return "the backbone of a DINO or iBOT file", found


def _tensors(word: str, found: Any) -> dict[str, Tensor]:
    """A network's tensors by name, which a file may claim of anything."""
    plain = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(x, Tensor) and x.layout is torch.strided and not x.is_quantized
        for name, x in found.items()
    )
    if not plain:
        raise UserError(f"--init {word}: is no checkpoint of DINO, iBOT or MoCo v3")
    tensors: dict[str, Tensor] = found
    return tensors


def _bare(name: str) -> str:
    """A tensor's name without the prefixes of the wrappers that it was trained in."""
    return name.removeprefix("module.").removeprefix("backbone.").removeprefix("base_encoder.")


def _shape(word: str, state: Mapping[str, Tensor], moco_v3: bool) -> dict[str, Any]:
    for name in (PATCH, "conv1.weight"):
        _check_dimensions(word, state, name, 4)
    if "layer1.0.conv1.weight" in state and "conv1.weight" in state:
        return {"name": "resnet50"}
    if PATCH not in state:
        raise UserError(
            f"--init {word}: holds no vision transformer and no ResNet-50 (first tensors: {_few(list(state))})"
        )
    width, _, patch, _ = state[PATCH].shape
    depth = 1 + max((int(found[1]) for name in state if (found := re.match(r"blocks\.(\d{1,4})\.", name))), default=-1)
    if (width, depth) not in NAMED:
        named = ", ".join(f"{name} {w} x {d}" for (w, d), (name, _) in NAMED.items())
        raise UserError(f"--init {word}: has width {width} and depth {depth}, which no named transformer has ({named})")
    name, heads = NAMED[width, depth]
    if moco_v3 and name == "vit_small":
        heads = MOCO_V3_SMALL_HEADS  # spec objectives, trap 15
    shape = {"name": name, "patch": patch, "width": width, "depth": depth, "heads": heads, "class_token": True}
    return {**shape, "init": "mocov3" if moco_v3 else "dino"}


def _square_grid(word: str, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The grid of the position table: one class token and a square, as all official files have."""
    if POSITIONS not in state:
        return None
    _check_dimensions(word, state, POSITIONS, 3)
    cells = state[POSITIONS].shape[1] - 1
    side = math.isqrt(cells)
    if not cells or side * side != cells:
        raise UserError(f"--init {word}: has {cells} positions, which is no square grid")
    return side, side


def _check_dimensions(word: str, state: Mapping[str, Tensor], name: str, count: int) -> None:
    """Refuse a tensor whose shape is read before all shapes are compared, and has not so many dimensions."""
    if name in state and (state[name].dim() != count or not state[name].numel()):
        raise UserError(f"--init {word}: {name} is {tuple(state[name].shape)}, which is no network's")


# --- all or nothing ---------------------------------------------------------------------------------------------------


def _twin(weights: Weights, size: tuple[int, ...]) -> Backbone:
    """The network that the settings build, at the weights' own size and channels."""
    shape = dict(weights.shape)
    return build_backbone(shape.pop("name"), size=(size[0], size[1]), channels=weights.channels, **shape)


def _check_all_match(weights: Weights, model: nn.Module) -> None:
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights.state.items()}
    wrong = [f"{name} is missing" for name in own if name not in found]
    wrong += [f"{name} has no place" for name in found if name not in own]
    wrong += [
        f"{name} is {found[name]} and not {own[name]}" for name in own if name in found and found[name] != own[name]
    ]
    if wrong:
        raise UserError(
            f"--init {weights.word}: {len(wrong)} of {len(own.keys() | found.keys())} tensors do not match "
            f"{weights.shape['name']} ({', '.join(wrong)}); nothing was loaded"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
