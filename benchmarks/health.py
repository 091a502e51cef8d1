"""Healthy and deliberately broken runs, and what the health monitor says of them: what the bands are calibrated on.

    python benchmarks/health.py                          # every run, three seeds; about 30 s a run on one core
    python benchmarks/health.py --runs dino simsiam-no-stop --seeds 0 --width 192 --depth 4 --steps 2000

Trains on tiles of real photographs (those of `belvedere demo`), and writes the trajectory of every value, and what was
said when, to benchmarks/results/health.json. A healthy run is right when it is never red, a broken one when its own red
word is said before a third of the run is over. A run that was finished before is judged again, by the bands of now.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import belvedere
from belvedere import config as configuration
from belvedere import demo, plugins
from belvedere.measure.monitor import HealthMonitor
from belvedere.schedules import batches

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Small enough for half a minute a run on one core.
SETTINGS: dict[str, Any] = {
    "views.size": 32,
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 48,
    "backbone.depth": 2,
    "backbone.heads": 2,
    "train.batch": 64,
    "train.steps": 200,
    "train.precision": "float32",
    "train.threads": 1,
    "monitor.every": 0.25,
    "monitor.probe": 256,
    "monitor.knn": 0,
}
SIZES = ("backbone.width", "backbone.depth", "train.batch", "train.steps")
_LOCALS = {"views.locals": 1}
_PAPER_DINO = _LOCALS | {
    "objective.centering": "mean",
    "objective.teacher_temp": 0.04,
    "objective.warmup_teacher_temp": 0.04,
}
# Patches with prototypes of their own, whose teacher is softer than its student: the class token keeps its own.
_OWN_PATCHES = _LOCALS | {"objective.shared_head": False}
_SOFT_PATCHES = {"objective.patch_teacher_temp": 0.2, "objective.warmup_patch_teacher_temp": 0.2}
# The paper's heads are 2048 wide, which on a backbone of 48 is nearly all of the work.
# Three times the steps, because without its stop-gradient it takes up to 180 of them to collapse.
_SIMSIAM = {"objective.hidden": 256, "objective.out": 256, "objective.bottleneck": 64, "train.steps": 600}
# Judged values that are neither measured at a look nor medians of logged ones.
CHANGES = {"rankme_drop", "instance_drop", "gradient_spikes", "entropy_share", "loss_at_chance", "both_rising"}


@dataclass(frozen=True)
class Case:
    """A run: the recipe, what is changed in it, and the red words of which one is right; none for a healthy run."""

    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


CASES = {
    "simclr": Case("simclr"),
    "simsiam": Case("simsiam", _SIMSIAM),
    "mocov3": Case("mocov3"),
    "dino": Case("dino", _LOCALS),
    "ibot": Case("ibot", _LOCALS),
    "dino-no-centring": Case("dino", _PAPER_DINO | {"objective.center_momentum": 1.0}, ("one-dimensional collapse",)),
    "dino-no-sharpening": Case(
        "dino",
        _PAPER_DINO | {"objective.teacher_temp": 0.2, "objective.warmup_teacher_temp": 0.2},
        ("uniform collapse",),
    ),
    "ibot-no-patch-sharpening": Case("ibot", _OWN_PATCHES | _SOFT_PATCHES, ("patch collapse",)),
    "simsiam-no-stop": Case("simsiam", _SIMSIAM | {"objective.stop_gradient": False}, ("constant output",)),
    "mocov3-large-lr": Case("mocov3", {"backbone.freeze_patch": False, "train.lr": 0.3}, ("unstable",)),
}


def train(case: Case, out: Path, images: Path, settings: dict[str, Any]) -> Path:
    """Pretrain one case on the tiles in `images`, with `settings` on top of its own; returns the run's folder."""
    given = SETTINGS | case.settings | settings
    return belvedere.pretrain(images, case.recipe, out=out, device="cpu", settings=given)


def verdicts(run: Path) -> list[dict[str, Any]]:
    """What the monitor said along a run, in order: step, health (the word), color, why."""
    return [line for line in read(run) if "health" in line]


def judged_again(run: Path, images: int) -> list[dict[str, Any]]:
    """What today's bands say of the values that a run over so many images logged; as `verdicts`."""
    c = configuration.from_yaml(run / "config.yaml").config
    kind = plugins.load("objective", c.objective.name)
    objective = kind(configuration.plugin_options(c, "objective", c.objective.name, kind.Options), dim=1)
    steps, batch = int(c.train.steps), int(c.train.batch)
    monitor = HealthMonitor(steps, batches(images, batch), objective.chance_loss(batch))
    said = []
    for line in read(run):
        verdict = None
        if "loss" in line:
            monitor.step(line["step"], {name: math.nan if x is None else x for name, x in line.items()})
            verdict = monitor.news() if "weight_decay" in line else None
        elif "look" in line:
            monitor.look(line["look"])
            verdict = monitor.verdict()
        if verdict is not None:
            told = {"health": verdict.word, "color": verdict.color, "why": verdict.sentences}
            said.append({"step": line["step"], **told})
    return said


def read(run: Path) -> list[dict[str, Any]]:
    """The log of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def first_alarm(said: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first red verdict."""
    return next((verdict for verdict in said if verdict["color"] == "red"), None)


def is_right(case: Case, said: list[dict[str, Any]], steps: int) -> bool:
    """Whether a healthy run of so many steps was never red, or a broken one was named before a third of it.

    A broken run may have been ended long before its last step.
    """
    red = [verdict for verdict in said if verdict["color"] == "red"]
    if not case.words:
        return not red
    return any(verdict["health"] in case.words and verdict["step"] <= steps / 3 for verdict in red)


def curves(run: Path) -> dict[str, list[list[float]]]:
    """Value -> [step, value] pairs: of the steps, every tenth, and of the looks."""
    found: dict[str, list[list[float]]] = {}
    for line in read(run):
        values = (
            line["look"] | {name: x for name, x in line["judged"].items() if name in CHANGES} if "look" in line else {}
        )
        values = line if "weight_decay" in line else values
        for name, value in values.items():
            if name not in ("step", "seconds", "waited", "weight_decay") and isinstance(value, float):
                found.setdefault(name, []).append([line["step"], float(f"{value:.3g}")])
    return found


def measure(name: str, seed: int, images: Path, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one case, unless that was done before, and tell what is said of it."""
    case, run = CASES[name], work / f"{name}-seed{seed}"
    if not (run / "model.safetensors").exists():
        train(case, run, images, settings | {"train.seed": seed})
    said = judged_again(run, sum(1 for _ in images.rglob("*.png")))
    alarm = first_alarm(said)
    settled = SETTINGS | case.settings | settings
    return {
        "case": name,
        "seed": seed,
        "settings": settled,
        "right": is_right(case, said, settled["train.steps"]),
        "first_alarm": alarm and {key: alarm[key] for key in ("step", "health", "why")},
        "said": [[verdict["step"], verdict["color"], verdict["health"]] for verdict in said],
        "curves": curves(run),
    }


def main() -> None:
    from cifar_runs import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for key in SIZES:
        parser.add_argument(f"--{key.partition('.')[2]}", dest=key, type=int, help=f"default {SETTINGS[key]}")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "health")
    parser.add_argument("--out", type=Path, default=RESULTS / "health.json")
    given = parser.parse_args()
    settings = {key: getattr(given, key) for key in SIZES if getattr(given, key) is not None}
    images = demo.write_tiles(given.work / "images") / "train"
    about, found = machine(), []
    for seed in given.seeds:
        for name in given.runs:
            found.append(measure(name, seed, images, given.work, settings))
            alarm = found[-1]["first_alarm"]
            told = f"{alarm['health']} at step {alarm['step']}" if alarm else "no alarm"
            print(f"{name} seed {seed}: {told}, {'right' if found[-1]['right'] else 'WRONG'}", flush=True)
            result = {"machine": about, "runs": found}
            given.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
