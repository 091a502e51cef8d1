"""Supervised cross-entropy, and the objective without a loss: values, who counts, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.config import parse_overrides, resolve
from belvedere.derive import Facts
from belvedere.errors import UserError
from belvedere.objectives.none import Nothing
from belvedere.objectives.supervised import Supervised, SupervisedOptions, balanced
from belvedere.pretrain.compose import facts_of, settle
from belvedere.schedules import Clock
from tiny import tiny_canvases, tiny_config, tiny_trainer, train

CLOCK = Clock(0, 1, 10)
CLASSES = 5


def losses(labels: list[int], views: int, smoothing: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Per-image losses, and the logits they came from."""
    objective = Supervised(SupervisedOptions(classes=CLASSES, label_smoothing=smoothing), dim=4)
    generator = torch.Generator().manual_seed(len(labels))
    logits = [torch.randn(len(labels), CLASSES, generator=generator) for _ in range(views)]
    online = {f"global_{k}": {"cls": x} for k, x in enumerate(logits)}
    return objective.per_image(objective.embed(online, {}, CLOCK, torch.tensor(labels))), logits


@settings(max_examples=25)
@given(
    labels=st.lists(st.integers(-1, CLASSES - 1), min_size=1, max_size=6),
    views=st.integers(1, 3),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_the_loss_is_the_mean_cross_entropy_of_the_views(labels: list[int], views: int, smoothing: float) -> None:
    found, logits = losses(labels, views, smoothing)
    for image, label in enumerate(labels):
        log_prob = torch.stack([x[image].log_softmax(0) for x in logits])
        expected = 0.0
        if label >= 0:
            nll, even = -log_prob[:, label], -log_prob.mean(1)
            expected = ((1 - smoothing) * nll + smoothing * even).mean().item()
        assert found[image].item() == pytest.approx(expected, abs=1e-5)


def test_images_without_label_move_nothing() -> None:
    """Whatever they show: the gradient is that of the labelled ones."""
    objective = Supervised(SupervisedOptions(classes=CLASSES), dim=4)
    labels = torch.tensor([1, -1, 3, -1])
    x = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()
    objective.per_image(objective.embed({"global_a": {"cls": x}}, {}, CLOCK, labels)).sum().backward()
    assert x.grad is not None
    assert not x.grad[[1, 3]].any()
    assert x.grad[[0, 2]].any(1).all()


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30).filter(any))
def test_balanced_weights_make_classes_count_alike(sizes: list[int]) -> None:
    weights = balanced(sizes)
    assert sum(size * weight for size, weight in zip(sizes, weights, strict=True)) == pytest.approx(
        sum(sizes), rel=1e-3
    )
    parts = [size * weight for size, weight in zip(sizes, weights, strict=True) if size]
    assert parts == pytest.approx([parts[0]] * len(parts), rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_of_weight_three_is_as_if_its_images_were_there_thrice(smoothing: float) -> None:
    options = SupervisedOptions(classes=2, class_weights=(1.0, 3.0))
    weighted, plain = Supervised(options, dim=4), Supervised(SupervisedOptions(classes=2), dim=4)
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, -1])

    def loss(objective: Supervised, rows: list[int], labels: torch.Tensor) -> float:
        e = objective.embed({"global_a": {"cls": logits[rows]}}, {}, CLOCK, labels[rows])
        return objective.view_loss(e, "global_a").sum().item()

    every = [0, 1, 2, 3]
    assert loss(weighted, every, labels) == pytest.approx(loss(plain, [0, 1, 1, 1, 2, 3], labels))
    shares = F.one_hot(labels.clamp(min=0), 2).float() * (labels >= 0)[:, None]
    assert loss(weighted, every, shares) == pytest.approx(loss(weighted, every, labels))


def test_weights_of_classes_come_from_the_labels() -> None:
    canvases = tiny_canvases()
    assert canvases.labels is not None
    config = tiny_config("supervised", canvases, objective__class_weights="auto", objective__classes=6)
    sizes = np.bincount(canvases.labels[canvases.labels >= 0], minlength=4)
    assert config.objective.class_weights == pytest.approx((*(sizes.sum() / 4 / sizes), 1, 1), rel=1e-3)
    assert tiny_config("supervised", canvases).objective.class_weights is None
    with pytest.raises(UserError, match=r"objective\.class_weights: has length 3, for 4 classes"):
        tiny_trainer("supervised", canvases, objective__class_weights=[1.0, 2.0, 3.0])


def test_accuracy_is_of_the_labelled_ones() -> None:
    objective = Supervised(SupervisedOptions(classes=3), dim=4)
    logits = torch.eye(3)[[0, 1, 2, 0]]

    def told(labels: list[int]) -> dict[str, float]:
        e = objective.embed({"global_a": {"cls": logits}}, {}, CLOCK, torch.tensor(labels))
        return {name: value.item() for name, value in objective.diagnose(e).items()}

    assert told([0, 1, 0, -1]) == {"accuracy": pytest.approx(2 / 3)}
    assert told([-1, -1, -1, 0]) == {"accuracy": 1}
    assert told([-1, -1, -1, -1]) == {}


def test_an_untrained_network_has_the_loss_of_chance() -> None:
    trainer, feed = tiny_trainer("supervised")
    assert trainer.config.objective.classes == 4
    report = trainer.step(0, next(feed.stream(0, 1)), detail=True)
    index, _ = next(feed.stream(0, 1))[0]
    assert trainer.parts.labels is not None
    labelled = (trainer.parts.labels[torch.as_tensor(index)] >= 0).float().mean().item()
    chance = trainer.parts.objective.chance_loss(8)
    assert chance == math.log(4)
    assert report.loss == pytest.approx(chance * labelled, abs=0.1)
    assert 0 <= float(report.scalars["accuracy"]) <= 1


def test_photographs_are_learned() -> None:
    """Tiles of four photographs are told apart after 60 steps."""
    trainer, feed = tiny_trainer("supervised", tiny_canvases(64), train__steps=60, train__batch=32, train__lr=3e-3)
    train(trainer, feed, 0, 59)
    report = trainer.step(59, next(feed.stream(59, 60)), detail=True)
    assert float(report.scalars["accuracy"]) > 0.8


@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        (0, {}, "learns from labels, and the images have no labels: .*images.labels=FILE.csv"),
        (1, {}, "learns from labels, and the images are all of one class"),
        (10, {"objective.classes": 4}, r"objective\.classes=4: the labels have 10 classes"),
        (10, {"views.policy": "hard"}, "objective supervised has no pairs of views"),
        (10, {"objective.smoothing": 0.1}, r"objective\.label_smoothing"),
    ],
)
def test_what_makes_no_sense_is_refused(classes: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        settle(resolve("supervised", {"train.steps": 5, **settings}), Facts(1000, 32, classes=classes, cpu=True))
    assert "\n" not in str(refused.value)


def test_classes_come_from_the_data_and_are_kept() -> None:
    config = tiny_config("supervised", tiny_canvases())
    assert config.objective.classes == 4
    more = settle(resolve("supervised", {"objective.classes": 7, "train.steps": 5}), facts_of(tiny_canvases(), "cpu"))
    assert more[0].config.objective.classes == 7


# --- no loss ----------------------------------------------------------------------------------------------------------


def test_without_a_task_nothing_is_learned_and_that_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.name=none: has no loss of its own.*'tasks=\[relations\]'"):
        tiny_trainer("none", tasks=[])


@pytest.mark.parametrize("word", ["objective.name=none", "objective.name=None"])
def test_its_name_is_a_word_on_the_command_line(word: str) -> None:
    assert resolve("dino", parse_overrides([word])).config.objective.name == "none"


def test_the_tasks_loss_is_the_whole_loss() -> None:
    trainer, feed = tiny_trainer("none")
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    losses = trainer.method(batch)
    assert torch.equal(losses.per_image, torch.zeros(8))
    assert losses.local_sum().item() == pytest.approx(sum(loss.sum().item() for loss in losses.tasks.values()))
    assert batch.views.names == ("global_a",)


def test_a_broken_output_is_no_zero() -> None:
    """A loss of nothing still tells when the network's output is not finite."""
    objective = Nothing(None, 4)
    e = objective.embed({"global_a": {"cls": torch.tensor([[1.0, np.nan], [1.0, 2.0]])}}, {}, CLOCK)
    found = objective.per_image(e)
    assert found.isnan().tolist() == [True, False]
    x = torch.ones(2, 4, requires_grad=True)
    objective.per_image(objective.embed({"global_a": {"cls": F.relu(x)}}, {}, CLOCK)).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
