"""Gradient norms by group: every parameter where it belongs, norms before clipping, the share that is clipped."""

from __future__ import annotations

import math

import pytest
import torch

from belvedere.pretrain.gradients import GradientGroups
from tiny import tiny_trainer, train


def gradients_of(objective: str, **settings: object) -> tuple[torch.nn.Module, GradientGroups]:
    """A method whose every gradient is 1."""
    trainer, _ = tiny_trainer(objective, **settings)
    for p in trainer.method.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    return trainer.method, GradientGroups(trainer.method)


@pytest.mark.parametrize("objective", ["dino", "simclr", "simsiam", "mocov3"])
def test_every_group_holds_its_parameters(objective: str) -> None:
    method, groups = gradients_of(objective, backbone__depth=4)
    norms = groups.norms().by_group()
    trained = {name: p.numel() for name, p in method.named_parameters() if p.requires_grad}

    def size(*marks: str) -> float:
        return math.sqrt(sum(count for name, count in trained.items() if any(mark in name for mark in marks)))

    assert norms["patch_embed"].item() == pytest.approx(size("patch_embed"))
    assert norms["first_block"].item() == pytest.approx(size(".blocks.0."))
    assert norms["middle_block"].item() == pytest.approx(size(".blocks.1."))
    assert norms["last_block"].item() == pytest.approx(size(".blocks.3."))
    head = math.hypot(norms["head_body"].item(), norms["last_layer"].item())
    assert head == pytest.approx(size("student.head."))
    assert groups.norms().total.item() == pytest.approx(size(""))
    assert ("pos_embed" in norms) == any("pos_embed" in name for name in trained)


def test_prototypes_are_the_last_layer() -> None:
    method, groups = gradients_of("dino")
    count = sum(p.numel() for name, p in method.named_parameters() if "last_layer" in name and p.requires_grad)
    assert groups.norms().by_group()["last_layer"].item() == pytest.approx(math.sqrt(count))


def test_share_of_clipped_tensors() -> None:
    _, groups = gradients_of("simclr")
    found = groups.norms()
    limit = found.norms.median().item()
    share = (found.norms > limit).float().mean().item()
    assert 0 < share < 1
    assert found.clip_rate(limit, 0).item() == pytest.approx(share)
    assert found.clip_rate(0, found.total.item() + 1).item() == 0
    assert found.clip_rate(0, found.total.item() - 1).item() == 1


def test_a_frozen_patch_projection_has_no_gradient_and_no_step() -> None:
    trainer, feed = tiny_trainer("simclr", backbone__freeze_patch=True)
    report = trainer.step(0, next(feed.stream(0, 1)), detail=True)
    assert "grad/patch_embed" not in report.scalars
    assert "patch_step" not in report.scalars


def test_what_a_step_tells() -> None:
    trainer, feed = tiny_trainer("dino")
    reports = [
        trainer.step(step, batches, detail=step == 3) for step, batches in zip(range(4), feed.stream(0, 4), strict=True)
    ]
    assert set(reports[1].scalars) == {"grad/patch_embed"}
    told = {name: float(x) for name, x in reports[3].scalars.items()}
    assert {"grad/all", "grad/last_layer", "clip_rate", "teacher_gap", "patch_step", "kl"} <= set(told)
    assert told["momentum"] == pytest.approx(trainer.parts.objective.momentum(trainer.clock(3)))
    assert told["teacher_temp"] == pytest.approx(trainer.parts.objective.teacher_temp(trainer.clock(3)))
    assert 0 < told["teacher_gap"] < 0.1
    assert 0 < told["patch_step"] < 0.1
    assert 0 <= told["clip_rate"] <= 1


def test_a_teacher_that_copies_the_student_has_no_gap() -> None:
    trainer, feed = tiny_trainer("dino", objective__momentum=0.0, train__steps=100)
    train(trainer, feed, 0, 2)
    report = trainer.step(2, next(feed.stream(2, 3)), detail=True)
    assert float(report.scalars["teacher_gap"]) < 1e-3
