"""Two processes started by torchrun: one run folder, the data order and the losses of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from runs import MACHINE, NETWORK, pretrain, words, write_photos

import belvedere
from belvedere.errors import UserError
from belvedere.pretrain import checkpoint
from belvedere.pretrain import loop as loop_module
from belvedere.pretrain.loop import Loop
from processes import run_as_torchrun
from tiny import free_port, give_renderer, losses_of

FOUR_STEPS = {**NETWORK, **MACHINE, "train.batch": 8, "train.steps": 4}
# 18 steps of 5 an epoch: what goes on begins within one.
SETTINGS = {"train__steps": 18, "backbone__drop_path": 0.0, "train__checkpoint_minutes": 5}


def torchrun(photos: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`belvedere pretrain` in two processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return python([*launcher, "-m", "belvedere", *training(photos, out, *more)], photos)


def training(photos: Path, out: Path, *more: str) -> list[str]:
    """The arguments of `belvedere`."""
    return ["pretrain", str(photos), "--recipe", "dino", "--out", str(out), *more]


def python(arguments: list[str], photos: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with one thread and the cache of these photographs."""
    environment = {**os.environ, "BELVEDERE_CACHE": str(photos.with_name("cache")), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 images in batches of 8: the last batch is 7 = 4 + 3."""
    photos = write_photos(tmp_path_factory.mktemp("data") / "photos", 39)
    give_renderer(photos.with_name("cache"))
    return photos


def wait_for_losses(run: Path, job: subprocess.Popen[Any], said: Path | None = None) -> None:
    """Wait until some steps of a run are done."""
    log, deadline = run / "metrics.jsonl", time.monotonic() + 240
    while not (log.exists() and log.read_text().count("loss") > 3):
        assert job.poll() is None, job.communicate()[0] if said is None else said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)


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
    assert [step for step, _ in two] == list(range(18))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)
    # A run of two processes is resumed by one, with the same data order.
    longer = [*words(**{**SETTINGS, "train__steps": 22}), "--resume"]
    done = torchrun(photos, tmp_path / "alone", *longer)
    assert done.returncode == 0, done.stderr
    command = pretrain(photos, tmp_path / "two", "--resume", **{**SETTINGS, "train__steps": 22})
    assert command.wait() == 0, command.output
    one, two = losses_of(tmp_path / "alone"), losses_of(tmp_path / "two")
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(22))
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


@pytest.mark.slow
def test_devices_start_as_many_processes(photos: Path, tmp_path: Path) -> None:
    alone = pretrain(photos, tmp_path / "alone", **SETTINGS)
    assert alone.wait() == 0, alone.output
    done = python(
        ["-m", "belvedere", *training(photos, tmp_path / "two", *words(**SETTINGS), "--devices", "2")], photos
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    one, two = losses_of(tmp_path / "alone"), losses_of(tmp_path / "two")
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)
    assert one != two, "sums of two processes round differently, so this was one process"
    # What a user can mend is said as by one process, without the launcher's own words.
    wrong = words(train__steps=5, train__batch=3)
    done = python(["-m", "belvedere", *training(photos, tmp_path / "new", *wrong, "--devices", "2")], photos)
    assert done.returncode == 2
    # The one that is ended while it waits for the other leaves an empty line.
    told = [line for line in done.stderr.splitlines() if line]
    assert {line.partition(": ")[0] for line in told} <= {"belvedere", "belvedere (process 1)"}
    assert "train.batch=3: too small for 2 processes; make it at least 4" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_signal_to_devices_ends_as_one_process_does(photos: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    given = words(**{**SETTINGS, "train__steps": 2000})
    command = [sys.executable, "-m", "belvedere", *training(photos, run, *given, "--devices", "2")]
    environment = {**os.environ, "BELVEDERE_CACHE": str(photos.with_name("cache")), "OMP_NUM_THREADS": "1"}
    with said.open("w") as output:
        parent = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        wait_for_losses(run, parent, said)
        parent.terminate()
        assert parent.wait(timeout=120) == 0, said.read_text()
    told = said.read_text()
    assert "Traceback" not in told
    (ended,) = (line for line in told.splitlines() if "SIGTERM" in line)
    assert ended.startswith("ended early because it was stopped by SIGTERM")
    assert ended.endswith(f"--out {run} --resume")
    assert told.strip().splitlines()[-1] == f"report: {run / 'report.html'}"
    assert checkpoint.load(run / "checkpoint.pt")["step"] == len(losses_of(run)) < 2000


@pytest.mark.parametrize(
    ("own", "others", "why"),
    [
        ([], [], ""),
        ([signal.SIGTERM], [0], "it was stopped by SIGTERM"),
        ([], [signal.SIGTERM], "it was stopped by SIGTERM"),  # which reached the others first
        ([], [0], "another process stopped"),
    ],
)
def test_all_processes_know_of_a_signal_to_one(
    own: list[int], others: list[int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_others(votes: torch.Tensor) -> torch.Tensor:
        return votes + sum(torch.eye(len(votes))[number] for number in others)

    monkeypatch.setattr(loop_module, "all_sum", with_others)
    fabric = SimpleNamespace(world_size=2, device="cpu")
    health = SimpleNamespace(health=SimpleNamespace(stop=False))
    loop: Any = SimpleNamespace(config=health, trainer=SimpleNamespace(fabric=fabric), _fallen="")
    Loop._decide(loop, own)
    assert loop.reason == why


@pytest.mark.slow
def test_torchrun_goes_on_from_the_checkpoint_when_a_process_dies(photos: Path, tmp_path: Path) -> None:
    """Process 1 is killed at its twelfth step, once; torchrun starts both again with the same command."""
    settings = words(**{**SETTINGS, "train__checkpoint_minutes": 0.0001})
    done = torchrun(photos, tmp_path / "whole", *settings)
    assert done.returncode == 0, done.stderr
    dies = tmp_path / "dies.py"
    dies.write_text(
        "import os, signal\n"
        "from belvedere import cli\n"
        "from belvedere.pretrain.trainer import Trainer\n"
        "whole = Trainer.step\n"
        "def step(self, number, *rest, **more):\n"
        "    if (os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT'], number) == ('1', '0', 12):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole(self, number, *rest, **more)\n"
        "Trainer.step = step\n"
        "cli.main()\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [*launcher, str(dies), *training(photos, tmp_path / "run", *settings, "--resume")]
    done = python(command, photos)
    assert done.returncode != 0
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in done.stderr
    assert not (tmp_path / "run").exists()
    done = python(command, photos, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert done.returncode == 0, done.stderr
    assert "continues at step" in done.stdout
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_the_slurm_script_runs_and_goes_on(photos: Path, tmp_path: Path) -> None:
    """With stand-ins for what SLURM brings: one machine, two processes."""
    told = f'if [ "$1" = requeue ]; then echo "$2" >> "{tmp_path}/requeued"; else echo localhost; fi'
    for name, does in (("scontrol", told), ("srun", 'exec "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    facts = {"NNODES": "1", "GPUS_ON_NODE": "2", "CPUS_PER_TASK": "2", "JOB_ID": "7", "JOB_NODELIST": "localhost"}
    environment = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in facts.items()},
        "PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "BELVEDERE_CACHE": str(photos.with_name("cache")),
        "BELVEDERE_PORT": str(free_port()),
    }
    script = Path(__file__).parents[2] / "docs" / "slurm.sh"

    given = words(**{**SETTINGS, "train__steps": 150})
    command = ["bash", str(script), str(photos), str(tmp_path / "run"), "--recipe", "dino", *given]

    # Its time is over before its steps are: it is told so, stops with a checkpoint, and is queued again.
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_losses(tmp_path / "run", job)
    job.terminate()
    said, _ = job.communicate(timeout=120)
    assert job.returncode != 0, said
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert (tmp_path / "run" / "checkpoint.pt").is_file(), said
    assert len(losses_of(tmp_path / "run")) < 150
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "continues at step" in done.stdout
    assert [step for step, _ in losses_of(tmp_path / "run")] == list(range(150))
    assert (tmp_path / "requeued").read_text() == "7\n"


def begin_apart(photos: str, out: str) -> str:
    """A process whose file system has another run folder than the other's; what it is told."""
    try:
        belvedere.pretrain(photos, "simclr", out=f"{out}-{os.environ['RANK']}", resume=True, settings=FOUR_STEPS)
    except UserError as error:
        return str(error)
    return "nothing"


def test_machines_that_do_not_share_the_run_are_refused(photos: Path, tmp_path: Path) -> None:
    """Else one would go on at step 4 and the others begin."""
    belvedere.pretrain(photos, "simclr", out=tmp_path / "run-0", settings=FOUR_STEPS)
    said = run_as_torchrun(tmp_path, begin_apart, str(photos), str(tmp_path / "run"))
    assert said == ["--out is not the same for all processes: give one that all machines see and share"] * 2
    assert not (tmp_path / "run-1" / "config.yaml").exists()
