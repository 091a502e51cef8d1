"""How a token of the student is compared with its target, in the way of the objective beside it (spec 1.5).

DINO's and iBOT's way is SelfPatch's own, with a reference; the others carry the same idea to their families. All of
them read what `projector` (and `predictor`, of the student only) make of tokens: (B, T, K) a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.distributed import gather_rows
from belvedere.objectives._contrast import own_rows, similarities
from belvedere.objectives._heads import PrototypeHead, batchnorm_mlp
from belvedere.objectives.dino import DinoOptions, assignments, teacher_temp
from belvedere.schedules import Clock

OUT, BOTTLENECK = 256, 64
"""Width of projections, MoCo v3's; and of SimSiam's predictor, a quarter as in the paper."""


def project(head: nn.Module, tokens: Tensor) -> Tensor:
    """(B, T, D) tokens through a head row by row, so that its BatchNorms see every token as one row."""
    rows = tokens.flatten(0, 1)
    found: Tensor = head.project(rows) if isinstance(head, PrototypeHead) else head(rows)
    return found.view(*tokens.shape[:2], -1)


@dataclass(frozen=True)
class TokenTargets:
    """What the student's tokens are compared with.

    Attributes:
        slots: slot -> (N, T, K); N is the own images, or those of all processes where the loss looks at others.
        start: position of the first own image among the N.
    """

    slots: Mapping[str, Tensor]
    start: int = 0


class TokenLoss(nn.Module):
    """Base: which heads tokens pass, and the loss of each token."""

    def projector(self, dim: int) -> nn.Module:
        """Both branches' head."""
        return batchnorm_mlp([dim, 4 * dim, OUT], last="norm")

    def predictor(self, dim: int) -> nn.Module:
        """The student's head after the projector."""
        return nn.Identity()

    def targets(self, projected: Mapping[str, Tensor], clock: Clock) -> TokenTargets:
        """From projected target tokens, slot -> (B, T, K) without gradient."""
        raise NotImplementedError

    def per_token(self, said: Tensor, targets: TokenTargets, slot: str) -> Tensor:
        """(B, T) float32 losses of what the student says (B, T, K) of the tokens of a slot."""
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
    """DINO's cross-entropy with temperatures and head of the objective's, prototypes and centre of its own (1.3)."""

    center: Tensor

    def __init__(self, name: str, options: DinoOptions, prototypes: int, center_momentum: float) -> None:
        """`name` is the task's, for its statistics."""
        super().__init__()
        self.name = name
        self.options = options
        self.prototypes = prototypes
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, prototypes))
        self._stats: dict[str, Tensor] = {}

    def projector(self, dim: int) -> nn.Module:
        """A second head of the objective's shape."""
        o = self.options
        return PrototypeHead(
            dim,
            self.prototypes,
            hidden=int(o.hidden),
            bottleneck=o.bottleneck,
            layers=o.layers,
            use_bn=bool(o.use_bn),
            norm_last_layer=bool(o.norm_last_layer),
        )

    def targets(self, projected: Mapping[str, Tensor], clock: Clock) -> TokenTargets:
        """Probabilities, centred and sharpened, or with equal shares for all prototypes, as the objective does."""
        logits = {slot: tokens.float().flatten(0, 1) for slot, tokens in projected.items()}
        rows = torch.cat(list(logits.values()))
        count = rows.new_tensor(float(len(rows)))
        self._stats = {f"{self.name}_center_sum": rows.sum(0, keepdim=True), f"{self.name}_center_rows": count}
        prob = assignments(self.options, logits, self.center, teacher_temp(self.options, clock))
        return TokenTargets({slot: prob[slot].view_as(tokens) for slot, tokens in projected.items()})

    def per_token(self, said: Tensor, targets: TokenTargets, slot: str) -> Tensor:
        """Cross-entropy -sum_k q_k log softmax(s / T_s)_k."""
        log_prob = torch.log_softmax(said.float() / self.options.student_temp, dim=-1)
        return -(targets.slots[slot] * log_prob).sum(-1)

    def stats(self) -> dict[str, Tensor]:
        """Sum and number of the raw target rows of all slots, each token counting once."""
        return self._stats

    @torch.no_grad()
    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """The centre follows the mean over all processes."""
        mean = stats[f"{self.name}_center_sum"] / stats[f"{self.name}_center_rows"]
        self.center.lerp_(mean, 1 - self.center_momentum)

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """The last layer, as long as the objective's own."""
        return ("last_layer",) if clock.epoch < float(self.options.freeze_last_layer) else ()


class Contrast(TokenLoss):
    """Base of losses that look for the own target among those of the same place in other images.

    Candidates share their place, so that the position embedding, which all tokens carry, does not give the answer away.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def targets(self, projected: Mapping[str, Tensor], clock: Clock) -> TokenTargets:
        """Unit vectors of the images of all processes, gathered in one exchange."""
        unit = torch.cat([_unit(tokens) for tokens in projected.values()], dim=1)
        rows, start = gather_rows(unit)
        parts = torch.split(rows, [tokens.shape[1] for tokens in projected.values()], dim=1)
        return TokenTargets(dict(zip(projected, parts, strict=True)), start)

    def logits(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(T, B, N) similarities over temperature of (B, T, K) and (N, T, K)."""
        return similarities(anchors.transpose(0, 1), candidates.transpose(0, 1)) / self.temperature


class InfoNce(Contrast):
    """MoCo v3's: a query through the predictor among the targets of the batch, times 2 tau."""

    def predictor(self, dim: int) -> nn.Module:
        """As wide as the projector, ending in a BatchNorm."""
        return batchnorm_mlp([OUT, 4 * dim, OUT], last="norm")

    def per_token(self, said: Tensor, targets: TokenTargets, slot: str) -> Tensor:
        """2 tau x cross-entropy of the own target."""
        query = _unit(said)
        losses = _cross_entropy(self.logits(query, targets.slots[slot]), own_rows(query, targets.start))
        return 2 * self.temperature * losses


class NtXent(Contrast):
    """SimCLR's: token and target look for each other among both kinds of all other images; no gradient to targets."""

    def per_token(self, said: Tensor, targets: TokenTargets, slot: str) -> Tensor:
        """The mean of both directions."""
        token, target = _unit(said), targets.slots[slot]
        tokens, _ = gather_rows(token)
        own = own_rows(token, targets.start)
        return (self._find(token, target, tokens, own) + self._find(target[own], tokens, target, own)) / 2

    def _find(self, anchors: Tensor, partners: Tensor, like: Tensor, own: Tensor) -> Tensor:
        """(B, T) losses of anchors (B, T, K) among `partners` and those of their own kind but themselves."""
        itself = own.expand(anchors.shape[1], -1).unsqueeze(-1)
        others = self.logits(anchors, like).scatter(2, itself, float("-inf"))
        return _cross_entropy(torch.cat([self.logits(anchors, partners), others], dim=2), own)


class Cosine(TokenLoss):
    """SimSiam's: minus the cosine of the prediction and the target; needs no other image."""

    def predictor(self, dim: int) -> nn.Module:
        """With a bottleneck."""
        return batchnorm_mlp([OUT, BOTTLENECK, OUT], last="bias")

    def targets(self, projected: Mapping[str, Tensor], clock: Clock) -> TokenTargets:
        """The projections as they are."""
        return TokenTargets(projected)

    def per_token(self, said: Tensor, targets: TokenTargets, slot: str) -> Tensor:
        """-cos, in [-1, 1]."""
        return -F.cosine_similarity(said.float(), targets.slots[slot].float(), dim=-1)


FAMILIES = {"dino": "distill", "ibot": "distill", "mocov3": "infonce", "simclr": "ntxent", "simsiam": "cosine"}
"""Objective -> the loss of its way; beside all others it is "cosine"."""


def temperature_of(objective_options: Any) -> float:
    """The objective's own temperature, or MoCo v3's where it has none."""
    return float(getattr(objective_options, "temperature", 0.2))


def _unit(tokens: Tensor) -> Tensor:
    return F.normalize(tokens.float(), dim=-1, eps=1e-12)


def _cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    """(T, B, N) logits, (B,) right answers -> (B, T)."""
    places, images = logits.shape[:2]
    losses = F.cross_entropy(logits.flatten(0, 1), own.repeat(places), reduction="none")
    return losses.view(places, images).T
