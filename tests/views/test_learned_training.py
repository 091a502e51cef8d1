"""The learned policy in real training steps: it learns, and never trains the network (spec 2.10, A4, A5, A8)."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import belvedere
from belvedere import policies
from belvedere.pretrain.trainer import Trainer
from belvedere.views import operations
from belvedere.views.operations import Operation
from belvedere.views.policies import learned
from belvedere.views.policies.hard import Hard
from belvedere.views.policies.learned import Learned
from belvedere.views.program import NOTHING, OP
from belvedere.views.slots import Slot
from newcomer import TINY
from tiny import NARROW, read_metrics, tiles, tiny_canvases, tiny_trainer, train

CROPS = (Slot("global_a", (32, 32), (0.4, 1.0)),)
# Stochastic depth would show a regulariser that draws from the step's generator.
DROPS = {"backbone__drop_path": 0.2}


def policy_of(trainer: Trainer) -> Learned:
    policy = trainer.parts.policy
    assert isinstance(policy, Learned)
    return policy


def learned_trainer(objective: str, **settings: Any) -> Any:
    return tiny_trainer(objective, views__policy="learned", views__warmup=0, views__freeze=0, **settings)


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
@pytest.mark.parametrize("objective", ["simclr", "dino", "supervised", "contrastive_metric", "none"])
def test_every_part_of_psi_gets_a_gradient(objective: str, estimator: str) -> None:
    """A4: finite and nowhere zero over 20 steps."""
    trainer, feed = learned_trainer(objective, views__estimator=estimator, train__epochs=7)
    law = policy_of(trainer).law
    reached = {name: torch.zeros_like(p) for name, p in law.named_parameters()}
    for step, micro_batches in enumerate(feed.stream(0, 20)):
        trainer.step(step, micro_batches)
        for name, p in law.named_parameters():
            assert p.grad is not None
            assert p.grad.isfinite().all()
            assert p.grad.any()
            reached[name] += p.grad.abs()
    assert all((total > 0).all() for total in reached.values())
    assert {name.partition("/")[2].partition("/")[0] for name in policy_of(trainer).log()} >= {"l_reg", "reward", "p"}


@pytest.mark.parametrize(
    ("objective", "altering"),
    [
        ("supervised", {"objective__mixup": 1.0, "objective__cutmix": 1.0, "objective__erasing": 0.9}),
        ("simclr", {"tasks": ["rotation"]}),
        ("mocov3", {"tasks": ["rotation"]}),
        ("simclr", {"tasks": ["mae"]}),
    ],
)
def test_views_are_recognised_as_the_policy_made_them(objective: str, altering: dict[str, Any]) -> None:
    """What training mixes, erases, turns or masks afterwards is none of the policy's doing."""
    found = []
    for settings in ({}, altering):
        trainer, feed = learned_trainer(objective, **settings)
        train(trainer, feed, 0, 1)
        found.append(policy_of(trainer).log())
    for name in ("policy/l_reg", "policy/floor"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name


def test_beside_no_objective_the_policy_climbs_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, feed = learned_trainer("none")
    heard: list[Tensor] = []
    monkeypatch.setattr(policy_of(trainer), "observe", lambda losses, *_: heard.append(losses))
    monkeypatch.setattr(policy_of(trainer), "end_step", lambda: None)
    report = trainer.step(0, next(feed.stream(0, 1)))
    assert heard[0].std() > 0
    assert float(heard[0].mean()) == pytest.approx(report.loss)


@torch.no_grad()
def mean_loss(trainer: Trainer, rows: Tensor, images: Tensor) -> float:
    """Mean over twelve draws of views of the objective's loss of a batch, in training mode; nothing learns."""
    parts, clock, found = trainer.parts, trainer.clock(0), []
    for number in range(12):
        params = parts.policy.propose(rows, parts.sizes[rows], 1000 + number, 0)
        views = trainer.render(rows, images, clock, params)
        online, target = (
            branch.project({slot: branch.backbone(views[slot]) for slot in views.names})
            for branch in (parts.student, parts.teacher or parts.student)
        )
        embeddings = parts.objective.embed(online, target if parts.teacher else {}, clock)
        found.append(parts.objective.per_image(embeddings).mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
@pytest.mark.parametrize("objective", ["simclr", "dino"])
def test_one_step_of_the_network_lowers_what_one_of_the_policy_raises(
    objective: str, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3, with lambda = 0: E[l] of the same batch, with the network after the step and the policy before it, and the
    other way round."""
    monkeypatch.setattr(learned, "WEIGHT_START", 0.0)
    settings = {"train__batch": 64, "train__optimizer": "adamw", "train__lr": 1e-4, "train__warmup": 0}
    settings |= {"objective__use_bn": False, "views__locals": 0} if objective == "dino" else {}
    canvases = tiny_canvases(64)
    trainer, feed = learned_trainer(
        objective, canvases=canvases, views__estimator=estimator, views__lr=0.3, train__epochs=20, **settings
    )
    micro_batches = next(feed.stream(0, 1))
    batch = torch.as_tensor(micro_batches[0][0]), micro_batches[0][1]
    before = copy.deepcopy(trainer.state_dict())
    trainer.step(0, micro_batches)
    after = copy.deepcopy(trainer.state_dict())

    def loss(network: dict[str, Any], policy: dict[str, Any]) -> float:
        trainer.load_state_dict({**copy.deepcopy(network), "policy": policy["policy"]})
        return mean_loss(trainer, *batch)

    start = loss(before, before)
    assert loss(after, before) < start - 0.01
    assert loss(before, after) > start + 0.01


def gradients(objective: str, regularised: bool, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Tensor]:
    """The network's gradients, weights and buffers over three steps in which the policy does not move."""
    trainer, feed = learned_trainer(objective, views__lr=0, **settings)
    policy = policy_of(trainer)
    if not regularised:
        monkeypatch.setattr(policy, "regulariser", lambda *_: None)
        monkeypatch.setattr(policy, "observe", lambda *_: None)
        monkeypatch.setattr(policy, "end_step", lambda: None)
    found: dict[str, Tensor] = {}
    for step, micro_batches in enumerate(feed.stream(0, 3)):

        def note(*_: Any, step: int = step) -> None:
            for name, p in trainer.method.named_parameters():
                if p.grad is not None:
                    found[f"{step} {name}"] = p.grad.clone()

        hook = trainer.optimizer.optimizer.register_step_pre_hook(note)
        found[f"{step} loss"] = torch.tensor(trainer.step(step, micro_batches).loss)
        hook.remove()
    return found | trainer.method.state_dict()


RESNET = {
    "backbone__name": "resnet18",
    "backbone__patch": "auto",
    "backbone__width": None,
    "backbone__depth": None,
    "backbone__heads": None,
    "backbone__freeze_patch": False,
}


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("simclr", DROPS),
        ("dino", DROPS),
        ("mocov3", {}),
        ("ibot", {**DROPS, "views__locals": 0}),
        ("simsiam", NARROW),
        pytest.param("simclr", RESNET, marks=pytest.mark.slow),
    ],
)
def test_the_regulariser_never_trains_the_network(
    objective: str, settings: dict[str, Any], estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: the network's gradient, weights and buffers are bit-identical with the regulariser and without."""
    with_it, without = (
        gradients(objective, on, monkeypatch, views__estimator=estimator, **settings) for on in (True, False)
    )
    assert with_it.keys() == without.keys()
    assert [name for name in with_it if not torch.equal(with_it[name], without[name])] == []


def test_a_policy_that_does_not_learn_is_its_own_replay(tmp_path: Path) -> None:
    """A5: all losses bit for bit."""
    start, feed = learned_trainer("simclr")
    train(start, feed, 0, 6)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy_of(start).exported()))

    def losses(**settings: Any) -> list[float]:
        trainer, feed = learned_trainer("simclr", **settings)
        if "views__lr" in settings:
            policy_of(trainer).law.load_state_dict(policy_of(start).law.state_dict())
        return [report.loss for report in train(trainer, feed, 0, 8)]

    assert losses(views__lr=0) == losses(views__exported=str(path)) != losses()


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
def test_accumulated_steps_are_one_step_of_the_policy(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches give the gradient of their union, where the loss of an image is its own: 7 images are 4 + 3."""
    monkeypatch.setattr("belvedere.views.policies.learned.WEIGHT_START", 0.0)
    found = []
    for accumulate in (1, 2):
        settings = {"objective__centering": "mean", "objective__teacher_temp": 0.04, "objective__use_bn": False}
        trainer, feed = learned_trainer(
            "dino",
            canvases=tiny_canvases(7),
            train__batch=7,
            train__accumulate=accumulate,
            views__estimator=estimator,
            **settings,
        )
        micro_batches = next(feed.stream(0, 1))
        assert len(micro_batches) == accumulate
        trainer.step(0, micro_batches)
        found.append(
            {name: p.grad.clone() for name, p in policy_of(trainer).law.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys() == {"pi", "rho", "mu"}
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-4, rtol=1e-3)


def test_hard_views_of_a_learned_policy() -> None:
    """The inner policy learns from the chosen views, and its law is what the run exports."""
    trainer, feed = tiny_trainer("simclr", views__policy="hard", views__inner="learned", views__warmup=0)
    before = trainer.parts.policy.exported()
    reports = train(trainer, feed, 0, 4)
    after = trainer.parts.policy.exported()
    assert all(report.moved for report in reports)
    assert before is not None
    assert after is not None
    assert before["pi"] != after["pi"]
    told = trainer.parts.policy.log()
    assert told["policy/l_reg"] > 0


@pytest.mark.parametrize(
    "options", [{}, {"views__scale": 0.5}, {"views__fraction": 0.5}, {"views__scale": 0.5, "views__fraction": 0.5}]
)
def test_blank_winners_are_counted_where_candidates_are_not_rendered_again(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the views that are trained on, whatever candidates there were and at whatever size they were scored."""
    gray_out = Operation("contrast", partial(operations.contrast, reach=1.0), signed=True)
    monkeypatch.setattr(learned, "space", lambda *_: (gray_out,))
    trainer, feed = tiny_trainer("simclr", views__policy="hard", views__inner="learned", **options)
    policy = trainer.parts.policy
    assert isinstance(policy, Hard)
    assert isinstance(policy.inner, Learned)
    with torch.no_grad():
        policy.inner.law.mu.fill_(1e3)
    micro_batch = next(feed.stream(0, 1))[0]
    views = trainer.prepare(micro_batch, trainer.clock(0)).views
    params = views.params
    plain = replace(params, extras={**params.extras, OP: torch.full_like(params.extras[OP], NOTHING)})
    rows, images = torch.as_tensor(micro_batch[0]), micro_batch[1]
    crops = trainer.render(rows, images, trainer.clock(0), plain)

    def flat(pixels: Tensor) -> Tensor:
        scale = torch.tensor(trainer.config.images.std)[:, None, None]
        return (pixels * scale).var((2, 3), correction=0).mean(1).sqrt() < 0.03

    blanked = torch.cat([flat(views[slot]) & ~flat(crops[slot]) for slot in views.names]).float().mean()
    assert 0 < blanked < 1
    assert policy.log()["policy/dead_views"] == pytest.approx(float(blanked))


def test_a_run_leaves_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`policy.json`, whole or not at all, which can be replayed; what is none is refused before training."""
    replaced = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: replaced.append(Path(b).name) or replace(a, b))
    settings = {**TINY, "views.locals": 0, "train.steps": 6, "monitor.log_every": 2}
    run = belvedere.pretrain(tiles(24), views=policies.learned(warmup=0), out=tmp_path / "run", settings=settings)
    assert replaced.count("policy.json") == 1
    policy = json.loads((run / "policy.json").read_text())
    assert policy["space"] == "ssl12"
    assert len(set(policy["pi"].values())) > 6
    told = [line for line in read_metrics(run) if "policy/l_reg" in line]
    assert told
    assert {"policy/p/rotate", "policy/reward_se/rotate", "policy/lambda", "policy/dead_views"} <= told[-1].keys()
    replay = Learned(Learned.Options(exported=str(run / "policy.json")), CROPS, 3)
    assert replay.exported() == policy
    broken = policies.learned(exported=str(run / "config.yaml"))
    with pytest.raises(belvedere.UserError, match=r"views\.exported=.*config.yaml: is no policy.json"):
        belvedere.pretrain(tiles(24), views=broken, out=tmp_path / "broken", settings=settings)
    assert not (tmp_path / "broken" / "metrics.jsonl").exists()
