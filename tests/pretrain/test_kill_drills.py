"""Killed anywhere, the same command again ends as if nothing had happened: the same log, model and results."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import wait_until_training, without_times, words, write_photos

from drills import EVALUATION, PRETRAINING, Drilled
from tiny import Command

STEPS = 30
# One kill of every part of a run is in the fast suite, all are in the slow one.
FAST = ("cache whole but not in its place", "views drawn", "half of a checkpoint")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("drilled") / "photos")


def pretraining(photos: Path, run: Path) -> list[str]:
    """A command that begins a run and goes on with it; its log is that of one process from the first step on."""
    settings = words(train__steps=STEPS, monitor__probe=16)
    return ["pretrain", str(photos), "--recipe", "dino", "--out", str(run), "--resume", *settings]


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(pretraining(photos, folder / "run"), folder / "said.txt", folder / "cache")
    assert command.wait() == 0, command.output
    return folder / "run"


def drills(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, id=name, marks=[] if name in FAST else [pytest.mark.slow]) for name in table]


@pytest.mark.parametrize("name", drills(PRETRAINING))
def test_a_killed_run_loses_nothing(name: str, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    killed = Drilled(PRETRAINING[name], pretraining(photos, run), tmp_path / "killed.txt", cache)
    assert killed.wait() == -signal.SIGKILL, killed.output
    again = Command(pretraining(photos, run), tmp_path / "again.txt", cache)
    assert again.wait() == 0, again.output
    assert without_times(run) == without_times(undisturbed)
    assert (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert {path.name for path in run.iterdir()} == {path.name for path in undisturbed.iterdir()}
    assert not [path for path in cache.rglob(".*") if path.is_file() and path.stat().st_size], (
        "rests of the killed stay"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATION)
def test_a_killed_evaluation_loses_nothing(name: str, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled"
    for k, photo in enumerate(sorted(photos.iterdir())):
        (labelled / f"class_{k % 4}").mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, labelled / f"class_{k % 4}")
    found = []
    for drill in (EVALUATION[name], None):
        run = Path(shutil.copytree(undisturbed, tmp_path / f"run_{drill is None}"))
        arguments = ["evaluate", str(run), str(labelled), "--protocol", "knn"]
        if drill is not None:
            killed = Drilled(drill, arguments, tmp_path / "killed.txt", tmp_path / "cache")
            assert killed.wait() == -signal.SIGKILL, killed.output
            assert (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
        command = Command(arguments, tmp_path / "said.txt", tmp_path / "cache")
        assert command.wait() == 0, command.output
        results = json.loads((run / "evaluation.json").read_text())
        del results["seconds"]
        names = sorted(path.name for path in run.iterdir())
        found.append((results, (run / "evaluation.npz").read_bytes(), names))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_the_cache_goes_away_under_a_running_job(how: str, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    command = Command(pretraining(photos, run), tmp_path / "said.txt", cache)
    wait_until_training(command, run, 5)
    (file,) = cache.glob("canvases/*.bin")
    if how == "deleted":
        file.unlink()
        assert command.wait() == 0, command.output
    else:
        os.truncate(file, 100)
        assert command.wait() == -signal.SIGBUS, command.output
        again = Command(pretraining(photos, run), tmp_path / "again.txt", cache)
        assert again.wait() == 0, again.output
        assert "canvas cache is damaged and is built again" in again.output
    assert without_times(run) == without_times(undisturbed)
    assert (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
