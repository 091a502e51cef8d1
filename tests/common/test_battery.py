"""What must hold for every objective with every view policy; new plug-ins are found by themselves."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.objectives.contract import Embeddings, is_global
from belvedere.pretrain import checkpoint
from belvedere.pretrain.trainer import Trainer
from belvedere.schedules import Clock
from belvedere.views.views import Views
from snapshots import assert_same, snapshot
from tiny import NARROW, tiny_canvases, tiny_trainer, train

OBJECTIVES = plugins.names("objective")
# Every combination, but those of the seldom changed policies with three of the objectives only in the long suite.
PAIRS = [
    pytest.param(
        objective,
        policy,
        marks=[] if policy in ("random", "hard") or objective in ("simclr", "dino") else pytest.mark.slow,
    )
    for objective in OBJECTIVES
    for policy in plugins.names("policy")
]
every_method = pytest.mark.parametrize(("objective", "policy"), PAIRS)
# Objectives whose loss of an image does not read the other images of its batch.
WITHOUT_NEGATIVES = ["dino", "ibot", "none", "supervised"]


def trainer_of(objective: str, policy: str, **settings: Any) -> tuple[Trainer, Any]:
    """A tiny trainer; an objective without pairs, which `hard` is refused for, is not tested with it."""
    if plugins.load("policy", policy).needs_pairs and not plugins.load("objective", objective).has_pairs:
        with pytest.raises(UserError, match="no pairs"):
            tiny_trainer(objective, views__policy=policy, **settings)
        pytest.skip(f"{policy} is refused for {objective}: no pairs to choose between")
    if policy == "iou":  # pairs views, also those of an objective that is content with one
        settings = {"views__globals": 2, **settings}
    narrow = NARROW if objective == "simsiam" else {}
    return tiny_trainer(objective, views__policy=policy, **{**narrow, **settings})


def losses(trainer: Trainer, feed: Any, start: int, stop: int) -> list[float]:
    return [report.loss for report in train(trainer, feed, start, stop)]


@every_method
def test_the_seed_decides_every_loss(objective: str, policy: str) -> None:
    """The generators' global state does not matter, and another seed is another run."""
    found = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002
        random.seed(disturbance)
        found.append(losses(*trainer_of(objective, policy, train__seed=seed), 0, 3))
    assert np.isfinite(found).all()
    assert found[0] == found[1]
    assert found[0] != found[2]


@every_method
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_gradients_reach_what_is_trained(objective: str, policy: str, precision: str) -> None:
    """Every trained parameter gets a finite gradient that is not zero; what is frozen at a step stays where it is."""
    trainer, feed = trainer_of(objective, policy, train__precision=precision, train__warmup=1)
    trained = {name: p for name, p in trainer.parts.student.named_parameters() if p.requires_grad}
    untrained = [p for p in trainer.method.parameters() if not p.requires_grad]
    gradients: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda p: gradients.__setitem__(name, p.grad.clone())

    hooks = [p.register_post_accumulate_grad_hook(note(name)) for name, p in trained.items()]
    for step, micro_batches in enumerate(feed.stream(0, 3)):
        gradients.clear()
        before = {name: p.detach().clone() for name, p in trained.items()}
        fixed = [p.clone() for p in untrained]
        report = trainer.step(step, micro_batches)
        assert np.isfinite(report.loss)
        assert gradients.keys() == trained.keys()
        assert [name for name, grad in gradients.items() if not grad.isfinite().all()] == []
        assert [name for name, grad in gradients.items() if not grad.any()] == []
        objective_now = trainer.parts.objective
        # SimCLR's warm-up begins at learning rate 0, which only constant rates escape.
        moving = ("",) if report.lr > 0 else objective_now.fixed_lr
        frozen = objective_now.frozen(trainer.clock(step))
        unmoved = [name for name, p in trained.items() if torch.equal(p, before[name])]
        assert unmoved == [name for name in trained if name.startswith(frozen) or not name.startswith(moving)]
        assert all(torch.equal(p, old) for p, old in zip(untrained, fixed, strict=True))
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def scored_by_hand(trainer: Trainer, clock: Clock, views: Views, i: str, j: str) -> Tensor:
    """The score of a pair as DESIGN.md words it: the weighted terms and view terms whose ends lie in {i, j}."""
    parts, objective = trainer.parts, trainer.parts.objective
    student, teacher = copy.deepcopy((parts.student, parts.teacher))
    student.eval()
    masks = views.mask or {}
    online = {slot: student.head(student.backbone(views[slot], mask=masks.get(slot))) for slot in views.names}
    target = {}
    if teacher is not None:
        teacher.eval()
        target = {slot: teacher.head(teacher.backbone(views[slot])) for slot in views.names if is_global(slot)}
    e: Embeddings = objective.embed(online, target, clock)
    total = torch.zeros(len(views[i]))
    for term in objective.terms([i, j]):
        total += term.weight * objective.pair_loss(e, term.target, term.source)
    for slot in (i, j):
        own = objective.view_loss(e, slot)
        total += 0 if own is None else own
    return total


@every_method
def test_scoring_leaves_no_trace(objective: str, policy: str) -> None:
    trainer, feed = trainer_of(objective, policy)
    if not trainer.parts.objective.has_pairs:
        pytest.skip("no pairs to score")
    train(trainer, feed, 0, 2)
    clock = trainer.clock(2)
    views = trainer.prepare(next(feed.stream(2, 3))[0], clock).views
    pairs = [(i, j) for i in views.names for j in views.names if i != j and is_global(i)]
    before = snapshot(trainer)
    scores = trainer.score_at(clock)(views, pairs)
    assert_same(snapshot(trainer), before)
    assert not any(gradient is not None for gradient in before["gradients"])
    assert scores.shape == (len(pairs), 8)
    assert not scores.requires_grad
    assert scores.isfinite().all()
    for row, (i, j) in zip(scores, pairs, strict=True):
        torch.testing.assert_close(row, scored_by_hand(trainer, clock, views, i, j), atol=1e-5, rtol=1e-5)
    # Images differ in how hard they are: a score that is the same for all could choose nothing.
    assert (scores.std(1) > 0).all()


@every_method
@pytest.mark.parametrize(("precision", "done"), [("float32", 4), ("bf16", 3)])
def test_resume_is_exact(objective: str, policy: str, precision: str, done: int, tmp_path: Path) -> None:
    """A new trainer that takes up a checkpoint goes on with the same losses bit for bit.

    Epochs have three steps: one checkpoint was made within the second, the other at the end of the first.
    """
    # Stochastic depth is the one draw of a step that is not a view's.
    settings = {"train__precision": precision, "backbone__drop_path": 0.2}
    trainer, feed = trainer_of(objective, policy, **settings)
    losses(trainer, feed, 0, done)
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": trainer.state_dict()})
    expected = losses(trainer, feed, done, 7)
    again, feed = trainer_of(objective, policy, **settings)
    again.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["trainer"])
    assert losses(again, feed, done, 7) == expected
    assert_same(again.state_dict(), trainer.state_dict())


@every_method
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_channels_and_rectangles(objective: str, policy: str, channels: int) -> None:
    canvases = tiny_canvases(16, (32, 48), channels)
    settings = {"views__size": [24, 40], "views__local_size": [16, 24], "train__warmup": 1}
    trainer, feed = trainer_of(objective, policy, canvases=canvases, **settings)
    before = copy.deepcopy(trainer.parts.student.state_dict())
    assert np.isfinite(losses(trainer, feed, 0, 2)).all()
    after = trainer.parts.student.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in after)
    views = trainer.prepare(next(feed.stream(2, 3))[0], trainer.clock(2)).views
    assert views["global_a"].shape == (8, channels, 24, 40)


# What else makes an image's loss depend on the others of its micro-batch.
_MEAN = {"objective__centering": "mean", "objective__teacher_temp": 0.04}
IMAGE_BY_IMAGE = {"dino": _MEAN | {"objective__use_bn": False}, "ibot": _MEAN}


@pytest.mark.parametrize("objective", WITHOUT_NEGATIVES)
def test_two_micro_batches_are_one_batch(objective: str) -> None:
    """Gradient accumulation, an uneven last batch included: 23 images are batches of 8, 8 and 7 = 4 + 3."""
    found = []
    for accumulate in (1, 2):
        settings = {"train__accumulate": accumulate, "train__optimizer": "sgd", "train__warmup": 1}
        settings |= IMAGE_BY_IMAGE.get(objective, {})
        trainer, feed = tiny_trainer(objective, tiny_canvases(23), **settings)
        shares = [[len(part) for part in feed.micro_batches(step)] for step in range(3)]
        assert shares == ([[8], [8], [7]] if accumulate == 1 else [[4, 4], [4, 4], [4, 3]])
        reports = losses(trainer, feed, 0, 6)
        found.append((reports, trainer.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for part in ("method", "teacher"):
        for name, tensor in (found[0][1][part] or {}).items():
            torch.testing.assert_close(found[1][1][part][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
