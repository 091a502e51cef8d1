"""SimCLR's loss against NT-Xent of the official code and of its PyTorch ports (spec objectives 2.1, 2.2)."""

from __future__ import annotations

from pathlib import Path

from core_helpers import Load, assert_close
from torch import Tensor

from belvedere.objectives.contract import Embeddings
from belvedere.objectives.simclr import SimClr, SimClrOptions
from belvedere.schedules import Clock
from processes import run_processes

CLOCK = Clock(0, 1, 1)


def embed(z1: Tensor, z2: Tensor, temperature: float) -> tuple[SimClr, Embeddings]:
    objective = SimClr(SimClrOptions(temperature=temperature, hidden=1, layers=1), dim=1)
    return objective, objective.embed({"global_a": {"cls": z1}, "global_b": {"cls": z2}}, {}, CLOCK)


def test_one_process(golden: Load) -> None:
    g = golden("ntxent")
    for case in g.hparams["cases"]:
        z1, z2 = g[f"{case}.z1"].requires_grad_(), g[f"{case}.z2"].requires_grad_()
        objective, e = embed(z1, z2, float(g[f"{case}.T"]))
        loss = objective.per_image(e).mean()
        loss.backward()
        assert_close(loss, g[f"{case}.loss"], 2e-5)
        assert_close(2 * loss, g[f"{case}.official_tf_loss"], 2e-5)
        assert_close(z1.grad, g[f"{case}.grad_z1"], 2e-5)
        assert_close(z2.grad, g[f"{case}.grad_z2"], 2e-5)
        assert_close(objective.diagnose(e)["contrastive_accuracy"], g[f"{case}.contrastive_acc"], 1e-6)


def test_a_single_image_costs_exactly_nothing(golden: Load) -> None:
    g = golden("ntxent")
    single = [case for case, sizes in g.hparams["cases"].items() if sizes["N"] == 1]
    assert single
    for case in single:
        objective, e = embed(g[f"{case}.z1"], g[f"{case}.z2"], float(g[f"{case}.T"]))
        assert objective.per_image(e).item() == 0.0


def two_ranks(rank: int, arrays: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    z1, z2 = arrays[f"z1_r{rank}"].requires_grad_(), arrays[f"z2_r{rank}"].requires_grad_()
    objective, e = embed(z1, z2, temperature)
    loss = objective.per_image(e).mean()
    loss.backward()
    return loss.detach(), z1.grad, z2.grad


def test_two_processes(golden: Load, tmp_path: Path) -> None:
    g = golden("ntxent_ws2")
    world, rows = g.hparams["world_size"], g.hparams["batch_per_rank"]
    arrays = {name: g[name] for name in g.names}
    results = run_processes(world, tmp_path, two_ranks, arrays, g.hparams["T"])
    for rank, (loss, grad1, grad2) in enumerate(results):
        assert_close(loss, g[f"loss_r{rank}"], 2e-5)
        assert_close(grad1, g[f"grad_z1_r{rank}"], 2e-5)
        assert_close(grad2, g[f"grad_z2_r{rank}"], 2e-5)
        own = slice(rank * rows, (rank + 1) * rows)
        assert_close(grad1 / world, g["global_grad_z1"][own], 2e-5)
        assert_close(grad2 / world, g["global_grad_z2"][own], 2e-5)
    assert_close(sum(loss for loss, _, _ in results) / world, g["global_loss"], 2e-5)
