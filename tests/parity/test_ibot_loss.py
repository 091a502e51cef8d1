"""iBOT's loss and centres against the official `iBOTLoss` (spec objectives 6.2, 6.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from core_helpers import Load, assert_close
from torch import Tensor, nn

from belvedere.distributed import all_sum
from belvedere.objectives.contract import Embeddings
from belvedere.objectives.ibot import Ibot, IbotOptions
from belvedere.schedules import Clock
from processes import run_processes

GLOBALS = ["global_a", "global_b"]


def make(h: dict[str, Any], temperatures: dict[str, float], patch_center_momentum: float) -> Ibot:
    options = IbotOptions(
        prototypes=h["out_dim"],
        patch_prototypes=h["patch_out_dim"],
        shared_head=h["out_dim"] == h["patch_out_dim"],
        hidden=8,
        student_temp=h["student_temp"],
        center_momentum=h["center_momentum"],
        patch_center_momentum=patch_center_momentum,
        lambda1=h["lambda1"],
        lambda2=h["lambda2"],
        momentum=0.996,
        mask_ratio=(0.0, 0.3),
        mask_ratio_var=(0.0, 0.2),
        freeze_last_layer=1.0,
        teacher_temp_by="epoch",
        centering="mean",
        norm_last_layer=True,
        **temperatures,
    )
    return Ibot(options, dim=4)


def with_start(h: dict[str, Any]) -> dict[str, float]:
    return {
        "warmup_teacher_temp": h["warmup_teacher_temp"],
        "teacher_temp": h["teacher_temp"],
        "warmup_patch_teacher_temp": h["warmup_teacher_temp2"],
        "patch_teacher_temp": h["teacher_temp2"],
        "teacher_temp_warmup": h["warmup_teacher_temp_epochs"],
        "mask_start": h["mim_start_epoch"],
    }


def embed(objective: Ibot, leaves: dict[str, Tensor], mask: Tensor, clock: Clock) -> Embeddings:
    """Crop-major rows of the official loss, as the heads give them: the student's patches only where masked."""
    masks = dict(zip(GLOBALS, mask.flatten(2), strict=True))
    patches = dict(zip(GLOBALS, leaves["student_patch"].chunk(2), strict=True))
    classes = zip(GLOBALS, leaves["student_cls"].chunk(2), strict=True)
    online = {
        slot: {
            "cls": rows,
            "patch": patches[slot][masks[slot]],
            "mask": masks[slot],
            "places": masks[slot].flatten().nonzero().squeeze(1),
        }
        for slot, rows in classes
    }
    if "student_local_cls" in leaves:
        local = leaves["student_local_cls"].split(mask.shape[1])
        online |= {f"local_{i}": {"cls": rows} for i, rows in enumerate(local)}
    teacher = zip(GLOBALS, leaves["teacher_cls"].chunk(2), leaves["teacher_patch"].chunk(2), strict=True)
    return objective.embed(online, {slot: {"cls": rows, "patch": own} for slot, rows, own in teacher}, clock)


def step(objective: Ibot, leaves: dict[str, Tensor], mask: Tensor, clock: Clock) -> dict[str, Tensor]:
    """Losses and gradients, then the centres' update with the sums of all processes."""
    for name, leaf in leaves.items():
        leaf.requires_grad_(name.startswith("student"))
    e = embed(objective, leaves, mask, clock)
    loss = objective.per_image(e).mean()
    loss.backward()
    patch = torch.stack([objective.view_loss(e, slot).mean() for slot in GLOBALS]).sum().detach()
    stats = {name: all_sum(value) for name, value in e.stats.items()}
    objective.after_step(nn.Identity(), nn.Identity(), clock, stats)
    found = {"loss": loss.detach(), "loss_patch": patch, "loss_cls": loss.detach() - patch}
    found |= {"center_cls_after": objective.center.clone(), "center_patch_after": objective.patch_center.clone()}
    return found | {f"grad_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


ROWS = ("student_cls", "student_patch", "student_local_cls", "teacher_cls", "teacher_patch")


def test_three_steps_with_local_crops(golden: Load) -> None:
    g = golden("ibot_loss")
    h = g.hparams
    objective = make(h, with_start(h), h["center_momentum2"])
    empty, full = False, False
    for i in range(3):
        assert_close(objective.center, g[f"center_cls_before_{i}"], 2e-5)
        assert_close(objective.patch_center, g[f"center_patch_before_{i}"], 2e-5)
        mask = g[f"mask_{i}"]
        empty, full = empty or not mask.any((2, 3)).all(), full or bool(mask.all(3).all(2).any())
        clock = Clock(int(g[f"epoch_{i}"]), steps_per_epoch=1, total_steps=h["nepochs"])
        found = step(objective, {name: g[f"{name}_{i}"] for name in ROWS}, mask, clock)
        assert {f"grad_{name}" for name in ROWS[:3]} < found.keys()
        for name, value in found.items():
            assert_close(value, g[f"{name}_{i}"], 2e-5)
    assert empty
    assert full
    for epoch in range(h["nepochs"]):
        clock = Clock(epoch, 1, h["nepochs"])
        assert abs(objective.teacher_temp(clock) - g["teacher_temp_schedule"][epoch]) < 1e-10
        assert abs(objective.patch_teacher_temp(clock) - g["teacher_patch_temp_schedule"][epoch]) < 1e-10


def test_without_local_crops(golden: Load) -> None:
    g = golden("ibot_loss")
    objective = make(g.hparams, with_start(g.hparams), g.hparams["center_momentum2"])
    rows = {name: g[f"nolocal.{name}"] for name in ROWS if "local" not in name}
    found = step(objective, rows, g["nolocal.mask"], Clock(int(g["nolocal.epoch"]), 1, g.hparams["nepochs"]))
    for name in ("loss", "loss_cls", "loss_patch", "grad_student_cls", "grad_student_patch"):
        assert_close(found[name], g[f"nolocal.{name}"], 2e-5)


def two_ranks(rank: int, arrays: dict[str, Tensor], h: dict[str, Any]) -> list[dict[str, Tensor]]:
    (start, end, warmup), (patch_start, patch_end, _) = h["teacher_temp"], h["teacher_patch_temp"]
    temperatures = {
        "mask_start": 0.0,
        "warmup_teacher_temp": start,
        "teacher_temp": end,
        "warmup_patch_teacher_temp": patch_start,
        "patch_teacher_temp": patch_end,
        "teacher_temp_warmup": warmup,
    }
    objective = make(h, temperatures, h["center_momentum_patch"])
    found = []
    for i, epoch in enumerate(h["epochs_used"]):
        rows = {name: arrays[f"{name.removesuffix('_cls') if 'local' in name else name}_{i}_r{rank}"] for name in ROWS}
        found.append(step(objective, rows, arrays[f"mask_{i}_r{rank}"], Clock(epoch, 1, warmup)))
    return found


def test_two_processes(golden: Load, tmp_path: Path) -> None:
    g = golden("ibot_loss_ws2")
    assert g.hparams["teacher_temp"][2] == g.hparams["teacher_patch_temp"][2]
    arrays = {name: g[name] for name in g.names}
    results = run_processes(g.hparams["world_size"], tmp_path, two_ranks, arrays, g.hparams)
    for rank, steps in enumerate(results):
        for i, found in enumerate(steps):
            for name in ("loss", "loss_cls", "loss_patch", "grad_student_cls", "grad_student_patch"):
                assert_close(found[name], g[f"{name}_{i}_r{rank}"], 2e-5)
            for name in ("center_cls_after", "center_patch_after"):
                assert_close(found[name], g[f"{name}_{i}"], 2e-5)
    for name in ("center_cls_after", "center_patch_after"):
        assert torch.equal(results[0][-1][name], results[1][-1][name])
