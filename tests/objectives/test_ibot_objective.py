"""iBOT's objective: the patch loss by hand, invariants, readings, options, and its networks in a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from belvedere.backbones.contract import Features, attended
from belvedere.backbones.export import export_timm
from belvedere.errors import UserError
from belvedere.measure.monitor import HealthMonitor
from belvedere.objectives.contract import Embeddings, Output
from belvedere.objectives.ibot import Ibot, IbotHead, IbotOptions
from belvedere.schedules import Clock
from belvedere.schema import Paper
from tiny import tiny_canvases, tiny_config, tiny_trainer, train

SETTLED: dict[str, Any] = {
    "prototypes": 16,
    "centering": "mean",
    "norm_last_layer": True,
    "teacher_temp": 0.07,
    "warmup_teacher_temp": 0.04,
    "patch_teacher_temp": 0.07,
    "warmup_patch_teacher_temp": 0.04,
    "patch_prototypes": 16,
    "teacher_temp_warmup": 4.0,
    "teacher_temp_by": "epoch",
    "momentum": 0.9,
    "freeze_last_layer": 1.0,
    "hidden": 8,
    "bottleneck": 4,
    "mask_ratio": (0.0, 0.3),
    "mask_ratio_var": (0.0, 0.2),
    "mask_start": 0.0,
}
CLOCK = Clock(0, 10, 100)
GLOBALS = ("global_a", "global_b")
# The published command's 800 epochs at batch 1024 of ImageNet's training images.
PAPER = SimpleNamespace(
    images=1_281_167, batch=1024, steps=1_000_800, steps_per_epoch=1251, epochs=800.0, dim=384, paper=Paper()
)


def make(**options: Any) -> Ibot:
    objective = Ibot(IbotOptions(**{**SETTLED, **options}), dim=6)
    objective.center.copy_(torch.linspace(-1, 1, objective.prototypes))
    objective.patch_center.copy_(torch.linspace(1, -1, objective.patch_prototypes))
    return objective


def outputs(batch: int, n_local: int, seed: int, patches: int = 6) -> tuple[dict[str, Output], dict[str, Output]]:
    """Random logits; of every view the first image is not masked and the last wholly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, 16, generator=generator)

    online: dict[str, Output] = {}
    for slot in GLOBALS:
        mask = torch.rand(batch, patches, generator=generator) < 0.5
        mask[0], mask[-1] = False, True
        places = mask.flatten().nonzero().squeeze(1)
        online[slot] = {"cls": draw(batch), "patch": draw(len(places)), "mask": mask, "places": places}
    online |= {f"local_{i}": {"cls": draw(batch)} for i in range(n_local)}
    return online, {slot: {"cls": draw(batch), "patch": draw(batch, patches)} for slot in GLOBALS}


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@settings(max_examples=20)
@given(batch=st.integers(1, 5), n_local=st.integers(0, 2), seed=st.integers(0, 1000))
def test_the_patch_loss_is_the_mean_over_each_image_s_own_masked_patches(batch: int, n_local: int, seed: int) -> None:
    objective = make(lambda1=0.0, lambda2=3.0)
    online, target = outputs(batch, n_local, seed)
    e = objective.embed(online, target, CLOCK)
    expected = np.zeros(batch)
    for slot in GLOBALS:
        mask, student = online[slot]["mask"].numpy(), online[slot]["patch"].double().numpy()
        center = objective.patch_center.double().numpy()
        teacher = softmax((target[slot]["patch"].double().numpy() - center) / e.settings["patch_teacher_temp"])
        row = 0
        for image in range(batch):
            own = []
            for patch in np.flatnonzero(mask[image]):
                own.append(-(teacher[image, patch] * np.log(softmax(student[row] / 0.1))).sum())
                row += 1
            expected[image] += 3.0 / 2 * sum(own) / max(1, len(own))
    np.testing.assert_allclose(objective.per_image(e).numpy(), expected, rtol=1e-5)
    assert objective.view_loss(e, "local_0") is None


@settings(max_examples=20)
@given(batch=st.integers(2, 5), n_local=st.integers(0, 2), seed=st.integers(0, 1000))
def test_images_do_not_mix_and_the_score_holds_the_terms_of_two_views(batch: int, n_local: int, seed: int) -> None:
    objective = make()
    online, target = outputs(batch, n_local, seed)
    e = objective.embed(online, target, CLOCK)
    changed_online, changed_target = outputs(batch, n_local, seed)
    for output in changed_target["global_a"].values():
        output[1] *= -1
    changed = objective.embed(changed_online, changed_target, CLOCK)
    others = torch.arange(batch) != 1
    torch.testing.assert_close(objective.per_image(changed)[others], objective.per_image(e)[others])
    assert objective.per_image(changed)[1] != objective.per_image(e)[1]

    pair = 0.5 * (objective.pair_loss(e, *GLOBALS) + objective.pair_loss(e, *GLOBALS[::-1]))
    patches = objective.view_loss(e, "global_a") + objective.view_loss(e, "global_b")
    torch.testing.assert_close(objective.score(e, *GLOBALS), pair + patches)
    if n_local:
        pair = objective.pair_loss(e, "global_b", "local_0")
        torch.testing.assert_close(objective.score(e, "global_b", "local_0"), pair + objective.view_loss(e, "global_b"))


def test_the_patches_have_a_centre_of_their_own_from_all_patches() -> None:
    objective = make(patch_center_momentum=0.75)
    before = objective.patch_center.clone()
    online, target = outputs(3, 1, 0)
    stats = objective.embed(online, target, CLOCK).stats
    objective.after_step(torch.nn.Identity(), torch.nn.Identity(), CLOCK, stats)
    mean = torch.cat([output["patch"] for output in target.values()]).mean((0, 1), keepdim=True)
    torch.testing.assert_close(objective.patch_center, 0.75 * before + 0.25 * mean)
    assert objective.patch_center.shape == (1, 1, 16)


def test_without_any_mask_only_the_class_tokens_count() -> None:
    """Also the gradient of the patches' own last layer exists then, which processes in step need."""
    objective = make(shared_head=False, patch_prototypes=5)
    head, teacher = objective.make_head(), objective.make_target_head()
    assert isinstance(head, IbotHead)
    tokens = unmasked_features(6)
    e = objective.embed({slot: head(tokens) for slot in GLOBALS}, {slot: teacher(tokens) for slot in GLOBALS}, CLOCK)
    loss = objective.per_image(e)
    pair = 0.5 * (objective.pair_loss(e, *GLOBALS) + objective.pair_loss(e, *GLOBALS[::-1]))
    torch.testing.assert_close(loss, pair)
    loss.sum().backward()
    assert not head.last_layer2.weight_v.grad.any()
    read = objective.diagnose(e)
    assert read["masked_fraction"] == 0
    assert read["loss_patch"] == 0
    assert not any(name.startswith("patch_") for name in read)


def unmasked_features(dim: int) -> Features:
    x = torch.randn(2, 3, dim, generator=torch.Generator().manual_seed(0))
    return Features(x[:, 0], x[:, 1:], (1, 2), x[:, :1], mask=torch.zeros(2, 2, dtype=torch.bool))


def all_of(mask: Tensor) -> Output:
    """What the head tells of a view of which every patch is masked."""
    return {"mask": mask, "places": torch.arange(mask.numel())}


def reading(online: Tensor, target: Tensor) -> dict[str, float]:
    """Diagnostics where the class tokens are healthy and the patches (8, 2, 16) as given, all masked."""
    objective = make()
    objective.center.zero_()
    objective.patch_center.zero_()
    cls, mask = 10 * torch.eye(16)[:8], torch.ones(8, 2, dtype=torch.bool)
    e: Embeddings = objective.embed(
        {slot: {"cls": cls, "patch": online.flatten(0, 1), **all_of(mask)} for slot in GLOBALS},
        {slot: {"cls": cls, "patch": target} for slot in GLOBALS},
        CLOCK,
    )
    read = objective.diagnose(e)
    assert float(read["loss_cls"]) + float(read["loss_patch"]) == pytest.approx(float(objective.per_image(e).mean()))
    assert float(read["kl"]) == pytest.approx(float(read["loss_cls"] - read["teacher_entropy"]))
    return {name: value.item() for name, value in read.items()}


def test_the_log_tells_the_temperature_of_the_patches_apart() -> None:
    objective = make(warmup_patch_teacher_temp=0.03, patch_teacher_temp=0.05, teacher_temp_warmup=4, mask_start=2)
    mask = torch.ones(8, 2, dtype=torch.bool)
    rows = {"cls": torch.zeros(8, 16), "patch": torch.zeros(16, 16), **all_of(mask)}
    teacher = {"cls": torch.zeros(8, 16), "patch": torch.zeros(8, 2, 16)}
    for step in (2, 4, 9):
        clock = Clock(step, 1, 10)
        e = objective.embed(dict.fromkeys(GLOBALS, rows), dict.fromkeys(GLOBALS, teacher), clock)
        read = objective.diagnose(e)
        assert read["patch_teacher_temp"].item() == pytest.approx(objective.patch_teacher_temp(clock))
        assert read["teacher_temp"].item() == pytest.approx(objective.teacher_temp(clock))
        assert read["momentum"].item() == pytest.approx(objective.momentum(clock))
    assert read["patch_teacher_temp"].item() == pytest.approx(0.05)


def test_diagnostics_tell_a_collapse_of_the_patches_alone() -> None:
    spike = torch.zeros(8, 2, 16)
    spike[..., 3] = 10
    spread = 10 * torch.eye(16).reshape(8, 2, 16)
    one, uniform, healthy = reading(spike, spike), reading(0 * spike, 0 * spike), reading(spread, spread)
    for read in (one, uniform, healthy):
        assert read["distinct_argmax"] == pytest.approx(0.5)
        assert read["entropy_share"] == pytest.approx(read["teacher_entropy"] / np.log(16))
        assert read["masked_fraction"] == 1
    assert one["patch_max_mean_prob"] == pytest.approx(1)
    assert one["patch_distinct_argmax"] == pytest.approx(1 / 16)
    assert uniform["patch_teacher_entropy"] == pytest.approx(np.log(16), abs=1e-4)
    assert uniform["patch_entropy_share"] == pytest.approx(1, abs=1e-4)
    assert uniform["patch_student_entropy"] == pytest.approx(np.log(16), abs=1e-4)
    assert uniform["patch_kl"] == pytest.approx(0, abs=1e-4)
    assert uniform["loss_patch"] == pytest.approx(np.log(16), abs=1e-4)
    assert healthy["patch_entropy_share"] < 0.01
    assert reading(spread, 0 * spread)["patch_kl"] > 1
    assert healthy["patch_distinct_argmax"] == pytest.approx(1)
    assert healthy["patch_teacher_entropy"] == pytest.approx(0, abs=1e-4)


def test_the_monitor_reads_the_entropy_of_the_class_tokens_against_their_own_prototypes() -> None:
    """The chance loss has the patches' share in it, so it is no measure of the class tokens' entropy."""
    objective = make()
    monitor = HealthMonitor(total_steps=100, steps_per_epoch=10, chance_loss=objective.chance_loss(8))
    read = reading(torch.zeros(8, 2, 16), torch.zeros(8, 2, 16))
    for step in range(20):
        monitor.step(step, {"loss": 1.0, **read, "entropy_share": 0.99})
    assert monitor.values()["entropy_share"] == pytest.approx(0.99)


def test_the_masks_start_late_and_the_patches_temperature_with_them() -> None:
    objective = make(mask_start=2.0, warmup_patch_teacher_temp=0.02, patch_teacher_temp=0.06)
    assert objective.mask_law(Clock(19, 10, 100)).ratio == (0.0,)
    assert objective.mask_law(Clock(20, 10, 100)).ratio == (0.0, 0.3)
    stairs = [objective.patch_teacher_temp(Clock(step, 10, 100)) for step in range(100)]
    assert stairs[:30] == [0.02] * 30
    assert stairs[40] == pytest.approx(0.02 + 0.04 * 2 / 3)
    assert stairs[60:] == [0.06] * 40
    smooth = make(mask_start=2.0, warmup_patch_teacher_temp=0.02, patch_teacher_temp=0.06, teacher_temp_by="step")
    assert smooth.patch_teacher_temp(Clock(20, 10, 100)) == 0.02
    assert smooth.patch_teacher_temp(Clock(40, 10, 100)) == pytest.approx(0.04)


def test_chance_is_that_of_uniform_answers() -> None:
    objective = make(mask_ratio=(0.0, 0.5), mask_ratio_var=(0.0, 0.0))
    online, target = outputs(2, 0, 0)  # one of two images is masked, as under that law
    online = {
        slot: {name: x if name in ("mask", "places") else 0 * x for name, x in own.items()}
        for slot, own in online.items()
    }
    e = objective.embed(online, target, CLOCK)
    assert objective.chance_loss(2) == pytest.approx(objective.per_image(e).mean().item())


def test_at_the_paper_s_size_the_paper_s_values_come_back() -> None:
    derived = {name: value for name, (value, _) in Ibot.derive({}, PAPER).items()}
    assert derived == {
        "centering": "mean",
        "norm_last_layer": False,
        "teacher_temp": 0.07,
        "warmup_teacher_temp": 0.04,
        "patch_teacher_temp": 0.07,
        "warmup_patch_teacher_temp": 0.04,
        "prototypes": 8192,
        "patch_prototypes": 8192,
        "hidden": 2048,
        "momentum": 0.996,
        "teacher_temp_warmup": 30.0,
        "teacher_temp_by": "epoch",
        "freeze_last_layer": 1.0,
        "mask_ratio": [0.0, 0.3],
        "mask_ratio_var": [0.0, 0.2],
        "mask_start": 0.0,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1024, 1024)),
        ({"prototypes": 300}, (300, 300)),
        ({"patch_prototypes": 200}, (200, 200)),
        ({"patch_prototypes": 200, "shared_head": False}, (1024, 200)),
        ({"prototypes": 300, "shared_head": False}, (300, 300)),
        ({"prototypes": 300, "patch_prototypes": 200, "shared_head": False}, (300, 200)),
    ],
)
def test_prototypes_are_settled_together(given: dict[str, Any], expected: tuple[int, int]) -> None:
    facts = SimpleNamespace(**{**vars(PAPER), "images": 20_000})
    options = {"prototypes": "auto", "patch_prototypes": "auto", **given}
    derived = {name: value for name, (value, _) in Ibot.derive(options, facts).items()}
    settled = {name: derived[name] if value == "auto" else value for name, value in options.items()}
    assert (settled["prototypes"], settled["patch_prototypes"]) == expected
    assert IbotOptions(**settled).patch_prototypes == expected[1]


@pytest.mark.parametrize("shape", ["high", "hint", "low"])
def test_masks_follow_what_the_teacher_looks_at(shape: str) -> None:
    """The patches that the student does not see are those that the teacher's class token attends to most, or least."""
    masked = {"objective__mask_shape": shape, "objective__mask_ratio": [0.5], "objective__mask_ratio_var": [0.0]}
    trainer, feed = tiny_trainer("ibot", tasks=["selfpatch"], **masked)
    train(trainer, feed, 0, 2)
    batch = trainer.prepare(next(feed.stream(2, 3))[0], trainer.clock(2))
    assert trainer.parts.teacher is not None
    assert batch.views.mask is not None
    assert set(batch.views.mask) == {"global_a", "global_b"}
    for slot, mask in batch.views.mask.items():
        assert torch.equal(batch.plan.student["objective", slot].mask, mask)
        with torch.no_grad():
            seen = trainer.parts.teacher.backbone(batch.views[slot], need=("attention",))
        looked = attended(seen).flatten(1)
        assert torch.allclose(looked, seen.attention[:, :, 0, 1:].mean(1))
        order = looked.argsort(1, descending=shape != "low")
        count = looked.shape[1] // 2
        expected = torch.zeros_like(looked, dtype=torch.bool).scatter(1, order[:, :count], True)
        shown = int(0.1 * looked.shape[1]) if shape == "hint" else 0
        assert (mask.flatten(1).sum(1) == count - shown).all()
        assert not (mask.flatten(1) & ~expected).any()


def test_masks_by_attention_stand_beside_hard_views_but_no_reused_teacher() -> None:
    trainer, feed = tiny_trainer("ibot", objective__mask_shape="high", views__policy="hard")
    assert np.isfinite([report.loss for report in train(trainer, feed, 0, 2)]).all()
    with pytest.raises(UserError, match=r"views\.reuse_teacher=true: .*masks follow the teacher's attention"):
        tiny_trainer("ibot", objective__mask_shape="high", views__policy="hard", views__reuse_teacher=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective__patch_prototypes": 8, "objective__prototypes": 16}, r"objective\.patch_prototypes.*shared_head"),
        (
            {"objective__mask_ratio": [0.3], "objective__mask_ratio_var": [0.0, 0.1]},
            r"objective\.mask_ratio_var.*mask_ratio=\[0\.3\]",
        ),
        (
            {"objective__mask_ratio": [0.3, 0.1], "objective__mask_ratio_var": [0.2, 0.2]},
            r"objective\.mask_ratio_var.*0 \.\. 1",
        ),
        ({"objective__mask_ratio": [0.0, 1.3]}, r"objective\.mask_ratio"),
        ({"objective__mask_shape": "blok"}, r"objective\.mask_shape.*'block'"),
        ({"objective__use_bn": True}, r"objective\.use_bn"),
        ({"objective__mask_ratoi": [0.3]}, r"objective\.mask_ratoi.*mask_ratio"),
    ],
)
def test_wrong_options_are_told_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as refusal:
        tiny_config("ibot", tiny_canvases(), **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ([0.0, 0.3], [0.0, 0.2])),
        ({"mask_ratio": [0.5]}, ([0.5], [0.2])),
        ({"mask_ratio": [0.0, 0.1, 1.0]}, ([0.0, 0.1, 1.0], [0.0, 0.1, 0.0])),
    ],
)
def test_masks_are_the_papers_and_vary_within_what_can_be_masked(given: dict[str, Any], expected: Any) -> None:
    derived = {name: value for name, (value, _) in Ibot.derive(given, PAPER).items()}
    settled = {**derived, **given}
    assert (settled["mask_ratio"], settled["mask_ratio_var"]) == expected
    IbotOptions(**SETTLED | {"mask_ratio": settled["mask_ratio"], "mask_ratio_var": settled["mask_ratio_var"]})


def test_options_that_still_wait_are_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.prototypes"):
        Ibot(IbotOptions(), dim=8)
    with pytest.raises(ValidationError):
        IbotOptions(patch_teacher_temp=0)


def test_a_network_without_patch_tokens_is_refused() -> None:
    network = {"backbone__name": "resnet18", "backbone__patch": "auto", "backbone__freeze_patch": False}
    network |= dict.fromkeys(("backbone__width", "backbone__depth", "backbone__heads"))
    with pytest.raises(UserError, match=r"resnet18.*no patches to mask"):
        tiny_trainer("ibot", **network)


@pytest.mark.parametrize("shared", [True, False])
def test_the_mask_token_is_trained_and_stays_the_student_s(shared: bool, tmp_path: Path) -> None:
    """The teacher follows everything else, sees whole views, and both networks go to timm."""
    trainer, feed = tiny_trainer(
        "ibot", objective__shared_head=shared, train__warmup=1, backbone__init="dino", objective__norm_last_layer=False
    )
    parts = trainer.parts
    token = parts.student.backbone.mask_token
    lacks = dict(parts.student.named_parameters()).keys() - dict(parts.teacher.named_parameters()).keys()
    assert lacks == {"backbone.mask_token"}
    assert ("head.last_layer2.weight_v" in parts.teacher.state_dict()) is not shared
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    whole = parts.teacher.head(parts.teacher.backbone(batch.views["global_a"]))
    torch.testing.assert_close(batch.targets.outputs["global_a"]["patch"], whole["patch"], atol=1e-5, rtol=1e-5)
    before = {name: p.clone() for name, p in parts.teacher.named_parameters()}
    assert not token.any()
    train(trainer, feed, 0, 8)
    assert token.any()
    assert [name for name, p in parts.teacher.named_parameters() if torch.equal(p, before[name])] == []
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for branch in (parts.student, parts.teacher):
        export_timm(branch.backbone, tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)
        model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        branch.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(pixels), branch.backbone(pixels).cls, atol=1e-5, rtol=1e-5)


def test_masks_do_not_depend_on_the_batch_or_the_place_in_the_run() -> None:
    """The masks of an image at an epoch, from a run of batches of 8 and one of batches of 5 begun anywhere."""
    found: list[dict[int, Tensor]] = []
    for batch in (8, 5):
        trainer, feed = tiny_trainer("ibot", train__batch=batch)
        found.append({})
        steps = trainer.steps_per_epoch
        for step in reversed(range(steps, 2 * steps)):
            micro_batch = next(feed.stream(step, step + 1))[0]
            views = trainer.prepare(micro_batch, trainer.clock(step)).views
            for row, image in enumerate(micro_batch[0]):
                found[-1][int(image)] = torch.stack([views.mask[slot][row] for slot in GLOBALS])
    shared = found[0].keys() & found[1].keys()
    assert len(shared) >= 20
    assert all(torch.equal(found[0][image], found[1][image]) for image in shared)
    assert any(mask.any() for mask in found[0].values())
