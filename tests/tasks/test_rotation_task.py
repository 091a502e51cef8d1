"""Rotation: what is turned and by how much, what the student is asked, and what makes no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from belvedere.errors import UserError
from belvedere.pretrain.method import Batch
from belvedere.pretrain.trainer import Trainer
from belvedere.tasks.rotation import turn
from tiny import tiny_canvases, tiny_trainer, train


def prepared(objective: str = "simclr", *tasks: str, **options: Any) -> tuple[Trainer, Batch]:
    settings = {f"task__rotation__{name}": value for name, value in options.items()}
    trainer, feed = tiny_trainer(objective, tasks=["rotation", *tasks], **settings)
    return trainer, trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))


def test_class_one_is_a_quarter_turn_clockwise() -> None:
    """The upper left corner goes to the upper right one, then round."""
    picture = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(4, 1, 2, 2)
    turned = turn(picture, torch.arange(4))
    assert turned[:, 0].tolist() == [
        [[1, 2], [3, 4]],
        [[3, 1], [4, 2]],
        [[4, 3], [2, 1]],
        [[2, 4], [1, 3]],
    ]


def test_each_view_has_its_own_turn_and_both_branches_see_it() -> None:
    _, batch = prepared("mocov3")
    plain, feed = tiny_trainer("mocov3")
    before = plain.prepare(next(feed.stream(0, 1))[0], plain.clock(0)).views
    turns: dict[str, Tensor] = {}
    for slot in ("global_a", "global_b"):
        turns[slot] = batch.scene.integers(f"rotation {slot}", 4)
        assert torch.equal(batch.views[slot], turn(before[slot], turns[slot]))
        for jobs in (batch.plan.student, batch.plan.target):
            assert torch.equal(jobs["objective", slot].pixels, batch.views[slot])
    assert not torch.equal(turns["global_a"], turns["global_b"])
    assert set(batch.plan.student) == {("objective", "global_a"), ("objective", "global_b")}  # no forward of its own


def test_local_views_stay_upright() -> None:
    _, batch = prepared("dino")
    plain, feed = tiny_trainer("dino")
    before = plain.prepare(next(feed.stream(0, 1))[0], plain.clock(0)).views
    local = next(slot for slot in before.names if slot.startswith("local"))
    assert torch.equal(batch.views[local], before[local])


def test_copies_are_fresh_views_turned_after_augmentation() -> None:
    _, batch = prepared(of="copies")
    plain, feed = tiny_trainer("simclr")
    before = plain.prepare(next(feed.stream(0, 1))[0], plain.clock(0)).views
    assert torch.equal(batch.views["global_a"], before["global_a"])
    pixels = batch.plan.student["rotation", "turned", "copies"].pixels
    fresh = batch.scene.fresh(4)
    expected = [turn(views, torch.full((8,), k)) for k, views in enumerate(fresh)]
    assert torch.equal(pixels, torch.cat(expected))


@pytest.mark.parametrize("of", ["views", "copies"])
def test_loss_is_the_mean_cross_entropy_of_the_true_turns(of: str) -> None:
    trainer, batch = prepared(of=of, weight=0.3)
    task = trainer.parts.tasks["rotation"]
    with torch.no_grad():
        found = trainer.method(batch).tasks["rotation.turn"]
        assert found.shape == (8,)
        linear = task.head[-1]
        assert isinstance(linear, nn.Linear)
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        found = trainer.method(batch).tasks["rotation.turn"]
    if of == "copies":
        turns = torch.arange(4).expand(8, 4)
    else:
        turns = torch.stack([batch.scene.integers(f"rotation {slot}", 4) for slot in ("global_a", "global_b")], 1)
    surprise = -torch.log_softmax(torch.arange(4.0), 0)
    torch.testing.assert_close(found, 0.3 * surprise[turns].mean(1))


def test_a_token_of_its_own_is_trained_and_read() -> None:
    trainer, batch = prepared(token=True)
    task = trainer.parts.tasks["rotation"]
    losses = trainer.method(batch)
    losses.tasks["rotation.turn"].sum().backward()
    assert task.extra_tokens is not None
    assert task.extra_tokens.grad is not None
    assert task.extra_tokens.grad.any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "Linear"),
        ({"hidden": [2048, 2048], "bias": False}, "Linear GELU Linear GELU Linear"),
        (
            {"hidden": [512, 128], "activation": "relu", "dropout": 0.5},
            "Linear ReLU Dropout Linear ReLU Dropout Linear",
        ),
    ],
)
def test_heads_of_the_papers(options: dict[str, Any], expected: str) -> None:
    trainer, _ = prepared(**options)
    head = trainer.parts.tasks["rotation"].head
    assert " ".join(type(module).__name__ for module in head) == expected
    linears = [module for module in head if isinstance(module, nn.Linear)]
    assert [linear.out_features for linear in linears] == [*options.get("hidden", []), 4]
    assert all((linear.bias is not None) == options.get("bias", True) for linear in linears)


@pytest.mark.parametrize("of", ["views", "copies"])
def test_views_that_are_not_square_are_refused(of: str) -> None:
    with pytest.raises(UserError, match=r"32 x 48 px .* one number"):
        tiny_trainer("simclr", views__size=[32, 48], tasks=["rotation"], task__rotation__of=of)


def test_masked_views_are_read_as_the_objective_reads_them() -> None:
    """iBOT's student views are masked: the turn is told from those, in the same forward."""
    _, batch = prepared("ibot")
    assert all(key[0] == "objective" for key in batch.plan.student)
    request = batch.plan.requests["rotation", "turned"]
    assert request.mask is not None
    assert batch.views.mask is not None
    assert request.mask["global_a"] is batch.views.mask["global_a"]


@pytest.mark.parametrize("objective", ["dino", "mocov3"])
@pytest.mark.parametrize("of", ["views", "copies"])
def test_trains_in_bfloat16(objective: str, of: str) -> None:
    trainer, feed = tiny_trainer(
        objective, tasks=["rotation"], task__rotation__of=of, task__rotation__token=True, train__precision="bf16"
    )
    assert np.isfinite([report.loss for report in train(trainer, feed, 0, 3)]).all()


def held_out(trainer: Trainer, start: int, count: int) -> tuple[Tensor, Tensor]:
    """What the task says of canvases it has not trained on, with the truth."""
    canvases = tiny_canvases(start + count, (32, 32))
    index = np.arange(start, start + count)
    shown = trainer.show((index, canvases.batch(index)))["rotation"]
    return shown["logits"].argmax(1), shown["turns"]


def test_shown_are_pixels_answers_and_truth() -> None:
    trainer, feed = tiny_trainer("simclr", tasks=["rotation"])
    shown = trainer.show(next(feed.stream(0, 1))[0])["rotation"]
    assert shown["pixels"].shape == (16, 3, 32, 32)
    assert shown["logits"].shape == (16, 4)
    assert shown["turns"].shape == (16,)
