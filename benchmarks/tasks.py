"""Patch and pretext tasks: each beside its paper's objective, against the same objective without it.

    python benchmarks/tasks.py --pace     # seconds a step of everything that is compared, on a quiet machine
    python benchmarks/tasks.py            # all runs: 3 seeds, 4 minutes a run on two cores
    python benchmarks/tasks.py --table    # only write docs/tasks.md anew

Trains on images in ../shared/data: 5,000 and 20,000 of CIFAR-10. A budget is a number of steps: as many as that
composition does in 4 minutes by its pace, so a task that costs more has fewer of them. RelViT's question is another
one: with 500 or 5,000 labelled images and so many minutes, is it better to pretrain on them first, or to learn
relations beside the classes, than to learn classes only? There the test accuracy of the classes that were learned
stands beside that of probes. The network is the same small one for all (patch 8 on a CPU); all else is what each recipe
derives. The test images are read once, at the end of a run.

That is 90 runs on a CPU, 6.0 hours of training; each is evaluated besides. ScatSimCLR is on a CPU a smoke run only: its
network has 4 angles and 8 blocks, and its JSON and its row say so. On a CUDA device the network is a ViT-S, Imagenette
at 128 px stands beside CIFAR-10, and ScatSimCLR with 30 blocks is compared with SimCLR on a ResNet-18, which has as
many parameters: 135 runs, 9.0 hours.

Killed, it goes on where it was when the same command is given again; a finished run is not done twice. Writes one JSON
a run to benchmarks/results/tasks and the tables of docs/tasks.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import imagenette
from cifar_runs import Case, Desk, command, paces, spread, steps_in

Composition = tuple[str, Mapping[str, Any]]
ROTATION = {  # as the recipe scatsimclr has it; jigsaw's defaults are ScatSimCLR's
    "tasks": ["rotation"],
    "task.rotation.of": "copies",
    "task.rotation.weight": 0.3,
    "task.rotation.hidden": [512, 128],
    "task.rotation.activation": "relu",
    "task.rotation.dropout": 0.5,
}
# What is compared: (recipe, settings); the first of each group is what the others add to.
GROUPS: tuple[dict[str, Composition], ...] = (
    {
        "selfpatch without its task": ("selfpatch", {"tasks": []}),
        "selfpatch": ("selfpatch", {}),
        "selfpatch, aggregate=patches": ("selfpatch", {"task.selfpatch.aggregate": "patches"}),
    },
    {"dino": ("dino", {}), "dino + regions": ("dino", {"tasks": ["regions"]})},
    {"sit without reconstruct": ("sit", {"tasks": []}), "sit": ("sit", {})},
    {
        "simclr": ("simclr", {}),
        "simclr + rotation": ("simclr", ROTATION),
        "simclr + jigsaw": ("simclr", {"tasks": ["jigsaw"]}),
        "simclr + relations": ("simclr", {"tasks": ["relations"]}),
    },
)
# Networks that read no setting of a transformer.
NO_TRANSFORMER: dict[str, Any] = dict.fromkeys(f"backbone.{size}" for size in ("patch", "width", "depth", "heads"))
# So small a network in so few minutes shows that it runs, and nothing of what the method is worth.
SMOKE = "scatsimclr, smoke run"
# Views, head, loss and optimiser are the same: what differs is the network, and the task.
SCATTERING: dict[str, dict[str, Composition]] = {
    "cpu": {SMOKE: ("scatsimclr", {**NO_TRANSFORMER, "backbone.name": "scatnet8_l4"})},
    "cuda": {
        "simclr, ResNet-18": ("scatsimclr", {**NO_TRANSFORMER, "backbone.name": "resnet18", "tasks": []}),
        "scatsimclr": ("scatsimclr", {**NO_TRANSFORMER, "backbone.name": "scatnet30"}),
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


def unlabelled(device: str) -> dict[str, Composition]:
    """What is compared on a kind of device, by name."""
    groups = (*GROUPS, SCATTERING.get(device, SCATTERING["cpu"]))
    return {name: found for group in groups for name, found in group.items()}


def compositions(device: str) -> dict[str, Composition]:
    """Everything that needs a pace on CIFAR-10, by name."""
    recipes = {recipe for stages in LABELLED.values() for recipe, _ in stages}
    return unlabelled(device) | {recipe: (recipe, {}) for recipe in sorted(recipes)}


def cifar10_cases(desk: Desk, minutes: float, seconds: Mapping[str, float], seed: int) -> Iterator[Case]:
    """Of one seed."""
    yield from _unlabelled_cases(desk, "CIFAR-10", IMAGES, minutes, seconds, seed)
    for images, (name, stages) in product(FEW, LABELLED.items()):
        steps = [steps_in(minutes * share, seconds[recipe]) for recipe, share in stages]
        about = _about(name, "CIFAR-10", minutes, seed, steps) | {"labelled": True}
        start = None
        for number, (recipe, _) in enumerate(stages):
            own = desk.settings(train__steps=steps[number], train__seed=seed)
            last = number == len(stages) - 1
            file = _file(name, "CIFAR-10", images, seed) + ("" if last else f"_stage{number}")
            start = Case(file, recipe, images, own, about, (), start, head=last)
        assert start is not None
        yield start


def imagenette_cases(desk: Desk, minutes: float, seconds: Mapping[str, float], seed: int) -> Iterator[Case]:
    """Of one seed."""
    yield from _unlabelled_cases(desk, "Imagenette", (imagenette.IMAGES,), minutes, seconds, seed)


def _unlabelled_cases(
    desk: Desk, data: str, sizes: tuple[int, ...], minutes: float, seconds: Mapping[str, float], seed: int
) -> Iterator[Case]:
    for images, (name, (recipe, settings)) in product(sizes, unlabelled(desk.device).items()):
        steps = steps_in(minutes, seconds[name])
        own = desk.settings(**settings, train__steps=steps, train__seed=seed)
        about = _about(name, data, minutes, seed, [steps]) | {"labelled": False}
        yield Case(_file(name, data, images, seed), recipe, images, own, about, ("untrained",))


def _about(name: str, data: str, minutes: float, seed: int, steps: list[int]) -> dict[str, Any]:
    return {"what": name, "data": data, "seed": seed, "minutes": minutes, "steps": steps, "smoke": name == SMOKE}


def _file(name: str, data: str, images: int, seed: int) -> str:
    return f"{name.replace(', ', '_').replace('=', '_').replace(' ', '')}_{data.lower()}_{images}_seed{seed}"


def table(results: Path, device: str) -> str:
    """A row a composition and data size: steps of each stage, seeds, k-NN, logistic probe, the classes learned."""
    known: dict[tuple[bool, str, str, int], list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        known.setdefault((one["labelled"], one["what"], one["data"], one["images"]), []).append(one)
    lines = []
    for labelled, sizes, names in (
        (False, [*product(["CIFAR-10"], IMAGES), ("Imagenette", imagenette.IMAGES)], list(unlabelled(device))),
        (True, [*product(["CIFAR-10"], FEW)], list(LABELLED)),
    ):
        protocols = {"knn": "k-NN", "logistic": "logistic probe"} | ({"head": "classes learned"} if labelled else {})
        heads = ["trained with", "labelled images" if labelled else "images", "steps", "seeds"]
        heads += [f"{said}, %" for said in protocols.values()]
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for (data, images), name in product(sizes, names):
            runs = known.get((labelled, name, data, images), [])
            if runs:
                numbers = [spread(runs, protocol, "run") for protocol in protocols]
                steps = " + ".join(map(str, runs[0]["steps"]))
                cells = [name, f"{images:,} of {data}", steps, str(len(runs)), *numbers]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def main() -> None:
    parser = command(__doc__, "tasks.md", minutes=4)
    parser.add_argument("--only", default="", help="do only runs whose name contains this")
    arguments = parser.parse_args()
    desk = Desk("tasks", arguments)
    if not arguments.table:
        planned = [("tasks_pace", desk, compositions(desk.device), cifar10_cases)]
        if desk.device == "cuda":
            there = imagenette.beside(desk, arguments)
            planned.append(("tasks_pace_imagenette", there, unlabelled(desk.device), imagenette_cases))
        work = []
        for file, at, compared, cases in planned:
            settled = {name: (recipe, at.settings(**own)) for name, (recipe, own) in compared.items()}
            seconds = paces(arguments.results / f"{file}{desk.ending}.json", settled, at, arguments.pace)
            work.append((at, cases, seconds))
        # Seed by seed, so that an unfinished benchmark compares everything.
        for seed in [] if arguments.pace else arguments.seeds:
            for at, cases, seconds in work:
                at.run(case for case in cases(at, arguments.minutes, seconds, seed) if arguments.only in case.name)
    desk.write("tasks", "tasks.py", table(desk.results, desk.device))


if __name__ == "__main__":
    main()
