"""A learned policy saved, exported, replayed and shared by processes (spec 2.10, A5, A8, A9, A10)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from learned_world import CROPS, MIDDLE, SIDE, World, contrast_loss, make

from belvedere.errors import UserError
from belvedere.views.cost import Work
from belvedere.views.params import FIELDS
from belvedere.views.policies import _law
from belvedere.views.policies.learned import LOGIT, Learned
from belvedere.views.policies.randaugment import RandAugment
from belvedere.views.program import MAGNITUDE, OP, SIGN, draw
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from processes import run_processes


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
def test_state_goes_on_where_it_was(estimator: str) -> None:
    """A8."""
    world = World.of(12)
    policy = make(estimator=estimator)
    for number in range(4):
        world.step(policy, MIDDLE, number, contrast_loss)
    again = make(estimator=estimator)
    again.load_state_dict(policy.state_dict())
    for number in range(4, 8):
        for one in (policy, again):
            world.step(one, MIDDLE, number, contrast_loss)
        a, b = (one.propose(range(12), [(SIDE, SIDE)] * 12, number, 0) for one in (policy, again))
        assert all(torch.equal(a.extras[name], b.extras[name]) for name in a.extras)
    # What was told since is shorter in one than in the other, but the memories are the same.
    since = {f"policy/{name}" for name in ("l_reg", "l_reg_share", "floor", "retention", "dead_views")}
    assert {k: v for k, v in policy.log().items() if k not in since} == {
        k: v for k, v in again.log().items() if k not in since
    }


def exported_file(policy: Learned, folder: Path) -> Path:
    path = folder / "policy.json"
    path.write_text(json.dumps(policy.exported()))
    return path


def test_an_exported_policy_is_replayed(tmp_path: Path) -> None:
    """A10: the same views bit for bit, without any gradient, and nothing learned."""
    world = World.of(12)
    policy = make(space="autoaugment", estimator="hybrid")
    for number in range(5):
        world.step(policy, MIDDLE, number, contrast_loss)
    replay = make(exported=str(exported_file(policy, tmp_path)), estimator="hybrid")
    assert replay.exported() == policy.exported()
    replay.begin_step(MIDDLE)
    params = replay.propose(range(12), [(SIDE, SIDE)] * 12, epoch=9, seed=4)
    assert not params.requires_grad
    views = world.render_of(replay)(params)
    with torch.no_grad():
        expected = world.render_of(policy)(policy.propose(range(12), [(SIDE, SIDE)] * 12, epoch=9, seed=4))
    for slot in views.names:
        assert torch.equal(views[slot], expected[slot])
        assert not views[slot].requires_grad
    world.step(replay, MIDDLE, 0, contrast_loss)
    assert replay.exported() == policy.exported()
    assert replay.expected_cost(Work(2, 0, 0.0, True, 197, 384)) == 1


def test_crops_are_those_of_the_random_policy() -> None:
    """A5: only what operations replace is another."""
    policy = make(CROPS)
    found = policy.propose(range(9), [(SIDE, 20)] * 9, epoch=2, seed=3)
    expected = sample_views(CROPS, range(9), [(SIDE, 20)] * 9, epoch=2, seed=3)
    replaced = {"jitter", "brightness", "contrast", "saturation", "hue", "gray", "sigma", "solarize"}
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in set(FIELDS) - replaced)


def test_a_still_policy_is_randaugment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A5: with lr=0 and always a second operation, the same seed draws RandAugment's programs bit for bit; magnitudes
    come from the same noise by another law, and are the same where neither spreads."""
    monkeypatch.setattr(_law, "RHO_LIMIT", math.inf)
    world, policy = World.of(12), make(lr=0)
    with torch.no_grad():
        policy.law.rho.fill_(math.inf)
    before = policy.state_dict()["law"]
    for number in range(5):
        world.step(policy, MIDDLE, number, contrast_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.law.state_dict().items())
    strength = float(policy.law.mu.detach()[0].sigmoid())
    rand = RandAugment(RandAugment.Options(space="ssl12", magnitude=strength, magnitude_std=0), CROPS, 3)
    for epoch in range(20):
        given = range(500), [(SIDE, SIDE)] * 500, epoch, 7
        found, expected = policy.propose(*given), rand.propose(*given)
        assert torch.equal(found.extras[OP], expected.extras[OP])
        assert torch.equal(found.extras[SIGN], expected.extras[SIGN])
        assert torch.equal(found.extras[LOGIT], policy.law.mu.detach()[0] + 0.5 * draw(expected, 2).noise)
    policy.law.spread = 0.0
    found, expected = policy.propose(*given), rand.propose(*given)
    assert torch.equal(found.extras[MAGNITUDE], expected.extras[MAGNITUDE])
    few = found.take(torch.arange(12)), expected.take(torch.arange(12))
    ours, theirs = (
        world.render_of(policy)(few[0]),
        render_views(world.images, few[1], mean=(0.5,) * 3, std=(0.25,) * 3, program=rand.program),
    )
    assert all(torch.equal(ours[slot], theirs[slot]) for slot in ours.names)


GOOD = {"policy": "learned", "space": "ssl12", "pi": {}, "rho": 0.0, "mu": {}, "s": 0.5, "floor": 0.02}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "is no policy.json"),
        ('{"space": "ssl12"}', "pi: Field required"),
        (json.dumps({**GOOD, "space": "ssl13"}), "space: Input should be 'ssl12' or 'autoaugment'"),
        (json.dumps({**GOOD, "rho": None}), "rho: "),
        (json.dumps({**GOOD, "pi": {"hue": "much"}}), "pi: hue: "),
        (json.dumps({**GOOD, "more": 1}), "more: Extra inputs"),
        (json.dumps({**GOOD, "s": 0}), "s: "),
        (json.dumps({**GOOD, "pi": {"hue": 0.0}, "mu": {"hue": 0.0}}), "has operations hue, but these images"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        make(exported=str(path))
    assert str(path) in str(refused.value)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"views.exported=.*none.json: cannot be read"):
        make(exported=str(tmp_path / "none.json"))
    path = exported_file(make(), tmp_path)
    with pytest.raises(UserError, match="these images of 1 channels take"):
        make(channels=1, exported=str(path))


def learn_in_a_process(rank: int, steps: int = 50, state: dict[str, Any] | None = None) -> dict[str, Any]:
    world = World.of([5, 9][rank])
    policy = make(estimator="hybrid")
    if state is not None:
        policy.load_state_dict(state)
    for number in range(steps):
        world.step(policy, MIDDLE, 2 * number + rank, contrast_loss)
    return policy.state_dict()


def test_processes_with_unequal_data_keep_one_policy(tmp_path: Path) -> None:
    """A9."""
    first, second = run_processes(2, tmp_path, learn_in_a_process)
    start = make().state_dict()
    for name, tensor in first["law"].items():
        assert torch.equal(tensor, second["law"][name])
        assert not torch.equal(tensor, start["law"][name])
    assert first["lambda"] == second["lambda"] != 1.5
    assert torch.equal(first["rewards"]["table"], second["rewards"]["table"])
    # A8: one process goes on with what two learned, and two with what one did.
    alone = learn_in_a_process(0, 3, first)
    assert not torch.equal(alone["law"]["mu"], first["law"]["mu"])
    assert alone["adam"]["state"][0]["step"] == 53
    again, other = run_processes(2, tmp_path, learn_in_a_process, 2, alone)
    assert again["adam"]["state"][0]["step"] == 55
    assert all(torch.equal(tensor, other["law"][name]) for name, tensor in again["law"].items())
