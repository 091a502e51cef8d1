"""The contract of an objective: per-image losses of ordered pairs of views.

An objective is mathematics over what its head gives; networks are handed in. The loop calls, once an optimiser step,
`before_target`, then for every micro-batch head -> `embed` -> `per_image`, then backward, `frozen`, the optimiser and
`after_step`. Scoring (hard views, diagnostics) calls `embed` and `score` only, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from belvedere.schedules import Clock
from belvedere.views.masks import MaskLaw
from belvedere.views.views import Views

# What a head gives for one slot of B images: named tensors, e.g. {"cls": (B, K)}.
Output = dict[str, Tensor]


class Term(NamedTuple):
    """One direction of one pair of slots: `source` (gets the gradient) is asked to predict `target`."""

    target: str
    source: str
    weight: float


@dataclass(frozen=True)
class Embeddings:
    """Everything the losses of one micro-batch need.

    Attributes:
        online: slot -> output of the student's head.
        target: slot -> what a source is compared with (teacher's output, or the student's own).
        settings: numbers of this step (temperatures and the like).
        stats: local sums that `after_step` wants; the loop adds them over micro-batches and processes.
        labels: (B,) class ids, or (B, K) shares of classes, when the objective asked for them.
    """

    online: Mapping[str, Output]
    target: Mapping[str, Output]
    settings: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None


def told(e: Embeddings, name: str, like: Tensor) -> Tensor:
    """A number of this step as a scalar for the log, on the device of `like`, which is not waited for."""
    return like.new_full((), e.settings[name])


class NoOptions(BaseModel):
    """Options of a plug-in that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def is_global(slot: str) -> bool:
    """Whether a slot holds global views, which are the targets."""
    return slot.startswith("global")


class Objective(nn.Module):
    """Base class; a subclass is one file, one paper.

    Class attributes:
        Options: pydantic model of the objective's own settings (`objective.<name>=...`).
        has_teacher: whether an EMA copy of backbone and head gives the targets.
        evaluates: whose backbone is read for downstream numbers and exported.
        has_pairs: False for an objective without pairs of views; `hard` is then refused.
        has_loss: False for an objective that learns nothing by itself; it is refused without tasks.
        below_zero: whether its loss can be negative; learned weights (`train.weighting`) are refused then.
        wants_mask: whether the student has a mask token, for the `mask_law` of its global views; the teacher has none.
        fixed_lr: name prefixes of the student's parameters whose learning rate stays constant (SimSiam's predictor).
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    has_teacher: ClassVar[bool] = False
    evaluates: ClassVar[Literal["student", "teacher"]] = "student"
    has_pairs: ClassVar[bool] = True
    has_loss: ClassVar[bool] = True
    below_zero: ClassVar[bool] = False
    wants_mask: ClassVar[bool] = False
    fixed_lr: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, dim: int) -> None:
        """Keep the options; `dim` is the backbone's width. Buffers registered here (centres, queues) are saved."""
        super().__init__()
        self.options = options
        self.dim = dim

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """Values of options that are "auto": {option: (value, why)}, from `derive.Facts`; the unknown stays out.

        Raises:
            UserError: when the objective makes no sense on such images, saying why in one line.
        """
        return {}

    def make_head(self) -> nn.Module:
        """A new student head: Features -> Output."""
        raise NotImplementedError

    def make_target_head(self) -> nn.Module:
        """A new teacher head; its parameters follow the student's of the same name."""
        return self.make_head()

    def mixed(self, views: Views, labels: Tensor | None) -> tuple[Views, Tensor | None]:
        """The views that are trained on and their labels, as an objective that mixes images wants them."""
        return views, labels

    def is_target(self, slot: str) -> bool:
        """Whether the teacher encodes the views of a slot."""
        return is_global(slot)

    def mask_law(self, clock: Clock) -> MaskLaw | None:
        """How the student's patches to be masked at this step are drawn; None when nothing is masked."""
        return None

    def target_needs(self, clock: Clock) -> tuple[str, ...]:
        """What is read of the teacher's features beside its tokens, in the words of `Backbone.forward`."""
        law = self.mask_law(clock)
        return ("attention",) if law is not None and law.attends else ()

    def embed(
        self,
        online: Mapping[str, Output],
        target: Mapping[str, Output],
        clock: Clock,
        labels: Tensor | None = None,
    ) -> Embeddings:
        """Gather the head outputs, across processes where the loss needs it, into what the losses read.

        Args:
            online: slot -> student output, for all student slots.
            target: slot -> teacher output, for the target slots; empty without a teacher.
            labels: (B,) class ids or None.
        """
        raise NotImplementedError

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """The ordered pairs of these slots with the weights of the paper's loss."""
        raise NotImplementedError

    def pair_loss(self, e: Embeddings, target: str, source: str) -> Tensor:
        """(B,) loss of one direction of one pair, for the images of this process."""
        raise NotImplementedError

    def view_loss(self, e: Embeddings, view: str) -> Tensor | None:
        """(B,) weighted loss of one view with itself (masked patches, pixels, labels); None when there is none."""
        return None

    def per_image(self, e: Embeddings) -> Tensor:
        """(B,) the whole loss of every image: the weighted sum of all terms and view terms."""
        return self._sum(e, list(e.online), {})

    def score(self, e: Embeddings, *slots: str) -> Tensor:
        """(B,) the loss if these slots (two or more) were the only views: what hard views maximise."""
        return self._sum(e, slots, {})

    def scores(self, e: Embeddings, choices: Sequence[tuple[str, ...]]) -> Tensor:
        """(P, B) float32 `score` of P choices of slots; what several of them share is computed once."""
        known: dict[tuple[str, str], Tensor | None] = {}
        return torch.stack([self._sum(e, slots, known).float() for slots in choices])

    def _sum(self, e: Embeddings, slots: Sequence[str], known: dict[tuple[str, str], Tensor | None]) -> Tensor:
        """Weighted sum of all terms between some slots; `known` keeps losses of (target, source) and (view, view)."""
        parts = []
        for target, source, weight in self.terms(slots):
            if (target, source) not in known:
                known[target, source] = self.pair_loss(e, target, source)
            loss = known[target, source]
            assert loss is not None
            parts.append(weight * loss)
        for slot in slots:
            if (slot, slot) not in known:
                known[slot, slot] = self.view_loss(e, slot)
            if (own := known[slot, slot]) is not None:
                parts.append(own)
        return torch.stack(parts).sum(0)

    def before_target(self, student: nn.Module, teacher: nn.Module | None, clock: Clock) -> None:
        """Called once an optimiser step before any forward (MoCo v3 moves its teacher here)."""

    def after_step(
        self, student: nn.Module, teacher: nn.Module | None, clock: Clock, stats: Mapping[str, Tensor]
    ) -> None:
        """Called once after the optimiser step with `Embeddings.stats` summed over micro-batches and processes."""

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """Name prefixes of student parameters ("head.last_layer") that this step neither moves nor decays."""
        return ()

    def chance_loss(self, batch: int) -> float | None:
        """The loss of a network that tells nothing at that batch (ln K of DINO), where it is known."""
        return None

    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """Cheap scalars of this micro-batch for the log, as tensors, so that nothing waits for a device."""
        return {}
