"""TrivialAugment: one operation, any strength."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from belvedere.plugins import load
from belvedere.views.policies.trivial import Trivial
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

PAIR = (Slot("global_a", (8, 8), (0.4, 1.0)), Slot("global_b", (8, 8), (0.4, 1.0)))


def test_one_operation_of_uniform_strength() -> None:
    sizes = [(32, 32)] * 4000
    for space, count in (("autoaugment", 14), ("ssl12", 12)):
        policy = Trivial(Trivial.Options(space=space), PAIR, 3)
        params = policy.propose(range(4000), sizes, epoch=0, seed=1)
        op, magnitude = params.extras["op"], params.extras["magnitude"]
        assert op.shape == (2, 4000, 1)
        assert len(policy.operations) == count
        assert stats.chisquare(np.bincount(op.flatten().numpy(), minlength=count)).pvalue > 1e-3
        assert stats.kstest(magnitude.flatten().numpy(), "uniform").pvalue > 1e-3
        both = torch.stack([op.flatten().double(), magnitude.flatten().double()])
        assert abs(torch.corrcoef(both)[0, 1]) < 0.05


def test_crops_are_the_recipe_s_and_draws_are_each_view_s_own() -> None:
    sizes = [(40, 32)] * 20
    policy = Trivial(Trivial.Options(), PAIR, 3)
    params = policy.propose(range(20), sizes, epoch=2, seed=1)
    plain = sample_views(PAIR, range(20), sizes, epoch=2, seed=1)
    for name in ("top", "left", "h", "w", "flip"):
        assert torch.equal(getattr(params, name), getattr(plain, name))
    assert not params.jitter.any()
    part = policy.propose([11, 4], sizes[:2], epoch=2, seed=1)
    for name, extra in params.extras.items():
        assert torch.equal(part.extras[name], extra[:, [11, 4]])
    assert not torch.equal(params.extras["magnitude"][0], params.extras["magnitude"][1])


def test_it_is_a_plug_in() -> None:
    assert load("policy", "trivial") is Trivial
