"""The default policy: the calls of a training loop, none of which changes anything."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from belvedere.plugins import load
from belvedere.schedules import Clock
from belvedere.views.params import FIELDS
from belvedere.views.policies.random import Random
from belvedere.views.policy import ViewPolicy
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot


def test_random_draws_the_slots_and_leaves_the_rest_alone(slots: tuple[Slot, ...]) -> None:
    policy = Random(Random.Options(), slots, channels=3)
    params = policy.propose([4, 9], [(50, 60), (70, 40)], epoch=1, seed=2)
    expected = sample_views(slots, [4, 9], [(50, 60), (70, 40)], 1, 2)
    assert all(torch.equal(getattr(params, name), getattr(expected, name)) for name in FIELDS)

    def refuse(*_: object) -> None:
        raise AssertionError("the random policy renders and scores nothing")

    assert policy.select(params, refuse, refuse) is params
    pixels = torch.rand(2, 3, 4, 4)
    assert policy.adversary(pixels) is pixels
    assert policy.regulariser(None, refuse, refuse) is None
    policy.observe(torch.zeros(2), params, {})
    policy.begin_step(Clock(3, 10, 20))
    policy.end_step()
    assert policy.exported() is None
    assert policy.log() == {}
    assert policy.program is None
    policy.load_state_dict(policy.state_dict())
    with pytest.raises(ValueError, match="keeps no state"):
        policy.load_state_dict({"logits": torch.zeros(3)})


def test_random_is_a_plug_in_without_options() -> None:
    assert load("policy", "random") is Random
    assert issubclass(Random, ViewPolicy)
    with pytest.raises(ValidationError):
        Random.Options(strength=2)
