"""EsViT's region task: every region of the student predicts the teacher's region of another view that looks most alike.

"Efficient Self-supervised Vision Transformers for Representation Learning", Li et al., ICLR 2022, arXiv:2106.09785
(spec patch_and_pretext 2). Regions are patch tokens, so any backbone with a grid of them will do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere.errors import UserError
from belvedere.objectives._pairs import every_global_from_every_other
from belvedere.objectives.contract import is_global
from belvedere.schedules import Clock
from belvedere.tasks._token_losses import Tokens, TokenTask, on_rows, token_loss
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, whole_cells


class RegionsOptions(BaseModel):
    """Settings of the region task; the defaults are EsViT's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(0.5, ge=0)
    """Weight of the regions' loss."""
    view_weight: float = Field(0.5, ge=0)
    """Weight of the objective's own loss on whole views beside it."""


class Regions(TokenTask):
    """Best match by the cosine of features, then the objective's kind of loss between the two regions' outputs."""

    Options = RegionsOptions

    def __init__(self, options: RegionsOptions, around: Surroundings) -> None:
        """A dense head of its own, of the objective's kind.

        Raises:
            UserError: when a view that is a target has one region only, or there is no other view.
        """
        super().__init__(options, around, token_loss(around.objective_options, around.patch_dim))
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
        teacher = {slot: found.patches for slot, found in answers["targets"].target.items()}
        # The student goes first: under autocast, weights cast without gradient would be kept for it.
        online = {slot: self.predict(tokens) for slot, tokens in student.items()}
        with torch.no_grad():
            target = {slot: on_rows(teacher_heads["projector"], tokens) for slot, tokens in teacher.items()}
        return {"match": self.options.weight * self.region_loss(student, teacher, online, target, scene.clock)}

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
        sources, targets = self.rule.sources(online), self.rule.targets(target, clock)
        losses = []
        for t, v, weight in every_global_from_every_other(list(student)):
            best, _ = match(student[v], teacher[t])
            losses.append(weight * self.rule.per_token(sources[v], rows_at(targets[t], best)).mean(1))
        return torch.stack(losses).sum(0)

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
            "target": whole_cells(scene.views[t], target.grid, self.around.patch),
            "source": whole_cells(scene.views[v], source.grid, self.around.patch),
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
