"""Cost against kept hardness of cheap ways to choose views, for every objective: a part of benchmarks/views.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from belvedere.pretrain.compose import slots_of, work_of
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.trainer import Trainer
from belvedere.views.policies.hard import Hard
from cifar_runs import Desk, machine, pace, trainer_of

# What is measured: by name the recipe, and settings of its own.
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("simclr", "simsiam", "mocov3", "dino")},
    # As it is derived from 100,000 images on; only so its teacher's outputs can be used twice.
    "dino-no-bn": ("dino", {"objective.use_bn": False}),
    "ibot": ("ibot", {}),
}
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
REUSE = "teacher reused"
# Why there is none.
NO_REUSE = {"simclr": "no teacher", "simsiam": "no teacher", "mocov3": "BatchNorm", "dino": "BatchNorm"}


def frontier(objective: str, train: Path, network: dict[str, Any], device: str, steps: int) -> list[dict[str, Any]]:
    """Cost of cheap ways to choose, and how much harder than random the views of all steps are.

    After `steps` steps with the yardstick. Hardness kept: mean of (full score of the chosen pair - mean of all pairs)
    over the same of the yardstick, times the share of steps and images that are chosen for: that factor is arithmetic.
    """
    recipe, settings = OBJECTIVES[objective]
    trainer, feed = trainer_of(recipe, train, {**network, **settings, "views.policy": "hard"}, device)
    for step, micro_batches in enumerate(feed.stream(0, steps)):
        trainer.step(step, micro_batches)
    ways = {name: options for name, options in CHEAP.items() if name != REUSE or objective not in NO_REUSE}
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
    """How much harder than a random one the chosen pair of an image is; views that were never trained on."""
    found = []
    clock = trainer.clock(500)
    policy.begin_step(clock)
    # As in report/selection.candidates_of.
    after_the_last = (int(trainer.config.train.steps) - 1) // trainer.steps_per_epoch + 1
    seed = trainer.config.train.seed
    for index, images in (micro_batches[0] for micro_batches in feed.stream(500, 500 + batches)):
        rows = torch.as_tensor(index)
        proposed = policy.propose(rows, trainer.parts.sizes[rows], after_the_last, seed)
        on_device = images.to(trainer.fabric.device) if isinstance(images, torch.Tensor) else images
        render, score = partial(trainer.render, rows, on_device, clock), trainer.score_at(clock)
        choices = policy.choices(seed)
        cheap = policy.score_choices(proposed, choices, render, score, policy.options.scale).scores
        full = policy.score_choices(proposed, choices, render, score, 1.0, by="loss").scores
        chosen = full.gather(0, cheap.argmax(0)[None])[0]
        found.append(float((chosen - full.mean(0)).mean()))
    return float(np.mean(found))


def _paces(trainer: Trainer, feed: Feed, policies: dict[str, Hard]) -> dict[str, float]:
    """Seconds a step with every policy in turn, and with `random`, on the same networks."""
    trainers = {name: (With(trainer, policy), feed) for name, policy in {"random": None, **policies}.items()}
    return dict(pace(trainers, rounds=6, together=4)["seconds_a_step"])


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


def measure_frontier(desk: Desk, objectives: Sequence[str], steps: int, path: Path) -> None:
    """The frontier of these objectives, beside those that are known."""
    measured = frontiers(path)
    for name in objectives:
        measured[name] = frontier(name, desk.train, desk.network, desk.device, steps)
        ordered = {known: measured[known] for known in OBJECTIVES if known in measured}
        path.write_text(json.dumps({"steps": steps, "machine": machine(), "frontier": ordered}, indent=1) + "\n")
        print(f"written: {path}: {name}", flush=True)


def frontiers(path: Path) -> dict[str, list[dict[str, Any]]]:
    """By objective, what was measured so far."""
    return dict(json.loads(path.read_text())["frontier"]) if path.exists() else {}


FAITHFUL, ENOUGH = 0.9, 0.5
"""Of the yardstick's hardness: what counts as choosing alike, and the least that is worth its name."""


def recommended(ways: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cheapest way that chooses alike, and the one that keeps most for its extra time among those that keep enough.

    The yardstick keeps 1, so there is one of each.
    """
    faithful = min((way for way in ways if way["kept"] >= FAITHFUL), key=lambda way: way["cost"])
    enough = [way for way in ways if way["kept"] >= ENOUGH]
    # Noise may let a way appear to cost nothing.
    return faithful, max(enough, key=lambda way: way["kept"] / max(way["cost"] - 1, 0.01))


def frontier_text(found: Mapping[str, list[dict[str, Any]]], picture: str) -> str:
    """One row a way of choosing; a cell an objective: measured cost (expected), hardness kept."""
    missing = [name for name in OBJECTIVES if name not in found]
    lines = []
    if missing:
        lines += [
            f"**Not measured yet**: {', '.join(missing)}. Until then `belvedere analyze` shows it for your own run,",
            "with counted cost.",
            "",
        ]
    if not found:
        return "\n".join(lines).rstrip()
    lines += ["| | way to choose | " + " | ".join(found) + " |", "|---|---|" + "---|" * len(found)]
    for number, name in enumerate(CHEAP, 1):
        cells = []
        for objective, ways in found.items():
            way = next((way for way in ways if way["way"] == name), None)
            if way is not None:
                cells.append(f"{way['cost']:.2f} ({way['expected_cost']:.2f}), {way['kept']:.2f}")
            else:
                cells.append(NO_REUSE.get(objective, "") if name == REUSE else "")
        lines.append(f"| {number} | {name} | {' | '.join(cells)} |")
    chosen = {objective: recommended(ways) for objective, ways in found.items()}
    for row, heading in enumerate((f"*cheapest that keeps {FAITHFUL:g}*", f"*most for its time, keeps {ENOUGH:g}*")):
        lines.append(f"| | {heading} | {' | '.join(pair[row]['way'] for pair in chosen.values())} |")
    lines += [
        "",
        "A teacher's outputs can be used twice where it answers image by image. With BatchNorm it does not, so reuse",
        "is refused: MoCo v3 has it always; for DINO it is derived under 100,000 images, in its head, and",
        "`objective.use_bn=false` takes it away: `dino-no-bn`.",
        "",
        f"![Time of a step against the hardness that is kept, a panel an objective]({picture})",
        "",
        "The numbers are the table's rows; the square is `random`.",
    ]
    return "\n".join(lines)
