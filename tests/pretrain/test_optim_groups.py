"""Optimisers and gradients: what the goldens do not cover."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from belvedere.errors import UserError
from belvedere.objectives._ema import ema_update
from belvedere.pretrain.optim import (
    build_optimizer,
    cancel_frozen,
    clip_global_norm,
    clip_per_tensor,
    parameter_groups,
)
from processes import run_processes


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "predictor": nn.Linear(4, 2)})


def names_of(module: nn.Module, group: dict[str, object]) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in module.named_parameters() if id(p) in ids}


def test_groups_carry_what_the_loop_sets_each_step() -> None:
    module = network()
    module["body"].bias.requires_grad_(False)
    groups = parameter_groups(module, 0.1, 0.05, "matrices", ("predictor",))
    found = {(group["decayed"], group["fixed_lr"]): names_of(module, group) for group in groups}
    assert found == {
        (True, False): {"body.weight"},
        (True, True): {"predictor.weight"},
        (False, False): {"norm.weight", "norm.bias"},
        (False, True): {"predictor.bias"},
    }
    (everything,) = parameter_groups(module, 0.1, 0.05, "all")
    assert everything["decayed"]
    assert everything["weight_decay"] == 0.05
    assert len(everything["params"]) == 5


def moved(rank: int, name: str, sharded: bool) -> list[Tensor]:
    """Parameters after three steps on made-up gradients, whole."""
    module = network()
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        for layer in module.values():
            for key, p in list(layer.named_parameters()):
                setattr(layer, key, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
    optimizer = build_optimizer(name, module, lr=0.1, weight_decay=0.05, decay="matrices")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p in module.parameters():
            whole = torch.randn(p.shape, generator=generator)
            p.grad = distribute_tensor(whole, p.device_mesh, p.placements) if isinstance(p, DTensor) else whole
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
    found = (p.detach() for p in module.parameters())
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in found]


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_sharded_parameters_move_as_whole_ones(name: str, tmp_path: Path) -> None:
    for parts in run_processes(2, tmp_path, moved, name, True):
        for part, whole, start in zip(parts, moved(0, name, False), network().parameters(), strict=True):
            assert (part - whole).abs().max() <= 2e-7 + 1e-4 * (whole - start).abs().max()
            assert not torch.equal(part, start)


@pytest.mark.parametrize("name", ["adamw", "adamw_095"])
def test_adamw_is_torch_s_own(name: str) -> None:
    """The pass over a whole tensor computes what the plain loop does."""
    module = network()
    groups = parameter_groups(module, 0.1, 0.05, "matrices")
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.95 if name == "adamw_095" else 0.999), eps=1e-8, foreach=False)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for group in plain.param_groups:
            group["lr"] = 0.1
        plain.step()
    for ours, theirs in zip(moved(0, name, False), module.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lars_torch"])
def test_every_optimiser_learns_and_resumes(name: str) -> None:
    def train(module: nn.ModuleDict, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        x = torch.ones(2, 3)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = module["predictor"](module["norm"](module["body"](x))).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    settings = {"lr": 0.01, "weight_decay": 0.01, "decay": "matrices"}
    module = network()
    optimizer = build_optimizer(name, module, **settings)
    losses = train(module, optimizer, 6)
    assert losses[-1] < losses[0]
    twin = network()
    twin.load_state_dict(module.state_dict())
    resumed = build_optimizer(name, twin, **settings)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(module, optimizer, 3) == train(twin, resumed, 3)


def test_an_unknown_optimiser_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        build_optimizer("adam", network(), lr=0.1, weight_decay=0.0, decay="all")


def test_the_two_clippings_differ() -> None:
    def with_gradients() -> list[nn.Parameter]:
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.tensor([3.0, 4.0])
        parameters[1].grad = torch.tensor([0.6, 0.8])
        return parameters

    each = with_gradients()
    torch.testing.assert_close(clip_per_tensor(each, 2.0), torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(each[0].grad, torch.tensor([1.2, 1.6]))
    torch.testing.assert_close(each[1].grad, torch.tensor([0.6, 0.8]), atol=0, rtol=0)
    assert each[2].grad is None
    together = with_gradients()
    torch.testing.assert_close(clip_global_norm(together, 2.0), torch.tensor(26.0).sqrt())
    torch.testing.assert_close(together[0].grad.norm() / together[1].grad.norm(), torch.tensor(5.0))
    assert clip_per_tensor([nn.Parameter(torch.zeros(1))], 1.0).numel() == 0


def test_a_cancelled_layer_neither_moves_nor_decays() -> None:
    module = network()
    before = module["predictor"].weight.clone()
    optimizer = build_optimizer("adamw", module, lr=0.1, weight_decay=0.5, decay="all")
    module["predictor"](module["norm"](module["body"](torch.ones(1, 3)))).sum().backward()
    cancel_frozen(module, ("predictor",))
    optimizer.step()
    assert torch.equal(module["predictor"].weight, before)
    cancel_frozen(module, ())
    assert module["body"].weight.grad is not None


def test_ema_leaves_buffers_and_what_one_side_lacks() -> None:
    student = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "extra": nn.Linear(1, 1)})
    teacher = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "own": nn.Linear(1, 1)})
    student["norm"].running_mean.fill_(5)
    student["norm"].weight.data.fill_(3)
    own = teacher["own"].weight.clone()
    ema_update(student, teacher, 0.75)
    assert teacher["norm"].weight.tolist() == [1.5, 1.5]
    assert not teacher["norm"].running_mean.any()
    assert torch.equal(teacher["own"].weight, own)
