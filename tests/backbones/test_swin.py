"""Swin transformers: maps of every stage, any size, what they refuse, and timm alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from belvedere.backbones.build import build_backbone
from belvedere.backbones.contract import Backbone
from belvedere.backbones.export import export_timm
from belvedere.backbones.swin import grids_of, windows_for
from belvedere.errors import UserError
from tiny import timm_before

TINY: dict[str, Any] = {"size": (32, 32), "channels": 3, "patch": 2, "width": 16, "depth": 7, "seed": 0}


def tiny(**options: Any) -> Backbone:
    return build_backbone("swin_tiny", **{**TINY, **options}).eval()


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (16, 48), (14, 22), (2, 2)])
@torch.no_grad()
def test_every_stage_has_a_map_at_any_size(size: tuple[int, int]) -> None:
    backbone = tiny()
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    features = backbone(x, need=("stages", "raw_patches"))
    assert features.stages is not None
    assert [tuple(found.shape[1:]) for found in features.stages] == [
        (16 * 2**k, *grid) for k, grid in enumerate(grids_of(size, 2, 4))
    ]
    assert features.grid == backbone.grid(size)
    assert features.patches.shape == (2, math.prod(features.grid), backbone.dim)
    assert features.prefix.shape == (2, 0, backbone.dim)
    assert features.raw_patches is not None
    assert features.norm is not None
    torch.testing.assert_close(features.norm(features.raw_patches), features.patches)
    torch.testing.assert_close(features.stages[-1].flatten(2).transpose(1, 2), features.raw_patches)
    torch.testing.assert_close(features.cls, features.patches.mean(1))
    assert features.patches.isfinite().all()


def test_the_papers_networks_have_the_papers_shape() -> None:
    """Spec 2.1: windows of 7 and 7 x 7 regions at 224, 3 x 3 at 96; Swin-T has 28 M parameters with its classifier."""
    with torch.device("meta"):
        backbones = {size: build_backbone(f"swin_{size}", size=(224, 224), channels=3) for size in ("tiny", "base")}
    assert backbones["tiny"].model_args["depths"] == [2, 2, 6, 2]
    assert backbones["tiny"].model_args["num_heads"] == [3, 6, 12, 24]
    assert backbones["base"].model_args["depths"] == [2, 2, 18, 2]
    assert backbones["base"].model_args["num_heads"] == [4, 8, 16, 32]
    for backbone in backbones.values():
        assert backbone.model_args["window_size"] == [[7, 7]] * 4
        assert (backbone.grid((224, 224)), backbone.grid((96, 96))) == ((7, 7), (3, 3))
    assert sum(p.numel() for p in backbones["tiny"].model.parameters()) + 768 * 1000 + 1000 == 28_288_354


@settings(max_examples=60)
@given(rows=st.integers(1, 60), columns=st.integers(1, 60))
def test_windows_fill_every_map_or_there_are_none(rows: int, columns: int) -> None:
    size = 4 * rows, 4 * columns
    windows = windows_for(size, 4, 4, 7)
    if windows is None:
        assert any(side > 7 and all(side % w for w in range(2, 8)) for grid in grids_of(size, 4, 4) for side in grid)
        return
    for grid, window in zip(grids_of(size, 4, 4), windows, strict=True):
        assert all(side % w == 0 and (w > 1 or side == 1) for side, w in zip(grid, window, strict=True))


@pytest.mark.skipif(timm_before("1.0.31"), reason="before 1.0.31 timm renames a Swin's weights without a classifier")
def test_timm_alone_gives_the_same_features_at_the_training_size(tmp_path: Path) -> None:
    photo = torch.from_numpy(data.astronaut()[:96, :128].copy()).permute(2, 0, 1).float() / 255
    for name, size in (("square", (32, 32)), ("rectangle", (24, 40)), ("large", (96, 96))):
        backbone = tiny(size=size, channels=4)
        pixels = torch.cat([photo, photo[:1]])[None, :, : size[0], : size[1]]
        export_timm(backbone, tmp_path / name, mean=[0.5] * 4, std=[0.25] * 4)
        with torch.no_grad():
            features = backbone(pixels)
        expected = {"pixels": pixels, "cls": features.cls, "patches": features.patches}
        torch.save(expected, tmp_path / name / "expected.pt")
    code = """
import sys
sys.modules["belvedere"] = None
import timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    expected = torch.load(f"{folder}/expected.pt")
    gap = (model(expected["pixels"]) - expected["cls"]).abs().max().item()
    gap = max(gap, (model.forward_features(expected["pixels"]).flatten(1, 2) - expected["patches"]).abs().max().item())
    assert gap <= 1e-5, (folder, gap)
    assert model(expected["pixels"].repeat(1, 1, 2, 1)).shape == expected["cls"].shape
"""
    folders = [str(folder) for folder in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "square" / "config.json").read_text())["positions"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 4}, "backbone.heads: a Swin"),
        ({"class_token": True}, "backbone.class_token: a Swin"),
        ({"mask_token": True}, "no patches to mask, use a ViT"),
        ({"depth": 6}, "at least 7"),
        ({"size": (33, 32)}, "backbone.patch 2 does not divide it"),
        ({"size": (44, 32)}, "windows of 2 to 7 do not fill.*; take 40 x 32"),
    ],
)
def test_what_a_swin_is_not_built_with(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        tiny(**options)
    assert "\n" not in str(error.value)


def test_other_variants_are_refused() -> None:
    with pytest.raises(UserError, match="this variant of the Swin transformer is not supported"):
        build_backbone("swin_s3_tiny_224", size=(224, 224), channels=3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mask", torch.zeros(1, 2, 2, dtype=torch.bool)),
        ("keep", torch.zeros(1, 1, dtype=torch.long)),
        ("pos_embed", False),
        ("extra_tokens", torch.zeros(1, 128)),
        ("need", ("attention",)),
    ],
)
def test_what_a_swin_is_not_asked_for(option: str, value: Any) -> None:
    with pytest.raises(UserError, match="attention" if option == "need" else option):
        tiny()(torch.zeros(1, 3, 32, 32), **{option: value})


def test_sizes_and_channels_that_do_not_fit_are_told() -> None:
    for shape, words in (((1, 3, 31, 32), "31 x 32: not a multiple of the patch size 2"), ((1, 1, 32, 32), "3 chan")):
        with pytest.raises(UserError, match=words):
            tiny()(torch.zeros(shape))


def test_the_settings_build_it_again() -> None:
    for name, options in (("swin_tiny", TINY), ("vit_tiny", {**TINY, "patch": 8, "depth": 2, "class_token": False})):
        backbone = build_backbone(name, **options)
        again = build_backbone(
            backbone.architecture, size=backbone.size, channels=backbone.channels, seed=0, **backbone.settings
        )
        assert again.model_args == backbone.model_args or name == "vit_tiny"
        state = again.model.state_dict()
        assert state.keys() == backbone.model.state_dict().keys()
        assert all(torch.equal(state[key], x) for key, x in backbone.model.state_dict().items())


def test_drop_path_a_frozen_patch_projection_and_both_laws_of_weights() -> None:
    backbone = build_backbone("swin_tiny", **TINY, drop_path=0.3, freeze_patch=True).train()
    x = torch.ones(8, 3, 32, 32)
    out = backbone(x).cls
    assert (out - out[:1]).abs().max() > 1e-4  # equal images, paths dropped for each by itself
    out.sum().backward()
    without = {name for name, p in backbone.model.named_parameters() if p.grad is None}
    assert without == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    spread = {law: tiny(init=law).model.layers[3].blocks[0].mlp.fc1.weight.std().item() for law in ("dino", "mocov3")}
    assert math.isclose(spread["dino"], 0.02, rel_tol=0.05)
    assert math.isclose(spread["mocov3"], math.sqrt(2 / (128 + 512)), rel_tol=0.05)
