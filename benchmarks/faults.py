"""A hundred kills at random moments of a run, each followed by the same commands: is anything lost?

    python benchmarks/faults.py                # 100 kills, about 15 s each on one core
    python benchmarks/faults.py --kills 14 --seed 1

A small run on tiles of photographs (those of `belvedere demo`): `pretrain --resume`, `evaluate`, `report`, with an
empty cache. Where a run is can be seen from outside: by the command that runs and the files that are there. The
undisturbed run tells how long each phase takes; kills take turns among the phases, and within a phase SIGKILL comes
after a share of its time that is drawn with the seed. Then the same commands are given again. Right is a kill after
which the log, the model, the checkpoint's step and all results (times apart) are those of the undisturbed run. Writes
benchmarks/results/faults.json; the exit code is 1 when a kill lost something.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from belvedere import demo
from belvedere.pretrain import checkpoint

ROOT = Path(__file__).parents[1]
# Processes fork from one that has torch imported, so that kills fall into belvedere's own work.
FORKS = multiprocessing.get_context("forkserver")
STEPS = 60
SETTINGS = {
    "views.size": 32,
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 48,
    "backbone.depth": 2,
    "backbone.heads": 2,
    "views.locals": 1,
    "train.batch": 64,
    "train.steps": STEPS,
    "train.precision": "float32",
    "train.threads": 1,
    "train.checkpoint_minutes": 0.005,
    "monitor.probe": 256,
    "monitor.knn": 200,
}
CLOCKS = ("seconds", "waited", "view_cost", "elapsed")


def be_belvedere(arguments: list[str], output: str, cache: str) -> None:
    """Be `belvedere ARGUMENTS` in this process."""
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["BELVEDERE_CACHE"] = cache
    sys.argv = ["belvedere", *arguments]
    from belvedere import cli

    cli.main()


def commands(images: Path, run: Path) -> list[list[str]]:
    """What is given, and given again."""
    words = [f"{key}={value}" for key, value in SETTINGS.items()]
    return [
        ["pretrain", str(images), "--recipe", "dino", "--out", str(run), "--resume", *words],
        ["evaluate", str(run), str(images), "--protocol", "knn,retrieval"],
        ["report", str(run)],
    ]


def phase_of(place: Path, command: str) -> str:
    """Where a run is now, read from what it has written."""
    run = place / "run"
    if command != "pretrain":
        return "evaluation" if command == "evaluate" else "report"
    # A checkpoint is written under a name of the process and renamed, as is the cache.
    if any(run.glob(".checkpoint.pt.*")):
        return "writing a checkpoint"
    if (run / "config.yaml").exists():
        return "training"
    if any((place / "cache").glob("canvases/.*")):
        return "building the cache"
    return "starting" if any((place / "cache").glob("canvases/*")) else "building the index"


def do_all(images: Path, place: Path, until: tuple[str, float] = ("", 0.0)) -> tuple[str, dict[str, float]]:
    """All commands one after the other; the one that has been in a phase for so many seconds is killed.

    Returns:
        The phase in which it was killed ("" for none), and the seconds of each phase.

    Raises:
        SystemExit: when a command that nobody killed failed.
    """
    seconds: dict[str, float] = defaultdict(float)
    for arguments in commands(images, place / "run"):
        said = place / "said.txt"
        process: BaseProcess = FORKS.Process(target=be_belvedere, args=(arguments, str(said), str(place / "cache")))
        process.start()
        before = time.monotonic()
        while process.exitcode is None:
            phase, now = phase_of(place, arguments[0]), time.monotonic()
            seconds[phase] += now - before
            before = now
            if phase == until[0] and seconds[phase] >= until[1]:
                process.kill()
                process.join()
                return phase, seconds
            process.join(0.001)
        if process.exitcode:
            raise SystemExit(f"{' '.join(arguments)}: exit code {process.exitcode}\n{said.read_text()}")
    return "", seconds


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that does not tell the time."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "evaluation.json").read_text())
    del results["seconds"]
    return {
        "log": [{key: value for key, value in entry.items() if key not in CLOCKS} for entry in log],
        "model": (run / "model.safetensors").read_bytes(),
        "step": checkpoint.load(run / "checkpoint.pt")["step"],
        "results": results,
        "items": (run / "evaluation.npz").read_bytes(),
        "files": sorted(path.name for path in run.iterdir()),
    }


def main() -> None:
    from cifar_runs import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "faults.json")
    given = parser.parse_args()
    FORKS.set_forkserver_preload(["belvedere.api", "belvedere.cli", "belvedere.report.page"])
    about, kills = machine(), list[dict[str, Any]]()
    shutil.rmtree(given.work, ignore_errors=True)
    images = demo.write_tiles(given.work / "images") / "train"
    for name in ("warm", "undisturbed"):  # the first pays for the fork server
        (given.work / name).mkdir()
        _, lasted = do_all(images, given.work / name)
    expected = outcome(given.work / "undisturbed" / "run")
    draw, phases = random.Random(given.seed), itertools.cycle(lasted)
    for number in itertools.count():
        if len(kills) == given.kills:
            break
        place, aimed = given.work / f"kill_{number}", next(phases)
        place.mkdir()
        at, spent = do_all(images, place, (aimed, draw.uniform(0, lasted[aimed])))
        if not at:  # the phase was shorter this time
            continue
        do_all(images, place)
        found = outcome(place / "run")
        differs = [name for name in expected if found[name] != expected[name]]
        kills.append({"at": at, "after_seconds": round(sum(spent.values()), 3), "differs": differs})
        print(f"{number}: {at}, {'right' if not differs else f'WRONG: {differs}'}", flush=True)
        shutil.rmtree(place)
        text = {
            "machine": about,
            "seed": given.seed,
            "settings": SETTINGS,
            "undisturbed_seconds": {phase: round(seconds, 3) for phase, seconds in lasted.items()},
            "kills": len(kills),
            "at": dict(Counter(kill["at"] for kill in kills)),
            "lost": sum(bool(kill["differs"]) for kill in kills),
            "each": kills,
        }
        given.out.write_text(json.dumps(text, indent=1) + "\n")
    if lost := sum(bool(kill["differs"]) for kill in kills):
        sys.exit(f"{lost} of {len(kills)} kills lost something, see {given.out}")


if __name__ == "__main__":
    main()
