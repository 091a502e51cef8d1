"""Hard views in real steps of every objective (spec view_policies 1.8)."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import evaluating
from belvedere.pretrain.method import Branch, Job
from belvedere.pretrain.trainer import Trainer
from newcomer import WORDS, belvedere, photo_folder
from snapshots import assert_same, snapshot
from tiny import NARROW, tiles, tiny_canvases, tiny_trainer, train

OBJECTIVES = [name for name in plugins.names("objective") if plugins.load("objective", name).has_pairs]
WITHOUT_BATCHNORM = {"dino": {"objective__use_bn": False}, "ibot": {}}


def canvases_of(size: tuple[int, int] | None) -> Canvases:
    """Tiles of one size, or of several."""
    if size is not None:
        return tiny_canvases(24, size)
    mixed = [tile[: 40 + 4 * (i % 3)] for i, tile in enumerate(tiles(24, (48, 40)))]
    return open_canvases(find_images([*mixed]), 40, progress=False)


def losses_and_state(objective: str, **settings: Any) -> tuple[list[float], dict[str, Any]]:
    losses, trainer = trained(objective, **settings)
    state = trainer.state_dict()
    optimizer = {f"optimizer.{number}": torch.as_tensor(x) for number, x in enumerate(_leaves(state["optimizer"]))}
    teacher = {f"teacher.{key}": x for key, x in (state["teacher"] or {}).items()}
    return losses, {**state["method"], **teacher, **optimizer, "generator": torch.get_rng_state()}


def trained(objective: str, steps: int = 3, **settings: Any) -> tuple[list[float], Trainer]:
    trainer, feed = tiny_trainer(objective, **settings)
    return [report.loss for report in train(trainer, feed, 0, steps)], trainer


def _leaves(state: Any) -> list[Any]:
    """The numbers of nested state, in their order."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in _leaves(state[key])]
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in _leaves(item)]
    return [state] if isinstance(state, torch.Tensor | float | int) else []


def other_generators() -> tuple[Any, Any]:
    """Python's and numpy's global ones."""
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_two_candidates_change_nothing(objective: str, drop_path: float) -> None:
    """H1: losses, weights, BatchNorm buffers, the optimiser and generators are those of `random` bit for bit,
    stochastic depth included."""
    plain, state = losses_and_state(objective, backbone__drop_path=drop_path)
    before = other_generators()
    hard, other = losses_and_state(objective, backbone__drop_path=drop_path, views__policy="hard", views__candidates=2)
    assert hard == plain
    assert_same(state, other)
    assert sum(name.startswith("optimizer") for name in state) > 20
    assert other_generators() == before
    assert losses_and_state(objective, views__policy="hard", views__candidates=4)[0] != plain


# Ways to score; with several candidates they choose differently, but none may leave a trace.
WAYS: dict[str, dict[str, Any]] = {
    "half": {"views__scale": 0.5},
    "pooled": {"views__scorer": "pooled"},
    "block0": {"views__scorer": "block0"},
    "anchor": {"views__scorer": "anchor"},
    "fraction": {"views__fraction": 0.5},
    "every": {"views__every": 2},
    "chunk": {"views__chunk": 1},
    "scored": {"views__local_views": "scored"},
    "bf16": {"train__precision": "bf16"},
    "many": {"views__scale": 0.5, "views__fraction": 0.5, "views__chunk": 1, "train__precision": "bf16"},
    "reused": {"views__reuse_teacher": True},
    "choose": {"views__local_views": "choose", "views__limit": 8},
}


def ways(objective: str, *without: str) -> list[str]:
    """The ways that there are for an objective."""
    has_locals, has_teacher = objective != "simclr", objective != "simclr"
    impossible = {name for name in ("scored", "choose") if not has_locals} | ({"reused"} if not has_teacher else set())
    return [name for name in WAYS if name not in {*impossible, *without}]


# Stochastic depth draws from the generator of the step: one number that scoring takes changes every loss.
DRAWING = {name: {"backbone__drop_path": 0.2, **WITHOUT_BATCHNORM.get(name, {})} for name in ("simclr", "dino", "ibot")}


@cache
def without_policy(objective: str, precision: str) -> tuple[list[float], dict[str, Any]]:
    """What `random` comes to; kept, as every way of scoring is held against it."""
    return losses_and_state(objective, train__precision=precision, **DRAWING[objective])


@pytest.mark.parametrize(("objective", "way"), [(name, way) for name in DRAWING for way in ways(name, "choose")])
def test_two_candidates_change_nothing_however_they_are_scored(objective: str, way: str) -> None:
    """H1: at low resolution, by features, in parts, for some images, with local views, in bfloat16."""
    plain, state = without_policy(objective, WAYS[way].get("train__precision", "float32"))
    settings = {**DRAWING[objective], **WAYS[way]}
    hard, other = losses_and_state(objective, views__policy="hard", views__candidates=2, **settings)
    assert hard == plain
    assert_same(state, other)


@pytest.mark.parametrize(
    ("objective", "way"),
    [
        *((name, way) for name in DRAWING for way in ways(name, "every")),
        # Their heads and predictors have BatchNorm, and MoCo v3 moves its teacher before the step.
        *product(("mocov3", "simsiam"), ("half", "chunk")),
    ],
)
def test_choosing_leaves_no_trace(objective: str, way: str) -> None:
    """H4: networks and their flags, centres, optimiser, gradients and all generators, before `select` and after it."""
    settings = {**DRAWING.get(objective, {"backbone__drop_path": 0.2}), **WAYS[way]}
    settings |= NARROW if objective == "simsiam" else {}
    trainer, feed = tiny_trainer(objective, views__policy="hard", **settings)
    train(trainer, feed, 0, 2)
    micro_batch, clock, parts = next(feed.stream(2, 3))[0], trainer.clock(2), trainer.parts
    parts.policy.begin_step(clock)
    rows = torch.as_tensor(micro_batch[0])
    proposed = parts.policy.propose(rows, parts.sizes[rows], 0, trainer.config.train.seed)
    before = snapshot(trainer)
    render = partial(trainer.render, rows, micro_batch[1], clock)
    chosen = parts.policy.select(proposed, render, trainer.score_at(clock))
    assert_same(snapshot(trainer), before)
    assert not any(gradient is not None for gradient in before["gradients"])
    assert (chosen.key != proposed.select(chosen.slots).key).any()
    told = parts.policy.log()
    assert sum(value for name, value in told.items() if name.startswith("hard/chosen/")) == pytest.approx(2)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_chosen_pair_is_the_hardest_of_all(objective: str) -> None:
    """H2 and H3: no pair of candidates has a higher score than the trained one, by the networks as they are."""
    trainer, feed = tiny_trainer(objective, views__policy="hard")
    train(trainer, feed, 0, 2)
    micro_batch, clock, policy = next(feed.stream(2, 3))[0], trainer.clock(2), trainer.parts.policy
    rows = torch.as_tensor(micro_batch[0])
    policy.begin_step(clock)
    proposed = policy.propose(rows, trainer.parts.sizes[rows], 0, trainer.config.train.seed)
    candidates = trainer.render(rows, micro_batch[1], clock, proposed)
    scores = trainer.score_at(clock)(candidates, policy.choices(trainer.config.train.seed))
    seen: list[int] = []
    hook = trainer.parts.student.backbone.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    chunked = trainer.score_at(clock)(candidates, policy.choices(0), chunk=1)
    hook.remove()
    assert set(seen) == {8}
    torch.testing.assert_close(chunked, scores, atol=1e-6, rtol=0)  # H10
    views = trainer.prepare(micro_batch, clock).views
    for n, best in enumerate(scores.argmax(0)):
        for slot, name in zip(("global_a", "global_b"), policy.choices(0)[int(best)], strict=True):
            assert torch.equal(views[slot][n], candidates[name][n])
            if candidates.mask is not None:  # iBOT's masks travel with their view
                assert torch.equal(views.mask[slot][n], candidates.mask[name][n])


# The loss of an image does not read the others of its batch; no BatchNorm, and no mean over the batch.
SEPARABLE = {
    "simsiam": {},
    "dino": {"objective__centering": "mean", "objective__use_bn": False},
    "ibot": {"objective__centering": "mean"},
}


@pytest.mark.parametrize(
    ("objective", "way"),
    [(name, way) for name in SEPARABLE for way in ("all", "half", "anchor")]
    + [(name, way) for name in ("dino", "ibot") for way in ("scored", "choose")],
)
def test_the_choice_is_that_of_brute_force(objective: str, way: str) -> None:
    """H2: the objective's own loss of one image and one choice at a time, by the networks as they are.

    iBOT's masks are those of the candidates; at low resolution there are none.
    """
    settings = {**SEPARABLE[objective], **WAYS.get(way, {})}
    trainer, feed = tiny_trainer(objective, views__policy="hard", views__candidates=5, **settings)
    train(trainer, feed, 0, 2)
    micro_batch, clock, parts = next(feed.stream(2, 3))[0], trainer.clock(2), trainer.parts
    policy, scale = parts.policy, settings.get("views__scale", 1.0)
    rows = torch.as_tensor(micro_batch[0])
    policy.begin_step(clock)
    proposed = policy.propose(rows, parts.sizes[rows], 0, trainer.config.train.seed)
    candidates = trainer.render(rows, micro_batch[1], clock, proposed, scale)
    masks = candidates.mask or {} if scale == 1 else {}
    assert bool(masks) is (objective == "ibot" and scale == 1)
    choices = policy.choices(trainer.config.train.seed)
    slots = [slot.name for slot in policy.slots]

    def answers(branch: Branch, n: int, views: dict[str, str], masks: dict[str, Tensor]) -> Any:
        """The head's on one image; `views` has the candidate of every slot."""
        jobs = {}
        for slot, name in views.items():
            mask = masks[name][n : n + 1] if name in masks else None
            jobs[slot,] = Job(candidates[name][n : n + 1], mask)
        return branch.project({name[0]: found for name, found in branch.encode(jobs).items()})

    @torch.no_grad()
    def loss(n: int, choice: tuple[str, ...]) -> Tensor:
        """What training would lose if this image and these views were the whole batch."""
        views = dict(zip(slots, choice, strict=False))  # local views that take no part come last
        seen = {slot: name for slot, name in views.items() if parts.objective.is_target(slot)}
        online = answers(parts.student, n, views, masks)
        target = {} if parts.teacher is None else answers(parts.teacher, n, seen, {})
        return parts.objective.per_image(parts.objective.embed(online, target, clock))

    with ExitStack() as stack:
        for branch in parts.branches:
            stack.enter_context(evaluating(branch))
        brute = torch.stack([torch.cat([loss(n, choice) for n in range(len(rows))]) for choice in choices])
    scores = trainer.score_at(clock)(replace(candidates, mask=masks or None), choices)
    torch.testing.assert_close(scores, brute, atol=1e-5, rtol=0)
    found = trainer.prepare(micro_batch, clock).views.params
    assert found.slots == tuple(slots)
    for n, best in enumerate(brute.argmax(0)):
        winners = (*choices[int(best)], *slots[len(choices[0]) :])
        assert found.key[:, n].tolist() == [int(proposed.key[proposed.slot(name), n]) for name in winners]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_permuted_batch_trains_on_the_permuted_choice(objective: str) -> None:
    """H9 in a real step: each image's pair, pixels and masks, wherever it stands in its batch."""
    trainer, feed = tiny_trainer(objective, views__policy="hard", **WITHOUT_BATCHNORM.get(objective, {}))
    train(trainer, feed, 0, 2)
    (index, images), clock = next(feed.stream(2, 3))[0], trainer.clock(2)
    order = torch.tensor([3, 0, 5, 7, 1, 4, 2, 6])
    assert isinstance(images, Tensor)
    found = []
    for batch in ((index, images), (index[order.numpy()], images[order])):
        trainer.parts.policy.begin_step(clock)
        found.append(trainer.prepare(batch, clock).views)
    straight, permuted = found
    assert torch.equal(permuted.params.key, straight.params.key[:, order])
    plain = trainer.parts.policy.propose(index, trainer.parts.sizes[index], 0, trainer.config.train.seed)
    assert (straight.params.key != plain.select(straight.params.slots).key).any()
    for slot in straight.names:
        assert torch.equal(permuted[slot], straight[slot][order])
        if straight.mask and slot in straight.mask:
            assert permuted.mask is not None
            assert torch.equal(permuted.mask[slot], straight.mask[slot][order])


@pytest.mark.parametrize("objective", ["dino", "ibot"])
def test_reused_teacher_outputs_are_the_same(objective: str) -> None:
    settings = WITHOUT_BATCHNORM[objective]
    plain, _ = losses_and_state(objective, views__policy="hard", **settings)
    reused, _ = losses_and_state(objective, views__policy="hard", views__reuse_teacher=True, **settings)
    assert reused == plain
    trainer, feed = tiny_trainer(objective, views__policy="hard", views__reuse_teacher=True, **settings)
    assert trainer.parts.teacher is not None
    seen = []
    trainer.parts.teacher.register_forward_pre_hook(lambda *_: seen.append(1))
    trainer.parts.teacher.backbone.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
    train(trainer, feed, 0, 1)
    assert seen == [4 * 8]  # the four candidates of eight images, and nothing again


@pytest.mark.parametrize(("objective", "why"), [("simclr", "no teacher"), ("mocov3", "BatchNorm")])
def test_reuse_is_refused_where_it_would_be_wrong(objective: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"views\.reuse_teacher=true: .*{why}"):
        tiny_trainer(objective, views__policy="hard", views__reuse_teacher=True)


def test_choosing_for_some_images_trains_on_their_own_views() -> None:
    """`fraction` in a real step, on canvases of one size and of several: every view is of its own image."""
    for size in ((40, 40), None):
        trainer, feed = tiny_trainer("simclr", views__policy="hard", views__fraction=0.5, canvases=canvases_of(size))
        micro_batch, clock, policy = next(feed.stream(0, 1))[0], trainer.clock(0), trainer.parts.policy
        rows = torch.as_tensor(micro_batch[0])
        views = trainer.prepare(micro_batch, clock).views
        whole = trainer.render(rows, micro_batch[1], clock, views.params)
        assert all(torch.equal(views[slot], whole[slot]) for slot in views.names)
        plain = policy.propose(rows, trainer.parts.sizes[rows], 0, trainer.config.train.seed).select(views.names)
        moved = (views.params.key != plain.key).any(0)
        assert 0 < moved.sum() < 8


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"views__scale": 0.6}, r"views\.scale=0\.6: global_a would be scored at 19 x 19 px"),
        ({"views__scale": 0.75, "views__local_views": "scored"}, r"views\.scale=0\.75: local_1 .* 12 x 12"),
        ({"views__scorer": "block2"}, r"views\.scorer=block2: this network has block0 to block1"),
    ],
)
def test_what_the_network_cannot_score_is_refused_before_the_first_step(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        tiny_trainer("dino", views__policy="hard", **options)


def test_the_cost_leaves_out_what_the_step_does_anyway() -> None:
    """Half of four candidates is trained on: half of their rendering and of the teacher's answers are no cost."""
    trainer, feed = tiny_trainer("ibot", views__policy="hard", views__reuse_teacher=True)
    batch = next(feed.stream(0, 1))
    trainer.prepare(batch[0], trainer.clock(0))
    (renders, rendered), (answers, answered) = trainer._spared
    assert (rendered, answered) == (0.5, 0.5)
    spared = 0.5 * renders.read() + 0.5 * answers.read()
    assert 0 < spared < trainer._policy_time.read()
    plain, feed = tiny_trainer("ibot")
    plain.prepare(next(feed.stream(0, 1))[0], plain.clock(0))
    assert [share for _, share in plain._spared] == [0.0, 0.0]


@pytest.mark.parametrize("scorer", ["pooled", "block1"])
def test_other_scores_choose_other_views(scorer: str) -> None:
    by_loss, _ = losses_and_state("simclr", views__policy="hard")
    by_features, _ = losses_and_state("simclr", views__policy="hard", views__scorer=scorer)
    assert by_features != by_loss


def test_a_newcomer_asks_for_hard_views(tmp_path: Path) -> None:
    """`--views hard`: what was chosen and what it cost stands in the log."""
    photos = photo_folder(tmp_path / "photos")
    words = [word for word in WORDS if not word.startswith(("train.steps", "views.locals"))]
    words += ["train.steps=12", "views.candidates=6", "views.every=2"]
    said = belvedere(tmp_path, "pretrain", photos, "--views", "hard", "--out", tmp_path / "run", *words)
    assert said.code == 0, said.text
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if "hard/iou" in line]
    assert told
    for line in told:
        assert line["hard/fidelity"] == 1.0
        assert line["view_cost"] > 1.0
        assert sum(value for name, value in line.items() if name.startswith("hard/chosen/")) == pytest.approx(2)
    refusal = belvedere(tmp_path, "pretrain", photos, "--views", "hard", "views.candidate=6").refusal()
    assert refusal == "unknown key 'views.candidate': did you mean 'views.candidates'?"
