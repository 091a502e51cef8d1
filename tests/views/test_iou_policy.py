"""The IoU policy: thresholds, schedule, and that only crops of pairs that overlap too much are redrawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from belvedere.errors import UserError
from belvedere.plugins import load
from belvedere.schedules import Clock
from belvedere.views.params import FIELDS, ViewParams
from belvedere.views.policies.iou import BOX, IoU
from belvedere.views.policies.random import Random
from belvedere.views.slots import Slot

PAIR = tuple(Slot(name, (8, 8), (0.2, 1.0)) for name in ("global_a", "global_b"))
IMAGE = (375, 500)


def iou(slots: tuple[Slot, ...] = PAIR, **options: Any) -> IoU:
    return IoU(IoU.Options(**options), slots, 3)


def propose(policy: Any, count: int = 400, slots: tuple[Slot, ...] = PAIR) -> ViewParams:
    return policy.propose(range(count), [IMAGE] * count, epoch=1, seed=3)


def test_random_pairs_overlap_as_the_spec_measured() -> None:
    """Spec view_policies 5, V1: .472 for 500 x 375 images at scale .2 to 1."""
    overlap = propose(Random(Random.Options(), PAIR, 3), 20_000).iou(0, 1)
    assert overlap.mean() == pytest.approx(0.472, abs=4 * float(overlap.std()) / 20_000**0.5)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6])
def test_no_pair_is_above_the_threshold_and_those_below_stay(threshold: float) -> None:
    policy = iou(start=threshold)
    found, first = propose(policy), propose(Random(Random.Options(), PAIR, 3))
    assert found.iou(0, 1).max() <= threshold
    fitted = first.iou(0, 1) <= threshold
    assert 0 < fitted.sum() < 400
    for name in FIELDS:
        kept = torch.ones_like(fitted) if name not in BOX else fitted
        assert torch.equal(getattr(found, name)[:, kept], getattr(first, name)[:, kept])
    assert (found.h * found.w)[:, ~fitted].float().mean() < (first.h * first.w)[:, ~fitted].float().mean()
    inside = (found.top >= 0) & (found.left >= 0) & (found.top + found.h <= 375) & (found.left + found.w <= 500)
    assert inside.all()
    assert policy.log() == {"iou/threshold": threshold, "iou/above": 0.0}


def test_a_pair_that_never_fits_keeps_its_lowest_iou() -> None:
    """Two crops of nine tenths of the area cannot be apart."""
    slots = tuple(replace(slot, scale=(0.9, 1.0)) for slot in PAIR)
    policy = iou(slots, start=0.1)
    found, first = propose(policy, 30), propose(Random(Random.Options(), slots, 3), 30)
    assert (found.iou(0, 1) > 0.1).all()
    assert (found.iou(0, 1) < first.iou(0, 1)).all()
    assert policy.log()["iou/above"] == 1.0
    assert policy.log()["iou/above"] == 0.0
    single = policy.propose([17], [IMAGE], epoch=1, seed=3)
    for name in BOX:
        assert torch.equal(getattr(single, name), getattr(found, name)[:, [17]])


def test_a_draw_depends_on_its_image_only() -> None:
    """Also where the rounds are cut short because the batch is large."""
    policy = iou(start=0.05)
    whole = propose(policy, 1500)
    part = policy.propose([1203, 5, 77], [IMAGE] * 3, epoch=1, seed=3)
    for name in FIELDS:
        assert torch.equal(getattr(part, name), getattr(whole, name)[:, [1203, 5, 77]])
    other = policy.propose([1203, 5, 77], [IMAGE] * 3, epoch=2, seed=3)
    assert not torch.equal(other.left, part.left)


def test_globals_are_paired_two_by_two_and_locals_left_alone() -> None:
    slots = tuple(Slot(name, (8, 8), (0.2, 1.0)) for name in ("global_a", "global_b", "global_a.1", "global_b.1"))
    slots = (*slots, Slot("global_c", (8, 8), (0.2, 1.0)), Slot("local_1", (4, 4), (0.05, 0.3)))
    found, first = propose(iou(slots, start=0.2)), propose(Random(Random.Options(), slots, 3))
    for a, b in ((0, 1), (2, 3)):
        assert found.iou(a, b).max() <= 0.2
    assert found.iou(1, 2).max() > 0.5
    for name in BOX:
        assert torch.equal(getattr(found, name)[4:], getattr(first, name)[4:])
        assert not torch.equal(getattr(found, name)[:2], getattr(found, name)[2:4])
    # The first pair's crops do not depend on which others there are.
    assert torch.equal(found.left[:2], propose(iou(start=0.2)).left)


def test_only_a_share_of_the_pairs_is_held_to_it() -> None:
    first = propose(Random(Random.Options(), PAIR, 3), 2000).iou(0, 1) > 0.3
    found = propose(iou(prob=0.25), 2000).iou(0, 1) > 0.3
    assert not (found & ~first).any()
    share = 1 - float(found.sum() / first.sum())
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / int(first.sum())) ** 0.5)
    policy = iou(prob=0.0)
    assert torch.equal(propose(policy).left, propose(Random(Random.Options(), PAIR, 3)).left)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 0.4}, [0.4, 0.4, 0.4, 0.4]),
        ({"start": 0.4, "warmup": 2.0}, [1.0, 1.0, 0.4, 0.4]),
        ({"start": 0.8, "end": 0.2, "schedule": "linear"}, [0.8, 0.65, 0.5, 0.35]),
        ({"start": 0.8, "end": 0.2, "schedule": "linear", "warmup": 2.0}, [1.0, 1.0, 0.8, 0.5]),
        ({"start": 0.8, "end": 0.2, "schedule": "cosine"}, [0.8, 0.71213, 0.5, 0.28787]),
    ],
)
def test_schedules(options: dict[str, Any], expected: list[float]) -> None:
    """Four epochs of ten steps."""
    policy = iou(**options)
    assert policy.threshold == expected[0]
    for epoch, threshold in enumerate(expected):
        policy.begin_step(Clock(10 * epoch, 10, 40))
        assert policy.threshold == pytest.approx(threshold, abs=1e-5)
    policy.begin_step(Clock(19, 10, 40))
    if "warmup" in options:
        assert policy.threshold == 1.0
        assert torch.equal(propose(policy).left, propose(Random(Random.Options(), PAIR, 3)).left)


@pytest.mark.parametrize(
    ("options", "slots", "words"),
    [
        ({"end": 0.2}, PAIR, "views.end: needs views.schedule"),
        ({"schedule": "linear"}, PAIR, "views.schedule=linear: needs views.end"),
        ({}, PAIR[:1], "views.globals must be at least 2"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], slots: tuple[Slot, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        iou(slots, **options)


def test_it_is_a_plug_in() -> None:
    assert load("policy", "iou") is IoU
