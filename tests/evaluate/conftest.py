"""Labelled folders of real images for the tests of evaluate/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder

PHOTOS = ("astronaut", "coffee", "rocket", "chelsea", "retina", "immunohistochemistry")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Canvases]:
    """Canvases of a folder of classes: {class: how many 32 px cut-outs of one photograph, from cut number `first`}."""

    def make(counts: dict[str, int], name: str = "train", first: int = 0) -> Canvases:
        for label, count in counts.items():
            photo = getattr(skimage.data, label)()
            (tmp_path / name / label).mkdir(parents=True)
            rng = np.random.default_rng(first)
            for i in range(count):
                y, x = rng.integers(0, photo.shape[0] - 32), rng.integers(0, photo.shape[1] - 32)
                Image.fromarray(photo[y : y + 32, x : x + 32]).save(tmp_path / name / label / f"{i:03}.png")
        return open_canvases(find_images(tmp_path / name), 32, cache_dir=tmp_path, workers=1, progress=False)

    return make


@pytest.fixture
def encoder() -> Encoder:
    """A tiny vision transformer with random weights."""
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=2, heads=2, seed=3)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
