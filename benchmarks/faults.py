"""A hundred kills at random moments of a run, each followed by the same commands: is anything lost?

    python benchmarks/faults.py                # 100 kills, about 10 s each on one core
    python benchmarks/faults.py --kills 10 --seed 1

A small run on tiles of photographs (those of `belvedere demo`): `pretrain --resume`, `evaluate`, `report`, with an
empty cache, so that listing, decoding, training, writing checkpoints, evaluation and report all have their share of the
time.
SIGKILL comes after a share of the undisturbed run's time that is drawn with the seed; then the same commands are given
again. Right is a kill after which the log, the model, the checkpoint's step and all results (times apart) are those of
the undisturbed run. Writes benchmarks/results/faults.json, with how far each run had come.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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


def do_all(images: Path, place: Path, seconds: float | None) -> tuple[str, float]:
    """All commands one after the other; after so many seconds the one that runs is killed.

    Returns:
        The command that was killed ("" for none), and the seconds that it took.

    Raises:
        SystemExit: when a command that nobody killed failed.
    """
    began = time.monotonic()
    for arguments in commands(images, place / "run"):
        said = place / "said.txt"
        process: BaseProcess = FORKS.Process(target=be_belvedere, args=(arguments, str(said), str(place / "cache")))
        process.start()
        process.join(None if seconds is None else max(0.0, seconds - (time.monotonic() - began)))
        if process.exitcode is None:
            process.kill()
            process.join()
            return arguments[0], time.monotonic() - began
        if process.exitcode:
            raise SystemExit(f"{' '.join(arguments)}: exit code {process.exitcode}\n{said.read_text()}")
    return "", time.monotonic() - began


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


def come_to(place: Path, killed: str) -> str:
    """Where a run was when it was killed, read from what it left."""
    run = place / "run"
    if killed != "pretrain":
        return killed
    if not list(place.glob("cache/canvases/*.bin")):
        return "listing and decoding"
    if not (run / "config.yaml").exists():
        return "before the first step"
    if not (run / "checkpoint.pt").exists():
        return "before the first checkpoint"
    return "training" if checkpoint.load(run / "checkpoint.pt")["step"] < STEPS else "model and report"


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
        _, whole = do_all(images, given.work / name, None)
    expected = outcome(given.work / "undisturbed" / "run")
    draw = random.Random(given.seed)
    for number in range(given.kills):
        place = given.work / f"kill_{number}"
        place.mkdir()
        killed, after = do_all(images, place, draw.uniform(0, whole))
        at = come_to(place, killed) if killed else "after its end"
        do_all(images, place, None)
        found = outcome(place / "run")
        differs = [name for name in expected if found[name] != expected[name]]
        kills.append({"after_seconds": round(after, 3), "at": at, "differs": differs})
        print(f"{number}: {at}, {'right' if not differs else f'WRONG: {differs}'}", flush=True)
        shutil.rmtree(place)
        text = {
            "machine": about,
            "seed": given.seed,
            "settings": SETTINGS,
            "undisturbed_seconds": round(whole, 3),
            "kills": len(kills),
            "at": dict(Counter(kill["at"] for kill in kills)),
            "lost": sum(bool(kill["differs"]) for kill in kills),
            "each": kills,
        }
        given.out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
