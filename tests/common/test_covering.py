"""Every pair of an objective, a task and a view policy trains together in at least one of few runs."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.pretrain import checkpoint
from tiny import NARROW_JIGSAW, tiny_canvases, tiny_trainer, train

OBJECTIVES, TASKS = plugins.names("objective"), plugins.names("task")
# `ink` came after the issue, and stands beside every task below and every objective in test_battery.py.
POLICIES = [name for name in plugins.names("policy") if name != "ink"]
# Of the issue that asked for tasks, for all that is trained; a cell carries two tasks, or the objectives with the tasks
# alone would be more, and of `ink` up to three.
AT_MOST = 45
# Turned by a quarter, a view must still be of the same size.
SQUARE = ["rotation"]
# mae takes away patches, which others mask or alter (tests/tasks/test_mae_task.py).
REFUSED = {frozenset(("ibot", "mae")), frozenset(("mae", "reconstruct"))}
Cell = tuple[str, tuple[str, ...], str]
Pair = frozenset[str]


def possible(objective: str, tasks: tuple[str, ...], policy: str) -> bool:
    """Without pairs `hard` is refused, and `learned`, which came there later, stands in test_battery.py."""
    if any(frozenset(pair) in REFUSED for pair in combinations((objective, *tasks), 2)):
        return False
    return plugins.load("objective", objective).has_pairs or policy not in ("hard", "learned")


def pairs_of(cell: Cell) -> set[Pair]:
    """What stands beside what in a cell; its tasks are not asked to be tried together."""
    objective, tasks, policy = cell
    return {frozenset(pair) for task in tasks for pair in combinations((objective, task, policy), 2)}


def covering() -> list[Cell]:
    """Cells, each the one with most pairs that no earlier cell has, until there are none."""
    everyone = [cell for cell in product(OBJECTIVES, combinations(TASKS, 2), POLICIES) if possible(*cell)]
    missing = set().union(*map(pairs_of, everyone))
    cells: list[Cell] = []
    while missing:
        cells.append(max(everyone, key=lambda cell: len(pairs_of(cell) & missing)))
        missing -= pairs_of(cells[-1])
    return cells


CELLS = covering()
INK = [("simclr", tuple(TASKS[start::3]), "ink") for start in range(3)]


def test_the_cells_cover_every_pair_and_are_few() -> None:
    covered = set().union(*map(pairs_of, CELLS))
    for objective, task, policy in product(OBJECTIVES, TASKS, POLICIES):
        assert (frozenset((objective, task)) in covered) is (frozenset((objective, task)) not in REFUSED)
        assert (frozenset((objective, policy)) in covered) is possible(objective, (), policy)
        assert frozenset((task, policy)) in covered
    assert len(CELLS) + len(INK) <= AT_MOST
    assert sorted(task for _, tasks, _ in INK for task in tasks) == sorted(TASKS)
    assert all(possible(*cell) for cell in INK)


def reached_weights(task: nn.Module) -> dict[str, bool]:
    """Filled while the task trains: of every weight that has had a finite gradient, whether it was ever not 0."""
    reached: dict[str, bool] = {}

    def note(grad: Tensor, name: str) -> None:
        assert grad.isfinite().all(), name
        reached[name] = reached.get(name, False) or bool(grad.any())

    for name, p in task.named_parameters():
        if p.requires_grad:
            p.register_hook(partial(note, name=name))
    return reached


@pytest.mark.parametrize(("objective", "tasks", "policy"), [*CELLS, *INK])
def test_every_pair_trains(objective: str, tasks: tuple[str, ...], policy: str) -> None:
    """Finite losses that the seed decides, and a finite gradient for every weight of the tasks."""
    found = []
    for _ in range(2):
        settings = {"tasks": list(tasks), "views__policy": policy, "views__globals": 2, "train__warmup": 1}
        trainer, feed = tiny_trainer(objective, **settings)
        reached = {task: reached_weights(trainer.parts.tasks[task]) for task in tasks}
        reports = [trainer.step(step, batches, detail=True) for step, batches in enumerate(feed.stream(0, 3))]
        for task in tasks:
            own = [name for name in reports[-1].scalars if name.startswith(f"task/{task}.")]
            assert own
            assert all(math.isfinite(report.scalars[name]) for report in reports for name in own)
            wanted = {name for name, p in trainer.parts.tasks[task].named_parameters() if p.requires_grad}
            assert {name for name, any_gradient in reached[task].items() if any_gradient} == wanted
        found.append([report.loss for report in reports])
    assert np.isfinite(found[0]).all()
    assert found[0] == found[1]


@pytest.mark.parametrize(("task", "objective"), list(product(TASKS, ["simclr", "supervised"])))
def test_a_task_says_whether_it_replaces_views(task: str, objective: str) -> None:
    """Two that do are refused by what they say, before there is a batch."""
    for options in ({}, {"task__relations__noise": 0.5}) if task == "relations" else ({},):
        settings = {"tasks": [task], "views__globals": 2, **options}
        trainer, feed = tiny_trainer(objective, **settings)
        plan = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0)).plan
        found = trainer.parts.tasks[task]
        asked = any(request.how == "replace" for request in plan.requests.values())
        assert type(found).replaces(found.options, objective) is asked


@pytest.mark.parametrize(("task", "precision"), list(product(TASKS, ["float32", "bf16"])))
def test_a_task_resumes_exactly(task: str, precision: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train__precision": precision, "backbone__drop_path": 0.2, "tasks": [task]}
    settings |= NARROW_JIGSAW if task == "jigsaw" else {}
    trainer, feed = tiny_trainer("mocov3", **settings)
    train(trainer, feed, 0, 2)
    checkpoint.save(tmp_path / "checkpoint.pt", {"trainer": trainer.state_dict()})
    expected = [report.loss for report in train(trainer, feed, 2, 5)]
    again, feed = tiny_trainer("mocov3", **settings)
    again.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["trainer"])
    assert [report.loss for report in train(again, feed, 2, 5)] == expected


@pytest.mark.parametrize(("task", "channels"), list(product(TASKS, [1, 5])))
def test_a_task_takes_any_channels(task: str, channels: int) -> None:
    trainer, feed = tiny_trainer("dino", tiny_canvases(16, (40, 40), channels), tasks=[task])
    assert np.isfinite([report.loss for report in train(trainer, feed, 0, 2)]).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_rectangles_or_says_why_not(task: str) -> None:
    settings = {"views__size": [24, 40], "views__local_size": [16, 24], "tasks": [task]}
    if task in SQUARE:
        with pytest.raises(UserError, match=rf"^task {task}: .*another shape"):
            tiny_trainer("dino", **settings)
        return
    trainer, feed = tiny_trainer("dino", **settings)
    assert np.isfinite([report.loss for report in train(trainer, feed, 0, 2)]).all()


def test_a_batch_in_parts_is_the_batch() -> None:
    """Losses of tasks are per image: accumulated micro-batches give the same mean where no loss reads other images."""
    losses = []
    for parts in (1, 2):
        trainer, feed = tiny_trainer("none", tasks=["relations"], train__accumulate=parts)
        losses.append([report.loss for report in train(trainer, feed, 0, 1)])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-5, rtol=1e-5)


def test_the_whole_composition_just_works() -> None:
    """`--objective mocov3 --views hard tasks=[selfpatch,rotation]`."""
    trainer, feed = tiny_trainer("mocov3", views__policy="hard", tasks=["selfpatch", "rotation"])
    report = trainer.step(0, next(feed.stream(0, 1)), detail=True)
    assert np.isfinite(report.loss)
    assert {name.split(".")[0] for name in report.scalars if name.startswith("task/")} == {
        "task/selfpatch",
        "task/rotation",
    }
