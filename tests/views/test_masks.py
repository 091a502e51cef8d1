"""Masks of patches: never more than asked for, and a function of the view alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.views.draws import streams, uniform
from belvedere.views.masks import MaskLaw, block_masks, draw_masks, masks_of
from belvedere.views.params import ViewParams
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

LAW = MaskLaw("block", (0.0, 0.3), (0.0, 0.2))


def record(index: list[int], names: tuple[str, ...] = ("global_a", "global_b"), epoch: int = 0) -> ViewParams:
    slots = [Slot(name, (48, 80), (0.4, 1.0)) for name in names]
    return sample_views(slots, index, [(100, 120)] * len(index), epoch, seed=3)


@settings(max_examples=100)
@given(
    height=st.integers(1, 16),
    width=st.integers(1, 16),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    seed=st.integers(0, 10**6),
)
def test_blocks_never_exceed_the_target(height: int, width: int, shares: list[float], seed: int) -> None:
    target = np.array(shares) * height * width
    index = np.arange(len(target))
    draws = uniform(seed, 0, index, "test", (400, 4))
    masks = block_masks(target, (height, width), lambda chosen, t: draws[chosen, t])
    assert masks.shape == (len(target), height, width)
    assert masks.dtype == bool
    assert (masks.sum((1, 2)) <= target).all()


@settings(max_examples=50)
@given(height=st.integers(1, 16), width=st.integers(1, 16), ratio=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_random_masks_have_the_share_asked_for(height: int, width: int, ratio: float, seed: int) -> None:
    keys = streams(seed, 0, range(8), ["a"])[0]
    masks = masks_of(MaskLaw("random", (ratio,), (0.0,)), keys, (height, width))
    assert (masks.sum((1, 2)) == int(ratio * (height * width))).all()


def test_random_masks_reach_every_patch_alike() -> None:
    masks = masks_of(MaskLaw("random", (0.5,), (0.0,)), streams(0, 0, range(4000), ["a"])[0], (3, 4))
    assert np.abs(masks.mean(0) - 0.5).max() < 4 * 0.5 / np.sqrt(4000)


def test_blocks_on_a_rectangular_grid() -> None:
    """Rows and columns play the same part: a flat grid is masked as an upright one, turned."""
    law = MaskLaw("block", (0.4,), (0.0,))
    flat = masks_of(law, streams(0, 0, range(3000), ["flat"])[0], (6, 14))
    upright = masks_of(law, streams(0, 0, range(3000), ["upright"])[0], (14, 6))
    assert flat.any(0).all()
    assert flat.mean() == pytest.approx(upright.mean(), abs=0.01)
    assert flat.mean(0) == pytest.approx(upright.mean(0).T, abs=0.06)
    beside, below = flat[:, :, 1:][flat[:, :, :-1]].mean(), upright[:, 1:][upright[:, :-1]].mean()
    assert beside == pytest.approx(below, abs=0.01)
    assert beside > flat.mean() + 0.2


@pytest.mark.parametrize("shape", ["block", "random"])
def test_a_mask_depends_on_its_own_view_only(shape: str) -> None:
    law = MaskLaw(shape, (0.0, 0.3), (0.0, 0.2))
    whole = draw_masks(law, record(list(range(16))), patch=8)
    assert whole["global_a"].shape == (16, 6, 10)
    part = draw_masks(law, record([7, 2], ("global_b", "global_a")), patch=8)
    for slot, mask in part.items():
        assert torch.equal(mask, whole[slot][[7, 2]])
    assert not torch.equal(whole["global_a"], whole["global_b"])
    assert not torch.equal(draw_masks(law, record(list(range(16)), epoch=1), 8)["global_a"], whole["global_a"])
    again = draw_masks(law, record(list(range(16))), patch=8)
    assert all(torch.equal(again[slot], mask) for slot, mask in whole.items())


def test_a_mask_follows_the_candidate_that_wins() -> None:
    names = ("global_a", "global_a.1", "global_b", "global_b.1")
    candidates = record(list(range(8)), names)
    masks = draw_masks(LAW, candidates, patch=8)
    choice = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0], [3, 2, 1, 0, 0, 1, 2, 3]])
    winners = draw_masks(LAW, candidates.gather(choice, ["global_a", "global_b"]), patch=8)
    for row, slot in zip(choice, winners, strict=True):
        for image, candidate in enumerate(row):
            assert torch.equal(winners[slot][image], masks[names[candidate]][image])


def test_a_ratio_of_zero_masks_nothing() -> None:
    for shape in ("block", "random"):
        masks = draw_masks(MaskLaw(shape, (0.0,), (0.0,)), record([0, 1, 2]), patch=8)
        assert not any(mask.any() for mask in masks.values())


@pytest.mark.parametrize(
    ("ratio", "var"), [((), ()), ((0.3,), ()), ((0.1,), (0.2,)), ((0.9,), (0.2,)), ((0.3, 0.2), (0.1,))]
)
def test_what_is_no_law_is_refused(ratio: tuple[float, ...], var: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ratio"):
        MaskLaw("block", ratio, var)
