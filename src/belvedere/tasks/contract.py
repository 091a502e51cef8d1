"""The contract of a task: losses on tokens, beside any objective, beside supervised training, or alone.

A task says which forwards it needs; the loop merges the requests of all tasks and of the objective by branch,
resolution and flags, runs each group once, and hands every task its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.objectives.contract import NoOptions
from belvedere.schedules import Clock
from belvedere.views.views import Views


@dataclass(frozen=True)
class Request:
    """One forward that a task needs.

    Attributes:
        slots: slots of the batch's views to encode; or
        pixels: name -> (B, C, h, w) pixels of the task's own (corrupted, rotated, shuffled views).
        branch: whose tokens are wanted; "target" without a teacher is the student's output without gradient.
        mask: name -> (B, h, w) bool masks, where the view is to be masked. Views that replace the objective's keep its
            masks where none are given.
        pos_embed: False encodes without position embeddings.
        need: on-demand features ("raw_patches", "stages", "attention").
        how: "replace" puts `pixels` in the place of the objective's student views of those names; one task may.
    """

    slots: tuple[str, ...] = ()
    pixels: Mapping[str, Tensor] | None = None
    branch: Literal["student", "target", "both"] = "student"
    mask: Mapping[str, Tensor] | None = None
    pos_embed: bool = True
    need: tuple[str, ...] = ()
    how: Literal["extra", "replace"] = "extra"


@dataclass(frozen=True)
class Answer:
    """Features of one request: name -> Features, of each branch asked for (the other is empty)."""

    student: Mapping[str, Features]
    target: Mapping[str, Features]


class Task(nn.Module):
    """Base class; a subclass is one file.

    Class attributes:
        Options: pydantic model of the task's own settings (`task.<name>.<option>=...`).
        ema: names of submodules that the teacher keeps an EMA copy of; read them through `teacher_heads`.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    ema: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, dim: int, patch: int, channels: int) -> None:
        """Keep the options and build heads; `dim` and `patch` are the backbone's."""
        super().__init__()
        self.options = options
        self.dim = dim

    def requests(self, views: Views, labels: Tensor | None, clock: Clock) -> dict[str, Request]:
        """The forwards this task needs for a batch."""
        raise NotImplementedError

    def loss(
        self,
        answers: Mapping[str, Answer],
        views: Views,
        labels: Tensor | None,
        clock: Clock,
        teacher_heads: Mapping[str, nn.Module],
    ) -> dict[str, Tensor]:
        """Named per-image losses (B,), weights included; the loop averages them over the global batch and adds them."""
        raise NotImplementedError

    def after_step(self, clock: Clock, stats: Mapping[str, Tensor]) -> None:
        """Called once after the optimiser step with `stats()` summed over micro-batches and processes."""

    def stats(self) -> dict[str, Tensor]:
        """Local sums of the last micro-batch that `after_step` wants (rows for centres)."""
        return {}
