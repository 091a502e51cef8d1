"""Tasks and a selecting policy from files of a user's own: nothing in the loop knows them."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.pretrain import checkpoint
from belvedere.pretrain.method import answer, plan
from belvedere.pretrain.trainer import Trainer
from belvedere.tasks.contract import Request, Scene, Task
from tiny import tiny_trainer, train

FILES = sorted((Path(__file__).parent / "plugins").glob("*.py"))


@pytest.fixture(autouse=True)
def _user_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are plug-ins in these tests only."""
    monkeypatch.setattr(plugins, "_user_files", {})
    for file in FILES:
        plugins.add_file(file)


def count_forwards(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the backbone calls of each branch from now on."""
    calls: Counter[str] = Counter()
    for name, branch in (("student", trainer.parts.student), ("teacher", trainer.parts.teacher)):
        if branch is None:
            continue
        forward = branch.backbone.forward

        def counted(*args: Any, _name: str = name, _forward: Any = forward, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _forward(*args, **kwargs)

        monkeypatch.setattr(branch.backbone, "forward", counted)
    return calls


@pytest.mark.parametrize(
    ("objective", "tasks", "expected"),
    [
        # Globals in one call, locals in another; the teacher sees the globals.
        ("dino", [], {"student": 2, "teacher": 1}),
        ("dino", ["mean_colour"], {"student": 2, "teacher": 1}),
        ("dino", ["upside_down"], {"student": 3, "teacher": 1}),
        ("dino", ["corrupt"], {"student": 2, "teacher": 1}),
        # The corrupted views are the objective's, so the clean ones that another task reads are a further kind of job,
        # but of the same size, so of the same call.
        ("dino", ["mean_colour", "corrupt", "upside_down"], {"student": 3, "teacher": 1}),
        # Masked globals are the objective's alone: a task on the same views reads them whole, but one that replaces
        # them gets them masked.
        ("ibot", [], {"student": 2, "teacher": 1}),
        ("ibot", ["mean_colour"], {"student": 3, "teacher": 1}),
        ("ibot", ["corrupt"], {"student": 2, "teacher": 1}),
        # Without a teacher the target is what the student says of the same views.
        ("simclr", [], {"student": 1}),
        ("simclr", ["mean_colour"], {"student": 1}),
        # But of clean views it says something else than of the corrupted ones it is trained on.
        ("simclr", ["mean_colour", "corrupt"], {"student": 1}),
        ("simclr", ["upside_down"], {"student": 2}),
    ],
)
def test_requests_are_merged(
    objective: str, tasks: list[str], expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, feed = tiny_trainer(objective, tasks=tasks)
    calls = count_forwards(trainer, monkeypatch)
    report = trainer.step(0, next(feed.stream(0, 1)), detail=True)
    assert np.isfinite(report.loss)
    assert calls == expected
    assert {name.split(".")[0] for name in report.scalars if name.startswith("task/")} == {f"task/{t}" for t in tasks}


def test_every_task_gets_what_it_asked_for() -> None:
    """The answers are those of forwards of their own."""
    trainer, feed = tiny_trainer("dino", tasks=["mean_colour", "upside_down", "corrupt"])
    clock = trainer.clock(0)
    batch = trainer.prepare(next(feed.stream(0, 1))[0], clock)
    student, teacher = trainer.parts.student, trainer.parts.teacher
    assert teacher is not None
    features = student.encode(batch.plan.student)

    def answered(task: str, name: str) -> Any:
        return answer((task, name), batch.plan, batch.views, features, batch.targets.features)

    for slot in ("global_a", "global_b"):
        tokens = answered("mean_colour", "tokens")
        expected = student.backbone(batch.views[slot]).patches
        torch.testing.assert_close(tokens.student[slot].patches, expected, atol=1e-5, rtol=1e-5)
        expected = teacher.backbone(batch.views[slot]).patches
        torch.testing.assert_close(tokens.target[slot].patches, expected, atol=1e-5, rtol=1e-5)
        assert not tokens.target[slot].patches.requires_grad
        corrupted = answered("corrupt", "corrupted")
        assert corrupted.target == {}
        expected = student.backbone(batch.plan.requests["corrupt", "corrupted"].pixels[slot]).patches
        torch.testing.assert_close(corrupted.student[slot].patches, expected, atol=1e-5, rtol=1e-5)
        # The objective reads the corrupted views too, and its teacher the clean ones.
        torch.testing.assert_close(features["objective", slot].patches, expected, atol=1e-5, rtol=1e-5)
    turned = answered("upside_down", "both").student["turned"].patches
    expected = student.backbone(batch.views["global_a"].flip(-2), pos_embed=False).patches
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(turned, student.backbone(batch.views["global_a"].flip(-2)).patches, atol=1e-3)


def test_masks_are_the_objective_s_alone_and_stay_on_views_that_are_replaced() -> None:
    trainer, feed = tiny_trainer("ibot", tasks=["mean_colour", "corrupt"])
    clock = trainer.clock(0)
    batch = trainer.prepare(next(feed.stream(0, 1))[0], clock)
    masks, student = batch.views.mask, trainer.parts.student
    assert masks.keys() == {"global_a", "global_b"}
    assert masks["global_a"].any()
    features = student.encode(batch.plan.student)
    pixels = batch.plan.requests["corrupt", "corrupted"].pixels
    for slot, mask in masks.items():
        masked = student.backbone(pixels[slot], mask=mask).patches
        torch.testing.assert_close(features["objective", slot].patches, masked, atol=1e-5, rtol=1e-5)
        for task, name, expected in (
            ("corrupt", "corrupted", masked),
            ("mean_colour", "tokens", student.backbone(batch.views[slot]).patches),
        ):
            found = answer((task, name), batch.plan, batch.views, features, batch.targets.features)
            torch.testing.assert_close(found.student[slot].patches, expected, atol=1e-5, rtol=1e-5)
    assert all(job.mask is None for job in batch.plan.target.values())


def test_views_of_one_memory_are_told_apart() -> None:
    """A transposed square view begins at the same byte and has the same shape."""

    class Transposing(Task):
        def requests(self, scene: Scene) -> dict[str, Request]:
            view = scene.views["global_a"]
            return {"t": Request(pixels={"as is": view, "transposed": view.transpose(2, 3)})}

    trainer, feed = tiny_trainer("dino")
    scene = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0)).scene
    views = scene.views
    found = plan(scene, trainer.parts.objective, {"t": Transposing(None, None)})
    both = answer(("t", "t"), found, views, trainer.parts.student.encode(found.student), {}).student
    expected = trainer.parts.student.backbone(views["global_a"].transpose(2, 3)).patches
    torch.testing.assert_close(both["transposed"].patches, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both["as is"].patches, expected, atol=1e-3)


def test_two_replacing_tasks_are_refused() -> None:
    trainer, feed = tiny_trainer("dino", tasks=["corrupt", "corrupt_too"])
    with pytest.raises(UserError, match=r"corrupt.*corrupt_too.*keep one") as refusal:
        trainer.step(0, next(feed.stream(0, 1)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("objective", ["dino", "simclr"])
def test_tasks_are_trained_and_resumed(objective: str, tmp_path: Path) -> None:
    """Heads get gradients, weights scale their losses, EMA copies follow the teacher's law, and resume is exact."""
    tasks = ["mean_colour", "upside_down"]
    trainer, feed = tiny_trainer(objective, tasks=tasks, train__warmup=1)
    before = copy.deepcopy(dict(trainer.method.tasks.named_parameters()))
    averaged = trainer.parts.teacher_heads["mean_colour"]["head"]
    old = averaged.weight.clone()
    train(trainer, feed, 0, 2)
    after = dict(trainer.method.tasks.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in after.items())
    head = trainer.parts.tasks["mean_colour"].get_submodule("head")
    if trainer.parts.teacher is None:
        # The target is the online head itself, read without gradient, and still trained.
        assert averaged is head
    else:
        assert averaged is not head
        assert not averaged.weight.requires_grad
        assert not torch.equal(averaged.weight, old)
        expected, clock = averaged.weight.clone(), trainer.clock(2)
        train(trainer, feed, 2, 3)
        expected.lerp_(head.weight.detach(), 1 - trainer.parts.objective.momentum(clock))
        torch.testing.assert_close(averaged.weight, expected)
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": trainer.state_dict()})
    expected_losses = [report.loss for report in train(trainer, feed, 3, 6)]
    again, _ = tiny_trainer(objective, tasks=tasks, train__warmup=1)
    again.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["trainer"])
    assert [report.loss for report in train(again, feed, 3, 6)] == expected_losses


def test_a_weight_of_a_task_scales_its_loss() -> None:
    reports = []
    for weight in (1.0, 3.0):
        trainer, feed = tiny_trainer("dino", tasks=["mean_colour"], task__mean_colour__weight=weight)
        reports.append(trainer.step(0, next(feed.stream(0, 1)), detail=True))
    one, three = (float(report.scalars["task/mean_colour.colour"]) for report in reports)
    assert three == pytest.approx(3 * one)
    with pytest.raises(UserError, match=r"task\.mean_colour\.wieght.*weight"):
        tiny_trainer("dino", tasks=["mean_colour"], task__mean_colour__wieght=1.0)


@pytest.mark.parametrize(
    "objective", [name for name in plugins.names("objective") if plugins.load("objective", name).has_pairs]
)
def test_a_policy_selects_with_the_score(objective: str) -> None:
    """The trained pair has the highest score of all pairs of candidates."""
    trainer, feed = tiny_trainer(objective, views__policy="picky")
    micro_batch = next(feed.stream(0, 1))[0]
    clock, parts = trainer.clock(0), trainer.parts
    rows = torch.as_tensor(micro_batch[0])
    proposed = parts.policy.propose(rows, parts.sizes[rows], 0, trainer.config.train.seed)
    assert {"global_a", "global_a.1", "global_b", "global_b.1"} <= set(proposed.slots)
    candidates = trainer.render(rows, micro_batch[1], clock, proposed)
    pairs = [(a, b) for a in ("global_a", "global_a.1") for b in ("global_b", "global_b.1")]
    # Before `prepare`, whose targets move the batch statistics of a teacher that has any.
    scores = trainer.score_at(clock)(candidates, pairs)
    views = trainer.prepare(micro_batch, clock).views
    assert views.names == tuple(slot.name for slot in parts.policy.slots)
    for image, best in enumerate(scores.argmax(0)):
        for slot, name in zip(("global_a", "global_b"), pairs[best], strict=True):
            assert torch.equal(views[slot][image], candidates[name][image])
            if candidates.mask is not None:
                assert torch.equal(views.mask[slot][image], candidates.mask[name][image])
    assert len(set(scores.argmax(0).tolist())) > 1


def test_scoring_does_not_disturb_training() -> None:
    """With one candidate the policy scores and has no choice: the same losses as `random`, bit for bit."""
    runs = []
    for policy, options in (("random", {}), ("picky", {"views__candidates": 1}), ("picky", {})):
        trainer, feed = tiny_trainer("dino", backbone__drop_path=0.2, views__policy=policy, **options)
        runs.append([report.loss for report in train(trainer, feed, 0, 3)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
