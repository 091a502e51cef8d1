"""A run that dies goes on as if it had not: the same log, bit for bit, and the same model."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from runs import BATCH, IMAGES, assert_one_line, pretrain, resume, wait_until_training, without_times, write_photos

from belvedere.pretrain import checkpoint
from belvedere.pretrain.folder import RunFolder
from tiny import Command, losses_of, read_metrics

STEPS = 60
PER_EPOCH = IMAGES // BATCH


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command = pretrain(photos, run, train__steps=STEPS)
    assert command.wait() == 0, command.output
    assert [step for step, _ in losses_of(run)] == list(range(STEPS))
    return run


def assert_equal_runs(run: Path, undisturbed: Path) -> None:
    assert without_times(run) == without_times(undisturbed)
    assert (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert (run / "report.html").is_file()
    assert not list(run.glob(".checkpoint.pt.*"))


@pytest.mark.parametrize("lines", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_exactly(photos: Path, undisturbed: Path, tmp_path: Path, lines: int) -> None:
    run = tmp_path / "run"
    command = pretrain(photos, run, train__steps=STEPS)
    wait_until_training(command, run, lines)
    time.sleep(random.Random(lines).uniform(0, 0.1))
    command.process.kill()
    assert command.wait() == -signal.SIGKILL
    done = checkpoint.load(run / "checkpoint.pt")["step"]
    assert 0 < done < STEPS, "the kill came too late to mean anything"
    command = resume(photos, run)
    assert command.wait() == 0, command.output
    assert f"continues at step {done} of {STEPS}" in command.output
    assert_equal_runs(run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_says_how_to_go_on(
    photos: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = pretrain(photos, run, train__steps=STEPS)
    wait_until_training(command, run, 10)
    os.kill(command.process.pid, number)
    assert command.wait() == 0, command.output
    told = next(line for line in command.output.splitlines() if number.name in line)
    assert f"--out {run} --resume" in told
    # Nothing is lost: the checkpoint holds the very last step of the log.
    last = losses_of(run)[-1][0]
    assert checkpoint.load(run / "checkpoint.pt")["step"] == last + 1 < STEPS
    command = resume(photos, run)
    assert command.wait() == 0, command.output
    assert_equal_runs(run, undisturbed)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """It begins anew, and the logs of the lost steps do not stay."""
    run = tmp_path / "run"
    command = pretrain(photos, run, train__steps=STEPS, train__checkpoint_minutes=5)
    wait_until_training(command, run, 3, checkpoint=False)
    command.process.kill()
    command.wait()
    assert not (run / "checkpoint.pt").exists()
    (run / "not_finite.csv").write_text("step,path\n0,lost.png\n")
    command = resume(photos, run, "train.checkpoint_minutes=0.001")
    assert command.wait() == 0, command.output
    assert not (run / "not_finite.csv").exists()
    assert_equal_runs(run, undisturbed)


def test_a_finished_run_can_be_extended(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    """More epochs re-plan the schedules: the learning rate rises again to where the longer cosine is."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    epochs = STEPS // PER_EPOCH + 4
    command = resume(photos, run, "--epochs", str(epochs))
    assert command.wait() == 0, command.output
    total = epochs * PER_EPOCH
    assert f"continues at step {STEPS} of {total}" in command.output
    assert [step for step, _ in losses_of(run)] == list(range(total))
    assert losses_of(run)[:STEPS] == losses_of(undisturbed)
    rates = {entry["step"]: entry["lr"] for entry in read_metrics(run) if "lr" in entry}
    assert rates[STEPS] > 3 * rates[STEPS - 1]
    assert rates[total - 1] < rates[STEPS]
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["train.steps"], stored["train.epochs"]) == (total, epochs)
    # And less than what is done is refused.
    command = resume(photos, run, "--epochs", "2")
    assert command.wait() == 2
    assert_one_line(command.output)
    assert yaml.safe_load((run / "config.yaml").read_text()) == stored


def content(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_resuming_another_run_is_refused(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Another batch, backbone, recipe or other images: one line, exit code 2, and the run stays as it was."""
    before = content(undisturbed)
    others = write_photos(tmp_path / "photos", IMAGES - 1)
    for data, more, said in [
        (photos, ["train.batch=4"], "train.batch is 8 in this run"),
        (photos, ["--backbone", "resnet18"], "backbone.name is vit_tiny in this run"),
        (photos, ["--recipe", "simclr"], "recipe"),
        (others, [], "other images"),
    ]:
        output = tmp_path / "said.txt"
        arguments = ["pretrain", str(data), "--out", str(undisturbed), "--resume", *more]
        command = Command(arguments, output, tmp_path / "cache")
        assert command.wait() == 2, command.output
        assert said in assert_one_line(command.output)
        assert content(undisturbed) == before


def test_a_checkpoint_that_does_not_fit_is_refused(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Of another architecture, of another version, damaged, and a folder in which somebody writes."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("backbone.width: 32", "backbone.width: 64"))
    assert_refused(photos, run, "checkpoint.pt: does not fit this run's network")
    (run / "config.yaml").write_text(text)
    state = checkpoint.load(run / "checkpoint.pt")
    torch.save({**state, "format": checkpoint.FORMAT + 1}, run / "checkpoint.pt")
    assert_refused(photos, run, f"has format version {checkpoint.FORMAT + 1}")
    (run / "checkpoint.pt").write_bytes((undisturbed / "checkpoint.pt").read_bytes()[:5000])
    assert_refused(photos, run, "is damaged")
    holder = RunFolder(run)
    holder.open()
    assert_refused(photos, run, "another process is writing to this run")
    holder.close()


def assert_refused(photos: Path, run: Path, said: str) -> None:
    before = content(run)
    command = resume(photos, run)
    assert command.wait() == 2, command.output
    assert said in assert_one_line(command.output)
    assert content(run) == before


def test_minutes_are_measured_once(photos: Path, tmp_path: Path) -> None:
    """The number of steps is stored before step 0; a resumed run does not measure again."""
    run = tmp_path / "run"
    command = pretrain(photos, run, "--minutes", "0.05")
    while not (run / "config.yaml").exists():
        assert command.process.is_alive(), command.output
        time.sleep(0.02)
    stored = (run / "config.yaml").read_text()
    command.process.kill()
    command.wait()
    settings = yaml.safe_load(stored)
    assert isinstance(settings["train.steps"], int)
    assert "minutes at" in next(line for line in stored.splitlines() if line.startswith("train.steps"))
    command = resume(photos, run)
    assert command.wait() == 0, command.output
    assert (run / "config.yaml").read_text() == stored
    assert [step for step, _ in losses_of(run)] == list(range(settings["train.steps"]))
