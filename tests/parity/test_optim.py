"""EMA, parameter groups, clipping and LARS against the official code (spec objectives 1.4, 1.8, 1.9, 5.4)."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Load, assert_close
from torch import nn

from belvedere.objectives._ema import ema_update
from belvedere.pretrain.optim import Lars, cancel_frozen, clip_per_tensor, parameter_groups


def test_ema(golden: Load) -> None:
    g = golden("ema_update")
    rows, columns = g["k_weight_init"].shape
    student, teacher = nn.Linear(columns, rows), nn.Linear(columns, rows)
    teacher.load_state_dict({"weight": g["k_weight_init"], "bias": g["k_bias_init"]})
    steps = [name for name in g.names if name.startswith("m_")]
    for i in range(len(steps)):
        student.load_state_dict({"weight": g[f"q_weight_{i}"], "bias": g[f"q_bias_{i}"]})
        ema_update(student, teacher, float(g[f"m_{i}"]))
        assert_close(teacher.weight, g[f"k_weight_{i}"], 1e-6)
        assert_close(teacher.bias, g[f"k_bias_{i}"], 1e-6)


class Named(nn.Module):
    """Parameters under the reference's dotted names."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for path, tensor in parameters.items():
            *folders, name = path.split(".")
            owner: nn.Module = self
            for folder in folders:
                if not hasattr(owner, folder):
                    owner.add_module(folder, nn.Module())
                owner = getattr(owner, folder)
            owner.register_parameter(name, nn.Parameter(tensor))


def test_groups_clipping_and_the_frozen_layer(golden: Load) -> None:
    g = golden("dino_grad_ops")
    gradients = g.state("grad_before.")
    module = Named({name: torch.zeros_like(grad) for name, grad in gradients.items()})
    for name, p in module.named_parameters():
        p.grad = gradients[name]
    order = g.arrays["param_names"].tolist()
    by_name = dict(module.named_parameters())

    norms = clip_per_tensor([by_name[name] for name in order], g.hparams["clip"])
    assert_close(norms, g["norms"], 1e-5)
    for name, expected in g.state("grad_after.").items():
        assert_close(by_name[name].grad, expected, 1e-5)

    groups = parameter_groups(module, lr=0.1, weight_decay=0.4, decay="matrices")
    names = {id(p): name for name, p in by_name.items()}
    split = {group["decayed"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert split[True] == set(g.arrays["regularized"].tolist())
    assert split[False] == set(g.arrays["not_regularized"].tolist())
    assert {group["decayed"]: group["weight_decay"] for group in groups} == {True: 0.4, False: 0.0}

    cancel_frozen(module, ("head.last_layer",))
    cancelled = {name for name, p in by_name.items() if p.grad is None}
    assert cancelled == set(g.arrays["none_after_cancel_epoch0_freeze1"].tolist())


@pytest.mark.parametrize(("name", "lr_in_momentum"), [("lars_torch", False), ("lars_simclr", True)])
def test_lars(golden: Load, name: str, lr_in_momentum: bool) -> None:
    g = golden(name)
    h = g.hparams
    weights = [nn.Parameter(g[key]) for key in sorted(key for key in g.names if key.endswith("_init"))]
    optimizer = Lars(
        weights,
        lr=0.0,
        momentum=h["momentum"],
        weight_decay=h["weight_decay"],
        eta=h["eta"],
        lr_in_momentum=lr_in_momentum,
    )
    for step, lr in enumerate(h["lr"]):
        optimizer.param_groups[0]["lr"] = lr
        for i, w in enumerate(weights):
            w.grad = g[f"g{i}_{step}"]
        optimizer.step()
        for i, w in enumerate(weights):
            assert_close(w, g[f"w{i}_{step}"], 1e-5)
