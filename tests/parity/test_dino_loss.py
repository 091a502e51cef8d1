"""DINO's loss and centre against the official `DINOLoss` (spec objectives 5.1, 5.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from core_helpers import Load, assert_close
from torch import Tensor, nn

from belvedere.distributed import all_sum
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.schedules import Clock
from processes import run_processes

SETTLED = {
    "momentum": 0.996,
    "freeze_last_layer": 1.0,
    "teacher_temp_by": "epoch",
    "centering": "mean",
    "use_bn": False,
    "norm_last_layer": True,
}


def make(h: dict[str, Any], temperature: tuple[float, float, float]) -> Dino:
    start, end, warmup = temperature
    options = DinoOptions(
        prototypes=h["out_dim"],
        hidden=8,
        student_temp=h["student_temp"],
        center_momentum=h["center_momentum"],
        warmup_teacher_temp=start,
        teacher_temp=end,
        teacher_temp_warmup=warmup,
        **SETTLED,
    )
    return Dino(options, dim=4)


def slots(n_local: int) -> list[str]:
    return ["global_a", "global_b", *[f"local_{i}" for i in range(n_local)]]


def loss_step(objective: Dino, student: Tensor, teacher: Tensor, n_local: int, clock: Clock) -> Tensor:
    """Loss of crop-major rows, then the centre's update with the sums of all processes."""
    views = slots(n_local)
    online = {slot: {"cls": rows} for slot, rows in zip(views, student.chunk(len(views)), strict=True)}
    target = {slot: {"cls": rows} for slot, rows in zip(views[:2], teacher.chunk(2), strict=True)}
    e = objective.embed(online, target, clock)
    loss = objective.per_image(e).mean()
    stats = {name: all_sum(value) for name, value in e.stats.items()}
    objective.after_step(nn.Identity(), nn.Identity(), clock, stats)
    return loss


def test_three_steps_with_local_crops(golden: Load) -> None:
    g = golden("dino_loss")
    h = g.hparams
    objective = make(h, (h["warmup_teacher_temp"], h["teacher_temp"], h["warmup_teacher_temp_epochs"]))
    for i in range(3):
        assert_close(objective.center, g[f"center_before_{i}"], 2e-5)
        student = g[f"student_{i}"].requires_grad_()
        clock = Clock(int(g[f"epoch_{i}"]), steps_per_epoch=1, total_steps=h["epochs"])
        loss = loss_step(objective, student, g[f"teacher_{i}"], h["n_local"], clock)
        loss.backward()
        assert_close(loss, g[f"loss_{i}"], 2e-5)
        assert_close(student.grad, g[f"grad_student_{i}"], 2e-5)
        assert_close(objective.center, g[f"center_after_{i}"], 2e-5)
    for epoch, expected in enumerate(g["teacher_temp_schedule"].tolist()):
        assert abs(objective.teacher_temp(Clock(epoch, 1, h["epochs"])) - expected) < 1e-10


def test_without_local_crops(golden: Load) -> None:
    g = golden("dino_loss_2crops")
    objective = make(g.hparams, (g.hparams["teacher_temp"], g.hparams["teacher_temp"], 0))
    for i in range(2):
        student = g[f"student_{i}"].requires_grad_()
        loss = loss_step(objective, student, g[f"teacher_{i}"], 0, Clock(i, 1, 2))
        loss.backward()
        assert_close(loss, g[f"loss_{i}"], 2e-5)
        assert_close(student.grad, g[f"grad_student_{i}"], 2e-5)
        assert_close(objective.center, g[f"center_after_{i}"], 2e-5)


def two_ranks(rank: int, arrays: dict[str, Tensor], h: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    objective = make(h, tuple(h["teacher_temp"]))
    found = []
    for i, epoch in enumerate(h["epochs_used"]):
        student = arrays[f"student_{i}_r{rank}"].requires_grad_()
        clock = Clock(epoch, 1, h["teacher_temp"][2])
        loss = loss_step(objective, student, arrays[f"teacher_{i}_r{rank}"], h["n_local"], clock)
        loss.backward()
        found.append((loss.detach(), student.grad, objective.center.clone()))
    return found


def test_two_processes(golden: Load, tmp_path: Path) -> None:
    g = golden("dino_loss_ws2")
    arrays = {name: g[name] for name in g.names}
    results = run_processes(g.hparams["world_size"], tmp_path, two_ranks, arrays, g.hparams)
    for rank, steps in enumerate(results):
        for i, (loss, grad, center) in enumerate(steps):
            assert_close(loss, g[f"loss_{i}_r{rank}"], 2e-5)
            assert_close(grad, g[f"grad_student_{i}_r{rank}"], 2e-5)
            assert_close(center, g[f"center_after_{i}"], 2e-5)
    assert torch.equal(results[0][-1][2], results[1][-1][2])
