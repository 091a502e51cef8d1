"""Losses of tokens in the way of each objective, against sums written out; whose heads and learning rate they have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.objectives.mocov3 import MoCoV3Options
from belvedere.objectives.simclr import SimClrOptions
from belvedere.objectives.simsiam import SimSiamOptions
from belvedere.schedules import Clock
from belvedere.tasks import _token_losses
from belvedere.tasks._token_losses import Cosine, InfoNce, NtXent, TokenLoss, TokenTask, on_rows
from tiny import tiny_trainer, train

TASKS = ["regions", "selfpatch"]
FAMILY = {"dino": "Distill", "ibot": "Distill", "mocov3": "InfoNce", "simclr": "NtXent", "simsiam": "Cosine"}
CLOCK = Clock(0, 1, 1)


def task_of(objective: str, task: str, **settings: Any) -> TokenTask:
    found = tiny_trainer(objective, tasks=[task], **settings)[0].parts.tasks[task]
    assert isinstance(found, TokenTask)
    return found


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def per_token(rule: TokenLoss, said: Tensor, target: Tensor) -> Tensor:
    return rule.per_token(rule.sources({"a": said})["a"], rule.targets({"a": target}, CLOCK)["a"])


def infonce(temperature: float = 0.2) -> InfoNce:
    return InfoNce(MoCoV3Options(temperature=temperature, hidden=8, out=8, layers=2, momentum=0.99), 8)


def ntxent(temperature: float = 0.2) -> NtXent:
    return NtXent(SimClrOptions(temperature=temperature, hidden=8, out=8, layers=2), 8)


# --- which loss and heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", [*FAMILY, "none"])
def test_every_objective_has_the_loss_of_its_family(objective: str, task: str) -> None:
    assert type(task_of(objective, task, views__globals=2).rule).__name__ == FAMILY.get(objective, "Cosine")


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in module.parameters()]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("mocov3", {"objective__temperature": 0.3, "objective__out": 24}),
        ("mocov3", {"objective__head": "sit"}),
        ("simclr", {"objective__hidden": 40}),
        ("simclr", {"objective__head": "scatsimclr"}),
        ("simsiam", {"objective__hidden": 64, "objective__out": 32, "objective__bottleneck": 16}),
    ],
)
def test_heads_are_the_objectives_own(objective: str, settings: dict[str, Any], task: str) -> None:
    trainer, _ = tiny_trainer(objective, tasks=[task], **settings)
    own = trainer.parts.tasks[task]
    assert isinstance(own, TokenTask)
    assert shapes(own.projector) + shapes(own.predictor) == shapes(trainer.parts.student.head)
    if "objective__temperature" in settings:
        assert own.rule.temperature == 0.3


def test_a_batchnorm_sees_all_tokens_of_a_view() -> None:
    x = tokens(0, 4, 9, 8)
    assert torch.allclose(on_rows(nn.BatchNorm1d(8, affine=False), x).mean((0, 1)), torch.zeros(8), atol=1e-6)


# --- what they say ----------------------------------------------------------------------------------------------------


def test_infonce_asks_for_the_own_target_among_other_images_at_the_same_place() -> None:
    rule = infonce()
    keys, queries = tokens(0, 4, 3, 8), tokens(1, 4, 3, 8)
    found = per_token(rule, queries, keys)
    q, k = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    for image in range(4):
        for place in range(3):
            logits = k[:, place] @ q[image, place] / 0.2
            assert found[image, place].item() == pytest.approx(-0.4 * logits.log_softmax(0)[image].item(), abs=1e-5)
    assert per_token(rule, keys, keys).mean() < found.mean()


def test_ntxent_takes_both_directions_and_spares_the_target() -> None:
    target, token = tokens(0, 4, 3, 8), tokens(1, 4, 3, 8).requires_grad_()
    found = per_token(ntxent(), token, target)
    p, y = F.normalize(token.detach(), dim=-1), F.normalize(target, dim=-1)
    for image in range(4):
        others = [i for i in range(4) if i != image]
        expected = []
        for anchors, partners in ((p, y), (y, p)):
            here = anchors[image, 1]
            logits = torch.cat([partners[:, 1] @ here, anchors[others, 1] @ here]) / 0.2
            expected.append(-logits.log_softmax(0)[image].item())
        assert found[image, 1].item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    found.sum().backward()
    assert token.grad is not None
    assert token.grad.any()


@pytest.mark.parametrize("rule", [infonce(), ntxent()], ids=["infonce", "ntxent"])
def test_one_image_alone_has_nothing_to_be_told_from(rule: TokenLoss) -> None:
    assert per_token(rule, tokens(0, 1, 9, 8), tokens(1, 1, 9, 8)).abs().max() == 0


@pytest.mark.parametrize("rule", [infonce(), ntxent()], ids=["infonce", "ntxent"])
def test_own_images_are_found_among_those_of_all_processes(rule: TokenLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes has images 4 to 6 of 7: the answers must be the rows of the joined batch."""
    said = F.normalize(tokens(1, 7, 3, 8), dim=-1)
    target = F.normalize(tokens(0, 7, 3, 8), dim=-1)
    whole = rule.per_token(said, target)
    everyone = {3: target, 4: torch.stack([said, target], dim=1)}
    monkeypatch.setattr(_token_losses, "gather_rows", lambda rows: (everyone[rows.ndim], 4))
    assert torch.allclose(whole[4:], rule.per_token(said[4:], target[4:]), atol=1e-6)


def test_cosine_is_minus_the_cosine() -> None:
    rule, x = Cosine(SimSiamOptions(hidden=8, out=8, bottleneck=2), 8), tokens(0, 2, 3, 8)
    assert torch.allclose(per_token(rule, x, 5 * x), torch.tensor(-1.0))
    assert torch.allclose(per_token(rule, x, -x), torch.tensor(1.0))


# --- learning rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", ["simsiam", "mocov3", "none"])
def test_only_simsiams_predictor_keeps_its_learning_rate(objective: str, task: str) -> None:
    """MoCo v3's follows the schedule; beside objectives of no family the loss is SimSiam's, predictor and all."""
    trainer, feed = tiny_trainer(objective, tasks=[task], views__globals=2, train__warmup=2, train__steps=4)
    (report,) = train(trainer, feed, 0, 1)
    peak = float(trainer.config.train.lr)
    assert report.lr < peak
    lrs = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    own = trainer.parts.tasks[task]
    assert isinstance(own, TokenTask)
    kept = {name for name, p in own.named_parameters() if lrs.get(id(p)) == peak}
    everything = {f"predictor.{name}" for name, _ in own.predictor.named_parameters()}
    assert everything
    assert kept == (set() if objective == "mocov3" else everything)
