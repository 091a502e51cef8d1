"""Two processes with parts of a batch are one process with the whole: loss, gradient, centre, batch statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.distributed import all_sum, join_batchnorm, world_size
from belvedere.objectives.contract import Objective, is_global
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.objectives.mocov3 import MoCoV3, MoCoV3Options
from belvedere.objectives.simclr import SimClr, SimClrOptions
from belvedere.objectives.simsiam import SimSiam, SimSiamOptions
from belvedere.schedules import Clock
from processes import run_processes

DIM, BATCH = 6, 8
SHARES = [(0, 3), (3, 8)]
NAMES = ("dino", "dino, equal shares", "simclr", "simsiam", "mocov3")


def make(name: str) -> Objective:
    if name == "simclr":
        return SimClr(SimClrOptions(temperature=0.2, hidden=7, out=5, layers=2), DIM)
    if name == "simsiam":
        return SimSiam(SimSiamOptions(hidden=7, out=5, bottleneck=4), DIM)
    if name == "mocov3":
        return MoCoV3(MoCoV3Options(temperature=0.2, hidden=7, out=5, layers=3, momentum=0.9), DIM)
    options = DinoOptions(
        centering="sinkhorn" if name == "dino, equal shares" else "mean",
        teacher_temp=0.04,
        warmup_teacher_temp=0.04,
        prototypes=12,
        hidden=7,
        bottleneck=5,
        use_bn=True,
        norm_last_layer=False,
        teacher_temp_warmup=0,
        teacher_temp_by="step",
        momentum=0.9,
        freeze_last_layer=0,
    )
    return Dino(options, DIM)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {slot: torch.randn(BATCH, DIM, generator=generator) for slot in ("global_a", "global_b", "local_0")}


def features(x: Tensor) -> Features:
    return Features(cls=x, patches=x.unsqueeze(1), grid=(1, 1), prefix=x.unsqueeze(1))


def train_step(name: str, start: int, stop: int) -> dict[str, Tensor]:
    """One step on images start..stop of the batch; everything that must not depend on how the batch is shared out."""
    torch.manual_seed(0)
    objective = make(name)
    student = nn.ModuleDict({"head": objective.make_head()})
    teacher = nn.ModuleDict({"head": objective.make_target_head()})
    join_batchnorm(student)
    join_batchnorm(teacher)
    own = {slot: x[start:stop] for slot, x in batch().items()}
    online = {slot: student["head"](features(x)) for slot, x in own.items()}
    with torch.no_grad():
        globals_ = {slot: x for slot, x in own.items() if is_global(slot)}
        target = {slot: teacher["head"](features(x)) for slot, x in globals_.items()} if objective.has_teacher else {}
    clock = Clock(0, 5, 10)
    objective.before_target(student, teacher, clock)
    e = objective.embed(online, target, clock)
    loss = objective.per_image(e).sum() * world_size() / BATCH
    loss.backward()
    stats = {key: all_sum(value) for key, value in e.stats.items()}
    objective.after_step(student, teacher, clock, stats)
    found = {"loss": all_sum(loss.detach()) / world_size()}
    for parameter, p in student.named_parameters():
        if p.grad is not None:
            found[f"grad {parameter}"] = all_sum(p.grad) / world_size()
    for owner, module in (("student", student), ("teacher", teacher), ("objective", objective)):
        found |= {f"{owner} {key}": tensor.clone() for key, tensor in module.named_buffers()}
    return found


def every_objective(rank: int, names: list[str]) -> dict[str, Any]:
    return {name: train_step(name, *SHARES[rank]) for name in names}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_processes(2, tmp_path_factory.mktemp("processes"), every_objective, list(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_two_uneven_processes_are_one(shared: list[Any], name: str) -> None:
    whole = train_step(name, 0, BATCH)
    assert any(key.startswith("grad") for key in whole)
    assert any("running_mean" in key for key in whole)
    # Rounding is as large as the largest gradient makes it, also where the true one is 0 (a bias before a BatchNorm).
    scale = max(1.0, *(tensor.abs().max().item() for key, tensor in whole.items() if key.startswith("grad")))
    for part in shared:
        assert part[name].keys() == whole.keys()
        for key, expected in whole.items():
            torch.testing.assert_close(part[name][key], expected, atol=2e-6 * scale, rtol=1e-4, msg=f"{name}: {key}")
