"""Metric learning (IRT): what attracts and repels, the memory, the regulariser, and what it does to photographs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.config import resolve
from belvedere.derive import Facts
from belvedere.errors import UserError
from belvedere.objectives.contrastive_metric import ContrastiveMetric, ContrastiveMetricOptions
from belvedere.pretrain.compose import settle
from belvedere.schedules import Clock
from tiny import tiny_canvases, tiny_trainer, train

CLOCK = Clock(0, 1, 10)
DIM = 6


def unit(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


def losses(objective: ContrastiveMetric, labels: list[int], *views: Tensor) -> Tensor:
    online = {f"global_{k}": {"cls": x} for k, x in enumerate(views)}
    return objective.per_image(objective.embed(online, {}, CLOCK, torch.tensor(labels)))


def make(**options: Any) -> ContrastiveMetric:
    return ContrastiveMetric(ContrastiveMetricOptions(**{"memory": 0, "koleo": 0.0, **options}), DIM)


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=6),
    past=st.lists(st.integers(0, 3), max_size=5),
    margin=st.sampled_from([0.0, 0.5]),
    views=st.integers(1, 2),
)
def test_the_loss_is_the_sum_over_all_others(labels: list[int], past: list[int], margin: float, views: int) -> None:
    objective = make(memory=8, margin=margin)
    memory = unit(len(past), seed=9)
    objective.remember(memory, torch.tensor(past, dtype=torch.int64))
    z = [unit(len(labels), seed=k) for k in range(views)]
    found = losses(objective, labels, *z)
    others = [(x[j], labels[j]) for x in z for j in range(len(labels))] + list(zip(memory, past, strict=True))
    for i, label in enumerate(labels):
        expected = 0.0
        for x in z:
            for other, theirs in others:
                cosine = float(x[i] @ other)
                if label >= 0 and theirs >= 0:
                    expected += 1 - cosine if label == theirs else max(0.0, cosine - margin)
        assert found[i].item() == pytest.approx(expected / views, abs=1e-5)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), memory=st.integers(1, 7))
def test_the_last_batch_is_always_remembered_and_the_memory_never_grows(sizes: list[int], memory: int) -> None:
    objective = make(memory=memory)
    for step, size in enumerate(sizes):
        z = unit(size, seed=step)
        objective.remember(z, torch.full((size,), step))
        kept = objective.memory[objective.memory_labels == step]
        assert torch.equal(kept, z[-memory:])
        assert objective.memory.shape == (memory, DIM)
    filled = objective.memory_labels >= 0
    assert int(filled.sum()) <= min(memory, sum(sizes))


def test_only_steps_that_were_done_are_remembered() -> None:
    objective = make(memory=10)
    z = unit(3)
    losses(objective, [0, 1, 1], z)
    objective.before_target(torch.nn.Identity(), None, CLOCK)  # the step was skipped: its loss was not finite
    with torch.no_grad():
        losses(objective, [0, 1, 1], z)
    objective.after_step(torch.nn.Identity(), None, CLOCK, {})
    assert (objective.memory_labels == -1).all()
    for _ in range(2):  # two micro-batches
        losses(objective, [0, 1, 1], z, z)
    objective.after_step(torch.nn.Identity(), None, CLOCK, {})
    assert (objective.memory_labels >= 0).sum() == 10
    losses(objective, [2, 2, 2], z)
    objective.after_step(torch.nn.Identity(), None, CLOCK, {})
    assert (objective.memory_labels == 2).sum() == 3


def test_images_without_label_are_only_spread() -> None:
    objective = make()
    assert not losses(objective, [-1, -1], unit(2)).any()
    z = unit(2).requires_grad_()
    losses(make(koleo=1.0), [-1, -1], z).sum().backward()
    assert z.grad is not None
    apart = z.detach() - 0.01 * z.grad
    assert (apart[0] - apart[1]).norm() > (z[0] - z[1]).norm()


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (0, {}, "objective contrastive_metric learns from labels, and the images have no labels"),
        (1, {}, "the images are all of one class"),
        (10, {"views.policy": "hard"}, "objective contrastive_metric has no pairs of views"),
        (10, {"objective.margin": 2}, r"objective\.margin"),
    ],
)
def test_what_makes_no_sense_is_refused(classes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        settle(resolve("irt", {"train.steps": 5, **options}), Facts(1000, 32, classes=classes, cpu=True))
    assert "\n" not in str(refused.value)


def test_the_recipe_is_the_papers_at_its_size() -> None:
    """Stanford Online Products: 59,551 training images of 11,318 classes."""
    facts = Facts(59_551, 256, classes=11_318)
    settled = settle(resolve("irt", {}), facts)[0].config
    assert settled.objective.memory == 59_551
    assert (settled.objective.margin, settled.objective.koleo) == (0.5, 0.7)
    assert (settled.train.batch, settled.train.lr, settled.train.weight_decay) == (64, 3e-5, 5e-4)
    assert settled.views.global_scale == (0.766, 0.766)


def test_photographs_of_one_kind_come_together_and_lambda_keeps_them_apart() -> None:
    """Tiles of four photographs; the same seed with and without the regulariser."""
    distance = {}
    for weight in (0.0, 1.0):
        canvases = tiny_canvases(64)
        settings = {"train__steps": 40, "train__batch": 32, "train__lr": 1e-3, "objective__koleo": weight}
        trainer, feed = tiny_trainer("contrastive_metric", canvases, **settings)
        batches = next(feed.stream(0, 1))
        first = trainer.step(0, batches, detail=True).scalars
        train(trainer, feed, 1, 39)
        last = trainer.step(39, batches, detail=True).scalars
        gap = [float(at["positive_cosine"] - at["negative_cosine"]) for at in (first, last)]
        assert gap[1] > gap[0] + 0.1
        distance[weight] = float(last["nearest_distance"])
    assert distance[1.0] > distance[0.0]
