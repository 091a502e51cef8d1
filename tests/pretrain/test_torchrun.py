"""Two processes started by torchrun: one run folder, the data order and the losses of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import pretrain, words, write_photos

from tiny import free_port, losses_of

SETTINGS = {"train__steps": 20, "backbone__drop_path": 0.0, "train__checkpoint_minutes": 5}


def torchrun(photos: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`belvedere pretrain` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = {**os.environ, "BELVEDERE_CACHE": str(photos.with_name("cache")), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "belvedere", "pretrain", str(photos), "--recipe", "dino", "--out", str(out), *more],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 images in batches of 8: the last batch is 7 = 4 + 3."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 39)


@pytest.mark.slow
def test_two_processes_run_as_one(photos: Path, tmp_path: Path) -> None:
    alone = pretrain(photos, tmp_path / "alone", **SETTINGS)
    assert alone.wait() == 0, alone.output
    done = torchrun(photos, tmp_path / "two", *words(**SETTINGS))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "alone.txt", "two"]
    expected = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == expected
    assert done.stdout.count("report: ") == 1
    one, two = losses_of(tmp_path / "alone"), losses_of(tmp_path / "two")
    assert [step for step, _ in two] == list(range(20))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)
    # A run of two processes is resumed by one, with the same data order.
    longer = [*words(**{**SETTINGS, "train__steps": 24}), "--resume"]
    done = torchrun(photos, tmp_path / "alone", *longer)
    assert done.returncode == 0, done.stderr
    command = pretrain(photos, tmp_path / "two", "--resume", **{**SETTINGS, "train__steps": 24})
    assert command.wait() == 0, command.output
    one, two = losses_of(tmp_path / "alone"), losses_of(tmp_path / "two")
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(24))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)


@pytest.mark.slow
def test_one_process_finishes_what_two_trained(photos: Path, tmp_path: Path) -> None:
    """Pictures of tasks need views that the policy chooses with a score that reads the batches of all processes."""
    given = words(**{**SETTINGS, "train__steps": 3, "objective__name": "mocov3", "views__policy": "hard"})
    given = [word for word in given if not word.startswith("objective.bottleneck")]
    done = torchrun(photos, tmp_path / "run", *given, "tasks=[selfpatch,rotation]")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert {"selfpatch.webp", "rotation.webp"} <= {path.name for path in (tmp_path / "run" / "pictures").iterdir()}


@pytest.mark.slow
def test_processes_agree_on_how_many_steps_fit(photos: Path, tmp_path: Path) -> None:
    """Each measures its own speed, but they stop measuring together and one of them decides."""
    done = torchrun(photos, tmp_path / "run", "--minutes", "0.1", *words())
    assert done.returncode == 0, done.stderr
    steps = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train.steps"]
    assert [step for step, _ in losses_of(tmp_path / "run")] == list(range(steps))


@pytest.mark.slow
def test_a_batch_too_small_for_the_processes_is_refused(photos: Path, tmp_path: Path) -> None:
    done = torchrun(photos, tmp_path / "run", *words(train__steps=5, train__batch=3))
    assert done.returncode != 0
    assert "train.batch=3: too small for 2 processes; make it at least 4" in done.stderr
    assert not (tmp_path / "run").exists()
