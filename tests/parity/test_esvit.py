"""EsViT's Swin and its region loss against the published code (spec patch_and_pretext 2)."""

from __future__ import annotations

from typing import Any

import torch
from core_helpers import Load, assert_close
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from belvedere.backbones.swin import Swin
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.schedules import Clock
from belvedere.tasks._token_losses import Distill
from belvedere.tasks.contract import Surroundings
from belvedere.tasks.regions import Regions, RegionsOptions, match


def golden_swin(g: Any) -> Swin:
    """The reference's weights in timm's names: what halves a map stands before a stage, not behind the one before."""
    model = SwinTransformer(
        img_size=int(g["img_size"]),
        patch_size=int(g["patch_size"]),
        num_classes=0,
        embed_dim=int(g["embed_dim"]),
        depths=tuple(g["depths"].tolist()),
        num_heads=tuple(g["num_heads"].tolist()),
        window_size=int(g["window_size"]),
        strict_img_size=False,
        drop_path_rate=0.0,
    )
    state = g.state("param.")
    moved = {name.replace("layers.0.downsample", "layers.1.downsample"): x for name, x in state.items()}
    model.load_state_dict(moved)
    return Swin(model, "swin_tiny_patch4_window7_224", {}).eval()


@torch.no_grad()
def test_swin_forward_also_where_maps_are_padded_and_shifted(golden: Load) -> None:
    g = golden("esvit_swin_forward")
    backbone = golden_swin(g)
    found = [backbone(g[f"view_{name}"]) for name in "abc"]
    assert_close(torch.cat([features.cls for features in found]), g["cls_feat"], 1e-5)
    assert_close(torch.cat([features.patches.flatten(0, 1) for features in found]), g["region_feat"], 1e-5)
    assert [found[k].patches.shape[1] for k in (0, 2)] == g["npatch"].tolist()


@torch.no_grad()
def test_timm_alone_differs_only_where_maps_are_padded(golden: Load) -> None:
    g = golden("esvit_swin_forward")
    backbone = golden_swin(g)
    for name, same in (("a", True), ("b", True), ("c", False)):
        gap = (backbone.model(g[f"view_{name}"]) - backbone(g[f"view_{name}"]).cls).abs().max()
        assert (gap <= 1e-6) == same, name


SLOTS = ("global_a", "global_b", "local_0", "local_1", "local_2")


def by_view(rows: Tensor, batch: int, regions: list[int]) -> dict[str, Tensor]:
    """(B, T, K) of every view from rows that are laid one view behind the other."""
    parts = torch.split(rows, [batch * count for count in regions])
    return {slot: part.view(batch, -1, rows.shape[1]) for slot, part in zip(SLOTS, parts, strict=False)}


def settings(g: Any) -> DinoOptions:
    return DinoOptions(
        prototypes=int(g["out_dim"]),
        hidden=8,
        student_temp=float(g["student_temp"]),
        center_momentum=float(g["center_momentum"]),
        warmup_teacher_temp=float(g["warmup_teacher_temp"]),
        teacher_temp=float(g["teacher_temp"]),
        teacher_temp_warmup=float(g["warmup_teacher_temp_epochs"]),
        teacher_temp_by="epoch",
        centering="mean",
        momentum=0.996,
        use_bn=False,
        norm_last_layer=False,
        freeze_last_layer=1.0,
    )


def test_three_steps_of_the_region_loss_beside_the_view_loss(golden: Load) -> None:
    g = golden("esvit_region_loss")
    batch, dim = int(g["batch"]), int(g["feat_dim"])
    regions = [int(g["n_region_global"])] * 2 + [int(g["n_region_local"])] * 3
    options = settings(g)
    objective = Dino(options, dim)
    around = Surroundings(
        dim=dim,
        patch_dim=dim,
        patch=8,
        channels=3,
        can=frozenset(),
        has_class_token=False,
        has_positions=True,
        grids={slot: (count, 1) for slot, count in zip(SLOTS, regions, strict=True)},
        sizes={},
        objective="dino",
        objective_options=options,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    weights = RegionsOptions(weight=float(g["region_weight"]), view_weight=float(g["view_weight"]))
    task = Regions(weights, around)
    for step in range(int(g["steps"])):
        prefix = f"s{step}."
        clock = Clock(int(g[prefix + "epoch"]), 1, int(g["nepochs"]))
        cls, region = (g[prefix + name].requires_grad_() for name in ("student_cls", "student_region"))
        e = objective.embed(
            {slot: {"cls": rows} for slot, rows in zip(SLOTS, cls.chunk(len(SLOTS)), strict=True)},
            {slot: {"cls": rows} for slot, rows in zip(SLOTS[:2], g[prefix + "teacher_cls"].chunk(2), strict=True)},
            clock,
        )
        features = by_view(g[prefix + "student_feat"].requires_grad_(), batch, regions)
        targets = by_view(g[prefix + "teacher_feat"], batch, regions[:2])
        outputs = by_view(g[prefix + "teacher_region"], batch, regions[:2])
        own = task.region_loss(features, targets, by_view(region, batch, regions), outputs, clock)
        loss = task.objective_weight * objective.per_image(e) + task.options.weight * own
        assert_close(objective.per_image(e).mean(), g[prefix + "view_loss"], 2e-5)
        assert_close(own.mean(), g[prefix + "region_loss"], 2e-5)
        assert_close(loss.mean(), g[prefix + "loss"], 2e-5)
        for name in (name for name in g.names if name.startswith(prefix + "match_")):
            t, v = (SLOTS[int(part[1:])] for part in name.removeprefix(prefix + "match_").split("_"))
            assert torch.equal(match(features[v], targets[t])[0], g[name]), name
        loss.mean().backward()
        assert_close(cls.grad, g[prefix + "grad_cls"], 2e-5)
        assert_close(region.grad, g[prefix + "grad_region"], 2e-5)
        objective.after_step(nn.Identity(), nn.Identity(), clock, e.stats)
        task.after_step(clock, task.stats())
        assert isinstance(task.rule, Distill)
        assert_close(objective.center, g[prefix + "center_after"], 2e-5)
        assert_close(task.rule.dino.center, g[prefix + "center_grid_after"], 2e-5)


def test_features_get_no_gradient_through_the_match(golden: Load) -> None:
    g = golden("esvit_region_loss")
    features = g["s0.student_feat"].requires_grad_()
    best, cosine = match(features[None], g["s0.teacher_feat"][None])
    assert not best.requires_grad
    assert not cosine.requires_grad
    assert g["s0.grad_feat_is_none"] == 1
