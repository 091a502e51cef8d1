"""Small real images and tiny encoders for the tests of measure/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from belvedere.backbones.build import build_backbone
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder


@pytest.fixture
def photos() -> np.ndarray:
    """(60, 32, 32, 3) uint8 cut-outs of real photographs."""
    cuts = []
    for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()):
        cuts += [photo[y : y + 32, x : x + 32] for y in range(0, 320, 80) for x in range(0, 400, 80)]
    return np.stack(cuts)


@pytest.fixture
def make_canvases(tmp_path: Path) -> Callable[..., Canvases]:
    """Canvases of a uint8 array (N, H, W, C)."""

    def make(images: np.ndarray, name: str = "images") -> Canvases:
        np.save(tmp_path / f"{name}.npy", images)
        source = find_images(tmp_path / f"{name}.npy")
        return open_canvases(source, max(images.shape[1:3]), cache_dir=tmp_path, workers=1, progress=False)

    return make


@pytest.fixture
def make_encoder() -> Callable[..., Encoder]:
    """A tiny vision transformer with random weights."""

    def make(size: tuple[int, int] = (32, 32), channels: int = 3, seed: int = 0, **settings: Any) -> Encoder:
        backbone = build_backbone(
            "vit_tiny", size=size, channels=channels, patch=8, width=32, depth=2, heads=2, drop_path=0.5, seed=seed
        )
        return Encoder(backbone, size, [0.5] * channels, [0.25] * channels, **settings)

    return make
