"""Building backbones by name: what is refused, what is deterministic, what timm can rebuild."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError

SMALL: dict[str, Any] = {"size": (16, 16), "channels": 3, "patch": 8, "width": 32, "depth": 1}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tinny", {}, "did you mean 'vit_tiny'"),
        ("resnet5O", {}, "did you mean 'resnet50'"),
        ("vit_small_patch16_224.augreg_in1k", {}, "write 'vit_small_patch16_224'"),
        ("convnext_tiny", {}, "only timm's"),
        ("vit_tiny", {"size": (20, 16)}, "20 x 16"),
        ("vit_tiny", {"heads": 5}, "backbone.heads 5"),
        ("resnet18", {"patch": None, "depth": None}, "backbone.width"),
    ],
)
def test_mistakes_are_answered_in_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build_backbone(name, **{**SMALL, **options})
    assert "\n" not in str(error.value)


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other, unseeded = (build_backbone("vit_tiny", **SMALL, seed=seed) for seed in (1, 1, 2, None))
    assert torch.equal(torch.get_rng_state(), before)
    states = [backbone.model.state_dict() for backbone in (one, same, other, unseeded)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for different in states[2:]:
        assert not torch.equal(states[0]["blocks.0.attn.qkv.weight"], different["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("name", "width", "heads"),
    [("vit_tiny", None, 3), ("vit_small", None, 6), ("vit_tiny", 128, 2), ("vit_tiny", 48, 1)],
)
def test_heads_are_64_wide(name: str, width: int | None, heads: int) -> None:
    backbone = build_backbone(name, size=(16, 16), channels=3, width=width, depth=1, seed=0)
    assert backbone.model.blocks[0].attn.num_heads == heads


@pytest.mark.parametrize("name", ["vit_tiny", "vit_medium_patch16_reg4_gap_256", "deit3_small_patch16_224"])
def test_timm_rebuilds_the_same_architecture(name: str) -> None:
    backbone = build_backbone(name, **{**SMALL, "size": (16, 24)}, seed=0).eval()
    twin = timm.create_model(backbone.architecture, **backbone.model_args).eval()
    twin.load_state_dict(backbone.model.state_dict())
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin(x), backbone(x).cls, atol=1e-6, rtol=0)
    assert {m.eps for m in backbone.model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_a_frozen_patch_projection_gets_no_gradient() -> None:
    backbone = build_backbone("vit_tiny", **SMALL, freeze_patch=True, seed=0)
    backbone(torch.ones(1, 3, 16, 16)).cls[:, 0].sum().backward()
    without = {name for name, p in backbone.model.named_parameters() if p.grad is None}
    assert without == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_convolutional_network(size: tuple[int, int]) -> None:
    backbone = build_backbone("resnet18", size=size, channels=4, patch=8, seed=0).eval()
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    features = backbone(x, need=("stages",))
    height, width = features.grid
    assert (height, width) == (-(-size[0] // backbone.patch), -(-size[1] // backbone.patch))
    assert features.patches.shape == (2, height * width, backbone.dim)
    assert features.prefix.shape == (2, 0, backbone.dim)
    torch.testing.assert_close(features.cls, features.patches.mean(1))
    torch.testing.assert_close(features.stages[-1].flatten(2).transpose(1, 2), features.patches)
    torch.testing.assert_close(features.cls, backbone(x).cls)
    torch.testing.assert_close(features.cls, backbone.model(x))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mask", torch.zeros(1, 2, 2, dtype=torch.bool)),
        ("keep", torch.zeros(1, 1, dtype=torch.long)),
        ("pos_embed", False),
        ("extra_tokens", torch.zeros(1, 512)),
        ("need", ("attention",)),
    ],
)
def test_a_convolutional_network_refuses_what_only_a_transformer_can(option: str, value: Any) -> None:
    backbone = build_backbone("resnet18", size=(64, 64), channels=3, seed=0)
    with pytest.raises(UserError, match="attention" if option == "need" else option):
        backbone(torch.zeros(1, 3, 64, 64), **{option: value})
