"""Three whole DINO steps against the official training loop (spec objectives 5.5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close, tiny_vit, to_branch, without_key_bias
from torch import Tensor

from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.pretrain.method import Branch, Job
from belvedere.pretrain.optim import build_optimizer, cancel_frozen, clip_per_tensor
from belvedere.schedules import Clock


def make_objective(h: dict[str, Any], momentum: float) -> Dino:
    head = h["head"]
    start, end, warmup = h["teacher_temp"]
    options = DinoOptions(
        prototypes=head["out_dim"],
        hidden=head["hidden_dim"],
        bottleneck=head["bottleneck_dim"],
        layers=head["nlayers"],
        use_bn=head["use_bn"],
        norm_last_layer=h["norm_last_layer"],
        student_temp=h["student_temp"],
        warmup_teacher_temp=start,
        teacher_temp=end,
        teacher_temp_warmup=warmup,
        teacher_temp_by="epoch",
        centering="mean",
        center_momentum=h["center_momentum"],
        momentum=momentum,
        freeze_last_layer=h["freeze_last_layer"],
    )
    return Dino(options, dim=h["embed_dim"])


def make_branch(h: dict[str, Any], objective: Dino, state: dict[str, Tensor]) -> Branch:
    backbone = tiny_vit(
        size=h["img"],
        patch=h["patch"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["heads"],
        mlp_ratio=h["mlp_ratio"],
    )
    branch = Branch(backbone, objective.make_head())
    branch.load_state_dict(to_branch(state))
    return branch


def project(branch: Branch, views: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    features = branch.encode({(slot,): Job(pixels) for slot, pixels in views.items()})
    return branch.project({slot: features[(slot,)] for slot in views})


def test_three_steps(golden: Load) -> None:
    g = golden("dino_step")
    h = g.hparams
    objective = make_objective(h, float(g["momentum"][0]))
    student = make_branch(h, objective, g.state("init."))
    teacher = make_branch(h, objective, g.state("init.")).requires_grad_(False)
    slots = ["global_a", "global_b", *[f"local_{i}" for i in range(h["n_local"])]]
    views = {slot: g[f"crop_{i}"] for i, slot in enumerate(slots)}
    optimizer = build_optimizer("adamw", student, lr=0.0, weight_decay=0.0, decay="matrices")
    total = h["epochs"] * h["iters_per_epoch"]

    for step in range(h["steps"]):
        clock = Clock(step, h["iters_per_epoch"], total)
        assert objective.momentum(clock) == pytest.approx(float(g["momentum"][step]), abs=1e-10)
        for group in optimizer.param_groups:
            group["lr"] = float(g["lr"][step])
            group["weight_decay"] = float(g["wd"][step]) if group["decayed"] else 0.0
        with torch.no_grad():
            target = project(teacher, {slot: views[slot] for slot in slots[:2]})
        e = objective.embed(project(student, views), target, clock)
        loss = objective.per_image(e).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_per_tensor(student.parameters(), h["clip_grad"])
        cancel_frozen(student, objective.frozen(clock))
        optimizer.step()
        objective.after_step(student, teacher, clock, e.stats)

        assert_close(loss, g["loss"][step], 1e-5)
        assert_close(objective.center, g[f"center_{step}"], 1e-5)
        assert_close(student.head.last_layer.weight_v, g[f"last_layer_v_{step}"], 2e-4)
        assert_close(student.head.last_layer.weight_g, g[f"last_layer_g_{step}"], 2e-4)
        for branch, name in ((student, "student"), (teacher, "teacher")):
            own = dict(branch.named_parameters())
            order = to_branch(dict.fromkeys(g.arrays["param_order"].tolist()))
            norms = torch.stack([own[parameter].norm() for parameter in order])
            assert_close(norms, g[f"{name}_param_l2_{step}"], 2e-4)

    for branch, name in ((student, "student"), (teacher, "teacher")):
        own = dict(branch.named_parameters())
        expected = to_branch(g.state(f"final_{name}."))
        assert expected
        for parameter, tensor in expected.items():
            assert_close(without_key_bias(parameter, own[parameter]), without_key_bias(parameter, tensor), 2e-4)
