"""Whole images: what tasks see beside the views."""

from __future__ import annotations

import torch

from belvedere.tasks.contract import Scene
from tiny import tiny_canvases, tiny_trainer


def scene_of(epoch: int = 0) -> tuple[Scene, torch.Tensor]:
    trainer, feed = tiny_trainer("simclr")
    step = epoch * feed.steps_per_epoch
    index, images = next(feed.stream(step, step + 1))[0]
    return trainer.prepare((index, images), trainer.clock(step)).scene, torch.as_tensor(index)


def test_whole_images_are_only_scaled_and_normalised() -> None:
    canvases = tiny_canvases(size=(32, 32))
    trainer, feed = tiny_trainer("simclr", canvases)
    index, images = next(feed.stream(0, 1))[0]
    whole = trainer.prepare((index, images), trainer.clock(0)).scene.whole()
    mean, std = (
        torch.tensor(numbers).view(-1, 1, 1) for numbers in (trainer.config.images.mean, trainer.config.images.std)
    )
    expected = torch.from_numpy(canvases.batch(index)) if not torch.is_tensor(images) else images
    torch.testing.assert_close(whole * std + mean, expected.permute(0, 3, 1, 2) / 255, atol=2e-6, rtol=0)


def test_fresh_views_are_further_draws_that_come_again() -> None:
    scene, index = scene_of()
    first = scene.fresh(2)
    assert first.shape == (2, len(index), 3, 32, 32)
    assert torch.equal(first, scene.fresh(2))
    assert not torch.allclose(first[0], first[1])
    assert not any(torch.allclose(first[k], scene.views["global_a"]) for k in range(2))
    assert torch.equal(scene.fresh(3)[:2], first)


def test_draws_depend_on_image_epoch_and_purpose_alone() -> None:
    scene, index = scene_of()
    draws = scene.uniform("p", (2,))
    assert draws.shape == (len(index), 2)
    assert torch.equal(draws, scene.uniform("p", (2,)))
    assert not torch.equal(draws, scene.uniform("q", (2,)))
    later, again = scene_of(epoch=1)
    common = [(int(i), int(j)) for i, a in enumerate(index) for j, b in enumerate(again) if a == b]
    assert all(not torch.equal(draws[i], later.uniform("p", (2,))[j]) for i, j in common)
    assert scene.integers("p", 5, (100,)).unique().tolist() == [0, 1, 2, 3, 4]
