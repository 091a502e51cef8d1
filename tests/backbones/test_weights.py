"""Weights to start from: every official format gives back the network it was made of, or is refused in one line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere import config as configuration
from belvedere.backbones.build import build_backbone
from belvedere.backbones.contract import Backbone
from belvedere.backbones.export import export_timm
from belvedere.backbones.vit import ViT
from belvedere.backbones.weights import Weights, load_weights, read_weights
from belvedere.errors import UserError

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
State = dict[str, Tensor]


def network(name: str = "vit_tiny", side: int = 32, seed: int = 1, **shape: Any) -> Backbone:
    if name.startswith("vit"):
        shape = {"patch": 8, **shape}
    return build_backbone(name, size=(side, side), channels=shape.pop("channels", 3), seed=seed, **shape).eval()


def rebuilt(weights: Weights, side: int = 32, channels: int = 3, **more: Any) -> Backbone:
    """A network of other weights, filled with those that were read."""
    shape = dict(weights.shape)
    backbone = build_backbone(shape.pop("name"), size=(side, side), channels=channels, seed=9, **shape, **more)
    load_weights(weights, backbone)
    return backbone.eval()


def pixels(side: int, channels: int = 3) -> Tensor:
    from skimage import data

    photograph = torch.from_numpy(data.astronaut()[100 : 100 + side, 200 : 200 + side]).permute(2, 0, 1)[None] / 255
    return photograph.repeat(1, 2, 1, 1)[:, :channels]


def features(backbone: Backbone, side: int) -> Tensor:
    with torch.no_grad():
        found = backbone(pixels(side, backbone.channels))
    return torch.cat([found.cls.unsqueeze(1), found.patches], 1)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": x for name, x in state.items()}


def other(state: State) -> State:
    """The weights of a network that must not be taken."""
    return {name: x + 1 if x.is_floating_point() else x for name, x in state.items()}


def dino(state: State) -> dict[str, Any]:
    head = {"head.mlp.0.weight": torch.ones(3, 3), "head.last_layer.weight_v": torch.ones(3, 3)}
    return {
        "student": prefixed(other(state) | head, "module.backbone."),
        "teacher": prefixed(state, "backbone.") | head,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def ibot(state: State) -> dict[str, Any]:
    width = state["cls_token"].shape[-1]
    found = dino(state)
    found["student"]["module.backbone.masked_embed"] = torch.full((1, width), 0.5)
    return {**found, "ibot_loss": found.pop("dino_loss")}


def ibot_teacher(state: State) -> dict[str, Any]:
    return {"state_dict": state | {"head.mlp.0.weight": torch.ones(3, 3)}}


def moco_v3(state: State) -> dict[str, Any]:
    head, predictor = {"head.0.weight": torch.ones(3, 3)}, {"module.predictor.0.weight": torch.ones(3, 3)}
    found = prefixed(state | head, "module.base_encoder.")
    found |= prefixed(other(state) | head, "module.momentum_encoder.") | predictor
    return {"epoch": 3, "arch": "vit_base", "state_dict": found, "optimizer": {}, "scaler": {}}


def moco_v3_resnet(state: State) -> dict[str, Any]:
    return {"state_dict": prefixed(state | {"fc.0.weight": torch.ones(3, 3)}, "module.base_encoder.")}


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("wrap", "about", "shape"),
    [
        (dino, "the teacher of a DINO checkpoint, its head left out", {}),
        (dict, "the backbone of a DINO or iBOT file", {}),
        (ibot, "the teacher of an iBOT checkpoint, its head left out", {}),
        (ibot_teacher, "the backbone of a DINO or iBOT file, its head left out", {}),
        (moco_v3, "the base encoder of a MoCo v3 checkpoint, its head left out", {"init": "mocov3"}),
        (moco_v3, "the base encoder", {"name": "vit_small", "init": "mocov3", "heads": 12}),
        (dict, "the backbone of a DINO or iBOT file", {"name": "vit_small", "patch": 16}),
        (moco_v3_resnet, "the base encoder of a MoCo v3 checkpoint", {"name": "resnet50"}),
    ],
)
def test_an_official_file_gives_its_network_back(
    wrap: Callable[[State], Any], about: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit, at the size it was made for; the heads in the file and the other network in it are not taken."""
    original = network(**shape)
    word = saved(tmp_path / "official.pth", wrap(original.model.state_dict()))
    weights = read_weights(word)
    assert weights.about.startswith(about)
    assert weights.state.keys() == original.model.state_dict().keys()
    assert torch.equal(features(rebuilt(weights), 32), features(original, 32))
    assert weights.mean == (0.485, 0.456, 0.406)


def test_positions_of_another_grid_are_those_that_the_network_would_have_used(tmp_path: Path) -> None:
    """The original resamples its table at every forward of 48 pixels, the new network has done so once."""
    original = network()
    weights = read_weights(saved(tmp_path / "official.pth", dino(original.model.state_dict())))
    assert torch.allclose(features(rebuilt(weights, side=48), 48), features(original, 48), atol=1e-5)


def test_fixed_positions_stay_fixed(tmp_path: Path) -> None:
    original = network(init="mocov3")
    weights = read_weights(saved(tmp_path / "official.pth", moco_v3(original.model.state_dict())))
    table = dict(rebuilt(weights, side=48).model.named_parameters())["pos_embed"]
    assert not table.requires_grad
    trained = read_weights(saved(tmp_path / "dino.pth", dino(network().model.state_dict())))
    assert dict(rebuilt(trained).model.named_parameters())["pos_embed"].requires_grad


def test_ibots_mask_token_comes_from_the_student(tmp_path: Path) -> None:
    weights = read_weights(saved(tmp_path / "ibot.pth", ibot(network().model.state_dict())))
    masking = rebuilt(weights, mask_token=True)
    assert isinstance(masking, ViT)
    assert masking.mask_token is not None
    assert (masking.mask_token == 0.5).all()


def test_the_first_convolution_takes_other_channels_as_timm_has_it(tmp_path: Path) -> None:
    """Gray reads the sum of the three kernels; five channels get repeated ones, and the scale of the sum is kept."""
    original = network()
    weights = read_weights(saved(tmp_path / "dino.pth", dino(original.model.state_dict())))
    kernel = weights.state["patch_embed.proj.weight"]
    gray, five = (rebuilt(weights, channels=c).model.state_dict()["patch_embed.proj.weight"] for c in (1, 5))
    assert torch.allclose(gray, kernel.sum(1, keepdim=True))
    assert torch.allclose(five, kernel.repeat(1, 2, 1, 1)[:, :5] * 3 / 5)
    of_five = read_weights(saved(tmp_path / "five.pth", network(channels=5).model.state_dict()))
    with pytest.raises(UserError, match=r"set images\.channels=5"):
        rebuilt(of_five, channels=3)


def test_a_timm_folder_and_a_run_give_their_network_back(tmp_path: Path) -> None:
    """Of any shape, since timm's own file says it; a run's file says too how its positions were made."""
    original = network(width=64, depth=2, init="mocov3")
    export_timm(original, tmp_path, mean=MEAN, std=STD)
    by_timm = read_weights(f"timm:local-dir:{tmp_path}")
    assert by_timm.shape["init"] == "dino"
    settings = {"backbone.init": "mocov3"}
    (tmp_path / "config.yaml").write_text(configuration.to_yaml(configuration.resolve("dino", settings)))
    by_run = read_weights(str(tmp_path))
    assert by_run.shape["init"] == "mocov3"
    for weights in (by_timm, by_run):
        assert torch.equal(features(rebuilt(weights), 32), features(original, 32))
        assert (weights.mean, weights.std) == (MEAN, STD)


def test_a_timm_folder_of_a_resnet(tmp_path: Path) -> None:
    original = network("resnet18", side=64)
    export_timm(original, tmp_path, mean=MEAN, std=STD)
    weights = read_weights(f"timm:local-dir:{tmp_path}")
    assert torch.equal(features(rebuilt(weights, side=64), 64), features(original, 64))


def test_what_names_and_shapes_do_not_show_is_refused(tmp_path: Path) -> None:
    """A timm folder with another activation has every tensor in its place, and is another network."""
    export_timm(network(width=64, depth=2), tmp_path, mean=MEAN, std=STD)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model_args"]["act_layer"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="not supported"):
        read_weights(f"timm:local-dir:{tmp_path}")


class Harmful:
    """A pickle of it runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def without(state: State, name: str) -> State:
    return {key: x for key, x in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: without(s, "blocks.3.attn.qkv.bias"), r"1 of 150 tensors .*blocks\.3\.attn\.qkv\.bias is missing"),
        (lambda s: s | {"dist_token": torch.zeros(1)}, r"1 of 151 tensors .*dist_token has no place"),
        (lambda s: s | {"norm.weight": torch.zeros(7)}, r"norm\.weight is \(7,\) and not \(192,\)"),
        (lambda s: {k: x for k, x in s.items() if "mlp" not in k}, r"48 of 150 .*\); nothing was loaded$"),
        (lambda s: {k: x for k, x in s.items() if not k.startswith("blocks.11")}, "width 192 and depth 11"),
        (lambda s: s | {"pos_embed": torch.zeros(1, 16, 192)}, "15 positions, which is no square grid"),
        (lambda s: {"linear.weight": torch.zeros(2, 2)}, r"no vision transformer .*linear\.weight"),
        (lambda s: {"weights": [1, 2]}, "no checkpoint of DINO, iBOT or MoCo v3"),
        (lambda s: [1, 2], "no checkpoint of DINO, iBOT or MoCo v3"),
        (lambda s: s | {"patch_embed.proj.weight": torch.zeros(2, 2)}, r"patch_embed\.proj\.weight is \(2, 2\)"),
        (lambda s: s | {"pos_embed": torch.zeros(3)}, r"pos_embed is \(3,\)"),
        (lambda s: s | {3: torch.zeros(3)}, "no checkpoint of DINO, iBOT or MoCo v3"),
        (lambda s: {"teacher": s | {"norm.weight": 3}}, "no checkpoint of DINO, iBOT or MoCo v3"),
        (lambda s: {"teacher": s, "student": 3}, "no checkpoint of DINO, iBOT or MoCo v3"),
        (lambda s: ibot(s) | {"student": {"masked_embed": torch.zeros(3)}}, r"masked_embed is \(3,\)"),
        (lambda s: {"format": 2, "trainer": {}}, "give the run's folder"),
    ],
)
def test_a_file_that_is_not_wholly_understood_is_refused(
    spoil: Callable[[State], Any], message: str, tmp_path: Path
) -> None:
    word = saved(tmp_path / "spoilt.pth", spoil(network().model.state_dict()))
    with pytest.raises(UserError, match=message) as refused:
        read_weights(word)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"--init {word}: ")


def test_the_refusal_lists_every_tensor_that_does_not_match(tmp_path: Path) -> None:
    whole = network().model.state_dict()
    state = {name: x for name, x in whole.items() if "mlp" not in name} | {
        "norm.bias": torch.zeros(7),
        "more": torch.ones(1),
    }
    with pytest.raises(UserError) as refused:
        read_weights(saved(tmp_path / "spoilt.pth", state))
    said = str(refused.value)
    assert all(f"{name} is missing" in said for name in whole if "mlp" in name)
    assert "more has no place" in said
    assert "norm.bias is (7,) and not (192,)" in said


def test_a_file_cannot_run_code_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for content in ({"teacher": {}, "more": Harmful(mark)}, None):
        word = saved(tmp_path / "bad.pth", content)
        if content is None:
            Path(word).write_bytes(b"no file of torch")
        with pytest.raises(UserError, match="is damaged, or holds more"):
            read_weights(word)
    assert not mark.exists()


def test_words_that_name_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("recipe: dino\n")
    for word, message in (
        ("nowhere", r"no such file or folder; give timm:NAME"),
        ("vit_small_patch16_224", "did you mean timm:vit_small_patch16_224"),
        ("timm:vit_small_patch16_225", "did you mean timm:vit_small_patch16_224"),
        ("timm:vit_small_patch16_224.nothing", "timm cannot load it"),
        ("timm:swin_tiny_patch4_window7_224", "only timm's VisionTransformer and ResNet families"),
        (f"timm:local-dir:{tmp_path}/nowhere", "timm cannot load it"),
        (str(tmp_path), f"no run folder .* write timm:local-dir:{tmp_path}"),
        (str(unfinished), "finish that run with --resume"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            read_weights(word)
        assert "\n" not in str(refused.value)


def test_without_a_network_it_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def create_model(*_: Any, **__: Any) -> None:
        raise OSError("the hub cannot be reached\nfour more lines")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match=r"timm cannot load it \(the hub cannot be reached\)$"):
        read_weights("timm:vit_small_patch16_224.dino")
