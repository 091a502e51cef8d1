"""MAE: what the encoder sees, what is refused, and that photographs are painted better than by their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.errors import UserError
from belvedere.report.tasks.reconstruct import masked_errors
from belvedere.tasks.mae import Mae, draw_masks, patchify, unpatchify
from newcomer import WORDS, belvedere, photo_folder
from tiny import SWIN, tiny_canvases, tiny_trainer, train


@settings(max_examples=50)
@given(images=st.integers(1, 4), patches=st.integers(2, 40), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_every_patch_stays_or_is_missing(images: int, patches: int, ratio: float, seed: int) -> None:
    noise = torch.rand(images, patches, generator=torch.Generator().manual_seed(seed))
    keep, restore = draw_masks(noise, ratio)
    missing = restore >= keep.shape[1]
    assert keep.shape[1] == max(1, int(patches * (1 - ratio)))
    assert (missing.sum(1) == patches - keep.shape[1]).all()
    assert not missing.gather(1, keep).any()
    assert torch.equal(restore.gather(1, keep), torch.arange(keep.shape[1]).expand(images, -1))


@settings(max_examples=20)
@given(grid=st.tuples(st.integers(1, 4), st.integers(1, 4)), patch=st.integers(1, 4), channels=st.integers(1, 4))
def test_patches_and_back(grid: tuple[int, int], patch: int, channels: int) -> None:
    pixels = torch.randn(2, channels, grid[0] * patch, grid[1] * patch)
    patches = patchify(pixels, patch)
    assert patches.shape == (2, grid[0] * grid[1], patch * patch * channels)
    assert torch.equal(unpatchify(patches, grid, patch), pixels)


@pytest.mark.parametrize("objective", ["none", "simclr", "dino"])
def test_the_encoder_sees_a_quarter_of_each_global_view_once(objective: str) -> None:
    trainer, feed = tiny_trainer(objective, tasks=["mae"], views__globals=2)
    seen: list[Any] = []

    def note(module: Any, given: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        seen.append((len(given[0]), options["keep"]))

    hook = trainer.parts.student.backbone.register_forward_pre_hook(note, with_kwargs=True)
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    trainer.wrapped(batch)
    hook.remove()
    kept = [(images, keep.shape) for images, keep in seen if keep is not None]
    assert kept == [(16, (16, 4))]
    local = [images for images, keep in seen if keep is None]
    assert len(local) == (1 if any(not slot.startswith("global") for slot in batch.views.names) else 0)


def test_photographs_are_painted_better_than_by_their_mean() -> None:
    """Standardised patches have variance 1, so painting their mean costs 1."""
    canvases = tiny_canvases(64)
    settings = {"train__steps": 150, "train__batch": 32, "train__lr": 2e-3, "train__warmup": 5, "task__mae__depth": 1}
    trainer, feed = tiny_trainer("none", canvases, tasks=["mae"], **settings)
    reports = train(trainer, feed, 0, 150)
    assert reports[0].loss > 1
    assert np.mean([report.loss for report in reports[-10:]]) < 0.95
    shown = trainer.show(next(feed.stream(0, 1))[0])["mae"]
    mask = shown["mask"].expand_as(shown["original"]).bool()
    assert torch.equal(shown["reconstructed"][~mask], shown["original"][~mask])
    assert not shown["corrupted"][mask].any()
    assert mask.float().mean() == pytest.approx(0.75)
    # What it is compared with knows as much of every patch as it was told: the mean level.
    torch.testing.assert_close(
        masked_errors(shown)["mean"], masked_errors(shown | {"reconstructed": shown["means"]})["network"]
    )
    assert shown["means"][0].unfold(1, 8, 8).unfold(2, 8, 8).std((0, 3, 4)).max() < 1e-5


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("ibot", {}, "ibot masks patches itself"),
        ("none", {"task__mae__width": 40}, r"task\.mae\.width=40: give a multiple of 32"),
        ("none", {"task__mae__mask_ratio": 1.0}, r"task\.mae\.mask_ratio"),
    ],
)
def test_what_makes_no_sense_is_refused(objective: str, options: dict[str, Any], message: str) -> None:
    def one_step() -> None:
        trainer, feed = tiny_trainer(objective, **{"tasks": ["mae"], **options})
        trainer.step(0, next(feed.stream(0, 1)))

    with pytest.raises(UserError, match=message) as refused:
        one_step()
    assert "\n" not in str(refused.value)


def test_two_tasks_that_replace_views_are_refused_before_images_are_read(tmp_path: Path) -> None:
    words = ["--objective", "simclr", "tasks=[mae,koleo,reconstruct]", *WORDS, "--out", tmp_path / "run"]
    said = belvedere(tmp_path, "pretrain", photo_folder(tmp_path / "photos"), *words)
    assert said.refusal() == "tasks mae and reconstruct both replace the student's views: keep one"
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_altered_patches_of_relations_replace_views_where_there_is_one() -> None:
    tasks: dict[str, Any] = {"tasks": ["relations", "mae"], "task__relations__augment": True}
    with pytest.raises(UserError, match="relations and mae both replace"):
        tiny_trainer("supervised", **tasks)
    tiny_trainer("simclr", **tasks)


def test_a_task_that_does_not_say_so_is_refused_at_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mae, "replaces", classmethod(lambda *_: False))
    trainer, feed = tiny_trainer("none", tasks=["mae", "reconstruct"])
    with pytest.raises(UserError, match="mae and reconstruct both replace"):
        trainer.step(0, next(feed.stream(0, 1)))


def test_a_swin_is_refused() -> None:
    with pytest.raises(UserError, match="cannot leave patches out; take a vision transformer"):
        tiny_trainer("simclr", tasks=["mae"], **SWIN)
