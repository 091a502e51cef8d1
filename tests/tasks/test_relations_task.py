"""RelViT's task: labels, its way of reading tokens, altered patches, refusals, and what it learns (acceptance 3)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.trainer import Trainer
from belvedere.tasks import relations
from belvedere.tasks._patches import crop_and_recolour, mega_patches, random_cuts, replace_by_noise
from belvedere.tasks.contract import Scene
from belvedere.tasks.relations import angle_labels, distance_labels, places_of, relation_labels
from tiny import SWIN, tiny_canvases, tiny_trainer, train

# Share of the most frequent relation on a grid of 4 x 4: a corner class (spec 3.1).
MAJORITY = 36 / 256


def scene_of(trainer: Trainer, feed: Any) -> Scene:
    return trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0)).scene


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 5), (1, 4)])
def test_labels_say_where_a_patch_lies(grid: tuple[int, int]) -> None:
    places = places_of(grid)
    found = relation_labels(places)
    assert torch.equal(found.T, 8 - found)  # left of the other: the other is right of it
    assert (found.diag() == 4).all()
    h, w = grid
    above_left = (h * (h - 1) // 2) * (w * (w - 1) // 2)
    assert (found == 0).sum() == above_left
    assert (found == 1).sum() == (h * (h - 1) // 2) * w
    far = distance_labels(places)
    assert far.diag().eq(-1).all()
    assert far.max() == 1
    assert far[0, -1] == 1
    seen = angle_labels(places, grid)
    assert torch.allclose(seen, seen.T)
    assert (seen.diag() == -1).all()
    assert seen.max() == 1


# --- how tokens are read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "settings", "with_positions"),
    [
        ("simclr", {}, False),
        ("dino", {}, False),
        ("supervised", {}, True),
        ("simclr", {"task__relations__pos_embed": True}, True),
        ("supervised", {"task__relations__pos_embed": False}, False),
        # A network without positions is asked as the objective asks it, so that one forward serves both.
        ("simclr", {"backbone__pos_embed": False}, True),
        ("none", {}, True),
    ],
)
def test_positions_are_left_out_unless_labels_are_learned_too(
    objective: str, settings: dict[str, Any], with_positions: bool
) -> None:
    trainer, feed = tiny_trainer(objective, tasks=["relations"], **settings)
    plan = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0)).plan
    assert plan.requests["relations", "tokens"].pos_embed is with_positions
    shared = ("relations", "tokens", "global_a") not in plan.student
    assert shared is with_positions


@pytest.mark.parametrize("objective", ["none", "supervised", "simclr"])
def test_altered_pixels_are_the_view_of_whoever_has_one(objective: str) -> None:
    """Class and relations are learned from one view; an objective that compares views keeps its own."""
    trainer, feed = tiny_trainer(objective, tasks=["relations"], task__relations__augment=True)
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    own = batch.plan.student["objective", "global_a"].pixels
    altered = batch.plan.requests["relations", "tokens"].pixels
    assert altered is not None
    assert torch.equal(own, altered["global_a"]) is (objective != "simclr")
    assert not torch.equal(batch.views["global_a"], altered["global_a"])
    assert np.isfinite(train(trainer, feed, 0, 1)[0].loss)


@pytest.mark.parametrize(
    "settings",
    [
        {"task__relations__distance": True, "task__relations__angle": True, "task__relations__smoothing": 0.1},
        {"task__relations__relation": False, "task__relations__absolute": False, "task__relations__angle": True},
        {"task__relations__mega": 3},
        {"task__relations__augment": True, "task__relations__noise": 0.2, "task__relations__mega": 2},
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_head_learns_on_any_images(settings: dict[str, Any], channels: int) -> None:
    canvases = tiny_canvases(16, (32, 48), channels)
    given = {"views__size": [24, 40], "tasks": ["relations"], "train__warmup": 0, **settings}
    trainer, feed = tiny_trainer("none", canvases, **given)
    task = trainer.parts.tasks["relations"]
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    reports = train(trainer, feed, 0, 2)
    assert all(np.isfinite(report.loss) for report in reports)
    assert [name for name, p in task.named_parameters() if torch.equal(p, before[name])] == []


def test_losses_are_per_image_and_carry_the_weight() -> None:
    found = []
    for weight in (1.0, 3.0):
        trainer, feed = tiny_trainer("none", tasks=["relations"], task__relations__weight=weight)
        batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
        found.append(trainer.method(batch).tasks)
    assert set(found[0]) == {"relations.relation", "relations.absolute"}
    for name, loss in found[0].items():
        assert loss.shape == (8,)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(found[1][name], 3 * loss)
    assert found[0]["relations.relation"].mean().item() == pytest.approx(np.log(9), abs=0.3)
    assert found[0]["relations.absolute"].mean().item() == pytest.approx(np.log(16), abs=0.8)


def test_a_convolutional_network_is_read_as_it_is() -> None:
    shape = {"backbone__width": None, "backbone__depth": None, "backbone__heads": None, "views__size": 64}
    settings = {"backbone__name": "resnet18", "backbone__freeze_patch": False, **shape}
    trainer, feed = tiny_trainer("simclr", tasks=["relations"], **settings)
    assert np.isfinite(train(trainer, feed, 0, 1)[0].loss)
    with pytest.raises(UserError, match=r"pos_embed=false: this backbone cannot leave its positions out"):
        tiny_trainer("simclr", tasks=["relations"], task__relations__pos_embed=False, **settings)
    with pytest.raises(UserError, match="one patch has no relations"):
        tiny_trainer("simclr", tasks=["relations"], **{**settings, "views__size": 32})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task__relations__relation": False, "task__relations__absolute": False}, "switch one on"),
        ({"task__relations__mega": 5}, r"mega=5: the view has 4 x 4 patches only"),
        ({"task__relations__mega": 1}, r"task\.relations\.mega"),
        ({"backbone__pos_embed": False, "task__relations__pos_embed": True}, "has no position embeddings"),
        ({"backbone__width": 8, "backbone__heads": 1}, "tokens of width 9 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        tiny_trainer("simclr", tasks=["relations"], **settings)
    assert "\n" not in str(refused.value)


# --- altered patches --------------------------------------------------------------------------------------------------

PATCH = 8


@pytest.fixture
def scene() -> Scene:
    return scene_of(*tiny_trainer("none"))


def statistics(channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (0.45,) * channels, (0.25,) * channels


def recoloured(pixels: Tensor, scene: Scene) -> Tensor:
    return crop_and_recolour(pixels, PATCH, scene, "p", *statistics(pixels.shape[1]))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_patch_is_altered_by_itself(scene: Scene, channels: int) -> None:
    """Another content of one patch changes that patch alone, and the same draw comes again."""
    pixels = torch.randn(8, channels, 16, 32, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 2)
    found = recoloured(pixels, scene)
    assert torch.equal(recoloured(pixels, scene), found)
    other = pixels.clone()
    other[:, :, 8:16, 16:24] = 0.3
    changed = (recoloured(other, scene) - found).abs().amax((0, 1)) > 1e-6
    assert changed[8:16, 16:24].any()
    changed[8:16, 16:24] = False
    assert not changed.any()
    factor = found[:, :, :8, :8].mean((1, 2, 3)) / pixels[:, :, :8, :8].mean((1, 2, 3))
    assert len({round(float(x), 3) for x in factor}) > 4


def test_colours_change_before_normalising(scene: Scene) -> None:
    """Dark patches stay dark: jitter on normalised values would clamp them at the mean."""
    mean, std = statistics()
    dark = torch.full((8, 3, 32, 32), (0.1 - mean[0]) / std[0])
    found = recoloured(dark, scene) * std[0] + mean[0]
    assert found.min() >= -1e-5
    assert found.max() < 0.2
    assert found.std() > 0.005
    no_crop = torch.full((8, 1, 32, 32), 0.4)
    found = crop_and_recolour(no_crop, PATCH, scene, "p", (0.0,), (1.0,))
    untouched = (found - 0.4).abs().amax((1, 2, 3)) < 1e-5
    assert not untouched.all()


def test_a_patch_is_cropped_a_little(scene: Scene) -> None:
    """A ramp within a patch keeps its middle and loses its ends: 7 of 8 pixels are left."""
    ramp = torch.linspace(0.2, 0.8, PATCH).repeat(4).expand(8, 1, 32, 32).contiguous()
    found = crop_and_recolour(ramp, PATCH, scene, "p", (0.0,), (1.0,))
    inside = found[:, :, :, :PATCH]
    spread = (inside.amax(3) - inside.amin(3)) / inside.mean(3)
    assert (spread < 0.6 / 0.5 * 1.45).all()
    plain = spread.median().item()
    assert plain == pytest.approx(7 / 8 * 0.6 / 0.5, rel=0.15)


def test_cuts_are_all_equally_likely() -> None:
    trainer, feed = tiny_trainer("none", tiny_canvases(96), train__batch=96)
    drawn = scene_of(trainer, feed)
    rows, columns = (random_cuts(drawn, purpose, 4, 2) for purpose in ("rows", "columns"))
    for bounds in (rows, columns):
        assert (bounds[:, 0] == 0).all()
        assert (bounds[:, -1] == 4).all()
        counts = torch.bincount(bounds[:, 1], minlength=4)[1:4]
        assert counts.sum() == 96
        assert (counts > 15).all()
    assert not torch.equal(rows, columns)
    assert torch.equal(random_cuts(drawn, "rows", 4, 4), torch.arange(5).expand(96, 5))


def test_mega_patches_show_the_whole_image_in_order() -> None:
    """Rows and columns are cut by their own bounds: a ramp down shows the rows' only, one across the columns'."""
    down = torch.linspace(0, 1, 32).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    rows, columns = torch.tensor([[0, 1, 4]]), torch.tensor([[0, 3, 4]])
    found = mega_patches(down, rows, columns, PATCH)[0, 0]
    assert found.shape == (16, 16)
    assert torch.allclose(found, found[:, :1].expand_as(found), atol=1e-6)
    torch.testing.assert_close(found[:8, 0], down[0, 0, :8, 0])
    assert found[8:, 0].mean() == pytest.approx(down[0, 0, 8:, 0].mean().item(), abs=1e-3)
    assert (found[:, 0].diff() > 0).all()
    across = mega_patches(down.mT, rows, columns, PATCH)[0, 0]
    torch.testing.assert_close(across[0, 8:], down[0, 0, 24:, 0])
    whole = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bounds = torch.arange(5).expand(2, 5)
    torch.testing.assert_close(mega_patches(whole, bounds, bounds, PATCH), whole)


def test_the_share_of_patches_that_is_noise() -> None:
    trainer, feed = tiny_trainer("none", tiny_canvases(96), train__batch=96)
    found = replace_by_noise(torch.full((96, 3, 32, 32), 9.0), PATCH, scene_of(trainer, feed), "p", 0.25)
    whole = found.unflatten(3, (4, 8)).unflatten(2, (4, 8)).transpose(3, 4).flatten(4)
    kept = (whole == 9).all(-1).all(1)
    assert ((whole == 9).any(-1).any(1) == kept).all()  # a patch is noise in all its pixels and channels, or in none
    assert 1 - kept.float().mean().item() == pytest.approx(0.25, abs=0.04)
    noise = found[found != 9]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


# --- what is learned (acceptance 3) -----------------------------------------------------------------------------------


def test_labels_are_numbers_on_every_grid() -> None:
    for height in range(2, 40):
        for width in (height, 2 * height, 17):
            places = places_of((height, width))
            for labels in (angle_labels(places, (height, width)), distance_labels(places)):
                assert labels.isfinite().all()
                assert labels.dtype == torch.float32
                assert labels.aminmax() == (-1, 1)


def test_alone_it_asks_for_a_network_without_positions() -> None:
    with pytest.raises(UserError, match=r"backbone\.pos_embed=false, as --recipe relvit"):
        tiny_trainer("none", tasks=["relations"], backbone__pos_embed=True)
    tiny_trainer("none", tasks=["relations"], backbone__pos_embed=True, task__relations__pos_embed=True)


@lru_cache(maxsize=1)
def digits() -> tuple[Canvases, NDArray[np.uint8]]:
    """Scanned digits enlarged to 32 x 32: 1437 to learn from, and 256 others as pixels [N,32,32,1]."""
    from sklearn.datasets import load_digits

    scans = (load_digits().images * 255 / 16).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(scan).resize((32, 32), Image.Resampling.BICUBIC)) for scan in scans])
    return open_canvases(find_images(large[:1437]), 32, progress=False), large[1437 : 1437 + 256, ..., None]


def accuracies(steps: int = 300, **settings: Any) -> tuple[float, float]:
    """Shares of relations and of places that are right on held-out digits, after training on the others."""
    canvases, held_out = digits()
    network = {"backbone__width": 64, "backbone__depth": 3, "backbone__heads": 1, "views__global_scale": [0.8, 1.0]}
    given = {"train__steps": steps, "train__batch": 64, "train__lr": 2e-3, **network, **settings}
    trainer, feed = tiny_trainer("none", canvases, **given)
    train(trainer, feed, 0, steps)
    trainer.parts = replace(trainer.parts, sizes=torch.full((len(held_out), 2), 32))
    shown = trainer.show((np.arange(len(held_out)), torch.from_numpy(held_out)))["relations"]
    return (shown["confusion"].diag().sum() / shown["confusion"].sum()).item(), shown["places"].mean().item()


@pytest.mark.slow
def test_relations_are_learned_from_content() -> None:
    """Measured: .59 of the relations and .51 of the places after 300 steps; the most frequent relation has .14."""
    relation, place = accuracies()
    assert relation > 2 * MAJORITY
    assert place > 4 / 16


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that change at every step leave the classes' shares to learn, and that a patch is itself (1 in 16)."""
    plain = relations.Relations.loss
    generator = torch.Generator().manual_seed(0)

    def shuffled(task: relations.Relations, *arguments: Any) -> dict[str, Tensor]:
        truth = task.relation_targets
        order = torch.randperm(len(truth), generator=generator)
        task.relation_targets = truth[order][:, order]
        with monkeypatch.context() as patch:
            patch.setattr(task, "_own_places", lambda tokens: order)
            losses = plain(task, *arguments)
        task.relation_targets = truth
        return losses

    monkeypatch.setattr(relations.Relations, "loss", shuffled)
    relation, place = accuracies()
    assert relation < MAJORITY + 1 / 16 + 0.02 < 2 * MAJORITY
    assert place < 2 / 16


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])
def test_positions_give_the_answers_away(augment: bool) -> None:
    """The leak for which RelViT pretrains without positions; altered patches do not close it."""
    leak = {"backbone__pos_embed": True, "task__relations__pos_embed": True, "task__relations__augment": augment}
    relation, place = accuracies(**leak)
    assert relation > 0.97
    assert place > 0.97


@pytest.mark.parametrize(
    "network",
    [
        {**SWIN, "views__size": 64},
        {"views__size": 64, "backbone__name": "resnet18", "backbone__patch": "auto"}
        | dict.fromkeys(("backbone__width", "backbone__depth", "backbone__heads")),
    ],
    ids=["swin", "resnet"],
)
def test_the_recipe_goes_with_networks_that_have_no_table_of_positions(network: dict[str, Any]) -> None:
    """Spec 3.5 names a Swin; `relvit` says `backbone.pos_embed: false`, which asks nothing of them."""
    trainer, feed = tiny_trainer("none", tasks=["relations"], train__steps=2, **network)
    assert not trainer.config.backbone.pos_embed
    assert all(report.moved for report in train(trainer, feed, 0, 2))
