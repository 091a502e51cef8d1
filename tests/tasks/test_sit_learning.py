"""SiT on small real images for 300 steps (spec patch_and_pretext 10, item 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.trainer import Trainer
from belvedere.report.tasks.reconstruct import masked_errors
from tiny import tiny_trainer, train

# Held-out images come from places that no training image overlaps: the photographs' other half.
PHOTOGRAPHS = ("astronaut", "coffee", "cat", "rocket")


def halves(upper: bool, count: int, size: int = 32) -> Canvases:
    """Overlapping tiles of the upper or the lower halves of photographs."""
    from skimage import data

    images = [getattr(data, name)() for name in PHOTOGRAPHS]
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        photograph = images[number % len(images)]
        middle = photograph.shape[0] // 2
        part = photograph[:middle] if upper else photograph[middle:]
        side = int(generator.integers(64, 128))
        y, x = (int(generator.integers(0, extent - side)) for extent in part.shape[:2])
        found.append(part[y : y + side, x : x + side][:: side // size, :: side // size][:size, :size])
    return open_canvases(find_images(np.stack(found)), size, progress=False)


def learned(*tasks: str, **settings: Any) -> Trainer:
    given = {
        "backbone__width": 96,
        "backbone__depth": 3,
        "backbone__heads": 3,
        "train__steps": 300,
        "train__batch": 32,
        "train__lr": 1e-3,
        **settings,
    }
    trainer, feed = tiny_trainer("simclr", halves(True, 512), tasks=list(tasks), **given)
    train(trainer, feed, 0, 300)
    return trainer


@pytest.mark.slow
def test_painting_beats_the_mean_colour_and_the_corrupted_view() -> None:
    trainer = learned("reconstruct")
    canvases = halves(False, 128)
    shown = trainer.show((np.arange(128), canvases.batch(np.arange(128))))["reconstruct"]
    errors = {name: float(error.mean()) for name, error in masked_errors(shown).items()}
    print(errors)
    assert errors["network"] < min(errors["mean"], errors["copy"])


def accuracy(trainer: Trainer) -> float:
    """Share of turns told right on images that were not trained on; chance is a quarter."""
    canvases = halves(False, 256)
    shown = trainer.show((np.arange(256), canvases.batch(np.arange(256))))["rotation"]
    right: Tensor = shown["logits"].argmax(1) == shown["turns"]
    return float(right.float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("of", ["views", "copies"])
def test_turns_are_told_on_images_that_were_not_trained_on(of: str) -> None:
    trainer = learned("rotation", task__rotation__of=of)
    found = accuracy(trainer)
    print(of, found)
    assert found > 0.4
    with torch.no_grad():
        trainer.parts.tasks["rotation"].head[-1].weight.zero_()
    assert accuracy(trainer) < 0.4
