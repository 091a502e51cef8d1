"""EsViT's region task: every region of the student predicts the teacher's region of another view that looks most alike.

"Efficient Self-supervised Vision Transformers for Representation Learning", Li et al., ICLR 2022, arXiv:2106.09785
(spec patch_and_pretext 2). Regions are patch tokens, so any backbone with a grid of them will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere.distributed import gather_rows
from belvedere.errors import UserError
from belvedere.objectives._contrast import own_rows
from belvedere.objectives._heads import PrototypeHead, SimClrHead, batchnorm_mlp
from belvedere.objectives._pairs import every_global_from_every_other
from belvedere.objectives.contract import is_global
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.objectives.mocov3 import MoCoV3Options
from belvedere.objectives.simclr import SimClrOptions
from belvedere.objectives.simsiam import SimSiamOptions
from belvedere.schedules import Clock
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task

# Slot -> (B, T, ...) something of every token.
Tokens = Mapping[str, Tensor]


class RegionsOptions(BaseModel):
    """Settings of the region task; the defaults are EsViT's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(0.5, ge=0)
    """Weight of the regions' loss."""
    view_weight: float = Field(0.5, ge=0)
    """Weight of the objective's own loss on whole views beside it."""


class Regions(Task):
    """Best match by the cosine of features, then the objective's kind of loss between the two regions' outputs."""

    Options = RegionsOptions
    ema = ("head",)

    def __init__(self, options: RegionsOptions, around: Surroundings) -> None:
        """A dense head of its own, of the objective's kind.

        Raises:
            UserError: when a view that is a target has one region only, or there is no other view.
        """
        super().__init__(options, around)
        targets = [slot for slot in around.grids if is_global(slot)]
        if len(around.grids) < 2:
            raise UserError("task regions: matches regions of two views, and there is one; set views.globals=2")
        for slot in targets:
            if around.grids[slot] == (1, 1):
                raise UserError(
                    f"task regions: {slot} has a single patch token, so there is nothing to choose between; "
                    "make views.size larger or backbone.patch smaller"
                )
        self.objective_weight = options.view_weight
        self.kind = kind_of(around)
        self.head = self.kind.make_head()
        self.predictor = self.kind.make_predictor()
        self._stats: dict[str, Tensor] = {}

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The tokens of all views from the student, of the global ones from the teacher."""
        slots = scene.views.names
        targets = tuple(slot for slot in slots if is_global(slot))
        return {"regions": Request(slots=slots), "targets": Request(slots=targets, branch="target")}

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"match": (B,)} the mean over all pairs of a global view and another view (spec 2.3)."""
        student = {slot: found.patches for slot, found in answers["regions"].student.items()}
        teacher = {slot: found.patches.detach() for slot, found in answers["targets"].target.items()}
        projected = {slot: self._project(self.head, tokens) for slot, tokens in student.items()}
        online = {slot: _on_rows(self.predictor, outputs) for slot, outputs in projected.items()}
        if self.around.has_teacher:
            with torch.no_grad():
                target = {slot: self._project(teacher_heads["head"], tokens) for slot, tokens in teacher.items()}
        else:
            target = {slot: projected[slot].detach() for slot in teacher}
        return {"match": self.options.weight * self.region_loss(student, teacher, online, target, scene.clock)}

    def _project(self, head: nn.Module, tokens: Tensor) -> Tensor:
        return _on_rows(partial(self.kind.project, head), tokens)

    def region_loss(
        self,
        student: Tokens,
        teacher: Tokens,
        online: Tokens,
        target: Tokens,
        clock: Clock,
    ) -> Tensor:
        """(B,) mean over pairs of views of the mean over the student's regions.

        Args:
            student, teacher: slot -> (B, T, D) features before the heads, which decide the matches.
            online, target: slot -> (B, T, K) what the heads made of them.
        """
        sources, targets, self._stats = self.kind.embed(online, target, clock)
        losses = []
        for t, v, weight in every_global_from_every_other(list(student)):
            best, _ = match(student[v], teacher[t])
            losses.append(weight * self.kind.distance(sources[v], rows_at(targets[t], best)))
        return torch.stack(losses).sum(0)

    def stats(self) -> dict[str, Tensor]:
        """Sums of the teacher's outputs, where the kind of loss has a centre."""
        return {f"regions.{name}": value for name, value in self._stats.items()}

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """The last layer as long as the objective's."""
        return self.kind.frozen(clock)

    def after_step(self, clock: Clock, stats: Mapping[str, Tensor]) -> None:
        """Move the centre."""
        prefix = "regions."
        own = {name.removeprefix(prefix): value for name, value in stats.items() if name.startswith(prefix)}
        self.kind.after_step(clock, own)

    @torch.no_grad()
    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """Matches of one view's regions in the first global view, of a few images.

        Returns:
            "target", "source" (N, C, h, w) pixels; "match" (N, T) the number of the target's region that each region
            of the source chose, with "cosine" (N, T); "target_grid", "source_grid" (2,).
        """
        (t, target), *_ = answers["targets"].target.items()
        v, source = next((slot, found) for slot, found in answers["regions"].student.items() if slot != t)
        best, cosine = match(source.patches, target.patches)
        return {
            "target": scene.views[t],
            "source": scene.views[v],
            "match": best,
            "cosine": cosine,
            "target_grid": torch.tensor(target.grid),
            "source_grid": torch.tensor(source.grid),
        }


@torch.no_grad()
def match(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) teacher's region that is nearest to each region of the student, by cosine, and that cosine.

    Args:
        student: (B, T, D) features of the regions of one view.
        teacher: (B, U, D) of another view.
    """
    # Rounding to bf16 would make near regions equal.
    with torch.autocast(student.device.type, enabled=False):
        a, b = (F.normalize(features.float(), dim=-1) for features in (student, teacher))
        cosine, best = (a @ b.transpose(1, 2)).max(-1)
    return best, cosine


def rows_at(tokens: Tensor, index: Tensor) -> Tensor:
    """(B, T, K) rows of (B, U, K) at (B, T) indices."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _on_rows(head: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, K) through what takes rows; for a BatchNorm all tokens of a view are one batch."""
    return head(tokens.flatten(0, 1)).view(*tokens.shape[:2], -1)


# --- the objective's kind of loss, token by token ---------------------------------------------------------------------


class TokenLoss(nn.Module):
    """How a token is compared with its target: the objective's way, on tokens (B, T, ...) in the place of views."""

    def make_head(self) -> nn.Module:
        """Rows of features -> rows of outputs; has an EMA copy where there is a teacher."""
        raise NotImplementedError

    def make_predictor(self) -> nn.Module:
        """What the student's outputs pass in addition."""
        return nn.Identity()

    def project(self, head: nn.Module, rows: Tensor) -> Tensor:
        """Rows (R, D) through a head of either branch."""
        outputs: Tensor = head(rows)
        return outputs

    def embed(self, online: Tokens, target: Tokens, clock: Clock) -> tuple[Tokens, Tokens, dict[str, Tensor]]:
        """What `distance` compares, of every slot of both sides, and sums for `after_step`."""
        raise NotImplementedError

    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        """(B,) mean over tokens; `target` holds one row for each of the source's."""
        raise NotImplementedError

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """Prefixes of the head's parameters that rest, "head." included."""
        return ()

    def after_step(self, clock: Clock, stats: Mapping[str, Tensor]) -> None:
        """Called with the sums of `embed` over micro-batches and processes."""


class Prototypes(TokenLoss):
    """DINO's and iBOT's: cross-entropy with centred, sharpened answers (or equal shares), and a centre of its own."""

    def __init__(self, options: DinoOptions, dim: int) -> None:
        """A second DINO of the same settings, for rows of `dim` channels."""
        super().__init__()
        self.dino = Dino(options, dim)

    def make_head(self) -> nn.Module:
        """DINO's head, of as many prototypes."""
        return self.dino.make_head()

    def project(self, head: nn.Module, rows: Tensor) -> Tensor:
        """(R, K) logits."""
        assert isinstance(head, PrototypeHead)
        return head.project(rows)

    def embed(self, online: Tokens, target: Tokens, clock: Clock) -> tuple[Tokens, Tokens, dict[str, Tensor]]:
        """Log-probabilities of the student, probabilities of the teacher, sums of its logits."""
        e = self.dino.embed(_as_rows(online), _as_rows(target), clock)
        sources = {slot: e.online[slot]["log_prob"].view_as(tokens) for slot, tokens in online.items()}
        targets = {slot: e.target[slot]["prob"].view_as(tokens) for slot, tokens in target.items()}
        return sources, targets, dict(e.stats)

    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        """(B,) -sum_k P_k log p_k."""
        return -(target * source).sum(-1).mean(1)

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """The last layer in the first epochs."""
        return self.dino.frozen(clock)

    def after_step(self, clock: Clock, stats: Mapping[str, Tensor]) -> None:
        """The centre moves after the loss has used the old one (spec 0)."""
        self.dino.move_center(stats)


def _as_rows(tokens: Tokens) -> dict[str, dict[str, Tensor]]:
    return {slot: {"cls": found.flatten(0, 1)} for slot, found in tokens.items()}


class Contrast(TokenLoss):
    """MoCo v3's and SimCLR's: the own target among the targets of the same token in the other images of the batch.

    Other tokens of the own image are no negatives: they show the same thing, and several tokens may share a target.
    """

    def __init__(self, options: MoCoV3Options | SimClrOptions, dim: int) -> None:
        """Heads of the objective's settings, for rows of `dim` channels."""
        super().__init__()
        self.options, self.dim = options, dim
        self.temperature = float(options.temperature)
        # MoCo v3 has this factor, SimCLR has none.
        self.factor = 2 * self.temperature if isinstance(options, MoCoV3Options) else 1.0

    def make_head(self) -> nn.Module:
        """The objective's projector."""
        o = self.options
        if isinstance(o, SimClrOptions):
            return SimClrHead(self.dim, int(o.hidden), o.out, int(o.layers)).mlp
        return batchnorm_mlp([self.dim, *[int(o.hidden)] * (int(o.layers) - 1), o.out], last="norm")

    def make_predictor(self) -> nn.Module:
        """MoCo v3's predictor; SimCLR has none."""
        o = self.options
        if isinstance(o, SimClrOptions):
            return nn.Identity()
        return batchnorm_mlp([o.out, int(o.hidden), o.out], last="norm" if o.predictor_norm else "bare")

    def embed(self, online: Tokens, target: Tokens, clock: Clock) -> tuple[Tokens, Tokens, dict[str, Tensor]]:
        """Unit vectors."""
        return _unit(online), _unit(target), {}

    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        """(B,) cross-entropy of the own target among those of all processes' images."""
        everyone, start = gather_rows(target)
        with torch.autocast(source.device.type, enabled=False):
            logits = torch.einsum("btd,atd->bat", source, everyone) / self.temperature
        own = own_rows(source, start).unsqueeze(1).expand(source.shape[:2])
        return self.factor * F.cross_entropy(logits, own, reduction="none").mean(1)


class Cosine(TokenLoss):
    """SimSiam's, and of objectives of no other kind: -cos(prediction, target), which needs neither centre nor batch."""

    def __init__(self, options: SimSiamOptions, dim: int) -> None:
        """Heads of SimSiam's settings, for rows of `dim` channels."""
        super().__init__()
        self.options, self.dim = options, dim

    def make_head(self) -> nn.Module:
        """SimSiam's projector."""
        o = self.options
        return batchnorm_mlp([self.dim, *[o.hidden] * (o.layers - 1), o.out], last="norm")

    def make_predictor(self) -> nn.Module:
        """SimSiam's predictor."""
        o = self.options
        return batchnorm_mlp([o.out, o.bottleneck, o.out], last="bias")

    def embed(self, online: Tokens, target: Tokens, clock: Clock) -> tuple[Tokens, Tokens, dict[str, Tensor]]:
        """Unit vectors."""
        return _unit(online), _unit(target), {}

    def distance(self, source: Tensor, target: Tensor) -> Tensor:
        """(B,) in [-1, 1]."""
        return -(source * target).sum(-1).mean(1)


def _unit(tokens: Tokens) -> Tokens:
    return {slot: F.normalize(found.float(), dim=-1, eps=1e-12) for slot, found in tokens.items()}


def kind_of(around: Surroundings) -> TokenLoss:
    """The kind of loss that goes with the objective; heads as wide as its own."""
    options, dim = around.objective_options, around.patch_dim
    if isinstance(options, DinoOptions):
        return Prototypes(options, dim)
    if isinstance(options, MoCoV3Options | SimClrOptions):
        return Contrast(options, dim)
    if not isinstance(options, SimSiamOptions):
        # SimSiam's proportions at the tokens' own width.
        options = SimSiamOptions(hidden=dim, out=dim, bottleneck=max(1, dim // 4), layers=2)
    return Cosine(options, dim)
