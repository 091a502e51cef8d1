"""Readings of one forward pass: against timm's own intermediate features, and one inside the other."""

from __future__ import annotations

from typing import Any, cast, get_args

import pytest
import torch
from torch import Tensor

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.measure.encoder import Encoder
from belvedere.measure.readings import Reading, possible_readings, settle, widest

SHAPE: dict[str, Any] = {"patch": 8, "width": 32, "depth": 5, "heads": 2}
JOINT = {"cls", "avg", "cls+avg", "last4", "last4+avg"}
EVERY = JOINT | {"cls+gem"}


def encoder(name: str, reading: Reading = "auto", **shape: Any) -> Encoder:
    backbone = build_backbone(name, size=(32, 32), channels=3, seed=1, **shape)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3, reading)


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_last4_is_timms_normed_intermediate_class_tokens() -> None:
    one = encoder("vit_tiny", "last4", **SHAPE)
    vit: Any = one.backbone.model
    layers = vit.eval().get_intermediate_layers(images(), n=4, return_prefix_tokens=True, norm=True)
    expected = torch.cat([prefix[:, 0] for _, prefix in layers], 1)
    assert one.dim == 4 * 32
    torch.testing.assert_close(one(images()), expected, atol=1e-5, rtol=0)


def test_last4_without_class_token_is_the_mean_of_each_blocks_patches() -> None:
    one = encoder("vit_tiny", "last4", class_token=False, **SHAPE)
    vit: Any = one.backbone.model
    layers = vit.eval().get_intermediate_layers(images(), n=4, norm=True)
    torch.testing.assert_close(one(images()), torch.cat([x.mean(1) for x in layers], 1), atol=1e-5, rtol=0)


def test_last4_of_a_swin_crosses_stages_and_norms_only_the_last() -> None:
    one = encoder("swin_tiny", "last4", patch=2, width=16, depth=7)
    assert one.dim == sum(one.backbone.block_dims[-4:])
    swin: Any = one.backbone.model
    blocks: list[Any] = [block for stage in swin.layers for block in stage.blocks]
    seen: list[Tensor] = []
    for block in blocks[-4:]:
        block.register_forward_hook(lambda _m, _x, y: seen.append(y))
    with torch.no_grad():
        swin.eval().forward_features(images())
    last = swin.layers[-1]
    expected = [
        (swin.norm(x) if block in list(last.blocks) else x).mean((1, 2))
        for block, x in zip(blocks[-4:], seen, strict=True)
    ]
    torch.testing.assert_close(one(images()), torch.cat(expected, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "shape", "readings"),
    [
        ("vit_tiny", SHAPE, EVERY),
        ("vit_tiny", {**SHAPE, "class_token": False}, {"avg", "last4"}),
        ("vit_tiny", {**SHAPE, "depth": 3}, {"cls", "avg", "cls+avg", "cls+gem"}),
        ("swin_tiny", {"patch": 2, "width": 16, "depth": 7}, {"avg", "last4"}),
        ("resnet18", {}, {"avg"}),
    ],
)
def test_the_widest_reading_holds_all_others_but_gem(name: str, shape: dict[str, Any], readings: set[str]) -> None:
    backbone = encoder(name, **shape).backbone
    assert set(possible_readings(backbone)) == readings
    whole, columns = widest(backbone)
    assert set(columns) == readings - {"cls+gem"}
    features = encoder(name, whole, **shape)(images())
    for reading, found in columns.items():
        one = encoder(name, reading, **shape)
        assert features[:, found].shape[1] == one.dim
        torch.testing.assert_close(features[:, found], one(images()), atol=1e-5, rtol=0)


def test_gem_lies_between_the_mean_and_the_largest_patch_and_stands_beside_the_class_token() -> None:
    one = encoder("vit_tiny", "cls+gem", **SHAPE)
    found, cls = one(images()), encoder("vit_tiny", "cls", **SHAPE)(images())
    assert found.shape == (3, one.dim) == (3, 2 * 32)
    torch.testing.assert_close(found[:, :32], cls, atol=1e-5, rtol=0)
    patches = one.patches(images()).flatten(2).clamp(min=1e-6)
    assert (found[:, 32:] >= patches.mean(2) - 1e-5).all()
    assert (found[:, 32:] <= patches.amax(2) + 1e-5).all()


def test_what_a_backbone_has_not_is_refused_in_one_line() -> None:
    assert set(get_args(Reading)) == EVERY | {"auto"}
    with pytest.raises(UserError, match=r"there is no such reading; take one of auto, cls, avg"):
        settle(encoder("resnet18").backbone, cast(Any, "last8"))
    with pytest.raises(UserError, match="reading=last4: resnet18 has no vectors of its last 4 blocks"):
        encoder("resnet18", "last4")
    with pytest.raises(UserError, match=r"reading=last4: .* has no vectors of its last 4 blocks"):
        encoder("vit_tiny", "last4", **{**SHAPE, "depth": 3})
    with pytest.raises(UserError, match=r"reading=last4\+avg: .* has no class token"):
        encoder("swin_tiny", "last4+avg", patch=2, width=16, depth=7)
