"""SelfPatch: every patch of the student predicts what the teacher's aggregator says of its most similar neighbours.

"Patch-level Representation Learning for Self-supervised Vision Transformers", Yun et al., CVPR 2022, arXiv:2206.07990
(spec patch_and_pretext 1). Positives come from space and similarity within one view, not from a second augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere import plugins
from belvedere.backbones.build import heads_for
from belvedere.backbones.contract import Features
from belvedere.errors import UserError
from belvedere.objectives.contract import is_global
from belvedere.objectives.dino import DinoOptions, prototypes_for
from belvedere.tasks._aggregator import Aggregator
from belvedere.tasks._token_losses import FAMILIES, TokenLoss, Tokens, TokenTask, on_rows, token_loss
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, whole_cells
from belvedere.views.params import send

Auto: TypeAlias = Literal["auto"]
# The paper's K of the patches.
MOST_PROTOTYPES = 4096
SMALLEST_SIDE = 3


class SelfPatchOptions(BaseModel):
    """Settings of SelfPatch; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(0.1, ge=0)
    """Of the patch loss beside the objective's; with `aggregate: patches` of each of its two losses."""
    k: int = Field(4, ge=1, le=8)
    """How many of a patch's eight neighbours are its positives."""
    aggregate: Literal["pool", "patches"] | None = None
    """How the aggregator learns. pool: it gives the global vector of every view in the place of the backbone's own, and
    learns from the objective, as in the paper. patches: the backbone keeps its global vector, and the student's
    aggregator reads all eight neighbours of a patch of the first view and predicts its target too. By default pool on a
    transformer without class token, beside an objective that compares views; else patches, since a class token that is
    pooled over gets no loss, but is what is evaluated and exported."""
    heads: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Attention heads of the aggregator."""
    prototypes: Annotated[int, Field(ge=2)] | Auto = "auto"
    """K of the patch head, beside DINO and iBOT."""
    center_momentum: float = Field(0.9, ge=0, le=1)
    """Of the patch centre, beside DINO and iBOT."""


class SelfPatch(TokenTask):
    """Predict the aggregate of the k most similar of the eight neighbours on a torus, in the same view.

    Views of fewer than 3 patches on a side have no eight neighbours and are left out.
    """

    Options = SelfPatchOptions
    ema = ("aggregator", "projector")

    def __init__(self, options: SelfPatchOptions, around: Surroundings) -> None:
        """Build the aggregator and the patch heads.

        Raises:
            UserError: when the backbone is no transformer, no global view is 3 patches wide, the heads do not divide
                the width, or nothing would train the aggregator.
        """
        _check(options, around)
        super().__init__(options, around, _rule(options, around))
        self.slots = tuple(slot for slot, grid in around.grids.items() if min(grid) >= SMALLEST_SIDE)
        self.pools = _aggregate(options, around) == "pool"
        self.aggregator = Aggregator(around.patch_dim, int(options.heads))

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """Prototypes from the images; heads from the backbone's width."""
        rules: dict[str, tuple[Any, str]] = {
            "prototypes": (min(MOST_PROTOTYPES, prototypes_for(facts.images)[0]), "as DINO's, at most the paper's 4096")
        }
        if facts.dim is not None:
            rules["heads"] = heads_for(facts.dim), "64 channels a head, as the paper's backbone"
        return rules

    def requests(self, scene: Scene) -> dict[str, Request]:
        """All views on both sides, unmasked."""
        slots = tuple(slot for slot in scene.views.names if slot in self.slots)
        return {"tokens": Request(slots=slots, branch="both", need=("raw_patches",))}

    def pool(self, features: Features, heads: Mapping[str, nn.Module]) -> Tensor:
        """(N, D) y_0: the aggregate of all patches of a view, normed by the backbone's final norm (spec 1.2)."""
        assert features.raw_patches is not None
        assert features.norm is not None
        return features.norm(heads["aggregator"](features.raw_patches))

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """The patch loss, mean over a view's patches, then over all views (spec 1.3); the aggregator's own, if any."""
        student, target = answers["tokens"].student, answers["tokens"].target
        # The student goes first: under autocast, weights cast without gradient would be kept for it.
        said = {"patches": {slot: self.predict(features.patches) for slot, features in student.items()}}
        if not self.pools:
            # One view trains it; nine tokens a patch cost as much as several blocks of the backbone.
            slot, features = next(iter(student.items()))
            said["aggregates"] = {slot: self._predict_aggregate(features)}
        with torch.no_grad():
            wanted = {slot: self.target_tokens(features, teacher_heads) for slot, features in target.items()}
            projected = {slot: on_rows(teacher_heads["projector"], tokens) for slot, tokens in wanted.items()}
            targets = self.rule.targets(projected, scene.clock)
        return {name: self._mean_loss(self.rule.sources(spoken), targets) for name, spoken in said.items()}

    def _mean_loss(self, sources: Tokens, targets: Tokens) -> Tensor:
        """(B,) weight x mean over the sources' views of the mean over patches."""
        views = [self.rule.per_token(tokens, targets[slot]).mean(1) for slot, tokens in sources.items()]
        loss: Tensor = self.options.weight * torch.stack(views).mean(0)
        return loss

    def _predict_aggregate(self, features: Features) -> Tensor:
        """(B, T, K) what it says from all eight neighbours through its own aggregator."""
        everyone = send(torus_neighbours(*features.grid), features.patches.device)
        return self.predict(_aggregate_of(features, self.aggregator, everyone.expand(len(features.patches), -1, -1)))

    def target_tokens(self, features: Features, heads: Mapping[str, nn.Module]) -> Tensor:
        """(B, T, D) y_i: of each patch the normed aggregate of its k most similar neighbours, itself left out (1.2)."""
        similarity, neighbours = neighbour_similarity(features)
        best = similarity.topk(self.options.k).indices
        chosen = neighbours.expand_as(similarity).gather(2, best)
        return _aggregate_of(features, heads["aggregator"], chosen)

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """Which neighbours the teacher chose in the first global view.

        pixels (B, C, h, w), grid (2,), ids of neighbours (T, 8), their similarity and whether chosen (B, T, 8).
        """
        slot, features = next((slot, found) for slot, found in answers["tokens"].target.items() if is_global(slot))
        similarity, neighbours = neighbour_similarity(features)
        best = similarity.topk(self.options.k).indices
        return {
            "pixels": whole_cells(scene.views[slot], features.grid, self.around.patch),
            "grid": torch.tensor(features.grid),
            "neighbours": neighbours,
            "similarity": similarity,
            "chosen": torch.zeros_like(similarity).scatter_(2, best, 1.0),
        }


@lru_cache
def torus_neighbours(height: int, width: int) -> Tensor:
    """(T, 8) ids of the eight cells around each cell of a grid whose opposite borders touch, in ascending order (1.2).

    Both sides are at least 3: on smaller ones some of the eight are the same.
    """
    rows, columns = torch.arange(height), torch.arange(width)
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    ids = [(rows + y).remainder(height)[:, None] * width + (columns + x).remainder(width) for y, x in around]
    return torch.stack(ids, dim=-1).flatten(0, 1).sort(1).values


def neighbour_similarity(features: Features) -> tuple[Tensor, Tensor]:
    """(B, T, 8) cosines of un-normed tokens with their neighbours, float32 without gradient; (T, 8) neighbours' ids."""
    assert features.raw_patches is not None
    neighbours = send(torus_neighbours(*features.grid), features.raw_patches.device)
    unit = F.normalize(features.raw_patches.detach().float(), dim=-1)
    # One neighbour after the other: all eight at once would take eight times the memory of the tokens.
    cosines = [(unit * unit[:, ids]).sum(-1) for ids in neighbours.unbind(1)]
    return torch.stack(cosines, dim=-1), neighbours


def _aggregate_of(features: Features, aggregator: nn.Module, chosen: Tensor) -> Tensor:
    """(B, T, D) normed aggregates of the tokens that are chosen for each place, (B, T, n) ids."""
    raw = features.raw_patches
    assert raw is not None
    assert features.norm is not None
    images = torch.arange(len(raw), device=raw.device)[:, None, None]
    sets = raw[images, chosen]
    aggregates: Tensor = aggregator(sets.flatten(0, 1))
    return features.norm(aggregates.view(*chosen.shape[:2], -1))


def _aggregate(options: SelfPatchOptions, around: Surroundings) -> str:
    if options.aggregate is not None:
        return options.aggregate
    compares_views = isinstance(around.objective_options, tuple(FAMILIES))
    return "pool" if compares_views and not around.has_class_token else "patches"


def _rule(options: SelfPatchOptions, around: Surroundings) -> TokenLoss:
    """The loss of the objective's family, with prototypes and centre of the task's own."""
    settings = around.objective_options
    if isinstance(settings, DinoOptions):
        own = {"prototypes": int(options.prototypes), "center_momentum": options.center_momentum}
        settings = settings.model_copy(update=own)
    return token_loss(settings, around.patch_dim)


def _check(options: SelfPatchOptions, around: Surroundings) -> None:
    if "raw_patches" not in around.can:
        raise UserError(
            "task selfpatch: this backbone has no patch tokens before a final norm; take a vision transformer"
        )
    grids = [grid for slot, grid in around.grids.items() if is_global(slot)]
    if all(min(grid) < SMALLEST_SIDE for grid in grids):
        grid = max(grids, key=min)
        raise UserError(
            f"task selfpatch: a global view of {grid[0]} x {grid[1]} patches has no eight neighbours for each; it "
            "needs at least 3 x 3: make views.size larger or backbone.patch smaller"
        )
    if around.patch_dim % int(options.heads):
        raise UserError(
            f"task.selfpatch.heads={options.heads}: does not divide the backbone's width {around.patch_dim}"
        )
    if options.aggregate == "pool" and not plugins.load("objective", around.objective).has_pairs:
        raise UserError(
            f"task.selfpatch.aggregate=pool: objective {around.objective} compares no views whose global vectors the "
            "aggregator could give; take task.selfpatch.aggregate=patches"
        )
