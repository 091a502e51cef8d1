"""What a run's final weights would choose: candidate views of real images, replayed and scored (spec view_policies 5).

Works for every run whose objective has pairs: around any other policy, hard views are put as they would have been.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.config import Resolved
from belvedere.images.canvases import Canvases
from belvedere.pretrain.compose import with_plugins
from belvedere.pretrain.trainer import Trainer
from belvedere.views.operations import Operation
from belvedere.views.pairs import pair_facts
from belvedere.views.params import ViewParams
from belvedere.views.policies.hard import Hard, by_turns
from belvedere.views.program import MAGNITUDE, NOTHING, OP, OperationProgram

# Candidates of an image where the run itself drew no more, and how many of them compete where it chose none.
WIDE, CANDIDATES = 8, 4


@dataclass(frozen=True)
class Replay:
    """P pairs of candidates of N images, and how hard the network found each.

    Attributes:
        pairs: names of the two candidates.
        scores: `[P, N]` losses at the training resolution; the largest of an image is its chosen pair.
        cheap: the same at other resolutions, by scale.
        facts: by name what tells the two views of a pair apart, `[P, N]` each.
        index: `[N]` images of the canvases.
    """

    pairs: list[tuple[str, str]]
    scores: Tensor
    cheap: dict[float, Tensor]
    facts: dict[str, Tensor]
    index: NDArray[np.int64]

    @property
    def chosen(self) -> Tensor:
        """`[N]` the hardest pair of each image."""
        return self.scores.argmax(0)

    def of_chosen(self, name: str) -> Tensor:
        """`[N]` a fact of the chosen pairs."""
        return self.facts[name].gather(0, self.chosen[None])[0]

    def of_others(self, name: str) -> Tensor:
        """A fact of all pairs that were not chosen, flat."""
        mine = torch.nn.functional.one_hot(self.chosen, len(self.pairs)).T.bool()
        return self.facts[name][~mine]

    def among(self, candidates: int) -> Replay:
        """The same as if only the first so many candidates had been drawn."""
        first = set(names_by_turns(self.pairs)[:candidates])
        rows = [p for p, pair in enumerate(self.pairs) if set(pair) <= first]
        return Replay(
            [self.pairs[p] for p in rows],
            self.scores[rows],
            {scale: scores[rows] for scale, scores in self.cheap.items()},
            {name: fact[rows] for name, fact in self.facts.items()},
            self.index,
        )


def names_by_turns(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The candidates of these pairs in the order in which they are drawn."""
    return by_turns({name for pair in pairs for name in pair})


def as_hard(resolved: Resolved) -> tuple[Resolved, int]:
    """The configuration with hard views, scored in full, around what drew the run's views, and how many compete.

    Raises:
        UserError: when the recipe has not two global views.
    """
    views = resolved.config.views
    own = views.model_extra or {}
    values: dict[str, Any] = {
        "scale": 1.0,
        "every": 1,
        "fraction": 1.0,
        "start_epoch": 0.0,
        "scorer": "loss",
        "reuse_teacher": False,
        "local_views": "fixed",
        "chunk": 2,
    }
    candidates = CANDIDATES
    if views.policy == "hard":
        candidates = int(own["candidates"])
        values["local_views"] = "fixed" if own["local_views"] == "fixed" else "scored"
    else:
        values |= {"policy": "hard", "inner": views.policy}
    values["candidates"] = max(WIDE, candidates)
    changed = {f"views.{key}": (value, "the analysis") for key, value in values.items()}
    return with_plugins(resolved.with_values(changed)), candidates


def replay(
    trainer: Trainer,
    canvases: Canvases,
    index: NDArray[np.int64],
    draw: int,
    scales: Sequence[float] = (),
    candidates: int | None = None,
) -> Replay:
    """Candidates of some images, scored in batches of the run's size by the trainer's networks as they are.

    Args:
        trainer: with the policy that `as_hard` gives.
        draw: which of endlessly many draws; none of them was trained on.
        scales: further resolutions to score at, over that of training.
        candidates: how many of the policy's compete; None is all.
    """
    batch = min(int(trainer.config.train.batch), len(index))
    parts = [
        _replay(trainer, canvases, rows, draw, scales, candidates)
        for rows in np.array_split(index, max(1, round(len(index) / batch)))
    ]
    first = parts[0]
    return Replay(
        first.pairs,
        torch.cat([part.scores for part in parts], 1),
        {scale: torch.cat([part.cheap[scale] for part in parts], 1) for scale in first.cheap},
        {name: torch.cat([part.facts[name] for part in parts], 1) for name in first.facts},
        index,
    )


def _replay(
    trainer: Trainer,
    canvases: Canvases,
    index: NDArray[np.int64],
    draw: int,
    scales: Sequence[float],
    candidates: int | None,
) -> Replay:
    policy, clock = policy_of(trainer), trainer.clock(int(trainer.config.train.steps) - 1)
    params = candidates_of(trainer, canvases, index, draw)
    everyone = policy.choices(params.seed)
    first = set(names_by_turns((a, b) for a, b, *_ in everyone)[:candidates])
    choices = [choice for choice in everyone if {*choice[:2]} <= first]
    render = partial(trainer.render, torch.as_tensor(index), pixels_of(trainer, canvases, index), clock)
    score = trainer.score_at(clock)
    scores, masked = policy.score_choices(params, choices, render, score, 1.0)
    cheap = {1.0: scores} if 1.0 in scales else {}
    for scale in scales:
        if scale not in cheap:
            cheap[scale] = policy.score_choices(params, choices, render, score, scale).scores
    pairs = [(a, b) for a, b, *_ in choices]
    each = [pair_facts(params, a, b, masked) | program_facts(params, a, b, policy) for a, b in pairs]
    return Replay(pairs, scores, cheap, {name: torch.stack([fact[name] for fact in each]) for name in each[0]}, index)


def policy_of(trainer: Trainer) -> Hard:
    """The hard views that `as_hard` put around the run's policy."""
    policy = trainer.parts.policy
    assert isinstance(policy, Hard)
    return policy


def candidates_of(trainer: Trainer, canvases: Canvases, index: NDArray[np.int64], draw: int) -> ViewParams:
    """The record of all candidates of some images, as the policy would draw them after the last step."""
    policy, config = policy_of(trainer), trainer.config
    last = int(config.train.steps) - 1
    policy.begin_step(trainer.clock(last))
    # Epochs after the last one: views that the network never saw.
    epoch = last // trainer.steps_per_epoch + 1 + draw
    return policy.propose(index, canvases.sizes[index], epoch, config.train.seed)


def pixels_of(trainer: Trainer, canvases: Canvases, index: NDArray[np.int64]) -> Tensor | list[Tensor]:
    """Canvases on the trainer's device."""
    device, images = trainer.fabric.device, canvases.batch(index)
    return [x.to(device) for x in images] if isinstance(images, list) else images.to(device)


def operations_of(policy: Hard) -> tuple[Operation, ...]:
    """What the programs of the policy's views are made of; empty where views have no programs."""
    return policy.program.operations if isinstance(policy.program, OperationProgram) else ()


def program_facts(params: ViewParams, a: str, b: str, policy: Hard) -> dict[str, Tensor]:
    """`op_NAME` `[N]`: the strength of each operation summed over the two views' programs; empty without programs."""
    operations = operations_of(policy)
    if not operations:
        return {}
    views = [params.slot(a), params.slot(b)]
    op, magnitude = (params.extras[name][views].detach().cpu() for name in (OP, MAGNITUDE))
    applied = magnitude * (op != NOTHING)
    return {
        f"op_{operation.name}": (applied * (op == position)).sum((0, 2)).float()
        for position, operation in enumerate(operations)
    }
