"""Learned weights of losses: trained, not decayed, saved, logged; nothing of it where weights are fixed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from belvedere.errors import UserError
from belvedere.pretrain.weighting import Weighting
from tiny import tiny_trainer, train


def trainer_of(rule: str, **settings: Any) -> Any:
    return tiny_trainer("mocov3", tasks=["rotation"], train__weighting=rule, train__warmup=1, **settings)


def test_losses_of_one_task_share_a_weight_and_pay_its_price_once() -> None:
    weighting = Weighting("exp", ["a", "b"])
    with torch.no_grad():
        weighting.s["a"].fill_(2.0)
    tasks = {"a.one": torch.full((3,), 5.0), "a.two": torch.full((3,), 7.0), "b.one": torch.full((3,), 11.0)}
    found = weighting(torch.full((3,), 13.0), tasks)
    expected = math.exp(-2) * 12 + 1 + math.exp(-1) * (11 + 13) + 2 * 0.5
    torch.testing.assert_close(found, torch.full((3,), expected))


def test_fixed_weights_are_no_module() -> None:
    trainer, feed = trainer_of("fixed")
    assert not [name for name in trainer.state_dict()["method"] if "weighting" in name]
    losses = trainer.method(trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0)))
    parts = [losses.per_image.sum(), losses.tasks["rotation.turn"].sum()]
    torch.testing.assert_close(losses.local_sum(), torch.stack(parts).sum())


@pytest.mark.parametrize("rule", ["exp", "square"])
def test_weights_move_without_decay_and_are_saved(rule: str) -> None:
    """MoCo v3 decays everything else."""
    trainer, feed = trainer_of(rule)
    weighting = trainer.method.weighting
    bare = [id(p) for group in trainer.optimizer.param_groups if not group["decayed"] for p in group["params"]]
    assert bare == [id(p) for p in weighting.parameters()]
    reports = train(trainer, feed, 0, 3)
    assert all(s != 1 for s in weighting.s.values())
    again, again_feed = trainer_of(rule)
    again.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert {name: s.item() for name, s in again.method.weighting.s.items()} == {
        name: s.item() for name, s in weighting.s.items()
    }
    assert train(again, again_feed, 3, 5)[-1].loss == train(trainer, feed, 3, 5)[-1].loss
    assert reports[0].loss != reports[-1].loss


def test_weights_are_in_the_log() -> None:
    trainer, feed = trainer_of("square")
    report = trainer.step(0, next(feed.stream(0, 1)), detail=True)
    assert {"weight/objective", "weight/rotation"} <= report.scalars.keys()
    assert report.scalars["weight/rotation"] == pytest.approx(0.5, abs=0.05)
    assert "task/rotation.turn" in report.scalars


def test_what_is_no_loss_has_no_weight() -> None:
    weighting = Weighting("exp", ["a", "b"], objective=False)
    assert set(weighting.s) == {"a", "b"}
    one = torch.ones(2)
    expected = 2 * (math.exp(-1) + 0.5)
    assert weighting(torch.zeros(2), {"a.x": one, "b.x": one}).tolist() == pytest.approx([expected] * 2)
    with pytest.raises(UserError, match=r"train\.weighting=exp: .*add tasks"):
        Weighting("exp", [])
    with pytest.raises(UserError, match=r"train\.weighting=square: .*add tasks"):
        tiny_trainer("none", tasks=["relations"], train__weighting="square")


@pytest.mark.parametrize(
    ("objective", "task", "words"),
    [
        ("simsiam", "rotation", "simsiam can be below"),
        ("simclr", "koleo", "koleo can be below"),
        ("simsiam", "selfpatch", "simsiam and selfpatch can be below"),
        ("contrastive_metric", "koleo", "contrastive_metric and koleo can be below"),
    ],
)
def test_losses_below_zero_are_not_weighed(objective: str, task: str, words: str) -> None:
    """Their sum would fall for ever as the weight grows: measured 1e17 after 600 steps of SimSiam with rotation."""
    with pytest.raises(UserError, match=rf"train\.weighting=exp: .* above zero only, and {words}"):
        tiny_trainer(objective, tasks=[task], train__weighting="exp")
