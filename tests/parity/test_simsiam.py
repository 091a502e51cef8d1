"""SimSiam against the official code: the loss, and three whole steps with its optimiser (spec objectives 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.objectives.simsiam import SimSiam, SimSiamOptions
from belvedere.pretrain.optim import build_optimizer
from belvedere.schedules import Clock, cosine

CLOCK = Clock(0, 1, 1)


def make(dim: int, out: int, bottleneck: int) -> SimSiam:
    return SimSiam(SimSiamOptions(hidden=dim, out=out, bottleneck=bottleneck), dim)


def test_loss(golden: Load) -> None:
    g = golden("simsiam_loss")
    for case in ("a", "b"):
        views = {
            slot: {"p": g[f"{case}.p{i}"].requires_grad_(), "z": g[f"{case}.z{i}"].requires_grad_()}
            for i, slot in enumerate(("global_a", "global_b"), start=1)
        }
        objective = make(1, 1, 1)
        loss = objective.per_image(objective.embed(views, {}, CLOCK)).mean()
        loss.backward()
        assert_close(loss, g[f"{case}.loss"], 2e-5)
        for i, view in enumerate(views.values(), start=1):
            assert_close(view["p"].grad, g[f"{case}.grad_p{i}"], 2e-5)
            assert view["z"].grad is None


def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's names as ours. The frozen bias only moves the last running mean: taken off."""
    state = dict(state)
    frozen = state.pop("encoder.fc.6.bias")
    state["encoder.fc.7.running_mean"] = state["encoder.fc.7.running_mean"] - frozen
    names = {"encoder.body.": "body.", "encoder.fc.": "head.projector.", "predictor.": "head.predictor."}
    return {
        next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)): tensor
        for name, tensor in state.items()
    }


def check_gradients(g: Any, student: nn.Module) -> None:
    own = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
    expected = ours(
        {**g.state("grad0."), "encoder.fc.6.bias": torch.zeros(()), "encoder.fc.7.running_mean": torch.zeros(())}
    )
    del expected["head.projector.7.running_mean"]
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(own[name], gradient, 1e-5)


def forward(student: nn.Module, x: Tensor) -> dict[str, Tensor]:
    features = torch.relu(student.body(x))
    return student.head(Features(features, features[:, None], (1, 1), features[:, None]))


def test_three_steps(golden: Load) -> None:
    g = golden("simsiam_step")
    h: dict[str, Any] = g.hparams
    objective = make(h["feat_dim"], h["dim"], h["pred_dim"])
    student = nn.ModuleDict({"body": nn.Linear(h["in_dim"], h["feat_dim"]), "head": objective.make_head()})
    missing, unexpected = student.load_state_dict(ours(g.state("init.")), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert {name for name, p in student.named_parameters() if p.requires_grad} == set(
        ours(
            {**dict.fromkeys(g.arrays["trainable"].tolist(), 0), "encoder.fc.6.bias": 0, "encoder.fc.7.running_mean": 0}
        )
    ) - {"head.projector.7.running_mean"}
    optimizer = build_optimizer(
        "sgd",
        student,
        lr=h["lr_peak"],
        weight_decay=h["sgd"]["weight_decay"],
        decay="all",
        fixed_lr_prefixes=objective.fixed_lr,
    )

    for step in range(h["steps"]):
        clock = Clock(step, h["iters_per_epoch"], h["epochs"] * h["iters_per_epoch"])
        epoch = clock.step // clock.steps_per_epoch
        for group in optimizer.param_groups:
            group["lr"] = h["lr_peak"] if group["fixed_lr"] else cosine(epoch, h["epochs"], h["lr_peak"], 0.0)
            assert group["lr"] == pytest.approx(float(g["lr"][step][1 if group["fixed_lr"] else 0]), abs=1e-10)
        online = {slot: forward(student, g[f"x{i}_{step}"]) for i, slot in ((1, "global_a"), (2, "global_b"))}
        loss = objective.per_image(objective.embed(online, {}, clock)).mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for i, output in enumerate(online.values(), start=1):
                assert_close(output["p"], g[f"p{i}"], 1e-5)
                assert_close(output["z"], g[f"z{i}"], 1e-5)
            check_gradients(g, student)
        optimizer.step()
        assert_close(loss, g["loss"][step], 1e-5)

    final = student.state_dict()
    for name, tensor in ours(g.state("final.")).items():
        assert_close(final[name], tensor, 1e-4)
