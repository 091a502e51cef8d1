"""RandAugment: which operations, how strong, and what it leaves of the recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from belvedere.errors import UserError
from belvedere.plugins import load
from belvedere.views.params import FIELDS, ViewParams
from belvedere.views.policies.randaugment import RandAugment
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots
from tiny import tiny_canvases, tiny_config

PAIR = (Slot("global_a", (8, 8), (0.4, 1.0)), Slot("global_b", (8, 8), (0.4, 1.0)))


def randaugment(slots: tuple[Slot, ...] = PAIR, channels: int = 3, **options: Any) -> RandAugment:
    return RandAugment(RandAugment.Options(**options), slots, channels)


def propose(policy: RandAugment, count: int) -> ViewParams:
    return policy.propose(range(count), [(32, 32)] * count, epoch=0, seed=0)


def test_operations_are_uniform_and_magnitudes_normal() -> None:
    policy = randaugment(n_ops=3, magnitude=0.5, magnitude_std=0.1)
    extras = propose(policy, 3000).extras
    assert extras["op"].shape == (2, 3000, 3)
    counts = np.bincount(extras["op"].flatten().numpy(), minlength=14)
    assert len(counts) == len(policy.operations) == 14
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest(extras["magnitude"].flatten().numpy(), stats.norm(0.5, 0.1).cdf).pvalue > 1e-3
    assert set(extras["sign"].unique().tolist()) == {-1.0, 1.0}


def test_magnitudes_stay_in_range_and_are_fixed_without_spread() -> None:
    magnitude = propose(randaugment(magnitude=1.0, magnitude_std=0.2), 1000).extras["magnitude"]
    assert magnitude.max() == 1
    assert 0.4 < (magnitude == 1).float().mean() < 0.6
    fixed = propose(randaugment(magnitude=0.7, magnitude_std=0.0), 10).extras["magnitude"]
    assert (fixed == 0.7).all()


def test_crops_and_flips_are_the_recipe_s_and_nothing_else_is(photos: Tensor, slots: tuple[Slot, ...]) -> None:
    sizes = [photos.shape[1:3]] * 8
    params = randaugment(slots).propose(range(8), sizes, epoch=3, seed=5)
    plain = sample_views(slots, range(8), sizes, epoch=3, seed=5)
    for name in ("top", "left", "h", "w", "flip", "key"):
        assert torch.equal(getattr(params, name), getattr(plain, name))
    assert not params.jitter.any()
    assert not params.gray.any()
    assert (params.sigma == 0).all()
    assert (params.solarize > 1).all()
    part = randaugment(slots).propose([6], sizes[:1], epoch=3, seed=5)
    for name in FIELDS:
        assert torch.equal(getattr(part, name), getattr(params, name)[:, [6]])
    for name, extra in params.extras.items():
        assert torch.equal(part.extras[name], extra[:, [6]])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("space", ["ssl12", "autoaugment"])
def test_views_render_for_any_channels(channels: int, space: str, photos: Tensor) -> None:
    images = torch.cat([photos, photos], -1)[..., :channels]
    policy = randaugment(build_slots(ViewSettings(size=(32, 24)), channels), channels, space=space)
    assert all(not operation.colour for operation in policy.operations) == (channels != 3)
    params = policy.propose(range(8), [photos.shape[1:3]] * 8, epoch=0, seed=0)
    constants = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    views = render_views(images, params, **constants, program=policy.program)
    plain = render_views(images, params, **constants)
    for name in views.names:
        assert views[name].min() >= 0
        assert views[name].max() <= 1
        changed = (views[name] - plain[name]).abs().amax((1, 2, 3)) > 0.01
        assert changed.float().mean() > 0.7


@pytest.mark.parametrize("option", [{"magnitude": 1.1}, {"n_ops": 0}, {"magnitude_std": -0.1}, {"space": "ssl13"}])
def test_wrong_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RandAugment.Options(**option)
    key, value = next(iter(option.items()))
    with pytest.raises(UserError, match=f"^views.{key}: "):
        tiny_config("simclr", tiny_canvases(), views__policy="randaugment", **{f"views__{key}": value})


def test_it_is_a_plug_in() -> None:
    assert load("policy", "randaugment") is RandAugment
    assert RandAugment.Options().n_ops == 2
