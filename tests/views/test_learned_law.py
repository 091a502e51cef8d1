"""The law of learned views: draws, density, derivatives (spec 2.10, A1, A6)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from learned_world import CROPS, SIDE, World
from torch import Tensor

from belvedere.measure.monitor import HealthMonitor
from belvedere.views.operations import space
from belvedere.views.policies._law import Law
from belvedere.views.program import NOTHING, Draws, draw
from belvedere.views.sample import sample_views


def numbers_of(count: int) -> Draws:
    return draw(sample_views(CROPS, range(count), [(SIDE, SIDE)] * count, 0, 0), 2)


def test_choices_follow_the_law() -> None:
    law = Law(space("ssl12", 3))
    with torch.no_grad():
        law.pi.copy_(torch.linspace(-1, 3, len(law.pi)))
        law.rho.fill_(-0.7)
        law.mu.copy_(torch.linspace(-2, 1, len(law.mu)))
    op, logit = law.draw(numbers_of(20_000))
    frequency = torch.bincount(op[..., 0].flatten(), minlength=len(law.pi)) / op[..., 0].numel()
    p = law.probabilities().detach()
    torch.testing.assert_close(frequency, p, atol=0.006, rtol=0)
    assert float(p.min()) >= 0.02 / len(law.pi)
    assert float((op[..., 1] != NOTHING).float().mean()) == pytest.approx(1 / (1 + math.exp(0.7)), abs=0.006)
    for k in range(len(law.pi)):
        drawn = logit[..., 0][op[..., 0] == k]
        assert float(drawn.mean()) == pytest.approx(float(law.mu.detach()[k]), abs=0.08)
        assert float(drawn.std()) == pytest.approx(0.5, abs=0.06)
    # The mean magnitude that is told is that of the draws.
    assert law.told()["m/rotate"] == pytest.approx(float(logit[..., 0][op[..., 0] == 11].sigmoid().mean()), abs=0.01)


def test_magnitudes_at_a_bound_raise_an_alarm() -> None:
    """Spec 2.7, by how often such operations are drawn; so does a second operation that is never applied."""

    def word(law: Law) -> str:
        monitor = HealthMonitor(100, 10)
        monitor.step(50, {f"policy/{name}": value for name, value in law.told().items()})
        return monitor.verdict().word

    strong, never = Law(space("ssl12", 3)), Law(space("ssl12", 3))
    assert strong.told()["at_bound"] == 0
    assert word(strong) == "healthy"
    with torch.no_grad():
        strong.mu[0], strong.mu[1] = -10.0, 10.0
        never.rho.fill_(-10.0)
    strong.clamp()
    never.clamp()
    assert strong.told()["at_bound"] == pytest.approx(2 / 12)
    assert [word(law) for law in (strong, never)] == ["policy at its bound"] * 2


@pytest.mark.parametrize(("rho", "expected"), [(-math.inf, 1), (math.inf, 2)])
def test_one_or_two_operations_at_the_limits(rho: float, expected: int) -> None:
    """A6."""
    law = Law(space("ssl12", 3))
    with torch.no_grad():
        law.rho.fill_(rho)
    op, _ = law.draw(numbers_of(500))
    assert ((op != NOTHING).sum(-1) == expected).all()


def test_density_of_a_choice_is_that_of_the_law() -> None:
    """The gradient of the log density is zero in the mean, and ratios of densities are those of the law."""
    law = Law(space("ssl12", 3))
    with torch.no_grad():
        law.pi.copy_(torch.linspace(-1, 1, len(law.pi)))
        law.rho.fill_(0.4)
    op, logit = law.draw(numbers_of(20_000))
    law.log_prob(op, logit).mean().backward()
    for parameter in (law.pi, law.rho, law.mu):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) < 0.02
    one = torch.tensor([[[2, NOTHING]], [[5, NOTHING]], [[2, 5]]])
    density = law.log_prob(one, law.mu.detach()[one.clamp(min=0)])[:, 0].detach()
    p = law.probabilities().detach()
    assert float(density[0] - density[1]) == pytest.approx(float(p[2].log() - p[5].log()), abs=1e-5)
    assert float(density[2] - density[0]) == pytest.approx(float(p[5].log()) + 0.4, abs=1e-5)


@pytest.mark.parametrize("start", [-3.0, -1.2, 1.0])
@pytest.mark.parametrize("name", ["ssl12", "autoaugment"])
def test_derivative_by_the_magnitude_is_that_of_the_operation(name: Any, start: float) -> None:
    """A1: float64, step 1e-5. Bilinear sampling has kinks, of which a turn within the step may cross one."""
    operations = [o for o in space(name, 3) if o.smooth and o.name != "identity"]
    law = Law(operations).double()
    with torch.no_grad():
        law.mu.fill_(start)
    count = 6
    world = World.of(count)
    pixels = (world.images.double().permute(0, 3, 1, 2) / 255 * 0.8 + 0.1).contiguous()
    noise = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)

    def loss(k: int, shift: float) -> Tensor:
        op = torch.full((count,), k)
        own = law.mu + shift
        logit = own.detach()[op] + law.spread * noise
        magnitude = law.magnitude(op, logit)
        return (world.features(operations[k].apply(pixels, magnitude, sign)) ** 2).sum()

    for k, operation in enumerate(operations):
        law.zero_grad()
        loss(k, 0.0).backward()
        assert law.mu.grad is not None
        found = float(law.mu.grad[k])
        with torch.no_grad():
            expected = float(loss(k, 1e-5) - loss(k, -1e-5)) / 2e-5
        assert found == pytest.approx(expected, rel=1e-2 if operation.name == "rotate" else 1e-5), operation.name
        assert found != 0
        assert torch.equal(law.mu.grad != 0, torch.arange(len(operations)) == k)
