"""When the loss is no number: nothing moves, the health word says it, and the run ends with the reason."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import words, write_photos
from torch import Tensor

from belvedere import plugins
from belvedere.measure.monitor import STOP_AFTER
from belvedere.pretrain import checkpoint
from tiny import Command, read_metrics, tiny_trainer, train

PLUGINS = Path(__file__).parent / "plugins"
PLUGIN = PLUGINS / "breaks.py"
BREAKS_AT = 5


def flat(state: Any, place: str = "") -> dict[str, Any]:
    """Every leaf of nested state by its path."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {path: leaf for key, inner in items for path, leaf in flat(inner, f"{place}/{key}").items()}
    return {place: state}


def test_a_step_without_a_number_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and optimiser stay as they were, and no gradient is left over for the next step."""
    monkeypatch.setattr(plugins, "_user_files", {"breaks": PLUGIN})
    trainer, feed = tiny_trainer("breaks", views__locals=0)
    reports = train(trainer, feed, 0, BREAKS_AT)
    assert all(report.moved for report in reports)
    before = copy.deepcopy(flat(trainer.state_dict()))
    for report in train(trainer, feed, BREAKS_AT, BREAKS_AT + 3):
        assert not report.moved
        assert math.isnan(report.loss)
    after = flat(trainer.state_dict())
    assert after.keys() == before.keys()
    moved = [
        name
        for name, value in after.items()
        if (not torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value != before[name])
    ]
    # What a schedule sets; no weight, no moment and no batch statistics.
    assert [name for name in moved if not name.endswith(("lr", "weight_decay"))] == []
    assert all(p.grad is None for p in trainer.method.parameters())


@pytest.mark.parametrize("stop", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_run_stops_with_the_reason_unless_told_not_to(tmp_path: Path, stop: bool) -> None:
    photos, run = write_photos(tmp_path / "photos", 12), tmp_path / "run"
    settings = {
        "views__locals": 0,
        "objective__name": "breaks",
        "backbone__width": 16,
        "backbone__depth": 1,
        "train__batch": 4,
        "train__steps": BREAKS_AT + STOP_AFTER + 30,
        "train__checkpoint_minutes": 5,
        "monitor__log_every": 50,
        "health__stop": stop,
    }
    given = [word for word in words(**settings) if "bottleneck" not in word]
    arguments = ["pretrain", str(photos), "--out", str(run), "--plugin", str(PLUGIN), *given]
    command = Command(arguments, tmp_path / "said.txt", tmp_path / "cache")
    assert command.wait() == 0, command.output
    losses = [entry["loss"] for entry in read_metrics(run) if "loss" in entry]
    assert all(math.isfinite(loss) for loss in losses[:BREAKS_AT])
    assert set(losses[BREAKS_AT:]) == {None}
    assert "health: not finite." in command.output
    reason = f"the output was not finite from step {BREAKS_AT} to step {BREAKS_AT + STOP_AFTER}"
    assert (reason in command.output) == stop
    assert len(losses) == BREAKS_AT + STOP_AFTER + (1 if stop else 30)
    # Which images those were: those of each step that moved nothing.
    assert (str(run / "not_finite.csv") in command.output) == stop
    rows = list(csv.reader((run / "not_finite.csv").open()))
    assert rows[0] == ["step", "path"]
    assert [int(step) for step, _ in rows[1:]] == [step for step in range(BREAKS_AT, len(losses)) for _ in range(4)]
    assert {path for _, path in rows[1:]} == {photo.name for photo in photos.iterdir()}
    state = checkpoint.load(run / "checkpoint.pt")
    assert state["step"] == len(losses)
    assert all(tensor.isfinite().all() for tensor in state["trainer"]["method"].values())


def test_steps_that_a_run_recovers_from_are_told(tmp_path: Path) -> None:
    """In the log, at the end and on the page; a run that goes on counts those of before too."""
    photos, run = write_photos(tmp_path / "photos", 12), tmp_path / "run"
    settings = {"views__locals": 0, "objective__name": "stumbles", "backbone__width": 16, "train__batch": 4}
    words_given = [word for word in words(**settings) if "bottleneck" not in word]
    for steps, told, at in ((10, "2 steps skipped", [3, 4]), (14, "3 steps skipped", [3, 4, 12])):
        arguments = ["pretrain", str(photos), "--out", str(run), "--plugin", str(PLUGINS / "stumbles.py"), "--resume"]
        command = Command([*arguments, *words_given, f"train.steps={steps}"], tmp_path / "said.txt", tmp_path / "cache")
        assert command.wait() == 0, command.output
        (health,) = (line for line in command.output.splitlines() if line.startswith("health: "))
        assert health.endswith(f" {told}, their images are in not_finite.csv.")
        entries = [entry for entry in read_metrics(run) if "loss" in entry]
        assert all(math.isfinite(entry["loss"]) for entry in entries)
        assert {entry["step"]: entry["moved"] for entry in entries if "moved" in entry} == dict.fromkeys(at, False)
        page = (run / "report.html").read_text()
        assert f"{told}, their images are in not_finite.csv." in page
        assert "moved" not in page


@pytest.mark.parametrize("objective", ["simclr", "mocov3"])
def test_one_bad_forward_leaves_batch_statistics_as_they_were(objective: str) -> None:
    """Of the network, its heads and its teacher; and the run goes on."""
    shape = {"backbone__name": "resnet18", **dict.fromkeys(("backbone__width", "backbone__depth", "backbone__heads"))}
    shape["backbone__patch"] = "auto"
    trainer, feed = tiny_trainer(objective, **shape)
    train(trainer, feed, 0, 2)
    networks = [branch for branch in (trainer.method, trainer._averaged) if branch is not None]

    def seen() -> list[Tensor]:
        states = [network.state_dict() for network in networks]
        names = "running_", "num_batches"
        return [x.clone() for state in states for name, x in state.items() if any(word in name for word in names)]

    before = seen()
    assert len(before) >= 60 * len(networks)
    first = trainer.parts.student.backbone.model.conv1
    spoilt = first.register_forward_hook(lambda layer, given, out: out * math.nan)
    (report,) = train(trainer, feed, 2, 3)
    assert not report.moved
    spoilt.remove()
    assert all(torch.equal(now, then) for now, then in zip(seen(), before, strict=True))
    assert all(report.moved for report in train(trainer, feed, 3, 5))


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    """The loss may be finite all the same; clipping such a gradient would spread it over every weight."""
    trainer, feed = tiny_trainer("simclr")
    weight = next(p for p in trainer.method.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = copy.deepcopy(flat(trainer.method.state_dict()))
    for report in train(trainer, feed, 0, 3):
        assert math.isfinite(report.loss)
        assert not report.moved
    for name, parameter in trainer.method.named_parameters():
        assert torch.equal(parameter, before[f"/{name}"]), name
