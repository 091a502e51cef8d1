"""Writer retrieval from pages to numbers: glyphs by hands that differ in slant, width and thickness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter, zoom
from sklearn.datasets import load_digits

import belvedere

SETTINGS = {
    "images.binarize": "none",  # they are white on black as they are
    "images.tile": 64,
    "images.tile_overlap": 0.0,
    "views.size": 48,
    "views.local_size": 24,
    "views.locals": 2,
    "train.batch": 32,
    "train.steps": 40,
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 64,
    "backbone.depth": 3,
}


def page(glyphs: NDArray[np.float64], hand: int, number: int) -> NDArray[np.uint8]:
    """16 glyphs in four rows, 128 x 128, as one hand writes them."""
    own = np.random.default_rng(hand)
    slant, thick, wide = own.uniform(-0.6, 0.6), own.uniform(0.5, 1.6), own.uniform(0.75, 1.2)
    turn, middle = np.array([[1, 0], [slant / wide, 1 / wide]]), np.array([15.5, 15.5])
    rows = []
    for glyph in glyphs[np.random.default_rng(1000 * hand + number + 7).integers(len(glyphs), size=16)]:
        large = np.pad(zoom(glyph / 16, 3, order=1), 4).clip(0, 1)
        drawn = affine_transform(large, turn, middle - turn @ middle, order=1)
        rows.append(255 * (gaussian_filter(drawn, thick) > 0.32))
    return np.stack(rows).reshape(4, 4, 32, 32).transpose(0, 2, 1, 3).reshape(128, 128).astype(np.uint8)


@pytest.mark.slow
def test_hands_are_found_by_patches_above_the_global_vector_above_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    glyphs, run = load_digits().images, tmp_path / "run"
    for hand in range(48):
        folder = tmp_path / ("train" if hand < 28 else "test") / f"{hand:02}"
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(page(glyphs, hand, number)).save(folder / f"{number}.png")
    belvedere.pretrain(tmp_path / "train", "writer", out=run, device="cpu", settings=SETTINGS)
    (result,) = belvedere.evaluate(
        run,
        tmp_path / "train",
        test=tmp_path / "test",
        protocols=["vlad"],
        device="cpu",
        floors=[],
        settings={"vlad.min_ink": 8, "vlad.centers": 32},
    )
    assert (result.settings["training_pages"], result.settings["queries"]) == (112, 80)
    found = {metric: number.value for metric, number in result.metrics["run"].items()}
    assert found["map_plain"] > found["map_global"]
    assert found["map"] > found["map_global_whitened"]
    assert found["map_global_whitened"] > 2 * result.settings["chance_percent"]["map"]
