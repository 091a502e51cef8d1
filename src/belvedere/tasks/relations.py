"""RelViT: from the output tokens alone, tell where every patch lies relative to every other one, and in the image.

"Where are my Neighbors? Exploiting Patches Relations in Self-Supervised Vision Transformer", Camporese et al., BMVC
2022, arXiv:2206.00481 (spec patch_and_pretext 3). With position embeddings the answers are all but given away, so the
tokens of a self-supervised network are read without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere.errors import UserError
from belvedere.tasks._patches import crop_and_recolour, mega_patches, random_cuts, replace_by_noise
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task

RELATIONS = ("LU", "CU", "RU", "LC", "CC", "RC", "LD", "CD", "RD")
"""Left, centre, right; up, centre, down: "a is ... of b"."""
# Objectives that read the same forward as the task does: altered pixels are then those of the one view that is trained
# on. Beside any other objective altered pixels are a view of the task's own.
SINGLE_VIEW = ("none", "supervised")


class RelationsOptions(BaseModel):
    """Settings of RelViT; the defaults are the published scripts'."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float = Field(1.0, ge=0)
    """Of each of the losses."""
    relation: bool = True
    """Which of nine relations every two patches have."""
    absolute: bool = True
    """Which place of the grid every patch has."""
    distance: bool = False
    """How far every two patches are from each other."""
    angle: bool = False
    """Under which angle every two patches are seen from outside the image."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target of relation and absolute that is spread evenly over all classes."""
    pos_embed: bool | None = None
    """Whether the tokens are read with position embeddings; null: beside supervised training only."""
    augment: bool = False
    """Crop and recolour every patch by itself, so that neighbours no longer continue each other at their border."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Share of the patches replaced by noise."""
    mega: Literal[0] | Annotated[int, Field(ge=2)] = 0
    """Mega-patches: cut the image into so many uneven rows and columns (published: 5 or 6), each cell resized to a
    patch; 0 = off."""


# --- labels (3.1) -----------------------------------------------------------------------------------------------------


def places_of(grid: tuple[int, int]) -> Tensor:
    """(N, 2) int64 row and column of the N = h w patches of a grid, in their order."""
    return torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))


def relation_labels(places: Tensor) -> Tensor:
    """(N, N) int64 in 0..8, an index of `RELATIONS`: R[a, b] = 3 (1 + sgn(y_a - y_b)) + (1 + sgn(x_a - x_b))."""
    rows, columns = (places[:, None] - places[None]).sign().unbind(-1)
    return 3 * (1 + rows) + (1 + columns)


def distance_labels(places: Tensor) -> Tensor:
    """(N, N) Euclidean distances of places, scaled to [-1, 1]; -1 on the diagonal."""
    return _scaled((places[:, None] - places[None]).float().norm(dim=-1))


def angle_labels(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, N) angles between the patches as seen from half a grid above and to the left, scaled to [-1, 1]."""
    # In double precision, and cut off: of places that lie in one line the cosine would come out above 1.
    seen = places.double() + torch.tensor(grid) / 2
    length = seen.norm(dim=1)
    cosine = (seen @ seen.T) / (length[:, None] * length[None] + 1e-4)
    return _scaled(torch.acos(cosine.clamp(-1, 1)).fill_diagonal_(0)).float()


def _scaled(values: Tensor) -> Tensor:
    return 2 * values / values.max() - 1


# --- heads and losses (3.2, 3.3) --------------------------------------------------------------------------------------


class PairScores(nn.Module):
    """Scores of every two tokens, as an attention has them before its softmax; each head is one score."""

    def __init__(self, dim: int, heads: int) -> None:
        """Linears without bias from `dim` to floor(dim / heads) a head, for queries and for keys."""
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.query = nn.Linear(dim, heads * self.width, bias=False)
        self.key = nn.Linear(dim, heads * self.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, heads, N, N): q_a . k_b / sqrt(width)."""
        query, key = (
            linear(tokens).unflatten(-1, (self.heads, self.width)).transpose(1, 2) for linear in (self.query, self.key)
        )
        scores: Tensor = query @ key.transpose(-2, -1) / self.width**0.5
        return scores


class Relations(Task):
    """Cross-entropy of the relations of all pairs and of the places of all patches, and two regressions if wanted."""

    Options = RelationsOptions
    relation_targets: Tensor
    distance_targets: Tensor
    angle_targets: Tensor

    def __init__(self, options: RelationsOptions, around: Surroundings) -> None:
        """Build the heads that are switched on.

        Raises:
            UserError: where there is nothing to tell (no loss switched on, one patch, tokens too narrow), or patches
                and positions cannot be had as asked.
        """
        super().__init__(options, around)
        self.slot = next(iter(around.sizes))  # of a recipe with several views, the first global one
        _check(options, around, self.slot)
        self.with_positions = _with_positions(options, around)
        grid = (options.mega, options.mega) if options.mega else around.grids[self.slot]
        self.grid, places, dim = grid, places_of(grid), around.patch_dim
        if options.relation:
            self.relation = PairScores(dim, len(RELATIONS))
            self.register_buffer("relation_targets", relation_labels(places), persistent=False)
        if options.absolute:
            self.absolute = nn.Linear(dim, len(places))
        if options.distance:
            self.distance = PairScores(dim, 1)
            self.register_buffer("distance_targets", distance_labels(places), persistent=False)
        if options.angle:
            self.angle = PairScores(dim, 1)
            self.register_buffer("angle_targets", angle_labels(places, grid), persistent=False)

    @classmethod
    def replaces(cls, options: RelationsOptions, objective: str) -> bool:
        """Where patches are altered, and the objective reads one view."""
        return _alters(options) and objective in SINGLE_VIEW

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The first global view, altered patch by patch where that is switched on."""
        if not _alters(self.options):
            return {"tokens": Request(slots=(self.slot,), pos_embed=self.with_positions)}
        how: Literal["replace", "extra"] = "replace" if self.replaces(self.options, self.around.objective) else "extra"
        altered = {self.slot: self.altered(scene.views[self.slot], scene)}
        return {"tokens": Request(pixels=altered, how=how, pos_embed=self.with_positions)}

    @torch.no_grad()
    def altered(self, pixels: Tensor, scene: Scene) -> Tensor:
        """(B, C, h, w) pixels -> the same as mega-patches, each cropped and recoloured, some of them noise (3.4)."""
        options, patch = self.options, self.around.patch
        if options.mega:
            bounds = [
                random_cuts(scene, f"relations.{axis}", side, options.mega)
                for axis, side in zip(("rows", "columns"), self.around.grids[self.slot], strict=True)
            ]
            pixels = mega_patches(pixels, bounds[0], bounds[1], patch)
        if options.augment:
            pixels = crop_and_recolour(pixels, patch, scene, "relations", self.around.mean, self.around.std)
        if options.noise:
            pixels = replace_by_noise(pixels, patch, scene, "relations", options.noise)
        return pixels

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """`relation`, `absolute`, `distance`, `angle`: (B,) means over all pairs or patches, those switched on."""
        options, tokens = self.options, answers["tokens"].student[self.slot].patches
        losses: dict[str, Tensor] = {}
        if options.relation:
            losses["relation"] = self._classified(self.relation(tokens), self.relation_targets)
        if options.absolute:
            losses["absolute"] = self._classified(self.absolute(tokens).transpose(1, 2), self._own_places(tokens))
        if options.distance:
            losses["distance"] = _regressed(self.distance(tokens), self.distance_targets)
        if options.angle:
            losses["angle"] = _regressed(self.angle(tokens), self.angle_targets)
        return {name: options.weight * loss for name, loss in losses.items()}

    def _classified(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(B,) mean cross-entropy of (B, K, ...) logits with the same targets (...) in every image."""
        targets = targets.expand(len(logits), *targets.shape)
        smoothing = self.options.smoothing
        loss = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
        return loss.flatten(1).mean(1)

    @staticmethod
    def _own_places(tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device)

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """What was said and what is true, of the heads that there are.

        `confusion` (9, 9) how many pairs of each relation (row) were called which; `places` (h, w) share right;
        `distance` and `angle` (2, N N) the truth of every pair of patches, and what was said of it, mean over images.
        """
        tokens = answers["tokens"].student[self.slot].patches
        found: dict[str, Tensor] = {}
        if self.options.relation:
            said, truth = self.relation(tokens).argmax(1), self.relation_targets.expand(len(tokens), -1, -1)
            counts = torch.bincount((len(RELATIONS) * truth + said).flatten(), minlength=len(RELATIONS) ** 2)
            found["confusion"] = counts.view(len(RELATIONS), len(RELATIONS))
        if self.options.absolute:
            right = self.absolute(tokens).argmax(-1) == self._own_places(tokens)
            found["places"] = right.float().mean(0).view(self.grid)
        for name in ("distance", "angle"):
            if getattr(self.options, name):
                scores, truth = getattr(self, name)(tokens).squeeze(1).float(), getattr(self, f"{name}_targets")
                found[name] = torch.stack([truth.flatten(), scores.mean(0).flatten()])
        return found


def _regressed(scores: Tensor, targets: Tensor) -> Tensor:
    """(B,) mean squared error of one score a pair (B, 1, N, N)."""
    return (scores.squeeze(1).float() - targets).square().mean((1, 2))


def _alters(options: RelationsOptions) -> bool:
    """Whether patches are altered before they are read."""
    return bool(options.mega or options.augment or options.noise)


# --- what makes sense where -------------------------------------------------------------------------------------------


def _check(options: RelationsOptions, around: Surroundings, slot: str) -> None:
    """Refuse settings under which there is nothing to learn.

    Raises:
        UserError: naming the setting.
    """
    grid, size = around.grids[slot], around.sizes[slot]
    if not (options.relation or options.absolute or options.distance or options.angle):
        raise UserError("task.relations: none of relation, absolute, distance and angle is on; switch one on")
    if grid[0] * grid[1] < 2:
        raise UserError("task.relations: one patch has no relations; use a smaller backbone.patch or larger views.size")
    if options.relation and around.patch_dim < len(RELATIONS):
        raise UserError(f"task.relations: nine relations need tokens of width 9 or more, these have {around.patch_dim}")
    if options.mega and around.patch_dim != around.dim:
        raise UserError("task.relations.mega: this network has the same grid at any size; take a transformer")
    if options.mega > min(grid):
        raise UserError(f"task.relations.mega={options.mega}: the view has {grid[0]} x {grid[1]} patches only")
    if _alters(options) and (size[0] % around.patch or size[1] % around.patch):
        raise UserError(
            f"task.relations: mega, augment and noise work on whole patches, and patches of {around.patch} px do not "
            f"fill views of {size[0]} x {size[1]}; change views.size"
        )


def _with_positions(options: RelationsOptions, around: Surroundings) -> bool:
    """The `pos_embed` of the request; what has no positions is asked as the objective asks, to share its forward.

    Raises:
        UserError: when the option asks for what the backbone cannot do.
    """
    if options.pos_embed is False and "pos_embed" not in around.can:
        raise UserError("task.relations.pos_embed=false: this backbone cannot leave its positions out; leave it unset")
    if options.pos_embed is True and not around.has_positions:
        raise UserError("task.relations.pos_embed=true: this backbone has no position embeddings; leave it unset")
    if around.objective == "none" and around.has_positions and options.pos_embed is None:
        raise UserError(
            "task relations alone trains a network that has no position embeddings: add backbone.pos_embed=false, as "
            "--recipe relvit does, or task.relations.pos_embed=true"
        )
    wanted = around.objective == "supervised" if options.pos_embed is None else options.pos_embed
    return wanted or not around.has_positions
