"""RelViT's labels, heads, losses, learning rate and mega-patches against the official ones (patch_and_pretext 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.schedules import quarter_cosine
from belvedere.tasks._patches import _from_patches, _to_patches, mega_patches
from belvedere.tasks.contract import Answer, Request, Surroundings
from belvedere.tasks.relations import (
    RELATIONS,
    Relations,
    RelationsOptions,
    angle_labels,
    distance_labels,
    places_of,
    relation_labels,
)


@pytest.mark.parametrize("side", [2, 3, 4, 7, 8])
def test_labels(golden: Load, side: int) -> None:
    g = golden("relvit_labels")
    places = places_of((side, side))
    assert torch.equal(relation_labels(places), g[f"relations_{side}"])
    assert_close(distance_labels(places), g[f"distances_{side}"], 1e-6)
    assert_close(angle_labels(places, (side, side)), g[f"angles_{side}"], 1e-3)
    assert torch.equal(side * places[:, 0] + places[:, 1], g[f"abs_positions_{side}"])


def test_labels_of_patches_in_another_order(golden: Load) -> None:
    g = golden("relvit_labels")
    side, order = int(g["shuffle_side"]), g["shuffle_perm"]
    places = places_of((side, side))[order]
    assert torch.equal(relation_labels(places), g["shuffle_relations"])
    assert_close(distance_labels(places), g["shuffle_distances"], 1e-6)
    assert_close(angle_labels(places, (side, side)), g["shuffle_angles"], 1e-3)
    assert torch.equal(side * places[:, 0] + places[:, 1], g["shuffle_abs_positions"])


def test_the_names_of_the_relations(golden: Load) -> None:
    assert tuple(golden("relvit_labels").arrays["relation_names"].tolist()) == RELATIONS


def task_of(dim: int, side: int, **options: Any) -> Relations:
    around = Surroundings(
        dim=dim,
        patch_dim=dim,
        patch=4,
        channels=3,
        can=frozenset({"pos_embed"}),
        has_class_token=True,
        grids={"global_a": (side, side)},
        sizes={"global_a": (4 * side, 4 * side)},
        objective="none",
        objective_options=None,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        has_positions=False,
    )
    return Relations(RelationsOptions(**options), around)


NO_SCENE: Any = None


def answers(task: Relations, z: Tensor) -> dict[str, Answer]:
    features = Features(cls=z.mean(1), patches=z, grid=task.grid, prefix=z[:, :0])
    return {"tokens": Answer({"global_a": features}, {}, Request())}


@torch.no_grad()
def with_weights(task: Relations, g: Any) -> Relations:
    for name, head in (("rel", task.relation), ("dist", task.distance), ("angle", task.angle)):
        head.query.weight.copy_(g[f"{name}_q"].flatten(0, 1))
        head.key.weight.copy_(g[f"{name}_k"].flatten(0, 1))
    assert isinstance(task.absolute, nn.Linear)
    task.absolute.weight.copy_(g["abs_w"])
    task.absolute.bias.copy_(g["abs_b"])
    return task


def test_heads_and_losses(golden: Load) -> None:
    g = golden("relvit_losses")
    side, dim = int(g["side"]), int(g["embed_dim"])
    task = with_weights(task_of(dim, side, distance=True, angle=True), g)
    z = g["z_patches"].requires_grad_()
    assert_close(task.relation(z), g["logits_rel"], 2e-5)
    assert_close(task.distance(z), g["logits_dist"], 2e-5)
    assert_close(task.angle(z), g["logits_angle"], 2e-5)
    assert_close(task.absolute(z).transpose(1, 2), g["logits_abs_pos"], 2e-5)
    losses = task.loss(answers(task, z), NO_SCENE, {})
    assert all(loss.shape == (int(g["batch"]),) for loss in losses.values())
    for name, expected in (("relation", "rel"), ("distance", "dist"), ("angle", "angle"), ("absolute", "abs_pos")):
        assert_close(losses[name].mean(), g[f"loss_{expected}"], 2e-5)
    total = sum(loss.mean() for loss in losses.values())
    assert isinstance(total, Tensor)
    assert_close(total, g["loss_total"], 2e-5)
    total.backward()
    assert z.grad is not None
    assert_close(z.grad, g["grad_z"], 2e-5)
    smooth = with_weights(task_of(dim, side, distance=True, angle=True, smoothing=0.1), g)
    assert_close(smooth.loss(answers(smooth, z), NO_SCENE, {})["relation"].mean(), g["loss_rel_smooth01"], 2e-5)
    found = task.show(answers(task, z), NO_SCENE, {})
    confusion = found["confusion"]
    assert (confusion.diag().sum() / confusion.sum()).item() == pytest.approx(g["acc_rel"].item())
    assert found["places"].mean().item() == pytest.approx(g["acc_abs_pos"].item())


def test_learning_rate(golden: Load) -> None:
    g = golden("relvit_losses")
    total, peak, end = int(g["lr_total_steps"]), g["lr_peak"].item(), g["lr_end"].item()
    warmup = round(0.1 * total)
    found = [quarter_cosine(step, total, warmup, peak, end) for step in range(total)]
    assert found == pytest.approx(g["lr_curve"].tolist(), rel=1e-5, abs=1e-12)
    assert found[warmup] < peak


def test_mega_patches(golden: Load) -> None:
    """The official code draws cuts for both axes and uses one of them for both; given that one, the pixels are its."""
    g = golden("relvit_megapatches")
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), g["sizes_used_both_axes"].cumsum(0)])[None]
    assert bounds[0, -1] == g["side_in"]
    assert len(bounds[0]) == g["side_out"] + 1
    found = mega_patches(g["image"][None], bounds, bounds, int(g["patch_size"]))
    assert_close(found[0], g["out_antialias"], 1e-5)
    assert not torch.allclose(found[0], g["out_no_antialias"], atol=1e-2)


def test_the_order_of_patches(golden: Load) -> None:
    g = golden("relvit_megapatches")
    patch, image = int(g["unfold_patch_size"]), g["unfold_image"][None]
    patches = _to_patches(image, patch)
    assert torch.equal(patches[:, 0].transpose(0, 1), g["unfold_patches"])
    assert torch.equal(_from_patches(patches, image.shape[2] // patch), image)
