"""DINO's objective: invariants of the contract, collapse readings, derived values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from belvedere.errors import UserError
from belvedere.objectives._sinkhorn import sinkhorn
from belvedere.objectives.contract import Embeddings, Output
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.schedules import Clock
from belvedere.schema import Paper
from tiny import tiny_trainer

SETTLED: dict[str, Any] = {
    "prototypes": 16,
    "centering": "mean",
    "use_bn": False,
    "norm_last_layer": True,
    "teacher_temp": 0.04,
    "warmup_teacher_temp": 0.04,
    "teacher_temp_warmup": 4.0,
    "teacher_temp_by": "epoch",
    "momentum": 0.9,
    "freeze_last_layer": 1.0,
    "hidden": 8,
    "bottleneck": 4,
}
CLOCK = Clock(0, 10, 100)
# What the recipe's 100 epochs at batch 1024 of ImageNet's training images are.
PAPER = SimpleNamespace(
    images=1_281_167, batch=1024, steps=125_100, steps_per_epoch=1251, epochs=100.0, dim=384, paper=Paper()
)


def make(**options: Any) -> Dino:
    objective = Dino(DinoOptions(**{**SETTLED, **options}), dim=6)
    objective.center.copy_(torch.linspace(-1, 1, objective.prototypes))
    return objective


def logits(batch: int, n_local: int, seed: int, prototypes: int = 16) -> tuple[dict[str, Output], dict[str, Output]]:
    generator = torch.Generator().manual_seed(seed)
    slots = ["global_a", "global_b", *[f"local_{i}" for i in range(n_local)]]
    online = {slot: {"cls": torch.randn(batch, prototypes, generator=generator)} for slot in slots}
    target = {slot: {"cls": torch.randn(batch, prototypes, generator=generator)} for slot in slots[:2]}
    return online, target


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@settings(max_examples=20)
@given(batch=st.integers(1, 5), n_local=st.integers(0, 3), seed=st.integers(0, 1000))
def test_loss_is_the_mean_cross_entropy_of_all_pairs(batch: int, n_local: int, seed: int) -> None:
    objective = make()
    online, target = logits(batch, n_local, seed)
    e = objective.embed(online, target, CLOCK)
    expected, pairs = np.zeros(batch), 0
    for q, t in target.items():
        p = softmax((t["cls"].double().numpy() - objective.center.double().numpy()) / e.settings["teacher_temp"])
        for v, s in online.items():
            if v != q:
                expected -= (p * np.log(softmax(s["cls"].double().numpy() / 0.1))).sum(-1)
                pairs += 1
    assert pairs == 2 * (n_local + 1)
    np.testing.assert_allclose(objective.per_image(e).numpy(), expected / pairs, rtol=1e-5)


@settings(max_examples=20)
@given(batch=st.integers(1, 6), n_local=st.integers(0, 2), seed=st.integers(0, 1000))
def test_images_do_not_mix_and_the_score_is_symmetric(batch: int, n_local: int, seed: int) -> None:
    objective = make()
    online, target = logits(batch, n_local, seed)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))

    def reordered(outputs: dict[str, Output]) -> dict[str, Output]:
        return {slot: {"cls": output["cls"][order]} for slot, output in outputs.items()}

    e = objective.embed(online, target, CLOCK)
    moved = objective.embed(reordered(online), reordered(target), CLOCK)
    torch.testing.assert_close(objective.per_image(moved), objective.per_image(e)[order])
    for i in online:
        for j in online:
            if i != j and "global" in i + j:
                torch.testing.assert_close(objective.score(e, i, j), objective.score(e, j, i))


def test_embedding_and_scoring_change_nothing() -> None:
    objective = make()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    random = torch.get_rng_state()
    online, target = logits(3, 1, 0)
    e = objective.embed(online, target, CLOCK)
    first = objective.score(e, "global_a", "global_b")
    objective.diagnose(e)
    torch.testing.assert_close(objective.score(objective.embed(online, target, CLOCK), "global_a", "global_b"), first)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


def test_the_teacher_gets_no_gradient() -> None:
    objective = make()
    online, target = logits(2, 1, 0)
    for output in (*online.values(), *target.values()):
        output["cls"].requires_grad_()
    objective.per_image(objective.embed(online, target, CLOCK)).sum().backward()
    assert all(output["cls"].grad.abs().sum() > 0 for output in online.values())
    assert all(output["cls"].grad is None for output in target.values())


def test_half_precision_outputs_are_compared_in_float32() -> None:
    objective = make()
    online, target = logits(2, 0, 0)
    half = [{slot: {"cls": o["cls"].bfloat16()} for slot, o in outputs.items()} for outputs in (online, target)]
    assert objective.per_image(objective.embed(half[0], half[1], CLOCK)).dtype == torch.float32


def test_after_a_step_teacher_and_centre_have_moved() -> None:
    objective = make(center_momentum=0.75)
    center = objective.center.clone()
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    online, target = logits(3, 0, 0)
    stats = objective.embed(online, target, CLOCK).stats
    objective.after_step(student, teacher, CLOCK, stats)
    torch.testing.assert_close(teacher.weight.detach(), expected)
    mean = torch.cat([output["cls"] for output in target.values()]).mean(0, keepdim=True)
    torch.testing.assert_close(objective.center, 0.75 * center + 0.25 * mean)


def test_schedules_of_the_run() -> None:
    objective = make(warmup_teacher_temp=0.04, teacher_temp=0.07, freeze_last_layer=0.5)
    assert objective.frozen(Clock(4, 10, 100)) == ("head.last_layer",)
    assert objective.frozen(Clock(5, 10, 100)) == ()
    assert objective.momentum(Clock(0, 10, 100)) == pytest.approx(0.9)
    assert 0.999 < objective.momentum(Clock(99, 10, 100)) < 1
    stairs = [objective.teacher_temp(Clock(step, 10, 100)) for step in range(60)]
    assert stairs[:10] == [0.04] * 10
    assert stairs[40:] == [0.07] * 20
    smooth = make(warmup_teacher_temp=0.04, teacher_temp=0.07, teacher_temp_by="step")
    line = [smooth.teacher_temp(Clock(step, 10, 100)) for step in range(60)]
    assert line[20] == pytest.approx(0.055)
    assert len(set(line[:41])) == 41
    assert line[40:] == [0.07] * 20


def reading(online: Tensor, target: Tensor) -> dict[str, float]:
    objective = make(center_momentum=0.9)
    objective.center.zero_()
    slots = ("global_a", "global_b")
    e: Embeddings = objective.embed(
        {slot: {"cls": online} for slot in slots}, {slot: {"cls": target} for slot in slots}, CLOCK
    )
    return {name: value.item() for name, value in objective.diagnose(e).items()}


def test_diagnostics_tell_the_two_collapses_from_health() -> None:
    uniform = reading(torch.zeros(8, 16), torch.zeros(8, 16))
    assert uniform["teacher_entropy"] == pytest.approx(np.log(16), abs=1e-4)
    assert uniform["student_entropy"] == pytest.approx(np.log(16), abs=1e-4)
    assert uniform["kl"] == pytest.approx(0, abs=1e-5)
    assert uniform["max_mean_prob"] == pytest.approx(1 / 16)

    spike = torch.zeros(8, 16)
    spike[:, 3] = 10
    one_dimension = reading(spike, spike)
    assert one_dimension["teacher_entropy"] == pytest.approx(0, abs=1e-4)
    assert one_dimension["kl"] == pytest.approx(0, abs=1e-4)
    assert one_dimension["max_mean_prob"] == pytest.approx(1)
    assert one_dimension["distinct_argmax"] == pytest.approx(1 / 16)

    spread = 10 * torch.eye(16)[:8]
    healthy = reading(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), spread)
    assert healthy["kl"] > 0.1
    assert healthy["distinct_argmax"] == pytest.approx(0.5)


def test_the_log_tells_the_schedules_of_momentum_and_temperature() -> None:
    objective = make(momentum=0.9, warmup_teacher_temp=0.02, teacher_temp=0.06, teacher_temp_warmup=4)
    rows = {slot: {"cls": torch.zeros(8, 16)} for slot in ("global_a", "global_b")}
    for step in (0, 3, 9):
        clock = Clock(step, 1, 10)
        read = objective.diagnose(objective.embed(rows, rows, clock))
        assert read["momentum"].item() == pytest.approx(objective.momentum(clock))
        assert read["teacher_temp"].item() == pytest.approx(objective.teacher_temp(clock))
    assert read["momentum"] > 0.99
    assert read["teacher_temp"].item() == pytest.approx(0.06)


def test_at_the_paper_s_size_the_paper_s_values_come_back() -> None:
    derived = {name: value for name, (value, _) in Dino.derive({}, PAPER).items()}
    assert derived == {
        "prototypes": 65536,
        "use_bn": False,
        "norm_last_layer": True,
        "centering": "mean",
        "teacher_temp": 0.04,
        "warmup_teacher_temp": 0.04,
        "hidden": 2048,
        "momentum": 0.996,
        "teacher_temp_warmup": 10.0,
        "teacher_temp_by": "epoch",
        "freeze_last_layer": 1.0,
    }
    boosted = SimpleNamespace(**{**vars(PAPER), "steps": 375_300, "epochs": 300.0})
    assert Dino.derive({}, boosted)["teacher_temp_warmup"][0] == 30.0
    assert Dino.derive({}, boosted)["momentum"][0] == 0.996


@settings(max_examples=50)
@given(images=st.integers(1, 10**8), steps=st.integers(1, 10**7), epochs=st.floats(0.01, 2000))
def test_derived_values_are_usable_at_any_size(images: int, steps: int, epochs: float) -> None:
    facts = SimpleNamespace(
        images=images, batch=64, steps=steps, steps_per_epoch=None, epochs=epochs, dim=8, paper=Paper()
    )
    derived = {name: value for name, (value, _) in Dino.derive({}, facts).items()}
    objective = Dino(DinoOptions(**derived), dim=2)
    assert 256 <= objective.prototypes <= 65536
    assert objective.prototypes & (objective.prototypes - 1) == 0
    assert 0.9 <= derived["momentum"] <= 0.996
    assert 0 <= derived["freeze_last_layer"] <= 1


def test_few_images_get_equal_shares_and_a_sharper_teacher() -> None:
    few = {
        name: value for name, (value, _) in Dino.derive({}, SimpleNamespace(**{**vars(PAPER), "images": 5000})).items()
    }
    assert (few["centering"], few["teacher_temp"], few["warmup_teacher_temp"]) == ("sinkhorn", 0.02, 0.02)
    asked = Dino.derive({"centering": "mean"}, SimpleNamespace(**{**vars(PAPER), "images": 5000}))
    assert asked["teacher_temp"][0] == 0.04


@settings(max_examples=25)
@given(rows=st.integers(1, 12), columns=st.integers(2, 12), sharpness=st.floats(0.1, 100), seed=st.integers(0, 1000))
def test_sinkhorn_gives_every_prototype_an_equal_share(rows: int, columns: int, sharpness: float, seed: int) -> None:
    logits = sharpness * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    once, often = sinkhorn(logits), sinkhorn(logits, rounds=3000)
    for prob in (once, often):
        assert prob.isfinite().all()
        torch.testing.assert_close(prob.sum(1), torch.ones(rows, dtype=torch.float64))
    if sharpness < 10:
        torch.testing.assert_close(
            often.sum(0), torch.full((columns,), rows / columns, dtype=torch.float64), rtol=1e-3, atol=1e-3
        )
    moved = sinkhorn(logits + torch.randn(1, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    torch.testing.assert_close(moved, once)  # a preference that all images share does not matter


def test_what_is_not_known_yet_is_left_out_and_must_be_given_in_the_end() -> None:
    unknown = SimpleNamespace(
        images=5000, batch=None, steps=None, steps_per_epoch=None, epochs=None, dim=None, paper=Paper()
    )
    known = {"prototypes", "use_bn", "norm_last_layer", "centering", "teacher_temp", "warmup_teacher_temp"}
    assert Dino.derive({}, unknown).keys() == known
    with pytest.raises(UserError, match=r"objective\.prototypes"):
        Dino(DinoOptions(), dim=8)
    with pytest.raises(ValidationError):
        DinoOptions(student_temp=0)


def test_a_centre_on_all_crops_takes_local_rows_and_leaves_the_loss_alone() -> None:
    online, target = logits(4, 2, seed=0)
    everyone = {**target, "local_0": {"cls": online["local_0"]["cls"] + 1}}
    usual, all_crops = make(), make(center_on="all")
    assert [all_crops.is_target(slot) for slot in ("global_a", "local_0")] == [True, True]
    assert [usual.is_target(slot) for slot in ("global_a", "local_0")] == [True, False]
    e = all_crops.embed(online, everyone, CLOCK)
    assert torch.equal(all_crops.per_image(e), usual.per_image(usual.embed(online, target, CLOCK)))
    rows = torch.cat([output["cls"] for output in everyone.values()])
    assert torch.allclose(e.stats["center_sum"] / e.stats["center_rows"], rows.mean(0, keepdim=True), atol=1e-6)


def test_without_a_centre_local_views_are_not_read() -> None:
    assert not make(center_on="all", centering="sinkhorn").is_target("local_0")


def test_a_teacher_that_reads_local_views_is_not_reused() -> None:
    settings = {"objective__center_on": "all", "objective__centering": "mean", "objective__use_bn": False}
    with pytest.raises(UserError, match=r"views\.reuse_teacher=true: .*local views"):
        tiny_trainer("dino", views__policy="hard", views__reuse_teacher=True, **settings)
