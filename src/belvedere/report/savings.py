"""How choosing could cost less: hardness kept against time of a step (spec view_policies 1.5, V9).

All from one replay with many candidates, scored at several resolutions: fewer candidates are the first of them, and a
step or an image for which nothing is chosen trains on the first pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from belvedere.distributed import has_batchnorm
from belvedere.pretrain.compose import work_of
from belvedere.pretrain.trainer import Trainer
from belvedere.report.selection import Replay, policy_of
from belvedere.views.chosen import fidelity
from belvedere.views.cost import Work
from belvedere.views.policies.hard import Hard

SCALES = (1.0, 0.75, 0.5)
EVERY, FRACTIONS = (1, 2, 4), (1.0, 0.5)


@dataclass(frozen=True)
class Setting:
    """A way to choose: what it costs (1: training on random views) and what it keeps of full choosing's hardness."""

    candidates: int
    scale: float
    every: int
    fraction: float
    reuse_teacher: bool
    cost: float
    kept: float

    @property
    def words(self) -> str:
        """The settings as on the command line, without those at their full value."""
        parts = [f"views.candidates={self.candidates}"]
        parts += [f"views.scale={self.scale:g}"] if self.scale != 1 else []
        parts += [f"views.every={self.every}"] if self.every != 1 else []
        parts += [f"views.fraction={self.fraction:g}"] if self.fraction != 1 else []
        parts += ["views.reuse_teacher=true"] if self.reuse_teacher else []
        return " ".join(parts)

    @property
    def label(self) -> str:
        """The same in a few letters."""
        parts = [str(self.candidates)]
        parts += [f"x{self.scale:g}"] if self.scale != 1 else []
        parts += [f"1/{self.every}"] if self.every != 1 else []
        parts += [f"{100 * self.fraction:.0f}%"] if self.fraction != 1 else []
        parts += ["reuse"] if self.reuse_teacher else []
        return " ".join(parts)


def scales_of(trainer: Trainer) -> tuple[float, ...]:
    """The resolutions at which every scored view is whole patches."""
    unit, policy = trainer.parts.student.backbone.unit, policy_of(trainer)
    scored = [slot for slot in policy.slots if slot.is_target or policy.options.local_views != "fixed"]
    sides = {side for slot in scored for side in slot.size}
    return tuple(scale for scale in SCALES if all((side * scale) % unit == 0 for side in sides))


def counts(most: int) -> list[int]:
    """Numbers of candidates to compare: even ones, so that both slots have as many."""
    return list(range(2, most + 1, 2))


def faithfulness(replay: Replay, candidates: Iterable[int]) -> dict[int, dict[float, dict[str, float]]]:
    """By candidates and scale: the share of equal choices, and the hardness kept; where there is a choice at all."""
    found = {}
    for n in candidates:
        some = replay.among(n)
        if len(some.pairs) > 1:
            found[n] = {scale: fidelity(cheap, some.scores) for scale, cheap in some.cheap.items()}
    return found


def settings(trainer: Trainer, replay: Replay, reference: int) -> list[Setting]:
    """Every way to save, with hardness relative to full choosing among `reference` candidates, over all steps."""
    full = replay.among(reference).scores
    random, hardest = full.mean(), full.max(0).values.mean()
    work = work_of(trainer.config)
    teachers = [False, True] if _teacher_is_reusable(trainer) else [False]
    found = []
    for n, scale, every, fraction in product(counts(len_candidates(replay)), replay.cheap, EVERY, FRACTIONS):
        some = replay.among(n)
        if len(some.pairs) < 2:
            continue
        chosen = _mean_of(some.scores, some.cheap[scale].argmax(0))
        # Where nothing is chosen, a pair is as hard as a random one.
        kept = float(fraction / every * (chosen - random) / (hardest - random).clamp(min=1e-12))
        for reuse in teachers if scale == 1 and fraction == 1 else [False]:
            values = {"candidates": n, "scale": scale, "every": every, "fraction": fraction, "reuse_teacher": reuse}
            found.append(Setting(n, scale, every, fraction, reuse, _cost(policy_of(trainer), work, values), kept))
    return sorted(found, key=lambda setting: (setting.cost, -setting.kept))


def _cost(policy: Hard, work: Work, values: dict[str, Any]) -> float:
    """Time of a step with these settings over the time of one with random views, by counting forward passes."""
    cheap = type(policy)(policy.options.model_copy(update=values), policy.slots, policy.channels)
    return cheap.expected_cost(work)


def best(found: Iterable[Setting]) -> list[Setting]:
    """Those that no cheaper one equals, the cheapest first."""
    kept: list[Setting] = []
    for setting in found:
        if not kept or setting.kept > kept[-1].kept:
            kept.append(setting)
    return kept


def len_candidates(replay: Replay) -> int:
    """How many candidates were drawn."""
    return len({name for pair in replay.pairs for name in pair})


def _teacher_is_reusable(trainer: Trainer) -> bool:
    parts = trainer.parts
    return parts.teacher is not None and not has_batchnorm(parts.teacher) and not parts.tasks


def _mean_of(scores: Tensor, chosen: Tensor) -> Tensor:
    return scores[chosen, torch.arange(scores.shape[1])].mean()
