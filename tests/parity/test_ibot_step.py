"""Three whole iBOT steps against the official training loop (spec objectives 6.7)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close, tiny_vit, to_branch, without_key_bias
from torch import Tensor, nn

from belvedere.objectives.ibot import Ibot, IbotOptions
from belvedere.pretrain.method import Branch, Job
from belvedere.pretrain.optim import build_optimizer, cancel_frozen, clip_per_tensor
from belvedere.schedules import Clock


def make_objective(h: dict[str, Any], momentum: float) -> Ibot:
    head = h["head"]
    (start, end, warmup), (patch_start, patch_end, _) = h["teacher_temp"], h["teacher_patch_temp"]
    options = IbotOptions(
        prototypes=head["out_dim"],
        patch_prototypes=head["patch_out_dim"],
        shared_head=h["shared_head"],
        hidden=head["hidden_dim"],
        bottleneck=head["bottleneck_dim"],
        layers=head["nlayers"],
        norm_last_layer=h["norm_last_layer"],
        student_temp=h["student_temp"],
        warmup_teacher_temp=start,
        teacher_temp=end,
        warmup_patch_teacher_temp=patch_start,
        patch_teacher_temp=patch_end,
        teacher_temp_warmup=warmup,
        teacher_temp_by="epoch",
        centering="mean",
        center_momentum=h["center_momentum"],
        patch_center_momentum=h["center_momentum"],
        lambda1=h["lambda1"],
        lambda2=h["lambda2"],
        momentum=momentum,
        mask_ratio=(0.0, 0.3),
        mask_ratio_var=(0.0, 0.2),
        mask_start=0.0,
        freeze_last_layer=h["freeze_last_layer"],
    )
    return Ibot(options, dim=h["embed_dim"])


def make_branch(h: dict[str, Any], head: nn.Module, state: dict[str, Tensor], mask_token: bool) -> Branch:
    backbone = tiny_vit(
        size=h["img"],
        patch=h["patch"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["heads"],
        mlp_ratio=h["mlp_ratio"],
        mask_token=mask_token,
    )
    branch = Branch(backbone, head)
    own = {name: x for name, x in to_branch(state).items() if mask_token or name != "backbone.mask_token"}
    branch.load_state_dict(only_one_last_layer(own))
    return branch


def only_one_last_layer(state: dict[str, Any]) -> dict[str, Any]:
    """The reference names the shared last layer twice."""
    return {name: x for name, x in state.items() if not name.startswith("head.last_layer2")}


def project(branch: Branch, jobs: dict[str, Job]) -> dict[str, dict[str, Tensor]]:
    features = branch.encode({(slot,): job for slot, job in jobs.items()})
    return branch.project({slot: features[(slot,)] for slot in jobs})


def test_three_steps(golden: Load) -> None:
    g = golden("ibot_step")
    h = g.hparams
    assert h["teacher_temp"][2] == h["teacher_patch_temp"][2]
    objective = make_objective(h, float(g["momentum"][0]))
    student = make_branch(h, objective.make_head(), g.state("init."), mask_token=True)
    teacher = make_branch(h, objective.make_target_head(), g.state("init."), mask_token=False).requires_grad_(False)
    slots = ["global_a", "global_b", *[f"local_{i}" for i in range(h["n_local"])]]
    masks: list[Tensor | None] = [*g["mask"], *[None] * h["n_local"]]
    jobs = {slot: Job(g[f"crop_{i}"], mask) for i, (slot, mask) in enumerate(zip(slots, masks, strict=True))}
    optimizer = build_optimizer("adamw", student, lr=0.0, weight_decay=0.0, decay="matrices")
    names = {id(p): name for name, p in student.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["decayed"] for p in group["params"]}
    assert decayed == set(to_branch(dict.fromkeys(g.arrays["regularized"].tolist())))
    total = h["epochs"] * h["iters_per_epoch"]

    for step in range(h["steps"]):
        clock = Clock(step, h["iters_per_epoch"], total)
        assert objective.momentum(clock) == pytest.approx(float(g["momentum"][step]), abs=1e-10)
        for group in optimizer.param_groups:
            group["lr"] = float(g["lr"][step])
            group["weight_decay"] = float(g["wd"][step]) if group["decayed"] else 0.0
        with torch.no_grad():
            target = project(teacher, {slot: Job(jobs[slot].pixels) for slot in slots[:2]})
        e = objective.embed(project(student, jobs), target, clock)
        loss = objective.per_image(e).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_per_tensor(student.parameters(), h["clip_grad"])
        cancel_frozen(student, objective.frozen(clock))
        optimizer.step()
        objective.after_step(student, teacher, clock, e.stats)

        assert_close(loss, g["loss"][step], 1e-5)
        read = objective.diagnose(e)
        assert_close(h["lambda1"] * read["loss_cls"], g["loss_cls"][step], 1e-5)
        assert_close(h["lambda2"] * read["loss_patch"], g["loss_patch"][step], 1e-5)
        assert_close(objective.center, g[f"center_cls_{step}"], 1e-5)
        assert_close(objective.patch_center, g[f"center_patch_{step}"], 1e-5)
        for branch, name in ((student, "student"), (teacher, "teacher")):
            own = dict(branch.named_parameters())
            order = g.arrays[f"{name}_param_order"].tolist()
            norms = dict(zip(order, g[f"{name}_param_l2_{step}"], strict=True))
            for parameter, norm in only_one_last_layer(to_branch(norms)).items():
                assert_close(own[parameter].norm(), norm, 2e-4)

    own = dict(student.named_parameters())
    expected = only_one_last_layer(to_branch(g.state("final_student.")))
    assert expected.keys() == own.keys()
    for parameter, tensor in expected.items():
        assert_close(without_key_bias(parameter, own[parameter]), without_key_bias(parameter, tensor), 2e-4)
