"""`belvedere generate` and `sample` through the command line: the run's folder, resuming, refusals."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.pretrain import checkpoint
from newcomer import Said, belvedere, photo_folder
from tiny import Command

TINY: dict[str, Any] = {
    "images.size": 16,
    "generator.dim": 12,
    "generator.depth": 1,
    "generator.heads": 2,
    "generator.grid": 4,
    "generator.painter": 8,
    "discriminator.dim": 12,
    "discriminator.depth": 1,
    "discriminator.heads": 2,
    "train.batch": 8,
    "train.steps": 12,
    "train.threads": 1,
    "train.checkpoint_minutes": 0.0001,
    "samples.images": 9,
    "samples.every": 6,
    "images.workers": 1,
}


def words(**settings: Any) -> list[str]:
    given = TINY | {key.replace("__", "."): value for key, value in settings.items()}
    return [f"{key}={value}" for key, value in given.items()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and a finished run `run`."""
    place = tmp_path_factory.mktemp("generate")
    photo_folder(place / "photos", 24, 20)
    said = belvedere(place, "generate", place / "photos", "--out", place / "run", *words())
    (place / "said.txt").write_text(said.text)
    assert said.code == 0, said.text
    return place


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log without what clocks say."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_leaves_model_pictures_and_report(place: Path) -> None:
    run, said = place / "run", (place / "said.txt").read_text()
    assert "24 images (0 set aside)" in said
    assert "health: " in said
    log = log_of(run)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(12))
    assert [entry["step"] for entry in log if "look" in entry] == [0, 6, 12]
    assert all(np.isfinite(entry["loss"]) for entry in log if "loss" in entry)
    pictures = sorted((run / "samples").iterdir())
    assert [file.name for file in pictures] == ["00000000.png", "00000006.png", "00000012.png"]
    first, last = (np.asarray(Image.open(file)) for file in (pictures[0], pictures[-1]))
    assert first.shape == last.shape
    assert not np.array_equal(first, last)
    page = (run / "report.html").read_text()
    assert "Samples after 12 steps" in page
    assert "discriminator.overlap" in page


def test_samples_are_files_that_do_not_depend_on_their_number(place: Path) -> None:
    for number, seed, name in ((5, 0, "five"), (2, 0, "two"), (2, 1, "others")):
        out = place / name
        said = belvedere(place, "sample", place / "run", "--number", number, "--seed", seed, "--out", out)
        assert said.code == 0, said.text
        assert len(list(out.iterdir())) == number
        assert Image.open(out / "000000.png").size == (16, 16)
    same, other = (np.asarray(Image.open(place / name / "000001.png")) for name in ("two", "others"))
    assert np.array_equal(np.asarray(Image.open(place / "five" / "000001.png")), same)
    assert not np.array_equal(same, other)
    assert "holds files already" in belvedere(place, "sample", place / "run", "--out", place / "two").refusal()


def test_the_same_seed_gives_the_same_run_and_another_another(place: Path) -> None:
    for seed, name in ((0, "again"), (1, "other")):
        said = belvedere(place, "generate", place / "photos", "--out", place / name, *words(train__seed=seed))
        assert said.code == 0, said.text
    assert log_of(place / "again") == log_of(place / "run")
    assert log_of(place / "other") != log_of(place / "run")


def start(place: Path, out: Path, *more: str) -> Command:
    arguments = ["generate", str(place / "photos"), "--out", str(out), *more]
    return Command(arguments, out.with_name(f"{out.name}.txt"), place / "cache")


def wait_for(command: Command, run: Path, lines: int) -> None:
    """So many lines of the log, and a checkpoint."""
    log = run / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= lines and (run / "checkpoint.pt").exists()):
        assert command.process.is_alive(), command.output
        time.sleep(0.002)


def test_a_killed_run_resumes_exactly(place: Path, tmp_path: Path) -> None:
    whole = belvedere(
        place, "generate", place / "photos", "--out", tmp_path / "whole", *words(train__steps=30, samples__every=15)
    )
    assert whole.code == 0, whole.text
    run = tmp_path / "run"
    command = start(place, run, *words(train__steps=30, samples__every=15))
    wait_for(command, run, 8)
    command.process.kill()
    assert command.wait() == -signal.SIGKILL
    assert 0 < checkpoint.load(run / "checkpoint.pt")["step"] < 30, "the kill came too late to mean anything"
    command = start(place, run, "--resume")
    assert command.wait() == 0, command.output
    assert "continues at step" in command.output
    assert log_of(run) == log_of(tmp_path / "whole")
    for name in ("generator.safetensors", "samples/00000030.png"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_signal_saves_and_a_run_can_be_extended(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(place, run, *words(train__steps=500))
    wait_for(command, run, 4)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.wait() == 0, command.output
    assert "SIGTERM" in command.output
    assert "--resume" in command.output
    done = checkpoint.load(run / "checkpoint.pt")["step"]
    assert log_of(run)[-1]["step"] == done - 1
    command = start(place, run, "--resume", f"train.steps={done + 3}")
    assert command.wait() == 0, command.output
    assert [entry["step"] for entry in log_of(run) if "loss" in entry] == list(range(done + 3))


def refusal(place: Path, *arguments: object) -> str:
    said: Said = belvedere(place, *arguments)
    return said.refusal()


def test_refusals_are_one_line(place: Path, tmp_path: Path) -> None:
    photos, run = place / "photos", place / "run"
    new = tmp_path / "new"
    assert "unknown key 'train.lrr'" in refusal(place, "generate", photos, "--out", new, "train.lrr=1")
    assert "no such file or folder" in refusal(place, "generate", tmp_path / "none", "--out", new)
    assert "--resume" in refusal(place, "generate", photos, "--out", run)
    assert "cannot become" in refusal(place, "generate", photos, "--out", run, "--resume", "train.batch=4")
    assert "more than twice" in refusal(place, "generate", photos, "--out", new, "images.size=64")
    assert "is no run folder" in refusal(place, "generate", photos, "--out", new, "--encoder", tmp_path)
    assert "is no run of" in refusal(place, "sample", photos, "--out", new)
    assert "is no run folder" in refusal(place, "evaluate", run, photos)
    other = photo_folder(tmp_path / "other", 10, 20)
    assert "trained on other images" in refusal(place, "generate", other, "--out", run, "--resume")
    assert not new.exists()


def test_damaged_weights_are_refused(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("generator.yaml", "generator.safetensors"):
        (run / name).write_bytes((place / "run" / name).read_bytes()[: 500 if name.endswith("tensors") else None])
    assert "is damaged" in refusal(place, "sample", run, "--out", tmp_path / "out")


def test_minutes_become_steps(place: Path, tmp_path: Path) -> None:
    given = {key: value for key, value in TINY.items() if key != "train.steps"}
    said = belvedere(
        place,
        "generate",
        place / "photos",
        "--minutes",
        "0.02",
        "--out",
        tmp_path / "run",
        *(f"{key}={value}" for key, value in given.items() if key != "samples.every"),
    )
    assert said.code == 0, said.text
    assert "0.02 minutes at" in (tmp_path / "run" / "generator.yaml").read_text()
    assert torch.tensor([entry["loss"] for entry in log_of(tmp_path / "run") if "loss" in entry]).isfinite().all()
