"""Settings of `generate`: wrong ones in one line, and derived values."""

from __future__ import annotations

from pathlib import Path

import pytest

from belvedere.errors import UserError
from belvedere.generate.settings import derive, flatten, from_yaml, plan, to_yaml


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train.lrr": 1}, "unknown key 'train.lrr': did you mean 'train.lr'?"),
        ({"train.lr": 0}, "train.lr: must be greater than 0 (given: 0)"),
        ({"train.lr": "fast"}, "train.lr: must be a number (given: 'fast')"),
        ({"attention.sign": "times"}, "attention.sign: must be 'minus' or 'plus' (given: 'times')"),
        ({"images.size": 0}, "images.size: must be at least 1 or 'auto' (given: 0)"),
        ({"train.epochs": 1, "train.minutes": 1}, "give one budget, not both train.epochs and train.minutes"),
    ],
)
def test_wrong_settings_are_one_line(given: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as found:
        plan(given)
    assert str(found.value) == told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"images.size": 30}, "images.size=30: generator.grid=8 does not divide it"),
        ({"images.size": 32, "discriminator.patch": 5}, "images.size=32: discriminator.patch=5 does not divide it"),
        ({"generator.heads": 5}, "generator.heads=5: does not divide generator.dim=96"),
        ({"train.batch": 200}, "train.batch=200: there are only 100 images"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_one_line(given: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as found:
        derive(plan(given), images=100, side=32, cpu=True)
    assert str(found.value) == told


def test_on_cifar10_with_a_gpu_it_is_the_published_network() -> None:
    settings = derive(plan({"train.steps": 800_000}), images=50_000, side=32, cpu=False).settings
    flat = flatten(settings)
    wanted = {
        "images.size": 32,
        "generator.dim": 384,
        "generator.heads": 6,
        "generator.depth": 4,
        "generator.painter": 512,
        "discriminator.patch": 4,
        "discriminator.overlap": 2,
        "train.batch": 64,
        "train.warmup": 3000,
        "train.lr": 1e-3,
        "loss.r1": 0.1,
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert "auto" not in {key: value for key, value in flat.items() if key not in ("images.channels", "images.workers")}


@pytest.mark.parametrize(("side", "size"), [(16, 16), (33, 32), (500, 64), (5, 8)])
def test_size_follows_the_images_up_to_64(side: int, size: int) -> None:
    assert derive(plan({}), images=100, side=side, cpu=True).settings.images.size == size


def test_minutes_leave_the_steps_to_be_measured() -> None:
    settings = derive(plan({"train.minutes": 5}), images=100, side=32, cpu=True).settings
    assert settings.train.steps == "auto"
    epochs = derive(plan({"train.epochs": 2, "train.batch": 10}), images=100, side=32, cpu=True).settings
    assert (epochs.train.steps, epochs.train.warmup, epochs.samples.every) == (20, 2, 2)


def test_settings_survive_their_file(tmp_path: Path) -> None:
    found = derive(plan({"train.lr": 1e-4}), images=100, side=32, cpu=True)
    (tmp_path / "generator.yaml").write_text(to_yaml(found))
    again = from_yaml(tmp_path / "generator.yaml")
    assert again.settings == found.settings
    assert again.origin["train.lr"] == "command line"
    assert again.origin["generator.dim"] == "a CPU's"
