"""Random erasing: timm's rectangles and noise, whose draws, and where a recipe has it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from belvedere.config import resolve
from belvedere.objectives._erasing import ATTEMPTS, erase, rectangles
from belvedere.objectives.supervised import Supervised
from belvedere.pretrain.compose import facts_of, settle
from belvedere.views.draws import uniform
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots
from belvedere.views.views import Views
from tiny import tiny_canvases, tiny_trainer, train

SIZE = (24, 32)


def views(index: list[int], count: int = 1, epoch: int = 0, size: tuple[int, int] = SIZE) -> Views:
    """Black views: what is not zero was erased."""
    slots = build_slots(ViewSettings(size=size, globals=count, locals=0), 3)
    params = sample_views(slots, np.array(index), np.full((len(index), 2), 40), epoch, 0)
    return Views(params, (torch.zeros(count * len(index), 3, *size),))


class Ours:
    """Our draws in the place of the global ones that timm takes, call by call."""

    def __init__(self, count: int) -> None:
        self.drawn = uniform(0, 0, np.arange(count), "erasing/global_a", (1 + 4 * ATTEMPTS,))
        self.image, self.calls, self.attempt, self.corner = -1, 0, 0, 2

    def random(self) -> float:
        self.image, self.calls = self.image + 1, 0
        return float(self.drawn[self.image, 0])

    def uniform(self, low: float, high: float) -> float:
        self.attempt, which = divmod(self.calls, 2)
        self.calls, self.corner = self.calls + 1, 2
        return low + (high - low) * float(self.drawn[self.image, 1 + 4 * self.attempt + which])

    def randint(self, low: int, high: int) -> int:
        share = float(self.drawn[self.image, 1 + 4 * self.attempt + self.corner])
        self.corner += 1
        return low + int((high - low + 1) * share)


@pytest.mark.parametrize("size", [SIZE, (5, 64)])
def test_rectangles_are_timms(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    count = 64
    found = erase(views(list(range(count)), size=size), 0.7)["global_a"]
    ours = Ours(count)
    for name in ("random", "uniform", "randint"):
        monkeypatch.setattr(random, name, getattr(ours, name))
    reference = RandomErasing(0.7, mode="pixel", device="cpu")(torch.zeros(count, 3, *size))
    assert torch.equal(found != 0, reference != 0)
    assert 0.5 < (found != 0).flatten(1).any(1).float().mean() < 0.9


def test_noise_is_standard_normal_in_every_channel() -> None:
    erased = erase(views(list(range(200)), size=(48, 48)), 1.0)["global_a"]
    for channel in range(3):
        noise = erased[:, channel][erased[:, channel] != 0]
        assert float(noise.mean()) == pytest.approx(0, abs=0.02)
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
    # Colour by pixel and channel, not one of both.
    assert not torch.equal(erased[:, 0], erased[:, 1])


def test_draws_are_the_views_own() -> None:
    whole = erase(views([0, 1, 2, 3], count=2), 0.9)
    pair = erase(views([3, 8], count=2), 0.9)
    for slot in whole.names:
        assert torch.equal(pair[slot][0], whole[slot][3])
    assert not torch.equal(whole["global_a"], whole["global_b"])
    assert not torch.equal(erase(views([0, 1, 2, 3], epoch=1), 0.9)["global_a"], whole["global_a"])
    assert not rectangles(whole.params, "global_a", SIZE, 0.0)
    assert len(rectangles(whole.params, "global_a", SIZE, 1.0)) == 4


def test_views_that_are_given_stay_as_they_are() -> None:
    before = views([0, 1])
    after = erase(before, 1.0)
    assert not before["global_a"].any()
    assert after["global_a"].flatten(1).any(1).all()


def test_a_trainer_erases_what_it_trains_on() -> None:
    canvases = tiny_canvases(24)
    losses = []
    for share in (0.0, 1.0, 1.0):
        trainer, feed = tiny_trainer("supervised", canvases, objective__erasing=share, train__steps=4)
        losses.append([report.loss for report in train(trainer, feed, 0, 2)])
    assert losses[0] != losses[1] == losses[2]


@pytest.mark.parametrize(
    ("images", "epochs", "expected"),
    [
        (2_040, 100, (0.0, 0.0, 0.25)),
        (3_680, 100, (0.8, 0.0, 0.25)),
        (50_000, 100, (0.8, 1.0, 0.25)),
        (1_281_167, 300, (0.8, 1.0, 0.25)),
        (50_000, 49, (0.0, 0.0, 0.0)),
    ],
)
def test_how_images_are_altered_follows_the_papers_sets(
    images: int, epochs: int, expected: tuple[float, float, float]
) -> None:
    facts = replace(facts_of(tiny_canvases(24), "cpu"), images=images, epochs=float(epochs))
    found = Supervised.derive({"classes": "auto"}, facts)
    assert tuple(found[name][0] for name in ("mixup", "cutmix", "erasing")) == expected
    assert all(found[name][1] for name in found)


def test_the_finetuning_recipe_says_what_it_alters_and_why() -> None:
    canvases = tiny_canvases(24)
    settled, _ = settle(resolve("finetune", {"train.epochs": 50, "backbone.width": 32}), facts_of(canvases, "cpu"))
    assert settled.config.objective.model_extra is not None
    assert settled.config.objective.model_extra["erasing"] == 0.25
    assert settled.origin["objective.erasing"] == "DeiT's"
    assert settled.origin["objective.mixup"] == "as MoCo v3 on Flowers, 2,040 images"
