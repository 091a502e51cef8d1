"""The one dial: what is derived is valid for any images, and is the paper's at the paper's size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere import config
from belvedere.derive import IMAGENET, Facts, derive
from belvedere.pretrain.compose import settle
from belvedere.schedules import batches


def at_imagenet(recipe: str, **given: Any) -> dict[str, Any]:
    """The flat settled configuration at full ImageNet with the paper's batch; dots in keys are written as __."""
    batch = config.resolve(recipe, {}).config.paper.batch
    asked = {"train.batch": batch, **{key.replace("__", "."): value for key, value in given.items()}}
    return config.flatten(settle(config.resolve(recipe, asked), IMAGENET)[0].config)


def epochs(flat: dict[str, Any], steps: int) -> float:
    return steps / batches(IMAGENET.images, flat["train.batch"])


def test_dino_at_imagenet_is_the_papers() -> None:
    """arXiv:2104.14294, section 3 and the official code: ViT-S/16, batch 1024."""
    flat = at_imagenet("dino")
    wanted = {
        "train.lr": 0.002,  # 0.0005 x batch / 256
        "train.lr_end": 1e-6,
        "train.weight_decay": 0.04,
        "train.weight_decay_end": 0.4,
        "train.clip_tensor": 3.0,
        "train.optimizer": "adamw",
        "train.epochs": 100.0,
        "objective.prototypes": 65536,
        "objective.momentum": 0.996,
        "objective.student_temp": 0.1,
        "objective.teacher_temp": 0.04,
        "objective.center_momentum": 0.9,
        "objective.hidden": 2048,
        "objective.bottleneck": 256,
        "objective.freeze_last_layer": 1.0,
        "backbone.name": "vit_small",
        "backbone.patch": 16,
        "backbone.drop_path": 0.1,
        "views.size": 224,
        "views.local_size": 96,
        "views.globals": 2,
        "views.locals": 8,
        "views.global_scale": [0.4, 1.0],
        "views.local_scale": [0.05, 0.4],
        "views.jitter": [0.4, 0.4, 0.2, 0.1],
        "views.blur_p": [1.0, 0.1, 0.5],
        "views.solarize_p": [0.0, 0.2, 0.0],
        "images.canvas": 256,
        "images.mean": [0.485, 0.456, 0.406],
        "images.std": [0.229, 0.224, 0.225],
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 10
    assert epochs(flat, flat["train.steps"]) == 100


def test_esvit_at_imagenet_is_the_papers() -> None:
    """arXiv:2106.09785, appendix, and the official code: Swin-T with windows of 7, batch 512, 300 epochs."""
    flat = at_imagenet("esvit")
    wanted = {
        "train.lr": 0.001,  # 0.0005 x batch / 256
        "train.lr_end": 1e-6,
        "train.weight_decay": 0.04,
        "train.weight_decay_end": 0.4,
        "train.clip_tensor": 3.0,
        "train.epochs": 300.0,
        "objective.prototypes": 65536,
        "objective.momentum": 0.996,
        "objective.warmup_teacher_temp": 0.04,
        "objective.teacher_temp": 0.07,
        "objective.teacher_temp_warmup": 30.0,
        "objective.norm_last_layer": False,
        "objective.freeze_last_layer": 1.0,
        "objective.centering": "mean",
        "task.regions.weight": 0.5,
        "task.regions.view_weight": 0.5,
        "backbone.name": "swin_tiny",
        "backbone.patch": 4,
        "backbone.drop_path": 0.1,
        "views.size": 224,
        "views.local_size": 96,
        "views.locals": 8,
        "views.global_scale": [0.4, 1.0],
        "views.local_scale": [0.05, 0.4],
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 10


def test_ibot_at_imagenet_is_the_authors_command() -> None:
    """arXiv:2111.07832 and the official readme: ViT-S/16, batch 1024, 800 epochs, 10 local crops."""
    flat = at_imagenet("ibot")
    wanted = {
        "train.lr": 0.002,
        "train.lr_end": 1e-6,
        "train.weight_decay": 0.04,
        "train.weight_decay_end": 0.4,
        "train.clip_tensor": 3.0,
        "train.optimizer": "adamw",
        "train.epochs": 800.0,
        "objective.prototypes": 8192,
        "objective.patch_prototypes": 8192,
        "objective.shared_head": True,
        "objective.norm_last_layer": False,
        "objective.momentum": 0.996,
        "objective.teacher_temp": 0.07,
        "objective.warmup_teacher_temp": 0.04,
        "objective.teacher_temp_warmup": 30.0,
        "objective.patch_teacher_temp": 0.07,
        "objective.warmup_patch_teacher_temp": 0.04,
        "objective.hidden": 2048,
        "objective.freeze_last_layer": 1.0,
        "objective.lambda1": 1.0,
        "objective.lambda2": 1.0,
        "objective.mask_shape": "block",
        "objective.mask_ratio": [0.0, 0.3],
        "objective.mask_ratio_var": [0.0, 0.2],
        "objective.mask_start": 0.0,
        "backbone.name": "vit_small",
        "backbone.patch": 16,
        "backbone.drop_path": 0.1,
        "views.globals": 2,
        "views.locals": 10,
        "views.global_scale": [0.25, 1.0],
        "views.local_scale": [0.05, 0.25],
        "views.blur_p": [1.0, 0.1, 0.5],
        "views.solarize_p": [0.0, 0.2, 0.0],
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 10
    assert epochs(flat, flat["train.steps"]) == 800


def test_simclr_at_imagenet_is_the_papers_on_a_transformer() -> None:
    """arXiv:2002.05709 with the optimiser of MoCo v3 (arXiv:2104.02057), batch 4096."""
    flat = at_imagenet("simclr")
    wanted = {
        "train.lr": 0.0024,  # 1.5e-4 x batch / 256
        "train.weight_decay": 0.1,
        "train.optimizer": "adamw",
        "train.schedule": "simclr",
        "train.epochs": 300.0,
        "objective.temperature": 0.1,
        "objective.out": 128,
        "objective.layers": 3,
        "backbone.name": "vit_small",
        "backbone.patch": 16,
        "backbone.freeze_patch": True,
        "views.size": 224,
        "views.globals": 2,
        "views.locals": 0,
        "views.global_scale": [0.08, 1.0],
        "views.jitter": [0.8, 0.8, 0.8, 0.2],
        "views.blur_p": [0.5, 0.5, 0.5],
        "views.gray_p": 0.2,
        "views.solarize_p": [0.0, 0.0, 0.0],
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 40


def test_simclr_resnet_at_imagenet_is_the_papers() -> None:
    """arXiv:2002.05709, appendix B.1: ResNet-50, LARS, batch 4096, learning rate 0.3 x batch / 256."""
    flat = at_imagenet("simclr_resnet")
    wanted = {
        "train.lr": 4.8,
        "train.optimizer": "lars",
        "train.epochs": 100.0,
        "backbone.name": "resnet50",
        "objective.temperature": 0.1,
        "objective.hidden": 2048,
        "views.size": 224,
        "views.jitter": [0.8, 0.8, 0.8, 0.2],
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 10
    assert at_imagenet("simclr_resnet", train__batch=512)["train.lr"] == 0.6


def test_moco_v3_at_imagenet_is_the_papers() -> None:
    """arXiv:2104.02057, section 4 and the official code: ViT-S/16, batch 4096, 300 epochs."""
    flat = at_imagenet("mocov3")
    wanted = {
        "train.lr": 0.0024,  # 1.5e-4 x batch / 256
        "train.weight_decay": 0.1,
        "train.decay": "all",
        "train.optimizer": "adamw",
        "train.epochs": 300.0,
        "objective.temperature": 0.2,
        "objective.hidden": 4096,
        "objective.out": 256,
        "objective.layers": 3,
        "objective.momentum": 0.99,
        "backbone.name": "vit_small",
        "backbone.heads": 12,
        "backbone.init": "mocov3",
        "backbone.freeze_patch": True,
        "views.global_scale": [0.08, 1.0],
        "views.jitter": [0.4, 0.4, 0.2, 0.1],
        "views.blur_p": [1.0, 0.1, 0.5],
        "views.solarize_p": [0.0, 0.2, 0.0],
        "views.interpolation": "bilinear",
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 40


def test_moco_v3_resnet_at_imagenet_is_the_papers() -> None:
    """arXiv:2104.02057 and the official code: ResNet-50, LARS, batch 4096, 300 epochs."""
    flat = at_imagenet("mocov3_resnet")
    wanted = {
        "train.lr": 4.8,  # 0.3 x batch / 256
        "train.optimizer": "lars_torch",
        "train.weight_decay": 1e-6,  # 1.5e-6 is that of 1000 epochs
        "train.epochs": 300.0,
        "objective.temperature": 1.0,
        "objective.hidden": 4096,
        "objective.layers": 2,
        "objective.predictor_norm": False,
        "objective.momentum": 0.99,
        "backbone.name": "resnet50",
        "backbone.heads": None,
        "views.global_scale": [0.2, 1.0],
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert epochs(flat, flat["train.warmup"]) == 10


@pytest.mark.parametrize(
    "network", [{"backbone.name": "vit_tiny"}, {"backbone.name": "vit_base"}, {"backbone.width": 192}, {}]
)
def test_only_the_papers_small_transformer_has_twelve_heads(network: dict[str, Any]) -> None:
    settled, _ = settle(config.resolve("mocov3", network), IMAGENET)
    assert settled.config.backbone.heads == (None if network else 12)
    assert settled.origin["backbone.heads"] == ("the named network's" if network else "the paper's ViT-S")


def test_simsiam_resnet_at_imagenet_is_the_papers() -> None:
    """arXiv:2011.10566, section 3 and the official code: ResNet-50, SGD, batch 512, lr 0.05 x batch / 256."""
    flat = at_imagenet("simsiam_resnet")
    wanted = {
        "train.lr": 0.1,
        "train.optimizer": "sgd",
        "train.weight_decay": 1e-4,
        "train.decay": "all",
        "train.schedule": "simsiam",
        "train.epochs": 100.0,
        "train.warmup": 0,
        "objective.hidden": 2048,
        "objective.out": 2048,
        "objective.bottleneck": 512,
        "views.global_scale": [0.2, 1.0],
        "views.jitter": [0.4, 0.4, 0.4, 0.1],
    }
    assert {key: flat[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("recipe", "own"),
    [
        ("supervised", {"objective.name": "supervised", "objective.classes": 1000, "tasks": []}),
        ("relvit", {"objective.name": "none", "backbone.pos_embed": False, "tasks": ["relations"]}),
        ("relvit_joint", {"objective.classes": 1000, "backbone.pos_embed": True, "tasks": ["relations"]}),
    ],
)
def test_relvit_at_imagenet_trains_as_the_paper(recipe: str, own: dict[str, Any]) -> None:
    """arXiv:2206.00481 and the official code, which has smaller data sets; its recipe at this size and batch 256."""
    flat = at_imagenet(recipe)
    wanted = {
        "train.batch": 256,
        "train.lr": 0.0005,
        "train.lr_end": 1.25e-6,
        "train.schedule": "relvit",
        "train.weight_decay": 0.1,
        "train.clip_global": 1.0,
        "train.optimizer": "adamw",
        "train.epochs": 100.0,
        "backbone.drop_path": 0.1,
        "views.globals": 1,
        "views.locals": 0,
        "views.jitter_p": 0.0,
        "views.gray_p": 0.0,
        "views.blur_p": [0.0, 0.0, 0.0],
        "views.flip": 0.5,
    }
    if "relations" in own["tasks"]:
        wanted |= {"task.relations.relation": True, "task.relations.absolute": True, "task.relations.distance": False}
    assert {key: flat[key] for key in wanted | own} == wanted | own
    assert epochs(flat, flat["train.warmup"]) == 10


@settings(max_examples=60)
@given(
    recipe=st.sampled_from(config.recipe_names()),
    images=st.integers(50, 5_000_000),
    side=st.integers(16, 2000),
    channels=st.integers(1, 6),
    cpu=st.booleans(),
    steps=st.integers(1, 300_000) | st.none(),
)
def test_whatever_the_images_are_the_derived_values_are_valid(
    recipe: str, images: int, side: int, channels: int, cpu: bool, steps: int | None
) -> None:
    facts = Facts(images, side, channels, classes=10, mean=(0.5,) * channels, std=(0.0,) * channels, cpu=cpu)
    budget = {"train.epochs": 7} if steps is None else {"train.steps": steps}
    fixed_width = "resnet" in recipe or recipe == "scatsimclr"
    resolved = config.resolve(recipe, budget if fixed_width else {**budget, "backbone.width": 32})
    settled, _ = settle(resolved, facts)
    assert settled.auto_keys() == []
    c = settled.config  # within the schema's ranges, or it could not have been built
    size, local, patch = c.views.size, c.views.local_size, c.backbone.patch
    assert isinstance(size, int)
    assert isinstance(local, int)
    assert isinstance(patch, int)
    assert size % patch == 0
    assert local % patch == 0
    assert patch <= local <= size
    assert int(c.images.canvas) >= size
    assert int(c.train.batch) <= images
    assert 0 <= int(c.train.warmup) < int(c.train.steps)
    # Pages of writing are gray, whatever they were scanned as.
    assert c.images.channels == (1 if recipe == "writer" else channels)
    assert len(tuple(c.images.mean)) == len(tuple(c.images.std)) == c.images.channels
    assert all(settled.origin[key] for key in config.flatten(c))


@settings(max_examples=60)
@given(patch=st.integers(1, 32), side=st.integers(16, 2000), cpu=st.booleans())
def test_a_given_patch_divides_the_derived_sizes(patch: int, side: int, cpu: bool) -> None:
    resolved, _ = derive(config.resolve("dino", {"backbone.patch": patch}), Facts(1000, side, cpu=cpu))
    assert int(resolved.config.views.size) % patch == 0
    assert int(resolved.config.views.local_size) % patch == 0
    assert resolved.config.backbone.patch == patch


def test_a_given_value_is_never_replaced() -> None:
    asked = {
        "views.size": 64,
        "backbone.patch": 4,
        "train.batch": 100,
        "train.lr": 0.5,
        "train.warmup": 3,
        "train.steps": 10,
        "images.mean": [0.1, 0.2, 0.3],
        "objective.momentum": 0.5,
        "monitor.every": 2.0,
    }
    settled, _ = settle(config.resolve("dino", asked), Facts(5000, 32, cpu=True))
    flat = config.flatten(settled.config)
    assert {key: flat[key] for key in asked} == asked
    assert {settled.origin[key] for key in asked} == {"command line"}


@pytest.mark.parametrize("images", [5_000, 1_281_167])
@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("simclr", "temperature"),
        ("mocov3", "temperature"),
        ("dino", "teacher_temp"),
        ("ibot", "patch_teacher_temp"),
        ("ibot", "mask_ratio"),
        ("ibot", "mask_ratio_var"),
        ("ibot", "mask_start"),
    ],
)
def test_temperatures_and_masks_are_shown_with_a_reason(recipe: str, key: str, images: int) -> None:
    settled, _ = settle(config.resolve(recipe, {}), replace(IMAGENET, images=images))
    assert settled.origin[f"objective.{key}"] not in ("default", f"recipe {recipe}")


@pytest.mark.parametrize("images", [5_000, 50_000, 500_000])
def test_smaller_sets_train_longer_with_fewer_prototypes(images: int) -> None:
    flat = config.flatten(settle(config.resolve("dino", {}), replace(IMAGENET, images=images))[0].config)
    assert 100 < flat["train.epochs"] <= 800
    assert 256 <= flat["objective.prototypes"] < 65536
    assert flat["objective.momentum"] <= 0.996


def test_without_a_budget_a_cpu_gets_half_an_hour() -> None:
    cpu, _ = settle(config.resolve("dino", {}), Facts(5000, 32, cpu=True))
    assert (cpu.config.train.minutes, cpu.config.train.epochs, cpu.config.train.steps) == (30.0, None, "auto")
    assert cpu.origin["train.minutes"] == "no budget was given: 30 minutes on a CPU"
    steps, _ = settle(config.resolve("dino", {"train.steps": 9}), Facts(5000, 32, cpu=True))
    assert (steps.config.train.minutes, steps.config.train.epochs, steps.config.train.steps) == (None, None, 9)


def test_a_single_image_gets_as_far_as_the_message_that_refuses_it() -> None:
    resolved, _ = derive(config.resolve("dino", {"train.steps": 5, "train.batch": 32}), Facts(1, 32, cpu=True))
    assert resolved.config.views.size == 32
