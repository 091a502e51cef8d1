"""Sampling laws against torchvision's samplers, and what a draw depends on (section 2, T3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from belvedere.views.params import FIELDS
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots, colour_note

DRAWS = 20_000


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(96, 96, (0.08, 1.0)), (60, 100, (0.2, 1.0)), (30, 120, (0.4, 1.0)), (32, 32, (0.05, 0.4))],
)
def test_boxes_follow_torchvision(height: int, width: int, scale: tuple[float, float]) -> None:
    """Also at 30 x 120, where many proposals fail and the central fallback is common."""
    slot = Slot("global_a", (8, 8), scale)
    drawn = sample_views([slot], range(DRAWS), [(height, width)] * DRAWS, epoch=0, seed=0)
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(6000)])
    ours = np.stack([getattr(drawn, name)[0].numpy() for name in ("top", "left", "h", "w")], 1)
    pairs = {
        "area": (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        "ratio": (ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
        "top": (ours[:, 0], theirs[:, 0]),
        "left": (ours[:, 1], theirs[:, 1]),
        "height": (ours[:, 2], theirs[:, 2]),
    }
    for name, (a, b) in pairs.items():
        assert stats.ks_2samp(a, b).pvalue > 1e-3, name


def test_factors_follow_torchvision() -> None:
    jitter = (0.4, 0.8, 1.5, 0.1)
    slot = Slot("global_a", (8, 8), (0.4, 1.0), jitter=jitter, jitter_p=1.0, blur_p=1.0)
    drawn = sample_views([slot], range(DRAWS), [(32, 32)] * DRAWS, epoch=0, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        law = ColorJitter(*jitter)
        theirs = [law.get_params(law.brightness, law.contrast, law.saturation, law.hue) for _ in range(6000)]
    for place, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        values = np.array([draw[place] for draw in theirs])
        assert stats.ks_2samp(getattr(drawn, name)[0].numpy(), values).pvalue > 1e-3, name
    assert stats.kstest(drawn.sigma[0].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    assert stats.chisquare(np.bincount(drawn.order[0].numpy(), minlength=24)).pvalue > 1e-3


def test_flags_have_their_probabilities() -> None:
    slot = Slot("global_b", (8, 8), (0.4, 1.0), flip=0.5, jitter_p=0.8, gray_p=0.2, blur_p=0.1, solarize_p=0.3)
    drawn = sample_views([slot], range(DRAWS), [(32, 32)] * DRAWS, epoch=0, seed=0)
    flags = {"flip": drawn.flip, "jitter_p": drawn.jitter, "gray_p": drawn.gray}
    flags |= {"blur_p": drawn.sigma > 0, "solarize_p": drawn.solarize <= 1}
    for name, fired in flags.items():
        p = getattr(slot, name)
        assert abs(fired.float().mean().item() - p) < 4 * np.sqrt(p * (1 - p) / DRAWS), name
    fired = torch.stack([flag[0] for flag in flags.values()]).double()
    assert (torch.corrcoef(fired) - torch.eye(5)).abs().max() < 0.03
    off = ~drawn.jitter
    assert (drawn.brightness[off] == 1).all()
    assert (drawn.hue[off] == 0).all()


def test_a_draw_depends_on_seed_epoch_image_and_slot_name_only(slots: tuple[Slot, ...]) -> None:
    sizes = [(40 + i, 60 - i) for i in range(10)]
    whole = sample_views(slots, range(10), sizes, epoch=2, seed=1)
    part = sample_views(slots[::-1], [6, 2], [sizes[6], sizes[2]], epoch=2, seed=1)
    for name in slots:
        for field in FIELDS:
            a = getattr(whole, field)[whole.slot(name.name)][[6, 2]]
            assert torch.equal(a, getattr(part, field)[part.slot(name.name)])
    for other in (sample_views(slots, range(10), sizes, 3, 1), sample_views(slots, range(10), sizes, 2, 7)):
        assert not torch.equal(other.top, whole.top)
    twins = [slots[0], replace(slots[0], name="global_a.1")]
    candidates = sample_views(twins, range(10), sizes, epoch=2, seed=1)
    assert torch.equal(candidates.left[0], whole.left[0])
    assert not torch.equal(candidates.left[0], candidates.left[1])


@settings(max_examples=200)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    low=st.floats(0.01, 1.0),
    spread=st.floats(0, 1),
    narrow=st.floats(0.3, 1.0),
    wide=st.floats(1.0, 3.0),
    seed=st.integers(0, 2**31),
)
def test_boxes_stay_on_the_canvas(
    height: int, width: int, low: float, spread: float, narrow: float, wide: float, seed: int
) -> None:
    scale = (low, low + spread * (1 - low))
    slot = Slot("global_a", (8, 8), scale, ratio=(narrow, wide))
    drawn = sample_views([slot], range(64), [(height, width)] * 64, epoch=0, seed=seed)
    top, left, h, w = (getattr(drawn, name)[0].long() for name in ("top", "left", "h", "w"))
    assert (torch.stack([h, w]) >= 1).all()
    assert (torch.stack([top, left]) >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    # Rounding of sides moves the area by at most half a pixel a side; the fallback is central, with a clamped ratio.
    slack = (h + w).double() / 2 + 0.25
    inside = (h * w >= scale[0] * height * width - slack) & (h * w <= scale[1] * height * width + slack)
    central = (top == (height - h) // 2) & (left == (width - w) // 2) & ((h == height) | (w == width))
    assert (inside | central).all()


def test_slots_follow_the_settings() -> None:
    recipe = ViewSettings(size=(64, 48), globals=3, locals=2, blur_p=(1.0, 0.1, 0.5), solarize_p=(0.0, 0.2, 0.0))
    built = build_slots(recipe, channels=3)
    assert [slot.name for slot in built] == ["global_a", "global_b", "global_c", "local_1", "local_2"]
    assert [slot.blur_p for slot in built] == [1.0, 0.1, 0.1, 0.5, 0.5]
    assert [slot.solarize_p for slot in built] == [0.0, 0.2, 0.2, 0.0, 0.0]
    assert [slot.is_target for slot in built] == [True, True, True, False, False]
    assert built[0].size == (64, 48)
    assert built[3].size == (96, 96)
    assert built[3].scale == recipe.local_scale
    with pytest.raises(ValueError, match="1 to 26"):
        build_slots(replace(recipe, globals=0), 3)


def test_gray_images_have_no_colour_operations() -> None:
    recipe = ViewSettings()
    for slot in build_slots(recipe, channels=1):
        assert slot.jitter == (0.4, 0.4, 0.0, 0.0)
        assert slot.gray_p == 0
    assert colour_note(recipe, 3) is None
    assert "1 channel," in str(colour_note(recipe, 1))
    assert "4 channels" in str(colour_note(recipe, 4))
    assert colour_note(replace(recipe, gray_p=0.0, jitter=(0.4, 0.4, 0.0, 0.0)), 1) is None


@pytest.mark.parametrize("sizes", [[(0, 8)], [(8, 8), (8, 8)], [8]])
def test_bad_sizes_are_refused(sizes: list[object]) -> None:
    with pytest.raises(ValueError, match="sizes"):
        sample_views([Slot("global_a", (8, 8), (0.4, 1.0))], [0], sizes, 0, 0)
