"""Distances of generated to real images, and the health of a run that makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.kid import poly_mmd

from belvedere.generate.health import CHANCE, STUCK, Health
from belvedere.generate.pictures import grid, write_each
from belvedere.generate.quality import kernel_distance, spread, to_uint8


def test_kernel_distance_is_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 8)), rng.normal(0.3, 1.2, size=(40, 8))
    theirs = poly_mmd(torch.from_numpy(first), torch.from_numpy(second)).item()
    assert kernel_distance(first, second) == pytest.approx(theirs, rel=1e-9)
    assert abs(kernel_distance(first, rng.normal(size=(40, 8)))) < kernel_distance(first, second)


def test_samples_that_look_alike_have_no_spread() -> None:
    real = torch.rand(20, 3, 8, 8)
    assert spread(real, real) == 1
    assert spread(real[:1].expand(20, -1, -1, -1), real) == 0


def told(loss: float, gap: float = 1.0, moved: bool = True) -> dict[str, float]:
    return {"loss": loss, "real": gap, "fake": 0.0, "moved": float(moved)}


@pytest.mark.parametrize(
    ("entry", "differ", "word", "color"),
    [
        (told(1.0), 0.8, "healthy", "green"),
        (told(0.01, 9), 0.8, "discriminator saturated", "red"),
        (told(0.15, 4), 0.8, "discriminator ahead", "amber"),
        (told(CHANCE, 0.0), 0.8, "discriminator blind", "amber"),
        (told(1.0), 0.05, "samples alike", "red"),
        (told(float("nan"), moved=False), 0.8, "not finite", "red"),
    ],
)
def test_health_says_what_is_wrong(entry: dict[str, float], differ: float, word: str, color: str) -> None:
    health = Health()
    for _ in range(30):
        health.step(entry)
    verdict = health.verdict(differ)
    assert (verdict.word, verdict.color) == (word, color)


def test_a_run_is_stuck_after_so_many_steps_without_a_move() -> None:
    health = Health()
    for _ in range(STUCK - 1):
        health.step(told(float("nan"), moved=False))
    assert not health.stuck
    again = Health()
    again.load_state_dict(health.state_dict())
    again.step(told(float("nan"), moved=False))
    assert again.stuck
    again.step(told(1.0))
    assert not again.stuck


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_hold_the_pixels(channels: int, tmp_path: Path) -> None:
    images = torch.rand(5, channels, 8, 8)
    write_each(images, tmp_path, 7)
    assert sorted(file.name for file in tmp_path.iterdir())[0] == "000007.png"
    read = np.asarray(Image.open(tmp_path / "000009.png")).reshape(8, 8, channels)
    assert np.array_equal(read, to_uint8(images)[2].numpy())
    assert grid(images).size == (3 * 8 * 32, 2 * 8 * 32)
