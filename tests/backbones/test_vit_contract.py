"""The contract of vision transformers: what every flag of `forward` promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.backbones.build import build_backbone
from belvedere.backbones.vit import ViT, set_plain_attention
from belvedere.errors import UserError

PATCH = 4


def make(name: str = "vit_tiny", *, size: tuple[int, int] = (16, 16), channels: int = 3, **options: Any) -> ViT:
    backbone = build_backbone(
        name, size=size, channels=channels, patch=PATCH, width=32, depth=2, heads=2, seed=0, **options
    )
    assert isinstance(backbone, ViT)
    return backbone.eval()


def image(n: int = 2, channels: int = 3, size: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed))


def to_patches(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, T, C, P, P)."""
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, c, PATCH, PATCH)


def from_patches(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    n, _, c, p, _ = cells.shape
    return cells.reshape(n, *grid, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(n, c, grid[0] * p, grid[1] * p)


@settings(max_examples=12)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    channels=st.integers(1, 5),
    table=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    mode=st.sampled_from(["dino", "timm"]),
)
def test_any_grid_and_any_channels(rows: int, columns: int, channels: int, table: tuple[int, int], mode: Any) -> None:
    vit = make(size=(table[0] * PATCH, table[1] * PATCH), channels=channels, positions=mode)
    features = vit(image(3, channels, (rows * PATCH, columns * PATCH)), need=("stages", "raw_patches", "attention"))
    assert features.grid == (rows, columns)
    assert features.cls.shape == (3, 32)
    assert features.patches.shape == features.raw_patches.shape == (3, rows * columns, 32)
    assert features.prefix.shape == (3, 1, 32)
    assert [stage.shape for stage in features.stages] == [(3, 32, rows, columns)] * 2
    tokens = rows * columns + 1
    torch.testing.assert_close(features.attention.sum(-1), torch.ones(3, 2, tokens))
    assert torch.isfinite(features.patches).all()


def test_with_timm_positions_it_is_timm_at_every_resolution() -> None:
    vit = make(positions="timm", size=(16, 24))
    for size in ((16, 24), (8, 12), (24, 24), (32, 8)):
        x = image(size=size)
        features = vit(x)
        expected = vit.model.forward_features(x)
        torch.testing.assert_close(torch.cat([features.prefix, features.patches], 1), expected, atol=1e-5, rtol=0)


def test_a_model_without_class_token_but_with_registers_averages_its_patches() -> None:
    vit = make("vit_medium_patch16_reg4_gap_256")
    features = vit(image())
    assert not vit.has_class_token
    assert features.prefix.shape == (2, 4, 32)
    torch.testing.assert_close(features.cls, features.patches.mean(1))
    torch.testing.assert_close(features.cls, vit.model(image()), atol=1e-5, rtol=0)


def test_a_masked_patch_shows_nothing_of_its_pixels() -> None:
    vit = make(mask_token=True)
    x, mask = image(), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 3, 0] = True
    changed = x.clone()
    changed[0, :, 4:8, 8:12] += 1
    changed[1, :, 12:16, 0:4] -= 1
    torch.testing.assert_close(vit(x, mask=mask).patches, vit(changed, mask=mask).patches, atol=0, rtol=0)
    assert not torch.allclose(vit(x).patches, vit(changed).patches)
    torch.testing.assert_close(vit(x, mask=torch.zeros_like(mask)).patches, vit(x).patches, atol=0, rtol=0)


def test_the_mask_token_starts_at_zero_is_trained_and_stays_out_of_timm_s_state() -> None:
    vit = make(mask_token=True)
    assert vit.mask_token.shape == (1, 32)
    assert not vit.mask_token.any()
    assert vit.model.state_dict().keys() == make().model.state_dict().keys()
    vit(image(), mask=torch.ones(2, 4, 4, dtype=torch.bool)).cls[:, 0].sum().backward()
    assert vit.mask_token.grad.abs().sum() > 0


def test_keeping_all_patches_in_another_order_only_reorders_them() -> None:
    vit = make()
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    full, kept = vit(image()), vit(image(), keep=order)
    rows = torch.arange(2).unsqueeze(1)
    torch.testing.assert_close(kept.patches, full.patches[rows, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.cls, full.cls, atol=1e-5, rtol=0)
    assert torch.equal(kept.ids, order)


def test_dropped_patches_are_not_seen() -> None:
    vit = make()
    keep = torch.tensor([[0, 5, 10], [1, 2, 3]])
    x = image()
    cells = to_patches(x)
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, keep, False)
    cells[hidden] = 7.0
    torch.testing.assert_close(vit(x, keep=keep).cls, vit(from_patches(cells, (4, 4)), keep=keep).cls, atol=0, rtol=0)
    assert vit(x, keep=keep).patches.shape == (2, 3, 32)


def test_without_positions_the_place_of_a_patch_does_not_matter() -> None:
    vit = make()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    x = image()
    shuffled = from_patches(to_patches(x)[:, order], (4, 4))
    plain, moved = vit(x, pos_embed=False), vit(shuffled, pos_embed=False)
    torch.testing.assert_close(moved.patches, plain.patches[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.cls, plain.cls, atol=1e-5, rtol=0)
    assert not torch.allclose(vit(x).cls, vit(shuffled).cls, atol=1e-3)


def test_extra_tokens_join_the_prefix() -> None:
    vit = make()
    extra = torch.randn(3, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    shared, own = vit(image(), extra_tokens=extra), vit(image(), extra_tokens=extra.expand(2, -1, -1))
    assert shared.prefix.shape == (2, 4, 32)
    assert shared.patches.shape == (2, 16, 32)
    torch.testing.assert_close(shared.prefix, own.prefix, atol=0, rtol=0)
    (grad,) = torch.autograd.grad(shared.cls[:, 0].sum(), extra)
    assert grad.abs().sum() > 0


def test_local_crops_train_the_position_table() -> None:
    vit = make()
    vit(image(size=(8, 8))).cls[:, 0].sum().backward()
    assert (vit.model.pos_embed.grad[0, 1:].abs().sum(-1) > 0).any()


@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (image(size=(16, 18)), {}, "16 x 18"),
        (image(channels=1), {}, "3 channels"),
        (image(), {"mask": torch.zeros(2, 4, 4, dtype=torch.bool)}, "'mask'"),
        (image(), {"need": ("gradients",)}, "'gradients'"),
        (image(), {"need": ("stages",), "keep": torch.zeros(2, 1, dtype=torch.long)}, "'keep'"),
    ],
)
def test_what_it_cannot_do_is_refused(pixels: Tensor, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()(pixels, **options)


def test_plain_attention_gives_the_same_and_can_be_undone() -> None:
    vit = make()
    fused = vit(image()).cls
    set_plain_attention(vit.model, True)
    assert not any(block.attn.fused_attn for block in vit.model.blocks)
    torch.testing.assert_close(vit(image()).cls, fused, atol=1e-5, rtol=0)
    set_plain_attention(vit.model, False)
    assert all(block.attn.fused_attn for block in vit.model.blocks)


def test_features_split_gives_each_part_its_images() -> None:
    vit = make()
    whole = vit(image(5), need=("stages", "attention", "raw_patches"))
    first, second = whole.split([2, 3])
    torch.testing.assert_close(second.cls, vit(image(5)[2:]).cls, atol=1e-5, rtol=0)
    assert first.stages[0].shape[0] == first.attention.shape[0] == 2


def test_without_class_token_the_global_vector_is_the_mean_of_all_patches() -> None:
    vit = make(class_token=False)
    features = vit(image())
    assert not vit.has_class_token
    assert features.prefix.shape[1] == 0
    torch.testing.assert_close(features.cls, features.patches.mean(1))
    with pytest.raises(UserError, match="class_token"):
        build_backbone("resnet18", size=(32, 32), channels=3, class_token=True)
    # What has none anyway is not refused for being told so, as a recipe does.
    assert not build_backbone("resnet18", size=(32, 32), channels=3, class_token=False).has_class_token


def test_without_positions_patches_may_be_shuffled() -> None:
    """The network then says of the shuffled patches what it said of them in order."""
    vit = make(pos_embed=False)
    x, order = image(), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = vit(from_patches(to_patches(x)[:, order], (4, 4)))
    torch.testing.assert_close(shuffled.patches, vit(x).patches[:, order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(make()(x).patches[:, order], shuffled.patches, atol=1e-3)


def test_raw_patches_come_with_their_norm() -> None:
    features = make()(image(), need=("raw_patches",))
    assert features.norm is not None
    torch.testing.assert_close(features.norm(features.raw_patches), features.patches)
    part = features.detach().split([1, 1])[1]
    torch.testing.assert_close(part.norm(part.raw_patches), features.patches[1:])
    assert not part.patches.requires_grad
