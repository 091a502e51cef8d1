"""SimCLR's objective against brute force, its invariants and derived values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from belvedere.backbones.contract import Features
from belvedere.errors import UserError
from belvedere.objectives.contract import Output
from belvedere.objectives.simclr import SimClr, SimClrOptions
from belvedere.schedules import Clock

CLOCK = Clock(0, 1, 10)


def make(temperature: float = 0.2) -> SimClr:
    return SimClr(SimClrOptions(temperature=temperature, hidden=6, out=5, layers=3), dim=4)


def views(batch: int, n_local: int, seed: int) -> dict[str, Output]:
    generator = torch.Generator().manual_seed(seed)
    slots = ["global_a", "global_b", *[f"local_{i}" for i in range(n_local)]]
    return {slot: {"cls": torch.randn(batch, 5, generator=generator)} for slot in slots}


def brute_force(source: np.ndarray, target: np.ndarray, temperature: float) -> np.ndarray:
    """-log softmax of the partner among all other rows of both views, one anchor at a time."""
    rows = np.concatenate([source, target])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(source)
    losses = []
    for i in range(n):
        others = [j for j in range(2 * n) if j != i]
        similarities = np.exp([rows[i] @ rows[j] / temperature for j in others])
        losses.append(-np.log(np.exp(rows[i] @ rows[n + i] / temperature) / similarities.sum()))
    return np.array(losses)


@settings(max_examples=25)
@given(batch=st.integers(1, 7), temperature=st.floats(0.05, 1.0), seed=st.integers(0, 1000))
def test_one_direction_is_brute_force(batch: int, temperature: float, seed: int) -> None:
    objective, online = make(temperature), views(batch, 0, seed)
    e = objective.embed(online, {}, CLOCK)
    a, b = (online[slot]["cls"].double().numpy() for slot in online)
    to_b, to_a = brute_force(a, b, temperature), brute_force(b, a, temperature)
    np.testing.assert_allclose(objective.pair_loss(e, "global_b", "global_a").numpy(), to_b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(objective.per_image(e).numpy(), (to_a + to_b) / 2, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(batch=st.integers(1, 6), n_local=st.integers(0, 2), seed=st.integers(0, 1000))
def test_order_of_images_and_ends_of_a_pair_do_not_matter(batch: int, n_local: int, seed: int) -> None:
    objective, online = make(), views(batch, n_local, seed)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    e = objective.embed(online, {}, CLOCK)
    moved = objective.embed({slot: {"cls": output["cls"][order]} for slot, output in online.items()}, {}, CLOCK)
    torch.testing.assert_close(objective.per_image(moved), objective.per_image(e)[order], atol=1e-5, rtol=1e-5)
    for i in online:
        for j in online:
            if i != j and "global" in i + j:
                torch.testing.assert_close(objective.score(e, i, j), objective.score(e, j, i))
    assert sum(term.weight for term in objective.terms(list(online))) == pytest.approx(1)


def test_embedding_and_scoring_change_nothing() -> None:
    objective, online = make(), views(3, 1, 0)
    random = torch.get_rng_state()
    e = objective.embed(online, {}, CLOCK)
    first = objective.score(e, "global_a", "global_b")
    objective.diagnose(e)
    torch.testing.assert_close(objective.score(objective.embed(online, {}, CLOCK), "global_a", "global_b"), first)
    assert torch.equal(torch.get_rng_state(), random)
    assert not objective.state_dict()


def test_autocast_does_not_round_the_similarities() -> None:
    objective, online = make(0.05), views(6, 0, 0)
    expected = objective.per_image(objective.embed(online, {}, CLOCK))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective.per_image(objective.embed(online, {}, CLOCK))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_diagnostics() -> None:
    objective = make()
    same = {slot: {"cls": torch.eye(5)} for slot in ("global_a", "global_b")}
    found = objective.diagnose(objective.embed(same, {}, CLOCK))
    # One cosine of 1 among five at temperature .2: the answer's entropy.
    odds = np.exp(np.array([5.0, 0, 0, 0, 0]))
    entropy = -(odds / odds.sum() * np.log(odds / odds.sum())).sum()
    assert found.pop("student_entropy").item() == pytest.approx(entropy, rel=1e-4)
    assert {name: value.item() for name, value in found.items()} == {
        "contrastive_accuracy": 1.0,
        "positive_cosine": 1.0,
        "negative_cosine": 0.0,
    }
    shifted = {"global_a": {"cls": torch.eye(5)}, "global_b": {"cls": torch.eye(5).roll(1, 0)}}
    found = objective.diagnose(objective.embed(shifted, {}, CLOCK))
    assert found["contrastive_accuracy"].item() == 0
    assert found["negative_cosine"].item() == pytest.approx(0.25)


def test_the_projector_is_the_paper_s() -> None:
    head = make().make_head()
    kinds = [type(module) for module in head.mlp]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [module.out_features for module in head.mlp if isinstance(module, nn.Linear)] == [6, 6, 5]
    trained = {name for name, p in head.named_parameters() if p.requires_grad}
    assert not any(name in trained for name in ("mlp.0.bias", "mlp.3.bias", "mlp.6.bias", "mlp.7.bias"))
    assert {"mlp.1.bias", "mlp.4.bias", "mlp.7.weight"} <= trained
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    z = head(Features(cls=x, patches=x.unsqueeze(1), grid=(1, 1), prefix=x.unsqueeze(1)))["cls"]
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)


def derived(**facts: Any) -> dict[str, Any]:
    known = SimpleNamespace(**{"images": 50_000, "batch": None, "steps": None, "epochs": None, "dim": None, **facts})
    return {name: value for name, (value, _) in SimClr.derive({}, known).items()}


def test_derived_values() -> None:
    paper = derived(images=1_281_167, batch=4096, dim=2048)
    assert paper == {"temperature": 0.1, "hidden": 2048, "layers": 3}
    assert derived(dim=192) == {"hidden": 1024, "layers": 2}
    assert derived(batch=256)["temperature"] == 0.2
    assert derived(batch=2)["temperature"] == 0.5
    assert derived(batch=65536)["temperature"] == 0.1
    ladder = [derived(batch=2**power)["temperature"] for power in range(8, 13)]
    assert ladder == sorted(ladder, reverse=True)
    assert "temperature" not in derived(dim=8)
    with pytest.raises(UserError, match=r"objective\.temperature"):
        SimClr(SimClrOptions(hidden=4, layers=3), dim=4)


def test_head_of_sit_is_linear_layers_and_gelus() -> None:
    options = SimClrOptions(temperature=0.5, hidden=7, out=5, layers=3, head="sit")
    head = SimClr(options, dim=6).make_head()
    assert [type(module) for module in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert all(module.bias is None for module in head.mlp if isinstance(module, nn.Linear))
