"""ScatSimCLR's recipe: the paper's network, head and loss, and a step with either of its pretext tasks."""

from __future__ import annotations

import math

import pytest

from belvedere import config as configuration
from belvedere.derive import Facts
from belvedere.pretrain.compose import facts_of, make_feed, make_trainer, settle
from belvedere.pretrain.engine import make_fabric
from tiny import MACHINE, tiny_canvases


def test_at_the_papers_size_it_is_the_papers() -> None:
    config = settle(configuration.resolve("scatsimclr", {}), Facts(images=105_000, side=96))[0].config
    options = config.objective.model_extra or {}
    assert (config.backbone.name, config.backbone.patch, config.views.size) == ("scatnet30", 4, 96)
    assert (config.train.batch, config.train.lr, config.train.weight_decay) == (64, 3e-4, 1e-5)
    assert (options["temperature"], options["hidden"], options["out"], options["layers"]) == (0.5, 2048, 128, 2)
    assert config.views.jitter == (0.8, 0.8, 0.8, 0.2)
    assert config.task["rotation"]["weight"] == 0.3
    assert config.task["rotation"]["hidden"] == [512, 128]


@pytest.mark.parametrize(("task", "classes"), [("rotation", 4), ("jigsaw", 35)])
def test_a_step_with_either_task(task: str, classes: int) -> None:
    canvases = tiny_canvases(size=(32, 32))
    given = {**MACHINE, "backbone.name": "scatnet8_l2_j3", "tasks": [task], "train.batch": 4, "train.steps": 2}
    config = settle(configuration.resolve("scatsimclr", given), facts_of(canvases, "cpu"))[0].config
    fabric = make_fabric("cpu", "float32")
    trainer = make_trainer(config, canvases, fabric)
    report = trainer.step(0, next(make_feed(config, canvases, fabric).stream(0, 1)), detail=True)
    found = {key: float(value) for key, value in report.scalars.items() if key.startswith(f"task/{task}")}
    assert sum(found.values()) == pytest.approx(0.3 * math.log(classes), rel=0.2)
    assert report.moved
