"""Patch and pretext tasks on CIFAR-10: each beside its paper's objective, against the same objective without it.

    python benchmarks/tasks.py --pace     # seconds a step of everything that is compared, on a quiet machine
    python benchmarks/tasks.py            # all runs: 3 seeds, 4 minutes a run on two cores
    python benchmarks/tasks.py --table    # only write docs/tasks.md anew

Trains on images in ../shared/data. A budget is a number of steps: as many as that composition does in 4 minutes by its
pace, so a task that costs more has fewer of them. RelViT's question is another one: with so many labelled images and so
many minutes, is it better to pretrain on them first, or to learn relations beside the classes, than to learn classes
only? Settings are those that each recipe derives; the 10,000 test images are read once, at the end of a run. Killed,
it goes on where it was when the same command is given again; a finished run is not done twice. Writes one JSON a run to
benchmarks/results/tasks and the tables of docs/tasks.md. On a CUDA device the network is a ViT-S with patch 4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from cifar_runs import Case, Desk, command, paces, spread, steps_in

NO_TRANSFORMER: dict[str, Any] = {"backbone.patch": None, "backbone.width": None, "backbone.depth": None}
# What is compared: (recipe, settings); the first of each group is what the others add to.
GROUPS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "SelfPatch, EsViT": {
        "dino": ("dino", {}),
        "dino + selfpatch": ("dino", {"tasks": ["selfpatch"]}),
        "dino + regions": ("dino", {"tasks": ["regions"]}),
    },
    "SiT": {
        "sit without reconstruct": ("sit", {"tasks": []}),
        "sit": ("sit", {}),
    },
    "ScatSimCLR's tasks": {
        "simclr": ("simclr", {}),
        "simclr + rotation": ("simclr", {"tasks": ["rotation"]}),
        "simclr + jigsaw": ("simclr", {"tasks": ["jigsaw"]}),
    },
    "RelViT's tokens": {
        "simclr + relations": ("simclr", {"tasks": ["relations"]}),
    },
}
IMAGES = (5000, 20000)
# RelViT's comparison: stages as (recipe, share of the budget).
LABELLED: dict[str, tuple[tuple[str, float], ...]] = {
    "supervised": (("supervised", 1.0),),
    "relvit, then supervised": (("relvit", 0.5), ("supervised", 0.5)),
    "relvit_joint": (("relvit_joint", 1.0),),
}
FEW = (500, 5000)


def compositions() -> dict[str, tuple[str, dict[str, Any]]]:
    """Everything that needs a pace, by name."""
    unlabelled = {name: found for group in GROUPS.values() for name, found in group.items()}
    recipes = {recipe for stages in LABELLED.values() for recipe, _ in stages}
    return unlabelled | {recipe: (recipe, {}) for recipe in sorted(recipes)}


def cases(desk: Desk, arguments: argparse.Namespace, seconds: dict[str, float]) -> Iterator[Case]:
    """Seed by seed, so that an unfinished benchmark compares everything; only what was asked for."""
    found = (case for seed in arguments.seeds for case in _of_seed(desk, arguments.minutes, seconds, seed))
    return (case for case in found if arguments.only in case.name)


def _of_seed(desk: Desk, minutes: float, seconds: dict[str, float], seed: int) -> Iterator[Case]:
    unlabelled = {name: found for group in GROUPS.values() for name, found in group.items()}
    for images, (name, (recipe, settings)) in product(IMAGES, unlabelled.items()):
        own = {**desk.network, **settings, "train.steps": steps_in(minutes, seconds[name]), "train.seed": seed}
        about = {"what": name, "labelled": False, "seed": seed, "minutes": minutes}
        yield Case(_file(name, images, seed), recipe, images, own, about, ("untrained",))
    for images, (name, stages) in product(FEW, LABELLED.items()):
        start = None
        about = {"what": name, "labelled": True, "seed": seed, "minutes": minutes}
        for number, (recipe, share) in enumerate(stages):
            steps = steps_in(minutes * share, seconds[recipe])
            own = {**desk.network, "train.steps": steps, "train.seed": seed}
            ending = "" if number == len(stages) - 1 else f"_stage{number}"
            start = Case(_file(name, images, seed) + ending, recipe, images, own, about, (), start)
        assert start is not None
        yield start


def _file(name: str, images: int, seed: int) -> str:
    return f"{name.replace(', ', '_').replace(' ', '')}_{images}_seed{seed}"


def table(results: Path) -> str:
    """A row a composition and data size, groups together: steps, seeds, k-NN, logistic probe."""
    known: dict[tuple[bool, str, int], list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        known.setdefault((one["labelled"], one["what"], one["images"]), []).append(one)
    lines = []
    for labelled, sizes, names in ((False, IMAGES, [n for g in GROUPS.values() for n in g]), (True, FEW, LABELLED)):
        what = "labelled images" if labelled else "images"
        lines += ["", f"| trained with | {what} | steps | seeds | k-NN, % | logistic, % |", "|---|---|---|---|---|---|"]
        for images, name in product(sizes, names):
            runs = known.get((labelled, name, images), [])
            if runs:
                numbers = [spread(runs, protocol, "run") for protocol in ("knn", "logistic")]
                steps = runs[0]["settings"]["train.steps"]
                lines.append(f"| {name} | {images:,} | {steps} | {len(runs)} | {' | '.join(numbers)} |")
    return "\n".join(lines[1:])


def main() -> None:
    parser = command(__doc__, "tasks.md", minutes=4)
    parser.add_argument("--only", default="", help="do only runs whose name contains this")
    arguments = parser.parse_args()
    desk = Desk("tasks", arguments)
    compared = {name: (recipe, {**desk.network, **own}) for name, (recipe, own) in compositions().items()}
    seconds = paces(arguments.results / f"tasks_pace{desk.ending}.json", compared, desk, arguments.pace)
    if not (arguments.pace or arguments.table):
        desk.run(cases(desk, arguments, seconds))
    desk.write("tasks", "tasks.py", table(desk.results))


if __name__ == "__main__":
    main()
