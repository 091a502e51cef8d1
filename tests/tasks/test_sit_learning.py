"""SiT on small real images for 300 steps (spec patch_and_pretext 10, item 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.trainer import Trainer
from belvedere.report.tasks.reconstruct import masked_errors
from tiny import tiny_trainer, train

TRAINED, HELD_OUT = slice(0, 1024), slice(1024, 1280)


def digits(which: slice) -> Canvases:
    """Handwritten digits, 8 x 8 pixels enlarged to 32 x 32, one channel."""
    images = load_digits().images[which] / 16
    enlarged = np.kron(images, np.ones((4, 4))) * 255
    return open_canvases(find_images(enlarged.astype(np.uint8)[..., None]), 32, progress=False)


def learned(*tasks: str, **settings: Any) -> Trainer:
    given = {
        "backbone__width": 64,
        "train__steps": 300,
        "train__batch": 32,
        "train__lr": 2e-3,
        "views__global_scale": (0.5, 1.0),
        **settings,
    }
    trainer, feed = tiny_trainer("simclr", digits(TRAINED), tasks=list(tasks), **given)
    train(trainer, feed, 0, 300)
    return trainer


@pytest.mark.slow
def test_painting_beats_the_mean_colour_and_the_corrupted_view() -> None:
    trainer = learned("reconstruct")
    canvases = digits(HELD_OUT)
    shown = trainer.show((np.arange(256), canvases.batch(np.arange(256))))["reconstruct"]
    errors = {name: float(error.mean()) for name, error in masked_errors(shown).items()}
    assert errors["network"] < min(errors["mean"], errors["copy"])


def accuracy(trainer: Trainer) -> float:
    """Share of turns told right on images that were not trained on; chance is a quarter."""
    canvases = digits(HELD_OUT)
    shown = trainer.show((np.arange(256), canvases.batch(np.arange(256))))["rotation"]
    right: Tensor = shown["logits"].argmax(1) == shown["turns"]
    return float(right.float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("of", ["views", "copies"])
def test_turns_are_told_on_images_that_were_not_trained_on(of: str) -> None:
    trainer = learned("rotation", task__rotation__of=of)
    found = accuracy(trainer)
    assert found > 0.4
    with torch.no_grad():
        trainer.parts.tasks["rotation"].head[-1].weight.zero_()
    assert accuracy(trainer) < 0.4
