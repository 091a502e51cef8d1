"""MoCo v3's objective: brute force, invariants, the momentum encoder's place in a step, derived values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from belvedere.errors import UserError
from belvedere.objectives.contract import Output
from belvedere.objectives.mocov3 import MoCoV3, MoCoV3Options
from belvedere.schedules import Clock
from tiny import tiny_trainer

CLOCK = Clock(0, 1, 10)


def make(**options: Any) -> MoCoV3:
    return MoCoV3(
        MoCoV3Options(**{"temperature": 0.2, "hidden": 6, "out": 5, "layers": 3, "momentum": 0.9, **options}), dim=4
    )


def outputs(batch: int, n_local: int, seed: int) -> tuple[dict[str, Output], dict[str, Output]]:
    generator = torch.Generator().manual_seed(seed)
    slots = ["global_a", "global_b", *[f"local_{i}" for i in range(n_local)]]
    online = {slot: {"cls": torch.randn(batch, 5, generator=generator)} for slot in slots}
    return online, {slot: {"cls": torch.randn(batch, 5, generator=generator)} for slot in slots[:2]}


@settings(max_examples=25)
@given(batch=st.integers(1, 6), temperature=st.floats(0.05, 1.0), seed=st.integers(0, 1000))
def test_loss_is_the_sum_of_both_directions(batch: int, temperature: float, seed: int) -> None:
    objective = make(temperature=temperature)
    online, target = outputs(batch, 0, seed)
    e = objective.embed(online, target, CLOCK)
    expected = np.zeros(batch)
    for a, b in (("global_a", "global_b"), ("global_b", "global_a")):
        q, k = (x["cls"].double().numpy() for x in (online[a], target[b]))
        q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
        odds = np.exp(q @ k.T / temperature)
        expected -= 2 * temperature * np.log(np.diag(odds) / odds.sum(1))
    np.testing.assert_allclose(objective.per_image(e).numpy(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(batch=st.integers(1, 5), n_local=st.integers(0, 2), seed=st.integers(0, 1000))
def test_order_of_images_does_not_matter(batch: int, n_local: int, seed: int) -> None:
    objective = make()
    online, target = outputs(batch, n_local, seed)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))

    def reordered(rows: dict[str, Output]) -> dict[str, Output]:
        return {slot: {"cls": output["cls"][order]} for slot, output in rows.items()}

    e = objective.embed(online, target, CLOCK)
    moved = objective.embed(reordered(online), reordered(target), CLOCK)
    torch.testing.assert_close(objective.per_image(moved), objective.per_image(e)[order], atol=1e-5, rtol=1e-5)
    assert sum(term.weight for term in objective.terms(list(online))) == pytest.approx(2)
    torch.testing.assert_close(objective.score(e, "global_a", "global_b"), objective.score(e, "global_b", "global_a"))


def test_a_network_that_knows_nothing_costs_the_chance_loss() -> None:
    objective = make()
    same = {slot: {"cls": torch.ones(7, 5)} for slot in ("global_a", "global_b")}
    e = objective.embed(same, same, CLOCK)
    torch.testing.assert_close(objective.per_image(e), torch.full((7,), objective.chance_loss(7)))
    assert objective.diagnose(e)["negative_cosine"].item() == pytest.approx(1)


def test_the_log_tells_the_schedule_of_the_momentum() -> None:
    objective = make(momentum=0.9)
    online, target = outputs(4, 0, 0)
    for step in (0, 5, 9):
        clock = Clock(step, 1, 10)
        read = objective.diagnose(objective.embed(online, target, clock))
        assert read["momentum"].item() == pytest.approx(objective.momentum(clock))
    assert read["momentum"] > 0.99


def test_the_momentum_encoder_moves_before_the_keys_and_not_after_the_step() -> None:
    trainer, feed = tiny_trainer("mocov3", objective__momentum=0.5)
    teacher, student = trainer.parts.teacher, trainer.parts.student
    assert teacher is not None
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(1.0)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    old = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    assert set(old) == {name for name in before if not name.startswith("head.predictor")}
    trainer.step(0, next(feed.stream(0, 1)))
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, (old[name] + before[name]) / 2)


def test_momentum_follows_the_paper_s_cosine() -> None:
    objective = make(momentum=0.99)
    values = [objective.momentum(Clock(step, 10, 100)) for step in range(100)]
    assert values[0] == pytest.approx(0.99)
    assert values[50] == pytest.approx(0.995)
    assert values == sorted(values)
    assert values[-1] < 1


def test_the_heads_are_the_paper_s() -> None:
    head = make().make_head()
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in head.projector] == [*block, *block, nn.Linear, nn.BatchNorm1d]
    assert [type(m) for m in head.predictor] == [*block, nn.Linear, nn.BatchNorm1d]
    assert [type(m) for m in make(layers=2, predictor_norm=False).make_head().predictor] == [*block, nn.Linear]
    assert all(m.bias is None for m in head.modules() if isinstance(m, nn.Linear))
    assert not list(make().make_target_head().predictor.parameters())


def test_derived_values() -> None:
    paper = MoCoV3.derive({}, SimpleNamespace(images=1_281_167, dim=384, steps=93_750))
    shared = {"temperature": 0.2}
    assert {name: value for name, (value, _) in paper.items()} == {
        **shared,
        "layers": 3,
        "hidden": 4096,
        "momentum": 0.99,
    }
    few = MoCoV3.derive({}, SimpleNamespace(images=5000, dim=192, steps=2000))
    assert {name: value for name, (value, _) in few.items()} == {
        **shared,
        "layers": 2,
        "hidden": 1024,
        "momentum": 0.9315,
    }
    assert MoCoV3.derive({}, SimpleNamespace(images=5000, dim=None, steps=10))["momentum"][0] == 0.9
    assert "momentum" not in MoCoV3.derive({}, SimpleNamespace(images=5000, dim=None, steps=None))
    with pytest.raises(UserError, match=r"objective\.hidden"):
        MoCoV3(MoCoV3Options(temperature=0.2), dim=4)


def test_head_of_sit_has_no_predictor() -> None:
    objective = make(layers=3, head="sit")
    online, target = objective.make_head(), objective.make_target_head()
    assert online.state_dict().keys() == target.state_dict().keys()
    with pytest.raises(UserError, match="predictor_norm=false: SiT's head has no predictor"):
        make(head="sit", predictor_norm=False)
