"""View policies on CIFAR-10 at the same wall-clock and at the same number of steps, and what choosing views costs.

    python benchmarks/views.py --pace       # seconds a step of both recipes with every policy, on a quiet machine
    python benchmarks/views.py --frontier   # cost against kept hardness of cheap ways to choose, every objective
    python benchmarks/views.py              # all runs: 3 seeds, about 6 hours of two cores
    python benchmarks/views.py --table      # only write docs/views.md anew

Trains without labels on images in ../shared/data. Settings are those that each recipe derives, policies have their
defaults; nothing was chosen on the test images, which are read once, at the end of a run. A budget is a number of
steps: as many as the recipe with that policy does in 4 minutes by its pace, or ("steps") as many as `random` does.
Killed, it goes on where it was when the same command is given again; a finished run is not done twice. Writes one JSON
a run to benchmarks/results/views and the tables of docs/views.md. On a CUDA device the network is a ViT-S with patch 4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from belvedere.pretrain.compose import slots_of, work_of
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.trainer import Trainer
from belvedere.views.policies.hard import Hard
from cifar_runs import Case, Desk, command, machine, pace, paces, spread, steps_in, trainer_of

POLICIES: dict[str, dict[str, Any]] = {
    "random": {},
    "randaugment": {"views.policy": "randaugment"},
    "trivial": {"views.policy": "trivial"},
    "iou": {"views.policy": "iou"},
    "hard": {"views.policy": "hard"},
    "learned": {"views.policy": "learned"},
    "hard-learned": {"views.policy": "hard", "views.inner": "learned"},
}
RECIPES = ("simclr", "dino")
OBJECTIVES = ("simclr", "simsiam", "mocov3", "dino", "ibot")
# Cheap ways to choose; the first one is the yardstick.
CHEAP: dict[str, dict[str, Any]] = {
    "4 candidates": {},
    "6 candidates": {"candidates": 6},
    "size 3/4": {"scale": 0.75},
    "size 1/2": {"scale": 0.5},
    "6 candidates, size 1/2": {"candidates": 6, "scale": 0.5},
    "8 candidates, size 1/2": {"candidates": 8, "scale": 0.5},
    "every 2nd step": {"every": 2},
    "every 4th step": {"every": 4},
    "half of the images": {"fraction": 0.5},
    "size 3/4, every 2nd step": {"scale": 0.75, "every": 2},
    "teacher reused": {"reuse_teacher": True},
}


class Run(NamedTuple):
    """One run: `same` is what all policies have alike, "minutes" or "steps"."""

    recipe: str
    images: int
    policy: str
    same: str
    seed: int

    @property
    def name(self) -> str:
        """Of its JSON file and its folder."""
        return f"{self.recipe}_{self.images}_{self.policy}_{self.same}_seed{self.seed}"


def all_runs(seeds: list[int]) -> Iterator[Run]:
    """Seed by seed, so that an unfinished benchmark compares all policies."""
    for seed in seeds:
        for recipe in RECIPES:
            for policy in POLICIES:
                yield Run(recipe, 20000, policy, "minutes", seed)
            # `random` is the same run at equal minutes and equal steps.
            yield from (Run(recipe, 20000, policy, "steps", seed) for policy in ("hard", "learned"))
        yield from (Run("simclr", 5000, policy, "minutes", seed) for policy in POLICIES)


def steps_of(run: Run, minutes: float, seconds: dict[str, float]) -> int:
    """The budget of a run in steps."""
    paced = run.policy if run.same == "minutes" else "random"
    return steps_in(minutes, seconds[f"{run.recipe}/{paced}"])


# --- what choosing costs ----------------------------------------------------------------------------------------------


def frontier(objective: str, train: Path, network: dict[str, Any], device: str, steps: int) -> list[dict[str, Any]]:
    """Cost of cheap ways to choose, and how much harder than random the views of all steps are.

    After `steps` steps with the yardstick. Hardness kept: mean of (full score of the chosen pair - mean of all pairs)
    over the same of the yardstick, times the share of steps and images that are chosen for: that factor is arithmetic.
    """
    trainer, feed = trainer_of(objective, train, {**network, "views.policy": "hard"}, device)
    for step, micro_batches in enumerate(feed.stream(0, steps)):
        trainer.step(step, micro_batches)
    ways = {name: options for name, options in CHEAP.items() if name != "teacher reused" or objective == "ibot"}
    policies = {name: policy_of(trainer, options) for name, options in ways.items()}
    gains = {name: _gain(trainer, feed, policy) for name, policy in policies.items()}
    paces = _paces(trainer, feed, policies)
    work = work_of(trainer.config)
    return [
        {
            "way": name,
            "options": ways[name],
            "cost": paces[name] / paces["random"],
            "expected_cost": policy.expected_cost(work),
            "kept": gains[name] / gains["4 candidates"] * policy.options.fraction / policy.options.every,
        }
        for name, policy in policies.items()
    ]


def policy_of(trainer: Trainer, options: dict[str, Any]) -> Hard:
    """Hard views around the random policy, for a trainer's views."""
    return Hard(
        Hard.options_model(options)(**options), slots_of(trainer.config), trainer.parts.student.backbone.channels
    )


def _gain(trainer: Trainer, feed: Feed, policy: Hard, batches: int = 6) -> float:
    found = []
    clock = trainer.clock(500)
    policy.begin_step(clock)
    for index, images in (micro_batches[0] for micro_batches in feed.stream(500, 500 + batches)):
        rows = torch.as_tensor(index)
        proposed = policy.propose(rows, trainer.parts.sizes[rows], 0, 0)
        on_device = images.to(trainer.fabric.device) if isinstance(images, torch.Tensor) else images
        render, score = partial(trainer.render, rows, on_device, clock), trainer.score_at(clock)
        choices = policy.choices(0)
        cheap = policy.score_choices(proposed, choices, render, score, policy.options.scale)
        full = policy.score_choices(proposed, choices, render, score, 1.0, by="loss")
        chosen = full.gather(0, cheap.argmax(0)[None])[0]
        found.append(float((chosen - full.mean(0)).mean()))
    return float(np.mean(found))


def _paces(trainer: Trainer, feed: Feed, policies: dict[str, Hard]) -> dict[str, float]:
    """Seconds a step with every policy in turn, and with `random`, on the same networks."""
    trainers = {name: (With(trainer, policy), feed) for name, policy in {"random": None, **policies}.items()}
    return dict(pace(trainers, rounds=10, together=4)["seconds_a_step"])


class With:
    """A trainer whose steps use another policy; None is the inner one of its hard views."""

    def __init__(self, trainer: Trainer, policy: Hard | None) -> None:
        self.trainer = trainer
        own = trainer.parts.policy
        assert isinstance(own, Hard)
        slots, channels = slots_of(trainer.config), trainer.parts.student.backbone.channels
        self.policy = policy or type(own.inner)(own.inner.options, slots, channels)

    def step(self, step: int, micro_batches: Any) -> None:
        """One step of the trainer with this policy."""
        kept = self.trainer.parts
        self.trainer.parts = replace(kept, policy=self.policy)
        self.trainer.step(step, micro_batches)
        self.trainer.parts = kept


def draw_frontier(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Cost to the right, kept hardness upwards, one panel an objective."""
    figure = Figure(figsize=(3.1 * len(found), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (objective, ways) in zip(
        figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found.items(), strict=True
    ):
        for number, way in enumerate(ways, 1):
            axes.plot(way["cost"], way["kept"], "o", color="#1f6feb")
            axes.annotate(
                str(number), (way["cost"], way["kept"]), textcoords="offset points", xytext=(4, 4), fontsize=8
            )
        axes.plot(1, 0, "s", color="#57606a")
        axes.set_title(objective)
        axes.set_xlabel("time of a step over that with `random`")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("hardness kept, mean over all steps")
    figure.savefig(path, dpi=110)


def frontier_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """One row a way of choosing; a cell an objective: measured cost (expected), hardness kept."""
    lines = ["| | way to choose | " + " | ".join(found) + " |", "|---|---|" + "---|" * len(found)]
    for number, name in enumerate(CHEAP, 1):
        cells = []
        for ways in found.values():
            way = next((way for way in ways if way["way"] == name), None)
            cells.append("" if way is None else f"{way['cost']:.2f} ({way['expected_cost']:.2f}), {way['kept']:.2f}")
        lines.append(f"| {number} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(results: Path, seconds: dict[str, float]) -> str:
    """A row a policy: cost factor, steps, k-NN and logistic probe; blocks by recipe, images and budget."""
    found: dict[tuple[str, int, str], dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        found.setdefault((one["recipe"], one["images"], one["same"]), {}).setdefault(one["policy"], []).append(one)
    for (recipe, images, same), runs in list(found.items()):
        if same == "steps" and "random" in found.get((recipe, images, "minutes"), {}):
            runs["random"] = found[recipe, images, "minutes"]["random"]
    lines = [
        "| recipe | images | the same | policy | time of a step | steps | seeds | k-NN, % | logistic, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (recipe, images, same), runs in sorted(
        found.items(), key=lambda one: (RECIPES.index(one[0][0]), -one[0][1], one[0][2])
    ):
        for policy in (name for name in POLICIES if name in runs):
            some = runs[policy]
            factor = seconds[f"{recipe}/{policy}"] / seconds[f"{recipe}/random"]
            cells = [recipe, f"{images:,}", same, f"`{policy}`", f"{factor:.2f}", str(some[0]["steps"]), str(len(some))]
            cells += [spread(some, protocol, "run") for protocol in ("knn", "logistic")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cases(desk: Desk, arguments: argparse.Namespace, seconds: dict[str, float]) -> Iterator[Case]:
    """The runs whose name holds what was asked for."""
    for run in all_runs(arguments.seeds):
        if arguments.only in run.name:
            steps = steps_of(run, arguments.minutes, seconds)
            settings = desk.settings(train__steps=steps, train__seed=run.seed) | POLICIES[run.policy]
            yield Case(run.name, run.recipe, run.images, settings, run._asdict() | {"steps": steps})


def measure_frontier(desk: Desk, arguments: argparse.Namespace, path: Path) -> None:
    """The frontier of every objective asked for, beside those that are known."""
    measured = json.loads(path.read_text())["frontier"] if path.exists() else {}
    for name in arguments.objectives:
        measured[name] = frontier(name, desk.train, desk.network, desk.device, arguments.steps)
        ordered = {known: measured[known] for known in OBJECTIVES if known in measured}
        found = {"steps": arguments.steps, "machine": machine(), "frontier": ordered}
        path.write_text(json.dumps(found, indent=1) + "\n")
        draw_frontier(ordered, desk.page.with_name(f"views-frontier{desk.ending}.png"))


def main() -> None:
    parser = command(__doc__, "views.md", minutes=4)
    parser.add_argument("--only", default="", help="do only runs whose name contains this")
    parser.add_argument("--frontier", action="store_true", help="only measure cost against kept hardness")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), help="of the frontier")
    parser.add_argument("--steps", type=int, default=200, help="steps before the frontier is measured")
    arguments = parser.parse_args()
    desk = Desk("views", arguments)
    known, points = (arguments.results / f"views_{kind}{desk.ending}.json" for kind in ("pace", "frontier"))
    if arguments.frontier:
        measure_frontier(desk, arguments, points)
    elif not arguments.table or known.exists():
        compared = {
            f"{recipe}/{policy}": (recipe, {**desk.network, **settings})
            for recipe in RECIPES
            for policy, settings in POLICIES.items()
        }
        seconds = paces(known, compared, desk, arguments.pace)
        if not (arguments.pace or arguments.table):
            desk.run(cases(desk, arguments, seconds))
        desk.write("runs", "views.py", table(desk.results, seconds))
    if points.exists():
        desk.write("frontier", "views.py", frontier_table(json.loads(points.read_text())["frontier"]))


if __name__ == "__main__":
    main()
