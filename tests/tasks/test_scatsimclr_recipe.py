"""ScatSimCLR's recipe: the paper's network, head and loss, a step with either of its pretext tasks, learned turns."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_sit_learning import TRAINED, accuracy, digits
from torch import nn

from belvedere import config as configuration
from belvedere.derive import Facts
from belvedere.images.canvases import Canvases
from belvedere.pretrain.compose import facts_of, make_feed, make_trainer, settle
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.trainer import Trainer
from belvedere.tasks.rotation import Rotation
from tiny import MACHINE, tiny_canvases, train


def test_at_the_papers_size_it_is_the_papers() -> None:
    config = settle(configuration.resolve("scatsimclr", {}), Facts(images=105_000, side=96))[0].config
    options = config.objective.model_extra or {}
    assert (config.backbone.name, config.backbone.patch, config.views.size) == ("scatnet30", 4, 96)
    assert (config.train.batch, config.train.lr, config.train.weight_decay) == (64, 3e-4, 1e-5)
    assert (options["temperature"], options["hidden"], options["out"], options["layers"]) == (0.5, 2048, 128, 2)
    assert config.views.jitter == (0.8, 0.8, 0.8, 0.2)
    assert config.task["rotation"]["weight"] == 0.3
    assert config.task["rotation"]["hidden"] == [512, 128]


def trainer_of(canvases: Canvases, given: dict[str, Any]) -> tuple[Trainer, Feed]:
    """The recipe with settings of its own, at step 0."""
    config = settle(configuration.resolve("scatsimclr", {**MACHINE, **given}), facts_of(canvases, "cpu"))[0].config
    fabric = make_fabric("cpu", "float32")
    return make_trainer(config, canvases, fabric), make_feed(config, canvases, fabric)


@pytest.mark.parametrize(("task", "classes"), [("rotation", 4), ("jigsaw", 35)])
def test_a_step_with_either_task(task: str, classes: int) -> None:
    trainer, feed = trainer_of(
        tiny_canvases(size=(32, 32)),
        {"backbone.name": "scatnet8_l2_j3", "tasks": [task], "train.batch": 4, "train.steps": 2},
    )
    report = trainer.step(0, next(feed.stream(0, 1)), detail=True)
    found = {key: float(value) for key, value in report.scalars.items() if key.startswith(f"task/{task}")}
    assert sum(found.values()) == pytest.approx(0.3 * math.log(classes), rel=0.2)
    assert report.moved


@pytest.mark.slow
def test_turns_are_told_by_the_scattering_network() -> None:
    """Spec patch_and_pretext 10, item 5: above chance, a quarter, on digits that were not trained on."""
    given = {"backbone.name": "scatnet8_l4", "views.global_scale": [0.5, 1.0]}
    given |= {"train.batch": 8, "train.steps": 80, "train.lr": 1e-3}
    trainer, feed = trainer_of(digits(TRAINED), given)
    task = trainer.parts.tasks["rotation"]
    assert isinstance(task, Rotation)
    assert task.options.of == "copies"
    assert [module.out_features for module in task.head if isinstance(module, nn.Linear)] == [512, 128, 4]
    train(trainer, feed, 0, 80)
    assert accuracy(trainer) > 0.4  # measured: 0.52
