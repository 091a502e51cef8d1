"""The contract of a task: losses on tokens, beside any objective, beside supervised training, or alone.

In a micro-step every task may first alter the views for all (`alter`), then says which forwards it needs (`requests`);
the loop merges the requests of all tasks and of the objective by branch, resolution and flags, runs each group once,
and hands every task its outputs (`loss`). Random numbers come from `Scene.uniform` and `Scene.integers`, which depend
on the image, the epoch and a purpose only, so that `requests` and `loss` may draw the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from belvedere.backbones.contract import Features
from belvedere.objectives.contract import NoOptions
from belvedere.schedules import Clock
from belvedere.views import draws
from belvedere.views.views import Views


@dataclass(frozen=True)
class Surroundings:
    """What a task is built beside.

    Attributes:
        dim: width of the backbone's global vector.
        patch_dim: width of its patch tokens, nearly always the same.
        patch, channels: of the backbone.
        can: what the backbone can be asked for ("raw_patches", "pos_embed", "extra_tokens", ...).
        has_class_token: whether the backbone has one of its own.
        has_positions: whether the backbone adds position embeddings that `pos_embed=False` leaves out.
        grids: slot -> (h, w) of its patch tokens.
        sizes: slot -> (h, w) in pixels.
        objective: its name.
        objective_options: its settled options.
        mean, std: one number a channel, with which pixels are normalised.
    """

    dim: int
    patch_dim: int
    patch: int
    channels: int
    can: frozenset[str]
    has_class_token: bool
    has_positions: bool
    grids: Mapping[str, tuple[int, int]]
    sizes: Mapping[str, tuple[int, int]]
    objective: str
    objective_options: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """What a task knows of a micro-batch of B images.

    Attributes:
        views: the objective's views, as the tasks before this one left them.
        labels: (B,) class ids, or None.
        clock: the training clock.
        fresh: n -> (n, B, C, h, w) normalised pixels of n more views of each image, each drawn by itself by the law of
            the first global view, whatever the policy; the same n gives the same views again.
        whole: () -> (B, C, h, w) normalised pixels of the whole images at the size of the first global view.
    """

    views: Views
    labels: Tensor | None
    clock: Clock
    fresh: Callable[[int], Tensor]
    whole: Callable[[], Tensor]

    # The numbers of 64 bits without sign behind them are beyond what `torch.compile` captures.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float64 draws in [0, 1) on the CPU: a function of seed, epoch, image and purpose alone."""
        params = self.views.params
        return torch.from_numpy(draws.uniform(params.seed, params.epoch, params.index, purpose, shape))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def integers(self, purpose: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) int64 draws in [0, high) on the CPU, as `uniform`."""
        params = self.views.params
        return torch.from_numpy(draws.integers(params.seed, params.epoch, params.index, purpose, high, shape))


@dataclass(frozen=True)
class Request:
    """One forward that a task needs.

    Attributes:
        slots: slots of the batch's views to encode; or
        pixels: name -> (B, C, h, w) pixels of the task's own (corrupted, rotated, shuffled views).
        branch: whose tokens are wanted; "target" without a teacher is the student's output without gradient.
        mask: name -> (B, h, w) bool masks, where the view is to be masked. Views that replace the objective's keep its
            masks where none are given.
        keep: name -> (B, T_kept) int64 indices of the only patches to encode. Views that replace the objective's leave
            the others out for all that read them.
        pos_embed: False encodes without position embeddings.
        need: on-demand features ("raw_patches", "stages", "attention").
        how: "replace" puts `pixels` in the place of the objective's student views of those names; one task may, and
            says so by `Task.replaces`. "seen" asks for `slots` as the objective's student sees them, replaced or
            masked: no forward of its own.
        note: whatever `loss` wants to know of it (labels, masks of pixels).
    """

    slots: tuple[str, ...] = ()
    pixels: Mapping[str, Tensor] | None = None
    branch: Literal["student", "target", "both"] = "student"
    mask: Mapping[str, Tensor] | None = None
    keep: Mapping[str, Tensor] | None = None
    pos_embed: bool = True
    need: tuple[str, ...] = ()
    how: Literal["extra", "replace", "seen"] = "extra"
    note: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Features of one request: name -> Features, of each branch asked for (the other is empty)."""

    student: Mapping[str, Features]
    target: Mapping[str, Features]
    request: Request


def whole_cells(pixels: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(B, C, h, w) pixels padded below and to the right to what the patch tokens cover, for drawings.

    A network that halves its maps covers more than the image where its sides are no multiples of the last patch.
    """
    below, right = (max(0, n * patch - side) for n, side in zip(grid, pixels.shape[-2:], strict=True))
    return F.pad(pixels, (0, right, 0, below))


class Task(nn.Module):
    """Base class; a subclass is one file.

    Class attributes:
        Options: pydantic model of the task's own settings (`task.<name>.<option>=...`).
        ema: names of submodules that the teacher keeps an EMA copy of; read them through `teacher_heads`, which holds
            the online ones where there is no teacher.

    Attributes:
        objective_weight: factor of the objective's own loss beside this task, where the paper weighs both.
        pools: whether `pool` gives the global vector of every view, in the place of the backbone's own.
        below_zero: whether its losses can be negative; learned weights (`train.weighting`) are refused then.
        fixed_lr: name prefixes of own parameters whose learning rate stays constant, as of SimSiam's predictor.
        extra_tokens: (E, D) trained tokens that every view is encoded with, the last E of `Features.prefix`, or None;
            one task may. The encoder that is evaluated and exported goes without them.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    ema: ClassVar[tuple[str, ...]] = ()
    objective_weight: float = 1.0
    pools: bool = False
    below_zero: bool = False
    fixed_lr: tuple[str, ...] = ()
    extra_tokens: nn.Parameter | None

    def __init__(self, options: Any, around: Surroundings) -> None:
        """Keep the options and build heads.

        Raises:
            UserError: when the task makes no sense there, saying why in one line.
        """
        super().__init__()
        self.register_parameter("extra_tokens", None)
        self.options = options
        self.around = around

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """Values of options that are "auto": {option: (value, why)}, from `derive.Facts`; the unknown stays out."""
        return {}

    @classmethod
    def replaces(cls, options: Any, objective: str) -> bool:
        """Whether a request of its own says "replace" beside that objective; `options` are its validated ones."""
        return False

    def alter(self, scene: Scene) -> Views:
        """The views that everybody trains on (turned ones, say), both branches alike."""
        return scene.views

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The forwards this task needs for a batch."""
        raise NotImplementedError

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """Named per-image losses (B,), weights included; the loop averages them over the global batch and adds them."""
        raise NotImplementedError

    def pool(self, features: Features, heads: Mapping[str, nn.Module]) -> Tensor:
        """(N, D) the global vector of every view, from features with `raw_patches`.

        Args:
            heads: the submodules named in `ema`, of the branch that asks.
        """
        raise NotImplementedError

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """Name prefixes of own parameters ("head.last_layer") that this step neither moves nor decays."""
        return ()

    def after_step(self, clock: Clock, stats: Mapping[str, Tensor]) -> None:
        """Called once after the optimiser step with the own `stats()` summed over micro-batches and processes."""

    def stats(self) -> dict[str, Tensor]:
        """Local sums of the last micro-batch that `after_step` wants (rows for centres)."""
        return {}

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """What the report draws of this task for a few images, in evaluation mode; see `report/tasks`."""
        return {}
