"""How a token of the student is compared with its target, in the way of the objective beside the task.

DINO's and iBOT's way is SelfPatch's and EsViT's own (spec patch_and_pretext 1.3, 2.3); the others carry the same idea
to MoCo v3, SimCLR and SimSiam (1.5, 2.4). Heads are the objective's own, drawn a second time, with its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.distributed import gather_rows
from belvedere.objectives._contrast import own_rows, similarities
from belvedere.objectives._heads import MoCoHead, PrototypeHead
from belvedere.objectives.dino import Dino, DinoOptions, assignments
from belvedere.objectives.mocov3 import MoCoV3, MoCoV3Options
from belvedere.objectives.simclr import SimClr, SimClrOptions
from belvedere.objectives.simsiam import SimSiam, SimSiamOptions
from belvedere.schedules import Clock
from belvedere.tasks.contract import Surroundings, Task

# Slot -> (B, T, K) something of every token.
Tokens: TypeAlias = Mapping[str, Tensor]


class TokenLoss(nn.Module):
    """Base: the heads that tokens pass, and the loss of each token.

    Class attributes:
        fixed_lr, below_zero: see `Task`.
    """

    fixed_lr: ClassVar[tuple[str, ...]] = ()
    below_zero: ClassVar[bool] = False

    def make_heads(self) -> tuple[nn.Module, nn.Module]:
        """The projector of both branches, and the predictor that only the student's projections pass."""
        raise NotImplementedError

    def sources(self, projected: Tokens) -> Tokens:
        """What `per_token` reads of the student: unit vectors."""
        return _unit(projected)

    def targets(self, projected: Tokens, clock: Clock) -> Tokens:
        """What `per_token` reads of the target branch, whose projections have no gradient: unit vectors."""
        return _unit(projected)

    def per_token(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, T) float32 losses of (B, T, K) the student's tokens, each with its target in (B, T, K)."""
        raise NotImplementedError

    def stats(self) -> dict[str, Tensor]:
        """Sums of the last targets for `after_step`."""
        return {}

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Called once an optimiser step."""

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """Name prefixes of the projector's parameters that do not move at this step."""
        return ()


class Distill(TokenLoss):
    """DINO's cross-entropy with a centred, sharpened teacher (or equal shares), around a centre of its own."""

    def __init__(self, options: DinoOptions, dim: int) -> None:
        """A second DINO, for tokens of `dim` channels."""
        super().__init__()
        self.dino = Dino(options, dim)
        self._stats: dict[str, Tensor] = {}

    def make_heads(self) -> tuple[nn.Module, nn.Module]:
        """DINO's prototypes."""
        return self.dino.make_head(), nn.Identity()

    def sources(self, projected: Tokens) -> Tokens:
        """Log-probabilities log softmax(s / T_s)."""
        temperature = self.dino.options.student_temp
        return {slot: torch.log_softmax(logits.float() / temperature, dim=-1) for slot, logits in projected.items()}

    def targets(self, projected: Tokens, clock: Clock) -> Tokens:
        """Probabilities; the rows that the centre is the mean of are all of these, each token counting once."""
        logits = {slot: tokens.float().flatten(0, 1) for slot, tokens in projected.items()}
        rows = torch.cat(list(logits.values()))
        self._stats = {"center_sum": rows.sum(0, keepdim=True), "center_rows": rows.new_tensor(float(len(rows)))}
        prob = assignments(self.dino.options, logits, self.dino.center, self.dino.teacher_temp(clock))
        return {slot: prob[slot].view_as(tokens) for slot, tokens in projected.items()}

    def per_token(self, source: Tensor, target: Tensor) -> Tensor:
        """-sum_k P_k log p_k."""
        return -(target * source).sum(-1)

    def stats(self) -> dict[str, Tensor]:
        """Sum and number of the target's logits."""
        return self._stats

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """The centre moves after the loss has used the old one (spec 0)."""
        self.dino.move_center(stats)

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """The last layer, as long as the objective's own."""
        return tuple(name.removeprefix("head.") for name in self.dino.frozen(clock))


class InfoNce(TokenLoss):
    """MoCo v3's: a query finds its own target among those of the same place in all images, times 2 tau.

    Candidates share their place, so that the position embedding, which all tokens carry, does not give the answer away;
    and other tokens of the own image are no negatives, since they show the same thing.
    """

    def __init__(self, options: MoCoV3Options, dim: int) -> None:
        """For tokens of `dim` channels."""
        super().__init__()
        self.moco = MoCoV3(options, dim)
        self.temperature = float(options.temperature)

    def make_heads(self) -> tuple[nn.Module, nn.Module]:
        """MoCo v3's projector and predictor; SiT's head has no predictor."""
        head = self.moco.make_head()
        if isinstance(head, MoCoHead):
            return head.projector, head.predictor
        return head.get_submodule("mlp"), nn.Identity()

    def per_token(self, source: Tensor, target: Tensor) -> Tensor:
        """2 tau x cross-entropy of the own target."""
        everyone, start = gather_rows(target)
        logits = _same_place(source, everyone) / self.temperature
        return 2 * self.temperature * _cross_entropy(logits, own_rows(source, start))


class NtXent(TokenLoss):
    """SimCLR's: token and target find each other among both kinds of the same place in all other images."""

    def __init__(self, options: SimClrOptions, dim: int) -> None:
        """For tokens of `dim` channels."""
        super().__init__()
        self.simclr = SimClr(options, dim)
        self.temperature = float(options.temperature)

    def make_heads(self) -> tuple[nn.Module, nn.Module]:
        """SimCLR's projector; there is no predictor."""
        return self.simclr.make_head().get_submodule("mlp"), nn.Identity()

    def per_token(self, source: Tensor, target: Tensor) -> Tensor:
        """The mean of both directions; no gradient reaches targets."""
        everyone, start = gather_rows(torch.stack([source, target], dim=1))
        sources, targets = everyone.unbind(1)
        own = own_rows(source, start)
        return (self._find(source, targets, sources, own) + self._find(target, sources, targets, own)) / 2

    def _find(self, anchors: Tensor, partners: Tensor, like: Tensor, own: Tensor) -> Tensor:
        """(B, T) losses of anchors (B, T, K) among `partners` and those of their own kind but themselves."""
        itself = own.expand(anchors.shape[1], -1).unsqueeze(-1)
        others = _same_place(anchors, like).scatter(2, itself, float("-inf"))
        logits = torch.cat([_same_place(anchors, partners), others], dim=2) / self.temperature
        return _cross_entropy(logits, own)


class Cosine(TokenLoss):
    """SimSiam's: minus the cosine of prediction and target, which needs no other image."""

    # As the objective's own predictor.
    fixed_lr = ("predictor",)
    below_zero = True

    def __init__(self, options: SimSiamOptions, dim: int) -> None:
        """For tokens of `dim` channels."""
        super().__init__()
        self.simsiam = SimSiam(options, dim)

    def make_heads(self) -> tuple[nn.Module, nn.Module]:
        """SimSiam's projector and predictor."""
        head = self.simsiam.make_head()
        return head.get_submodule("projector"), head.get_submodule("predictor")

    def per_token(self, source: Tensor, target: Tensor) -> Tensor:
        """-cos, in [-1, 1]."""
        return -(source * target).sum(-1)


FAMILIES: dict[type, type[TokenLoss]] = {
    DinoOptions: Distill,
    MoCoV3Options: InfoNce,
    SimClrOptions: NtXent,
    SimSiamOptions: Cosine,
}
"""Options of an objective (or of one derived from it, as iBOT) -> the loss of its way."""


def token_loss(objective_options: Any, dim: int) -> TokenLoss:
    """The loss that goes with an objective, for tokens of `dim` channels; beside objectives of no family, `Cosine`."""
    for options, loss in FAMILIES.items():
        if isinstance(objective_options, options):
            return loss(objective_options, dim)
    # SimSiam's proportions at the tokens' own width.
    return Cosine(SimSiamOptions(hidden=dim, out=dim, bottleneck=max(1, dim // 4), layers=2), dim)


class TokenTask(Task):
    """Base of a task that gives every token of the student a target: its heads, and the upkeep of its loss."""

    ema: ClassVar[tuple[str, ...]] = ("projector",)

    def __init__(self, options: Any, around: Surroundings, rule: TokenLoss) -> None:
        """Make the heads that go with `rule`."""
        super().__init__(options, around)
        self.rule = rule
        self.projector, self.predictor = rule.make_heads()
        self.fixed_lr, self.below_zero = rule.fixed_lr, rule.below_zero

    def predict(self, tokens: Tensor) -> Tensor:
        """(B, T, K) of the student's tokens (B, T, D), through projector and predictor."""
        return on_rows(self.predictor, on_rows(self.projector, tokens))

    def stats(self) -> dict[str, Tensor]:
        """What the centre needs, where there is one."""
        return self.rule.stats()

    def after_step(self, clock: Clock, stats: Mapping[str, Tensor]) -> None:
        """Move the centre."""
        self.rule.after_step(stats)

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """The last layer in the first epochs, as the objective's."""
        return tuple(f"projector.{name}" for name in self.rule.frozen(clock))


def on_rows(head: nn.Module, tokens: Tensor) -> Tensor:
    """(B, T, D) tokens through a head row by row, so that its BatchNorms see all tokens of a view as one batch."""
    rows = tokens.flatten(0, 1)
    outputs: Tensor = head.project(rows) if isinstance(head, PrototypeHead) else head(rows)
    return outputs.view(*tokens.shape[:2], -1)


def _unit(tokens: Tokens) -> Tokens:
    return {slot: F.normalize(found.float(), dim=-1, eps=1e-12) for slot, found in tokens.items()}


def _same_place(anchors: Tensor, candidates: Tensor) -> Tensor:
    """(T, B, N) float32 dot products of (B, T, K) with the tokens of the same place in (N, T, K)."""
    return similarities(anchors.transpose(0, 1), candidates.transpose(0, 1))


def _cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    """(T, B, N) logits, (B,) right answers -> (B, T)."""
    places, images = logits.shape[:2]
    losses = F.cross_entropy(logits.flatten(0, 1), own.repeat(places), reduction="none")
    return losses.view(places, images).T
