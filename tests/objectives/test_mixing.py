"""Mixup and CutMix: timm's arithmetic, whose draws, odd batches and images without label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from timm.data import Mixup

from belvedere.objectives._mixing import mix
from belvedere.objectives.supervised import Supervised, SupervisedOptions
from belvedere.schedules import Clock
from belvedere.views.draws import uniform
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots
from belvedere.views.views import Views
from tiny import timm_before, tiny_canvases, tiny_trainer, train

CLASSES, SIDE = 5, 12


def slots(count: int = 1) -> tuple[Slot, ...]:
    return build_slots(ViewSettings(size=(SIDE, SIDE), local_size=(SIDE, SIDE), globals=count, locals=0), 3)


def views(index: list[int], count: int = 1, epoch: int = 0) -> Views:
    sizes = np.full((len(index), 2), 40)
    params = sample_views(slots(count), np.array(index), sizes, epoch, 0)
    pixels = torch.from_numpy(uniform(1, 0, np.array(index), "pixels", (count, 3, SIDE, SIDE))).float()
    return Views(params, (pixels.transpose(0, 1).reshape(-1, 3, SIDE, SIDE),))


@pytest.mark.skipif(timm_before("1.0.29"), reason="before 1.0.29 timm's CutMix cut one pixel less of odd boxes")
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_it_is_timms(mixup: float, cutmix: float, monkeypatch: pytest.MonkeyPatch) -> None:
    index = list(range(16))
    labels = torch.arange(16) % CLASSES
    before = views(index)
    after, targets = mix(before, labels, CLASSES, mixup, cutmix)
    drawn = uniform(0, 0, index, "mixing", (4,))
    # timm's own loop with our draws in the place of NumPy's global ones.
    cut = drawn[:, 0] < (0.5 if mixup and cutmix else float(cutmix > 0))
    own = np.array([beta.ppf(u, a, a) for u, a in zip(drawn[:, 1], np.where(cut, cutmix, mixup), strict=True)])
    centres = iter([int(x * SIDE) for i in range(16) if cut[i] for x in drawn[i, 2:]])
    monkeypatch.setattr(np.random, "randint", lambda *a, **k: next(centres))
    reference = Mixup(mixup, cutmix, mode="elem", label_smoothing=0.0, num_classes=CLASSES)
    monkeypatch.setattr(reference, "_params_per_elem", lambda n: (own.astype(np.float32), cut))
    pixels, wanted = reference(before["global_a"].clone(), labels)
    assert torch.allclose(after["global_a"], pixels, atol=1e-6)
    assert torch.allclose(targets, wanted, atol=1e-6)
    assert 0 < cut.sum() < 16 if mixup and cutmix else bool(cut.all()) == bool(cutmix)


@settings(max_examples=25)
@given(
    labels=st.lists(st.integers(-1, CLASSES - 1), min_size=1, max_size=7),
    alphas=st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.1, 0.1)]),
    count=st.integers(1, 2),
)
def test_shares_are_of_the_labels_that_there_are(labels: list[int], alphas: tuple[float, float], count: int) -> None:
    _, targets = mix(views(list(range(len(labels))), count), torch.tensor(labels), CLASSES, *alphas)
    assert (targets >= 0).all()
    assert (targets.sum(1) <= 1 + 1e-6).all()
    for row, label, other in zip(targets, labels, reversed(labels), strict=True):
        assert {k for k in range(CLASSES) if row[k] > 0} <= {label, other}
        if label >= 0 and other >= 0:
            assert float(row.sum()) == pytest.approx(1, abs=1e-6)


def test_draws_are_the_image_s_own() -> None:
    labels = torch.arange(6) % CLASSES
    _, whole = mix(views([0, 1, 2, 3, 4, 5]), labels, CLASSES, 0.8, 0.0)
    _, same = mix(views([0, 1, 2, 3, 4, 5]), labels, CLASSES, 0.8, 0.0)
    _, later = mix(views([0, 1, 2, 3, 4, 5], epoch=1), labels, CLASSES, 0.8, 0.0)
    assert torch.equal(whole, same)
    assert not torch.allclose(whole, later)
    # Image 1 beside others: its share of itself stays.
    _, pair = mix(views([1, 9]), torch.tensor([1, 0]), CLASSES, 0.8, 0.0)
    assert float(pair[0, 1]) == pytest.approx(float(whole[1, 1]), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_unmixed_shares_cost_what_labels_cost(smoothing: float) -> None:
    objective = Supervised(SupervisedOptions(classes=CLASSES, label_smoothing=smoothing), dim=4)
    logits = {"global_a": {"cls": torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))}}
    hard = torch.tensor([1, 3, -1])
    soft = F.one_hot(hard.clamp(min=0), CLASSES).float() * (hard >= 0)[:, None]
    found = [objective.per_image(objective.embed(logits, {}, Clock(0, 1, 10), labels)) for labels in (hard, soft)]
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert objective.diagnose(objective.embed(logits, {}, Clock(0, 1, 10), soft)) == {}


def test_a_trainer_mixes_what_it_trains_on() -> None:
    canvases = tiny_canvases(24)
    trainer, feed = tiny_trainer("supervised", canvases, objective__mixup=0.8, objective__cutmix=1.0, train__steps=4)
    mixed = [report.loss for report in train(trainer, feed, 0, 2)]
    trainer, feed = tiny_trainer("supervised", canvases, train__steps=4)
    assert mixed != [report.loss for report in train(trainer, feed, 0, 2)]
