"""Options of hard views together, around any policy, in real steps: each keeps its promise beside the others."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from belvedere.pretrain import checkpoint
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.trainer import StepReport, Trainer
from belvedere.views.chosen import Selection
from belvedere.views.draws import uniform
from belvedere.views.params import ViewParams
from belvedere.views.policies.hard import Hard
from belvedere.views.views import Views
from snapshots import assert_same
from tiny import tiny_trainer, train

# Without BatchNorm, whose teacher's answers could not be reused.
PLAIN: dict[str, dict[str, Any]] = {"dino": {"objective__use_bn": False}}
LEARNED = {"inner": "learned", "warmup": 0, "freeze": 0}
HYBRID = {**LEARNED, "estimator": "hybrid"}


def hard_trainer(objective: str, drop_path: float = 0.0, **options: Any) -> tuple[Trainer, Feed]:
    settings = {f"views__{name}": value for name, value in {"policy": "hard", **options}.items()}
    return tiny_trainer(objective, backbone__drop_path=drop_path, **PLAIN.get(objective, {}), **settings)


def policy_of(trainer: Trainer) -> Hard:
    policy = trainer.parts.policy
    assert isinstance(policy, Hard)
    return policy


class Watched:
    """The steps of a trainer with what they were told to train on."""

    def __init__(self, trainer: Trainer, feed: Feed) -> None:
        self.trainer, self.feed = trainer, feed
        self.views: list[Views] = []
        """Of every step, rendered."""
        self.proposed: list[ViewParams] = []
        self.selections: list[Selection | None] = []
        self.told: list[dict[str, float]] = []
        policy = policy_of(trainer)
        prepare, propose = trainer.prepare, policy.propose

        def watched_prepare(*arguments: Any) -> Any:
            batch = prepare(*arguments)
            self.views.append(batch.views)
            return batch

        def watched_propose(*arguments: Any) -> ViewParams:
            self.proposed.append(propose(*arguments))
            return self.proposed[-1]

        trainer.prepare = watched_prepare  # type: ignore[method-assign]
        policy.propose = watched_propose  # type: ignore[method-assign]

    def train(self, start: int, stop: int) -> list[StepReport]:
        reports = []
        for step, micro_batches in zip(range(start, stop), self.feed.stream(start, stop), strict=True):
            reports.append(self.trainer.step(step, micro_batches))
            self.selections.append(policy_of(self.trainer)._last)
            self.told.append(policy_of(self.trainer).log())
        return reports


COMBINATIONS: list[tuple[str, dict[str, Any]]] = [
    ("simclr", {"scale": 0.5, "every": 2}),
    ("simclr", {"every": 2, "fraction": 0.5, **HYBRID}),
    ("simclr", {"scale": 0.5, "scorer": "pooled", "fraction": 0.5, **LEARNED}),
    ("simclr", {"scorer": "anchor", "candidates": 5, "inner": "randaugment"}),
    ("mocov3", {"scale": 0.5, "fraction": 0.5, "inner": "iou"}),
    ("dino", {"scale": 0.5, "every": 2, "local_views": "scored"}),
    ("dino", {"every": 2, "local_views": "choose", "fraction": 0.5, "limit": 8, **HYBRID}),
    ("dino", {"scale": 0.5, "local_views": "choose", "limit": 8, **LEARNED}),
    ("dino", {"reuse_teacher": True, "every": 2, "local_views": "scored", **HYBRID}),
    ("ibot", {"scale": 0.5, "every": 2, "local_views": "choose", "limit": 8, "inner": "trivial"}),
    ("ibot", {"reuse_teacher": True, "local_views": "choose", "limit": 8, **LEARNED}),
    ("ibot", {"scorer": "block0", "every": 3, "fraction": 0.5, **HYBRID}),
]


@pytest.mark.parametrize(("objective", "options"), COMBINATIONS)
def test_options_keep_their_promise_together(objective: str, options: dict[str, Any]) -> None:
    """Finite steps; chosen images train on the winners and all others on the first candidates; the cost is told."""
    watched = Watched(*hard_trainer(objective, **options))
    trainer, policy = watched.trainer, policy_of(watched.trainer)
    before = copy.deepcopy(policy.exported())
    every, share = options.get("every", 1), options.get("fraction", 1.0)
    for step in range(4):
        (report,) = watched.train(step, step + 1)
        views, proposed, told = watched.views[-1], watched.proposed[-1], watched.told[-1]
        assert report.moved
        assert math.isfinite(report.loss)
        expected, index = proposed.select(views.names).key.clone(), proposed.index
        own = uniform(trainer.config.train.seed, proposed.epoch, index.numpy(), "hard/fraction") < share
        selection = watched.selections[-1]
        if step % every or not own.any():
            assert selection is None
            assert not any(name.startswith("hard/") for name in told)
        else:
            assert selection is not None
            assert torch.equal(selection.params.index, index[torch.from_numpy(own)])
            for n, best in zip(np.flatnonzero(own), selection.scored.scores.argmax(0), strict=True):
                for slot, name in enumerate(selection.choices[int(best)]):
                    expected[slot, n] = proposed.key[proposed.slot(name), n]
        assert torch.equal(views.params.key, expected)
        if selection is None:
            continue
        assert report.policy_seconds > 0
        assert 0 <= told["hard/gain"] < math.inf
        assert sum(value for name, value in told.items() if name.startswith("hard/chosen/")) == pytest.approx(2)
        if step == 0:
            assert told["hard/kept_all"] == pytest.approx(told["hard/kept"] * share / every)
    after = policy.exported()
    assert (before == after) is (options.get("inner") != "learned")


@pytest.mark.parametrize(("objective", "options"), [case for case in COMBINATIONS if "estimator" not in case[1]])
def test_what_was_rendered_to_choose_is_what_is_trained_on(objective: str, options: dict[str, Any]) -> None:
    """Views and masks that are picked, not rendered again, are bit for bit those of their record."""
    trainer, feed = hard_trainer(objective, **options)
    micro_batch, clock = next(feed.stream(0, 1))[0], trainer.clock(0)
    trainer.parts.policy.begin_step(clock)
    views = trainer.prepare(micro_batch, clock).views
    again = trainer.render(torch.as_tensor(micro_batch[0]), micro_batch[1], clock, views.params)
    for slot in views.names:
        assert torch.equal(views[slot], again[slot])
    assert_same(views.mask, again.mask)


# --- around a learned policy ------------------------------------------------------------------------------------------


def losses_and_psi(objective: str, **settings: Any) -> tuple[list[float], dict[str, Any], dict[str, Any]]:
    given = {"backbone__drop_path": 0.2, **PLAIN.get(objective, {}), **settings}
    trainer, feed = tiny_trainer(objective, views__warmup=0, views__freeze=0, **given)
    losses = [report.loss for report in train(trainer, feed, 0, 4)]
    state = trainer.state_dict()
    told = {name: value for name, value in trainer.parts.policy.log().items() if name.startswith("policy/")}
    return losses, {name: state[name] for name in ("method", "teacher", "optimizer", "policy")}, told


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("simclr", {}),
        ("simclr", {"views__scale": 0.5, "views__fraction": 0.5}),
        ("dino", {"views__local_views": "scored"}),
        ("ibot", {"views__scorer": "block0", "views__every": 2}),
        pytest.param("mocov3", {}, marks=pytest.mark.slow),
        pytest.param("simsiam", {}, marks=pytest.mark.slow),
    ],
)
def test_two_candidates_around_learned_are_learned(objective: str, options: dict[str, Any], estimator: str) -> None:
    """H1: losses, networks, psi with its optimiser and memory, and all that it tells, bit for bit."""
    learned = losses_and_psi(objective, views__policy="learned", views__estimator=estimator)
    hard = {"views__policy": "hard", "views__inner": "learned", "views__candidates": 2, "views__estimator": estimator}
    assert_same(losses_and_psi(objective, **hard, **options), learned)


@pytest.mark.parametrize(("estimator", "tolerance"), [("score", 0.0), ("hybrid", 1e-4)])
@pytest.mark.parametrize("objective", ["dino", "ibot"])
def test_a_reused_teacher_teaches_the_same_around_learned(objective: str, estimator: str, tolerance: float) -> None:
    """Bit for bit; but what is learned through its pixels is rendered again, with the rounding of another renderer."""
    hard = {"views__policy": "hard", "views__inner": "learned", "views__estimator": estimator}
    plain, reused = (losses_and_psi(objective, **hard, views__reuse_teacher=reuse)[0] for reuse in (False, True))
    assert reused == pytest.approx(plain, rel=tolerance, abs=0)


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
@pytest.mark.parametrize(("objective", "done"), [("simclr", 4), ("dino", 5)])
def test_resuming_within_an_epoch_goes_on_choosing_and_learning(
    objective: str, done: int, estimator: str, tmp_path: Path
) -> None:
    """H11: the same choices, losses and psi, with epochs of three steps, from a step that chooses and one that does
    not."""
    options = {**LEARNED, "estimator": estimator, "every": 2, "fraction": 0.5}
    first = Watched(*hard_trainer(objective, drop_path=0.2, **options))
    assert first.feed.steps_per_epoch == 3
    first.train(0, done)
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": first.trainer.state_dict()})
    expected = [report.loss for report in first.train(done, 8)]
    again = Watched(*hard_trainer(objective, drop_path=0.2, **options))
    again.trainer.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["trainer"])
    assert [report.loss for report in again.train(done, 8)] == expected
    for views, other in zip(first.views[done:], again.views, strict=True):
        assert torch.equal(views.params.key, other.params.key)
        for name, extra in views.params.extras.items():
            assert torch.equal(extra, other.params.extras[name])
    assert_same(again.trainer.state_dict(), first.trainer.state_dict())
