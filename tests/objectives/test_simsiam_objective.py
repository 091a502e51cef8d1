"""SimSiam's objective: brute force, invariants, who gets a gradient, collapse readings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from belvedere.backbones.contract import Features
from belvedere.objectives.contract import Output
from belvedere.objectives.simsiam import SimSiam, SimSiamOptions
from belvedere.schedules import Clock

CLOCK = Clock(0, 1, 10)


def make(**options: bool) -> SimSiam:
    return SimSiam(SimSiamOptions(hidden=6, out=5, bottleneck=3, **options), dim=4)


def outputs(batch: int, n_local: int, seed: int) -> dict[str, Output]:
    generator = torch.Generator().manual_seed(seed)
    slots = ["global_a", "global_b", *[f"local_{i}" for i in range(n_local)]]
    return {slot: {name: torch.randn(batch, 5, generator=generator) for name in "zp"} for slot in slots}


@settings(max_examples=25)
@given(batch=st.integers(1, 6), n_local=st.integers(0, 2), seed=st.integers(0, 1000))
def test_loss_is_the_mean_negative_cosine_of_all_pairs(batch: int, n_local: int, seed: int) -> None:
    objective, online = make(), outputs(batch, n_local, seed)
    e = objective.embed(online, {}, CLOCK)
    cosines = []
    for target in ("global_a", "global_b"):
        for source in online:
            if source != target:
                p, z = online[source]["p"].numpy(), online[target]["z"].numpy()
                cosines.append((p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1))
    loss = objective.per_image(e)
    np.testing.assert_allclose(loss.numpy(), -np.mean(cosines, axis=0), rtol=1e-4, atol=1e-5)
    assert loss.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(objective.score(e, "global_a", "global_b"), objective.score(e, "global_b", "global_a"))


def test_only_predictions_pass_a_gradient() -> None:
    for stop in (True, False):
        objective, online = make(stop_gradient=stop), outputs(3, 0, 0)
        for output in online.values():
            for rows in output.values():
                rows.requires_grad_()
        objective.per_image(objective.embed(online, {}, CLOCK)).sum().backward()
        assert all(output["p"].grad.abs().sum() > 0 for output in online.values())
        assert all((output["z"].grad is None) == stop for output in online.values())


def test_the_head_is_the_paper_s() -> None:
    head = make().make_head()
    kinds = [type(module) for module in (*head.projector, *head.predictor)]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d, *block, nn.Linear]
    assert not head.projector[-1].affine
    biased = [name for name, p in head.named_parameters() if name.endswith("bias")]
    assert biased == ["projector.1.bias", "projector.4.bias", "predictor.1.bias", "predictor.3.bias"]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    z = head(Features(cls=x, patches=x[:, None], grid=(1, 1), prefix=x[:, None]))["z"]
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(5), atol=1e-2, rtol=0)


def test_diagnostics_tell_collapse() -> None:
    objective = make()
    generator = torch.Generator().manual_seed(0)
    healthy = {
        slot: {name: torch.randn(4000, 5, generator=generator) for name in "zp"} for slot in ("global_a", "global_b")
    }
    found = objective.diagnose(objective.embed(healthy, {}, CLOCK))
    assert found["projection_std"].item() == pytest.approx(1, abs=0.03)
    assert found["prediction_std"].item() == pytest.approx(1, abs=0.03)
    assert found["projection_rank"].item() == pytest.approx(5, abs=0.1)
    line = torch.outer(torch.randn(4000, generator=generator), torch.randn(5, generator=generator))
    flat = objective.diagnose(objective.embed({slot: {"z": line, "p": line} for slot in healthy}, {}, CLOCK))
    assert flat["projection_rank"].item() == pytest.approx(1, abs=1e-3)
    constant = {slot: {name: torch.ones(4, 5) for name in "zp"} for slot in ("global_a", "global_b")}
    e = objective.embed(constant, {}, CLOCK)
    assert {name: objective.diagnose(e)[name].item() for name in ("projection_std", "prediction_std")} == {
        "projection_std": 0.0,
        "prediction_std": 0.0,
    }
    torch.testing.assert_close(objective.per_image(e), -torch.ones(4))
