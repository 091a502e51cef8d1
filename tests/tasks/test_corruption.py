"""Corruption: blocks of the promised size, as much as promised, wherever the batch, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.tasks._corruption import Stream, corrupt_blocks, corrupt_groups, group_masks, noise, reach

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def stream(index: list[int], seed: int = 0, epoch: int = 0, name: str = "a") -> Stream:
    return Stream(seed, epoch, np.array(index), name)


def photographs(count: int, size: tuple[int, int] = (32, 32), channels: int = 3) -> Tensor:
    """Cut-outs of a photograph, normalised."""
    image = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1) / 255
    cuts = [image[:, 20 * n : 20 * n + size[0], 30 * n % 400 :][..., : size[1]] for n in range(count)]
    normed = (torch.stack(cuts) - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    return torch.cat([normed, normed.flip(3)], 1)[:, :channels]


@settings(max_examples=60)
@given(
    height=st.integers(16, 64),
    width=st.integers(16, 64),
    align=st.integers(1, 8),
    most=st.floats(0, 0.9),
    seed=st.integers(0, 10**6),
)
def test_blocks_reach_the_share_and_no_more_than_one_block_beyond(
    height: int, width: int, align: int, most: float, seed: int
) -> None:
    height, width = height // align * align, width // align * align
    assume(most <= reach((height, width), align))
    masks, blocks = group_masks(stream([3, 5], seed), "drop", most, (height, width), align)
    largest = 0.3 + align / 2 / min(height, width)
    for mask, used in zip(masks, blocks, strict=True):
        assert mask.mean() >= min(0.5, most)
        assert mask.mean() <= most + largest**2 + 1e-9
        union = np.zeros_like(mask)
        for block in used:
            assert all(number % align == 0 for number in block)
            assert align <= block.height <= largest * height + 1e-9
            assert align <= block.width <= largest * width + 1e-9
            assert block.top + block.height <= height
            assert block.left + block.width <= width
            union[block.area] = True
        assert np.array_equal(union, mask)


def test_masks_belong_to_the_image_and_not_to_the_batch() -> None:
    together, _ = group_masks(stream([4, 9, 2]), "drop", 0.5, (32, 32), 1)
    alone, _ = group_masks(stream([9]), "drop", 0.5, (32, 32), 1)
    assert np.array_equal(together[1], alone[0])
    for other in (stream([9], seed=1), stream([9], epoch=1), stream([9], name="b"), stream([8])):
        assert not np.array_equal(group_masks(other, "drop", 0.5, (32, 32), 1)[0][0], alone[0])


@pytest.mark.parametrize("types", [("zeros",), ("noise",), ("copy",), ("zeros", "noise", "copy")])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_only_the_blocks_are_touched(types: Any, channels: int) -> None:
    views = photographs(8, channels=channels)
    before = views.clone()
    corrupted, mask = corrupt_groups(stream(list(range(8))), views, 0.5, 0.3, types, 1)
    assert torch.equal(views, before)
    assert torch.equal(torch.where(mask, 0.0, corrupted), torch.where(mask, 0.0, views))
    assert ((corrupted - views) * mask).flatten(1).abs().sum(1).gt(0).sum() >= 6  # a view may be its own donor
    again, same = corrupt_groups(stream(list(range(8))), views, 0.5, 0.3, types, 1)
    assert torch.equal(corrupted, again)
    assert torch.equal(mask, same)


def test_dropped_pixels_are_zero_and_copied_ones_come_from_the_view_itself() -> None:
    views = photographs(4)
    corrupted, mask = corrupt_groups(stream([0, 1, 2, 3]), views, 0.5, 0.0, ("zeros",), 1)
    assert not corrupted[mask.expand_as(views)].any()
    corrupted, mask = corrupt_groups(stream([0, 1, 2, 3]), views, 0.5, 0.0, ("copy",), 1)
    for view, found, where in zip(views, corrupted, mask[:, 0], strict=True):
        colours = {tuple(colour) for colour in view.flatten(1).T.tolist()}
        assert all(tuple(colour) in colours for colour in found[:, where].T.tolist())
        assert not torch.equal(view[:, where], found[:, where])


def test_noise_is_standard_normal() -> None:
    found = noise(stream(list(range(32))), "noise", torch.zeros(32, 3, 32, 32))
    error = 1 / np.sqrt(found.numel())
    assert abs(found.mean()) < 4 * error
    assert abs(found.std() - 1) < 4 * error
    assert (found.abs() > 2).float().mean() == pytest.approx(0.0455, abs=0.003)


def test_donors_are_rows_of_the_batch_at_the_same_place() -> None:
    """With one image it is its own donor: the mask is set, nothing changes."""
    rows = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    corrupted, mask = corrupt_groups(stream(list(range(64))), rows, 0.0, 0.3, ("zeros",), 1)
    replaced = mask.flatten(1).any(1)
    assert 16 < replaced.sum() < 48
    for row in torch.nonzero(replaced).flatten().tolist():
        assert len(corrupted[row][mask[row]].unique()) == 1
    assert len({float(corrupted[row][mask[row]][0]) for row in torch.nonzero(replaced).flatten().tolist()}) > 8
    for image in range(8):
        alone, mask = corrupt_groups(stream([image]), rows[:1], 0.0, 0.3, ("zeros",), 1)
        assert torch.equal(alone, rows[:1])
        assert mask.any() == replaced[image]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_first_version_has_all_four_blocks(channels: int) -> None:
    views = photographs(16, (32, 40), channels)
    corrupted, mask = corrupt_blocks(stream(list(range(16))), views, (MEAN + MEAN)[:channels], (STD + STD)[:channels])
    assert corrupted.isfinite().all()
    assert mask.shape == (16, 1, 32, 40)
    assert mask.flatten(1).any(1).all()
    assert torch.equal(torch.where(mask, 0.0, corrupted), torch.where(mask, 0.0, views))
    again, _ = corrupt_blocks(stream(list(range(16))), views, (MEAN + MEAN)[:channels], (STD + STD)[:channels])
    assert torch.equal(corrupted, again)
    if channels == 3:
        pixels = corrupted * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
        gray = (pixels - pixels.mean(1, keepdim=True)).abs().amax(1) < 1e-5
        before = (views * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)).std(1) < 1e-5
        assert gray.float().mean() > before.float().mean() + 0.05


@pytest.mark.parametrize(
    ("size", "align", "share"), [((32, 32), 1, 961 / 1024), ((32, 32), 8, 9 / 16), ((32, 32), 16, 0)]
)
def test_how_far_blocks_reach(size: tuple[int, int], align: int, share: float) -> None:
    assert reach(size, align) == pytest.approx(share, abs=0.07 if align == 1 else 1e-9)
