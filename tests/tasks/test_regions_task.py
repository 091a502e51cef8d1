"""EsViT's region task: matches that follow a shift, every kind of objective, what it refuses, and that it learns."""

from __future__ import annotations

import copy
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.compose import make_encoder
from belvedere.pretrain.method import answers_of
from belvedere.tasks import regions
from belvedere.tasks.contract import Answer, Request
from belvedere.tasks.regions import Regions, match, rows_at
from tiny import SWIN, tiny_canvases, tiny_trainer, train


def task_of(trainer: Any) -> Regions:
    task = trainer.parts.tasks["regions"]
    assert isinstance(task, Regions)
    return task


def rolled(tokens: Tensor, side: int, by: tuple[int, int]) -> Tensor:
    """(B, side*side, D) tokens of a map that was rolled."""
    return tokens.unflatten(1, (side, side)).roll(by, (1, 2)).flatten(1, 2)


@pytest.mark.parametrize("by", [(0, 1), (1, 0), (3, 2)])
def test_matches_of_a_rolled_view_are_the_roll_and_cost_less_than_others(
    by: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spec 10, item 2: the other view's pixels are rolled by whole regions, which a ViT without positions follows."""
    trainer, feed = tiny_trainer("dino", tasks=["regions"], views__locals=0, backbone__pos_embed=False)
    task, side = task_of(trainer), 4
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    pixels, patch = batch.views["global_a"], task.around.patch
    views = {"global_a": pixels, "global_b": pixels.roll((by[0] * patch, by[1] * patch), (2, 3))}
    assert trainer.parts.teacher is not None
    online, target = trainer.parts.student.backbone.eval(), trainer.parts.teacher.backbone.eval()
    with torch.no_grad():
        student, teacher = ({slot: network(x) for slot, x in views.items()} for network in (online, target))

    best, cosine = match(student["global_a"].patches, teacher["global_b"].patches)
    numbers = torch.arange(side * side).view(1, -1, 1).expand(len(pixels), -1, -1)
    assert torch.equal(rows_at(rolled(numbers, side, by), best), numbers)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))

    def loss() -> Tensor:
        answers = {"regions": Answer(student, {}, Request()), "targets": Answer({}, teacher, Request())}
        with torch.no_grad():
            return task.loss(answers, batch.scene, trainer.parts.teacher_heads["regions"])["match"]

    right = loss()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        random = torch.randint(side * side, best.shape, generator=generator)
        monkeypatch.setattr(regions, "match", lambda student, teacher, random=random: (random, cosine))
        assert (right < loss()).all()


@pytest.mark.parametrize("objective", ["dino", "ibot", "mocov3", "simclr", "simsiam"])
def test_head_learns_and_targets_do_not(objective: str) -> None:
    trainer, feed = tiny_trainer(objective, tasks=["regions"], train__freeze_trunk=0.0)
    task = task_of(trainer)
    before = copy.deepcopy(task.state_dict())
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    losses = trainer.method(batch)
    loss = losses.tasks["regions.match"]
    assert loss.shape == (8,)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    for name, p in task.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all()), name
    for heads in trainer.parts.teacher_heads["regions"].values():
        assert trainer.parts.teacher is None or all(p.grad is None for p in heads.parameters())
    trainer.optimizer.zero_grad()
    reports = train(trainer, feed, 0, 3)
    assert all(report.moved for report in reports)
    after = task.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any(name.startswith("projector.") for name in moved)
    assert ("rule.dino.center" in moved) == (objective in ("dino", "ibot"))
    assert any(name.startswith("predictor.") for name in moved) == (objective in ("mocov3", "simsiam"))


def test_the_whole_loss_weighs_views_and_regions() -> None:
    trainer, feed = tiny_trainer("dino", tasks=["regions"], task__regions__weight=0.3, task__regions__view_weight=0.7)
    losses = trainer.method(trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0)))
    other, _ = tiny_trainer("dino", tasks=["regions"], task__regions__weight=1.0, task__regions__view_weight=0.0)
    alone = other.method(other.prepare(next(feed.stream(0, 1))[0], other.clock(0)))
    expected = 0.7 * losses.per_image.sum() + 0.3 * alone.tasks["regions.match"].sum()
    torch.testing.assert_close(losses.local_sum(), expected)
    torch.testing.assert_close(alone.local_sum(), alone.tasks["regions.match"].sum())


def test_the_last_layer_rests_as_long_as_the_objectives() -> None:
    trainer, feed = tiny_trainer("dino", tasks=["regions"], objective__freeze_last_layer=1.0)
    layer = task_of(trainer).projector.get_parameter("last_layer.weight_v")
    start = layer.detach().clone()
    train(trainer, feed, 0, feed.steps_per_epoch)
    assert torch.equal(layer, start)
    train(trainer, feed, feed.steps_per_epoch, feed.steps_per_epoch + 1)
    assert not torch.equal(layer, start)


def test_a_teacher_whose_head_follows_and_a_student_that_is_its_own() -> None:
    trainer, feed = tiny_trainer("dino", tasks=["regions"])
    head, copy_of = task_of(trainer).projector, trainer.parts.teacher_heads["regions"]["projector"]
    start = copy_of.get_parameter("mlp.0.weight").clone()
    train(trainer, feed, 0, 2)
    m = trainer.parts.objective.momentum(trainer.clock(0))
    assert 0.5 < m < 1
    moved = (copy_of.get_parameter("mlp.0.weight") - start).norm()
    assert 0 < moved < (head.get_parameter("mlp.0.weight") - start).norm()
    simsiam, _ = tiny_trainer("simsiam", tasks=["regions"])
    assert simsiam.parts.teacher_heads["regions"]["projector"] is task_of(simsiam).projector


@pytest.mark.parametrize(
    "settings",
    [
        {**SWIN, "views__size": [24, 40]},
        {"views__size": [24, 40], "views__locals": 2},
        {"images__channels": 1},
        {"train__precision": "bf16", "train__batch": 5},
        {**SWIN, "train__precision": "bf16", "backbone__drop_path": 0.2},
        {"backbone__class_token": False},
        {"backbone__name": "resnet18", "backbone__patch": "auto", "backbone__width": None, "views__size": 64}
        | {"backbone__depth": None, "backbone__heads": None, "views__locals": 0},
    ],
    ids=["swin", "rectangle", "gray", "bf16", "swin bf16", "no class token", "resnet"],
)
def test_any_network_size_channels_and_precision(settings: dict[str, Any]) -> None:
    canvases = tiny_canvases(channels=settings.get("images__channels", 3))
    trainer, feed = tiny_trainer("dino", canvases, tasks=["regions"], **settings)
    reports = train(trainer, feed, 0, 2)
    assert all(report.moved for report in reports)


@pytest.mark.parametrize(
    ("objective", "settings", "words"),
    [
        ("dino", {**SWIN, "views__size": 16, "views__locals": 0}, "global_a has a single patch token.*backbone.patch"),
        ("simclr", {"backbone__patch": 32}, "single patch token"),
        ("ibot", SWIN, "no patches to mask, use a ViT"),
        ("dino", {"task__regions__wait": 1}, "wait"),
    ],
)
def test_refusals_in_one_line(objective: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        tiny_trainer(objective, tasks=["regions"], **settings)
    assert "\n" not in str(error.value)


def test_what_it_shows_is_what_it_matches() -> None:
    trainer, feed = tiny_trainer("dino", tasks=["regions"], **SWIN)
    micro_batch = next(feed.stream(0, 1))[0]
    shown = trainer.show(micro_batch)["regions"]
    with torch.no_grad():
        trainer.method.eval()
        batch = trainer.prepare(micro_batch, trainer.clock(int(trainer.config.train.steps) - 1))
        found = answers_of("regions", batch, trainer.parts.student.encode(batch.plan.student))
    best, cosine = match(found["regions"].student["global_b"].patches, found["targets"].target["global_a"].patches)
    assert torch.equal(shown["match"], best)
    assert torch.equal(shown["cosine"], cosine)
    assert torch.equal(shown["source"], batch.views["global_b"])
    assert shown["target_grid"].tolist() == [2, 2]
    assert build_backbone("swin_tiny", size=(32, 32), channels=3, patch=2).grid((32, 32)) == (2, 2)


@pytest.mark.slow
def test_a_swin_learns_from_small_crops(shared_data: Path, tmp_path: Path) -> None:
    """Spec 10, item 2: 100 steps on 32 and 16 px crops, finite, falling, and better than where it started."""
    for name, count in (("cifar10_train20k", 100), ("cifar10_test10k", 50)):
        with tarfile.open(shared_data / f"{name}.tar.gz") as archive:
            seen: Counter[str] = Counter()
            for member in archive:
                label = Path(member.name).parent.name
                if member.isfile() and seen[label] < count:
                    seen[label] += 1
                    archive.extract(member, tmp_path, filter="data")
    images, held_out = (
        open_canvases(find_images(tmp_path / "cifar10" / split), 32, cache_dir=tmp_path, workers=1, progress=False)
        for split in ("train", "test")
    )
    small = {"views__size": 32, "views__local_size": 16, "views__locals": 2, "train__batch": 64, "train__steps": 100}
    trainer, feed = tiny_trainer("dino", images, tasks=["regions"], **{**SWIN, "backbone__depth": 8}, **small)
    reports = train(trainer, feed, 0, 100)
    assert all(report.moved for report in reports)
    losses = torch.tensor([report.loss for report in reports])
    assert losses[-10:].mean() < losses[40:50].mean() < losses[:10].mean() - 0.1
    encoder = make_encoder(trainer.config, trainer.evaluated.backbone)
    (result,) = evaluate_encoder(encoder, Given(images, held_out), ["knn"])
    # Measured: 30.2 % from 27.4 %.
    assert result.metrics["run"]["top1"].value > result.metrics["untrained"]["top1"].value + 1
