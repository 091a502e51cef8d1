"""The learned policy on a toy world: its estimators against enumeration, its law, its state, its file (spec 2.10)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import UserError
from belvedere.schedules import Clock
from belvedere.views.cost import Work
from belvedere.views.operations import space
from belvedere.views.params import FIELDS, ViewParams
from belvedere.views.policies import _law, learned
from belvedere.views.policies._law import Law
from belvedere.views.policies._retention import ascend, retrieval_loss
from belvedere.views.policies.learned import Learned
from belvedere.views.program import MAGNITUDE, NOTHING, OP, Draws, clean, draw
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot
from belvedere.views.views import Views
from processes import run_processes
from tiny import tiles

SIDE = 12
# The whole image, so that a view differs from its image by the operations alone.
WHOLE = Slot("global_a", (SIDE, SIDE), (1.0, 1.0), (1.0, 1.0), flip=0)
CROPS = (Slot("global_a", (SIDE, SIDE), (0.4, 1.0)), Slot("global_b", (SIDE, SIDE), (0.4, 1.0)))
MIDDLE = Clock(50, 10, 100)


def make(slots: tuple[Slot, ...] = CROPS, channels: int = 3, **options: Any) -> Learned:
    return Learned(Learned.Options(**options), slots, channels)


@dataclass
class World:
    """Photographs, and a frozen network whose loss is how far a view is from a target that grows on no operation."""

    images: Tensor
    weights: Tensor

    @classmethod
    def of(cls, count: int) -> World:
        images = torch.from_numpy(tiles(count, (SIDE, SIDE)))
        weights = torch.randn(3 * SIDE * SIDE, 24, generator=torch.Generator().manual_seed(1)) / SIDE
        return cls(images, weights)

    def render_of(self, policy: Learned) -> Callable[..., Views]:
        def render(params: ViewParams, scale: float = 1.0) -> Views:
            return render_views(self.images, params, mean=(0.5,) * 3, std=(0.25,) * 3, program=policy.program)

        return render

    def features(self, pixels: Tensor) -> Tensor:
        return F.relu(pixels.flatten(1) @ self.weights.to(pixels.dtype))

    def embed(self, views: Views) -> Tensor:
        return torch.stack([self.features(views[slot]) for slot in views.names])

    def step(self, policy: Learned, clock: Clock, draws: int, loss: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """What the trainer does of a step, for a network that stays as it is."""
        count = len(self.images)
        policy.begin_step(clock)
        params = policy.propose(range(count), [(SIDE, SIDE)] * count, epoch=draws, seed=0)
        render = self.render_of(policy)
        views = render(params)
        regulariser = policy.regulariser(views, render, self.embed)
        z = {slot: self.features(policy.adversary(views[slot])) for slot in views.names}
        per_image = loss(z)
        if regulariser is not None:
            ((per_image.sum() + regulariser) / count).backward()
        policy.observe(per_image.detach(), params, {slot: found.detach() for slot, found in z.items()})
        policy.end_step()


def with_lambda(policy: Learned, value: float) -> Learned:
    policy.load_state_dict({**policy.state_dict(), "lambda": value})
    return policy


def distance(z: dict[str, Tensor]) -> Tensor:
    """A loss of an image alone, with operations that raise and operations that lower it."""
    return (z["global_a"] ** 2).mean(1)


def contrast_loss(z: dict[str, Tensor]) -> Tensor:
    """InfoNCE of two views."""
    return retrieval_loss(z["global_a"], z["global_b"])


# --- the law ----------------------------------------------------------------------------------------------------------


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


# A1. Bilinear sampling has kinks.
TOLERANCE = dict.fromkeys(("rotate", "shear_x", "shear_y", "translate_x", "translate_y"), 1e-2)


@pytest.mark.parametrize("name", ["ssl12", "autoaugment"])
def test_derivative_by_the_magnitude_is_that_of_the_operation(name: Any) -> None:
    operations = [o for o in space(name, 3) if o.smooth and o.name != "identity"]
    law = Law(operations).double()
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
        assert found == pytest.approx(expected, rel=TOLERANCE.get(operation.name, 1e-5)), operation.name
        assert found != 0
        assert torch.equal(law.mu.grad != 0, torch.arange(len(operations)) == k)


# --- estimators -------------------------------------------------------------------------------------------------------


def enumerated(world: World, policy: Learned) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss by pi and mu, when one operation is applied: all operations, many magnitudes."""
    law, operations = policy.law, policy.law.operations
    pixels = (world.images.permute(0, 3, 1, 2) / 255).repeat_interleave(2, 0)
    sign = torch.tensor([1.0, -1.0]).repeat(len(world.images))
    eps = torch.special.ndtri((torch.arange(24) + 0.5) / 24)

    def mean_loss(k: int, shift: float) -> float:
        found = []
        for noise in eps:
            m = (law.mu[k].detach() + shift + law.spread * noise).sigmoid().expand(len(pixels))
            views = (operations[k].apply(pixels, m, sign) - 0.5) / 0.25
            found.append(distance({"global_a": world.features(views)}).mean())
        return float(torch.stack(found).mean())

    losses = torch.tensor([mean_loss(k, 0.0) for k in range(len(operations))])
    pi = law.pi.detach().clone().requires_grad_()
    p = (1 - law.floor) * pi.softmax(0) + law.floor / len(pi)
    (p * losses).sum().backward()
    slopes = torch.tensor([(mean_loss(k, 0.1) - mean_loss(k, -0.1)) / 0.2 for k in range(len(operations))])
    assert pi.grad is not None
    return pi.grad, p.detach() * slopes


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def mean_gradients(world: World, policy: Learned, steps: int) -> tuple[Tensor, Tensor]:
    """Mean over steps of what the policy would climb, times the sign of climbing."""
    total = [torch.zeros_like(policy.law.pi), torch.zeros_like(policy.law.mu)]
    for number in range(steps):
        world.step(policy, MIDDLE, number, distance)
        for sum_, parameter in zip(total, (policy.law.pi, policy.law.mu), strict=True):
            assert parameter.grad is not None
            sum_ -= parameter.grad
    return total[0] / steps, total[1] / steps


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
def test_estimates_are_right_in_the_mean(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: against enumeration; solarize moves the way the real operation says."""
    monkeypatch.setattr(learned, "_CLIP", math.inf)
    monkeypatch.setattr(_law, "RHO_LIMIT", math.inf)
    world = World.of(64)
    policy = make((WHOLE,), lr=0, estimator=estimator, retention=0.99)
    with torch.no_grad():
        policy.law.rho.fill_(-math.inf)
    with_lambda(policy, 0.0)
    pi, mu = mean_gradients(world, policy, 400)
    true_pi, true_mu = enumerated(world, policy)
    assert cosine(pi, true_pi - true_pi.mean()) > 0.99
    assert cosine(mu, true_mu) > (0.9 if estimator == "score" else 0.98)
    solarize = [o.name for o in policy.law.operations].index("solarize")
    assert mu[solarize].sign() == true_mu[solarize].sign()


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
@pytest.mark.parametrize("weight", [0.0, 20.0])
def test_a_step_climbs_the_loss_or_keeps_the_image(estimator: str, weight: float) -> None:
    """A3: with lambda = 0 the mean loss of the same images rises, with a large one that of the regulariser falls."""
    world = World.of(32)
    policy = with_lambda(make(lr=0.3, estimator=estimator, retention=0.99), weight)

    def means() -> Tensor:
        """Mean loss and mean regulariser over many draws of which no step is made."""
        found = []
        with torch.no_grad():
            render = world.render_of(policy)
            for number in range(1000, 1060):
                params = policy.propose(range(32), [(SIDE, SIDE)] * 32, epoch=number, seed=0)
                a, b = world.embed(render(params))
                image = world.embed(render(clean(params, "global_a")))
                kept = retrieval_loss(torch.stack([a, b]), image).mean()
                found.append(torch.stack([retrieval_loss(a, b).mean(), kept]))
        return torch.stack(found).mean(0)

    before = means()
    world.step(policy, MIDDLE, 0, contrast_loss)
    change = means() - before
    assert change[0] > 0.01 if weight == 0 else change[1] < -0.01


def test_reversal_is_the_explicit_gradient() -> None:
    """A3: with reversed gradients, mu gets -d loss + lambda d l_reg, as two explicit passes say."""
    world = World.of(16)
    policy = make(estimator="hybrid")
    policy.begin_step(MIDDLE)
    params = policy.propose(range(16), [(SIDE, SIDE)] * 16, epoch=0, seed=0)
    assert params.extras[MAGNITUDE].requires_grad
    render = world.render_of(policy)
    views = render(params)
    regulariser = policy.regulariser(views, render, world.embed)
    assert regulariser is not None
    loss = contrast_loss({slot: world.features(policy.adversary(views[slot])) for slot in views.names}).sum()
    (found,) = torch.autograd.grad(loss + regulariser, policy.law.mu)

    a, b = world.embed(render(policy.propose(range(16), [(SIDE, SIDE)] * 16, epoch=0, seed=0)))
    (climb,) = torch.autograd.grad(
        contrast_loss({"global_a": a, "global_b": b}).sum(), policy.law.mu, retain_graph=True
    )
    image = world.embed(render(clean(params, "global_a")))[0]
    # Views and halves of the batch take turns: step 50 asks the first view of every second image, from the second on.
    (keep,) = torch.autograd.grad(1.5 * 2 * retrieval_loss(a, image)[1::2].sum(), policy.law.mu)
    torch.testing.assert_close(found / 16, (keep - climb) / 16, atol=1e-7, rtol=0)
    assert (climb != 0).sum() >= 10
    assert (keep != 0).sum() >= 5


def test_the_regulariser_in_turns_is_the_whole_one() -> None:
    """The estimates of four steps, two views by two halves of the batch, are those of all views in the mean."""
    world = World.of(16)
    policy = make(estimator="hybrid")
    found = []
    for step in range(50, 54):
        policy.begin_step(Clock(step, 10, 100))
        params = policy.propose(range(16), [(SIDE, SIDE)] * 16, epoch=0, seed=0)
        render = world.render_of(policy)
        views = render(params)
        found.append(policy.regulariser(views, render, world.embed))
    expected = 1.5 * retrieval_loss(world.embed(views), world.embed(render(clean(params, "global_a")))).mean(0).sum()
    torch.testing.assert_close(torch.stack(found).mean(), expected)


# --- retention --------------------------------------------------------------------------------------------------------


def test_retrieval_is_chance_for_strangers_and_nothing_for_twins() -> None:
    z = torch.eye(64)
    assert retrieval_loss(z, torch.ones(64, 64)).mean() == pytest.approx(math.log(64), abs=1e-5)
    twins = retrieval_loss(z, 3 * z)
    torch.testing.assert_close(twins, torch.full((64,), math.log(math.exp(5) + 63) - 5))
    assert torch.equal(retrieval_loss(z.bfloat16(), z), retrieval_loss(z, z))
    rows = torch.tensor([3, 9])
    some = torch.rand(64, 9)
    torch.testing.assert_close(
        retrieval_loss(some[rows], z[:, :9] + some, rows), retrieval_loss(some, z[:, :9] + some)[rows]
    )


@pytest.mark.parametrize(("retention", "sign"), [(0.05, 1), (0.95, -1)])
def test_lambda_moves_towards_the_target(retention: float, sign: int) -> None:
    world = World.of(16)
    policy = make((WHOLE,), retention=retention)
    world.step(policy, MIDDLE, 0, distance)
    told = policy.log()
    excess = told["policy/l_reg"] - retention * math.log(16)
    assert excess * sign > 0
    assert told["policy/lambda"] == pytest.approx(1.5 + 0.1 * excess, abs=1e-6)
    assert told["policy/retention"] == pytest.approx(told["policy/l_reg"] / math.log(16))


def test_lambda_has_bounds() -> None:
    assert ascend(0.05, -1.0) == 0
    assert ascend(19.95, 1.0) == 20
    assert ascend(1.5, 0.4) == pytest.approx(1.54)


def test_the_policy_learns_between_warm_up_and_freeze() -> None:
    world = World.of(8)
    policy = make(warmup=0.2, freeze=0.3)
    moved = []
    for step in range(10):
        before = policy.law.mu.detach().clone()
        world.step(policy, Clock(step, 5, 10), step, contrast_loss)
        moved.append(not torch.equal(policy.law.mu, before))
    assert moved == [False] * 2 + [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("learn", "still"), [(["ops"], ["mu", "rho"]), (["magnitude"], ["pi", "rho"]), (["p"], ["pi", "mu"])]
)
@pytest.mark.parametrize("estimator", ["score", "hybrid"])
def test_only_what_is_asked_for_is_learned(learn: list[str], still: list[str], estimator: str) -> None:
    world = World.of(8)
    policy = make(learn=learn, estimator=estimator)
    before = {name: tensor.clone() for name, tensor in policy.law.state_dict().items()}
    for step in range(3):
        world.step(policy, MIDDLE, step, contrast_loss)
    after = policy.law.state_dict()
    assert [name for name in ("pi", "rho", "mu") if not torch.equal(before[name], after[name])] == [
        name for name in ("pi", "rho", "mu") if name not in still
    ]


def test_psi_stays_within_its_bounds() -> None:
    world = World.of(8)
    policy = make(lr=2.0)
    for step in range(12):
        world.step(policy, MIDDLE, step, contrast_loss)
    law = policy.law
    assert float(law.pi.detach().mean()) == pytest.approx(0, abs=1e-5)
    assert float(law.rho.detach().abs()) <= 3
    assert float(law.mu.detach().min()) >= -4
    assert float(law.mu.detach().max()) <= 3
    assert float(law.mu.detach().std()) > 1


def test_a_step_that_is_not_finite_is_forgotten() -> None:
    world = World.of(8)
    policy = make(estimator="hybrid")
    before = policy.state_dict()
    world.step(policy, MIDDLE, 0, lambda z: contrast_loss(z) * torch.nan)
    assert all(torch.equal(before["law"][name], tensor) for name, tensor in policy.law.state_dict().items())
    assert policy.state_dict()["lambda"] == 1.5
    world.step(policy, MIDDLE, 1, contrast_loss)
    assert all(tensor.isfinite().all() for tensor in policy.law.state_dict().values())
    assert not torch.equal(before["law"]["pi"], policy.law.pi)


# --- telling ----------------------------------------------------------------------------------------------------------


def test_rewards_by_operation_are_those_that_were_given() -> None:
    """An operation whose views lose more is told so, beyond its standard error."""
    world = World.of(64)
    policy = make((WHOLE,), lr=0, retention=0.99)
    with_lambda(policy, 0.0)
    losses = []

    def loss(z: dict[str, Tensor]) -> Tensor:
        losses.append(distance(z))
        return losses[-1]

    for number in range(20):
        world.step(policy, MIDDLE, number, loss)
    told = policy.log()
    given = sum(
        (policy.propose(range(64), [(SIDE, SIDE)] * 64, epoch=number, seed=0).extras[OP] == 8).sum()
        for number in range(20)
    )
    assert policy.law.operations[8].name == "autocontrast"
    sums = torch.zeros(2)
    for number, found in enumerate(losses):
        op = policy.propose(range(64), [(SIDE, SIDE)] * 64, epoch=number, seed=0).extras[OP][0]
        times = (op == 8).sum(-1)
        weight = 0.99 ** (19 - number)
        sums += weight * torch.stack([(times * (found - found.mean())).sum(), times.sum()])
    assert given > 50
    assert told["policy/reward/autocontrast"] == pytest.approx(float(sums[0] / sums[1]), rel=1e-3)
    assert 0 < told["policy/reward_se/autocontrast"] < abs(told["policy/reward/autocontrast"]) / 3
    assert policy.log().keys() == {k for k in told if "/reward" not in k} - {
        "policy/l_reg",
        "policy/retention",
        "policy/dead_views",
    }


def test_blank_views_are_counted() -> None:
    world = World.of(16)
    policy = make((WHOLE,), learn=["magnitude"])
    with torch.no_grad():
        policy.law.pi[1] = 1e3  # contrast
        policy.law.mu[1] = 1e3
    world.step(policy, Clock(0, 10, 100), 0, distance)
    told = policy.log()
    params = policy.propose(range(16), [(SIDE, SIDE)] * 16, epoch=0, seed=0)
    spread = [
        (world.render_of(policy)(record)["global_a"] * 0.25).var((2, 3), correction=0).mean(1).sqrt()
        for record in (params, clean(params, "global_a"))
    ]
    blanked = float(((spread[0] < 0.03) & (spread[1] >= 0.03)).float().mean())
    assert 0 < blanked < float((spread[0] < 0.03).float().mean())
    assert told["policy/dead_views"] == pytest.approx(blanked)
    assert "policy/l_reg" not in told


def test_cost_is_what_is_run_beside_the_step() -> None:
    """Spec 2.8: 1.12 for eight forwards' worth of anchor with a teacher; hybrid within 1.25 to 1.4."""
    teacher = Work(globals=2, locals=0, local=0.0, teacher=True, tokens=197, width=384)
    alone = Work(globals=2, locals=0, local=0.0, teacher=False, tokens=197, width=384)
    assert make().expected_cost(teacher) == pytest.approx(1.125)
    assert make(anchor="crop").expected_cost(teacher) == pytest.approx(1.25)
    assert make(estimator="hybrid").expected_cost(teacher) == pytest.approx(1.25)
    assert make(estimator="hybrid").expected_cost(alone) == pytest.approx(1 + 2 / 6)
    assert make(estimator="hybrid", learn=["ops"]).expected_cost(alone) == pytest.approx(1 + 1 / 6)


# --- state, file, processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["score", "hybrid"])
def test_state_goes_on_where_it_was(estimator: str) -> None:
    """A8."""
    world = World.of(12)
    policy = make(estimator=estimator)
    for number in range(4):
        world.step(policy, MIDDLE, number, contrast_loss)
    again = make(estimator=estimator)
    again.load_state_dict(policy.state_dict())
    for number in range(4, 8):
        for one in (policy, again):
            world.step(one, MIDDLE, number, contrast_loss)
        a, b = (one.propose(range(12), [(SIDE, SIDE)] * 12, number, 0) for one in (policy, again))
        assert all(torch.equal(a.extras[name], b.extras[name]) for name in a.extras)
    # What was told since is shorter in one than in the other, but the memories are the same.
    assert {k: v for k, v in policy.log().items() if "l_reg" not in k and "retention" not in k and "dead" not in k} == {
        k: v for k, v in again.log().items() if "l_reg" not in k and "retention" not in k and "dead" not in k
    }


def exported_file(policy: Learned, folder: Path) -> Path:
    path = folder / "policy.json"
    path.write_text(json.dumps(policy.exported()))
    return path


def test_an_exported_policy_is_replayed(tmp_path: Path) -> None:
    """A10: the same views bit for bit, without any gradient, and nothing learned."""
    world = World.of(12)
    policy = make(space="autoaugment", estimator="hybrid")
    for number in range(5):
        world.step(policy, MIDDLE, number, contrast_loss)
    replay = make(exported=str(exported_file(policy, tmp_path)), estimator="hybrid")
    assert replay.exported() == policy.exported()
    replay.begin_step(MIDDLE)
    params = replay.propose(range(12), [(SIDE, SIDE)] * 12, epoch=9, seed=4)
    assert not params.requires_grad
    views = world.render_of(replay)(params)
    with torch.no_grad():
        expected = world.render_of(policy)(policy.propose(range(12), [(SIDE, SIDE)] * 12, epoch=9, seed=4))
    for slot in views.names:
        assert torch.equal(views[slot], expected[slot])
        assert not views[slot].requires_grad
    world.step(replay, MIDDLE, 0, contrast_loss)
    assert replay.exported() == policy.exported()
    assert replay.expected_cost(Work(2, 0, 0.0, True, 197, 384)) == 1


def test_crops_are_those_of_the_random_policy() -> None:
    """A5: only what operations replace is another."""
    policy = make(CROPS)
    found = policy.propose(range(9), [(SIDE, 20)] * 9, epoch=2, seed=3)
    expected = sample_views(CROPS, range(9), [(SIDE, 20)] * 9, epoch=2, seed=3)
    replaced = {"jitter", "brightness", "contrast", "saturation", "hue", "gray", "sigma", "solarize"}
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in set(FIELDS) - replaced)


GOOD = {"policy": "learned", "space": "ssl12", "pi": {}, "rho": 0.0, "mu": {}, "s": 0.5, "floor": 0.02}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "is no policy.json"),
        ('{"space": "ssl12"}', "pi: Field required"),
        (json.dumps({**GOOD, "space": "ssl13"}), "space: Input should be 'ssl12' or 'autoaugment'"),
        (json.dumps({**GOOD, "rho": None}), "rho: "),
        (json.dumps({**GOOD, "pi": {"hue": "much"}}), "pi: hue: "),
        (json.dumps({**GOOD, "more": 1}), "more: Extra inputs"),
        (json.dumps({**GOOD, "s": 0}), "s: "),
        (json.dumps({**GOOD, "pi": {"hue": 0.0}, "mu": {"hue": 0.0}}), "has operations hue, but these images"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        make(exported=str(path))
    assert str(path) in str(refused.value)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"views.exported=.*none.json: cannot be read"):
        make(exported=str(tmp_path / "none.json"))
    path = exported_file(make(), tmp_path)
    with pytest.raises(UserError, match="these images of 1 channels take"):
        make(channels=1, exported=str(path))


def learn_in_a_process(rank: int) -> dict[str, Any]:
    world = World.of([5, 9][rank])
    policy = make(estimator="hybrid")
    for number in range(50):
        world.step(policy, MIDDLE, 2 * number + rank, contrast_loss)
    return policy.state_dict()


def test_processes_with_unequal_data_keep_one_policy(tmp_path: Path) -> None:
    """A9."""
    first, second = run_processes(2, tmp_path, learn_in_a_process)
    start = make().state_dict()
    for name, tensor in first["law"].items():
        assert torch.equal(tensor, second["law"][name])
        assert not torch.equal(tensor, start["law"][name])
    assert first["lambda"] == second["lambda"] != 1.5
    assert torch.equal(first["rewards"]["table"], second["rewards"]["table"])
