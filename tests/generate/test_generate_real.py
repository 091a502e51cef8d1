"""Real images at 32 px: a few steps on CIFAR-10 bring samples nearer to them."""

from __future__ import annotations

import math
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.backbones.build import build_backbone
from belvedere.generate.quality import Judge, spread
from belvedere.generate.settings import derive, plan
from belvedere.generate.trainer import Trainer, latents, paint
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.pretrain.feed import Feed

STEPS, COUNT = 150, 200
SETTINGS = {
    "images.channels": 3,
    "generator.dim": 48,
    "generator.depth": 1,
    "generator.heads": 2,
    "generator.painter": 24,
    "discriminator.dim": 48,
    "discriminator.depth": 1,
    "discriminator.heads": 2,
    "train.batch": 32,
    "train.steps": STEPS,
}


def photographs(archives: Path, place: Path, a_class: int = 60) -> Canvases:
    """So many training images of each class."""
    seen: Counter[str] = Counter()
    with tarfile.open(archives / "cifar10_train20k.tar.gz") as archive:
        for member in archive:
            label = Path(member.name).parent.name
            if member.isfile() and seen[label] < a_class:
                seen[label] += 1
                archive.extract(member, place, filter="data")
    return open_canvases(find_images(place), 32, cache_dir=place, workers=1, progress=False)


@pytest.mark.slow
def test_samples_come_nearer_to_real_images(shared_data: Path, tmp_path: Path) -> None:
    """Distances in the features of an untrained network, which need no training to tell noise from photographs."""
    canvases = photographs(shared_data, tmp_path)
    settings = derive(plan(SETTINGS), images=len(canvases), side=32, cpu=True).settings
    trainer, feed = Trainer(settings, "cpu"), Feed(canvases, settings.train.batch, settings.train.seed)
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=48, depth=2)
    judge = Judge(Encoder(backbone, (32, 32), (0.5,) * 3, (0.25,) * 3), canvases, COUNT, 0, "cpu")
    noise = latents(0, 0, COUNT, trainer.average.dim, "measured")
    before = judge.distances(paint(trainer.average, noise))
    losses = [trainer.step(step, images)["loss"] for step, ((_, images),) in enumerate(feed.stream(0, STEPS))]
    samples = paint(trainer.average, noise)
    after = judge.distances(samples)
    assert all(math.isfinite(loss) for loss in losses)
    assert 0.1 < np.mean(losses[-20:]) < 1.6, "the discriminator is neither saturated nor lost"
    assert after["fid"] < 0.7 * before["fid"]
    assert after["kid"] < 0.7 * before["kid"]
    assert judge.floor["fid"] < after["fid"]
    assert spread(samples, trainer.pixels(canvases.batch(np.arange(COUNT)))) > 0.2
