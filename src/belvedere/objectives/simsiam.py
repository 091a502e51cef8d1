"""SimSiam: predict one view's projection from the other's, with a stop-gradient on the target; no negatives, no EMA.

"Exploring Simple Siamese Representation Learning", Chen and He, CVPR 2021, arXiv:2011.10566 (spec objectives 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from belvedere.objectives._heads import SimSiamHead
from belvedere.objectives._options import Auto, AutoOptions, Count
from belvedere.objectives._pairs import every_global_from_every_other
from belvedere.objectives.contract import Embeddings, Objective, Output, Term
from belvedere.schedules import Clock

WIDTH = 2048
"""Of the paper's projector, which is that of its ResNet-50."""


class SimSiamOptions(AutoOptions):
    """Settings of SimSiam; the defaults are the paper's."""

    hidden: Count | Auto = "auto"
    """Width of the projector's hidden layers."""
    out: Count | Auto = "auto"
    """Width of projections and predictions."""
    bottleneck: Count | Auto = "auto"
    """Width of the predictor's hidden layer."""
    layers: int = Field(3, ge=1)
    """Linear layers of the projector."""
    stop_gradient: bool = True
    """False lets the gradient reach the target: the paper's experiment that collapses (its section 4.1)."""


class SimSiam(Objective):
    """Negative cosine between the prediction from one view and the projection of another."""

    Options = SimSiamOptions
    # A predictor that keeps adapting is what the targets stay useful with (spec 3.3).
    fixed_lr = ("head.predictor",)
    below_zero = True

    def __init__(self, options: SimSiamOptions, dim: int) -> None:
        """Make it.

        Raises:
            UserError: when an option is still "auto".
        """
        super().__init__(options, dim)
        options.require_settled()

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """Widths of the heads, which do not shrink with the backbone (docs/benchmarks.md has the probes)."""
        out = WIDTH if options.get("out", "auto") == "auto" else int(options["out"])
        return {
            "hidden": (WIDTH, "the paper's at every size: as narrow as a backbone of 192 it learned less"),
            "out": (WIDTH, "the paper's at every size: narrower ones lost rank"),
            "bottleneck": (max(1, out // 4), "a quarter of objective.out, as the paper's"),
        }

    def make_head(self) -> nn.Module:
        """Features -> {"z": projections, "p": predictions}, (N, out) each, not normalised."""
        o = self.options
        return SimSiamHead(self.dim, int(o.hidden), int(o.out), o.layers, int(o.bottleneck))

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """Predictions and projections in float32; what is a target passes no gradient."""
        stop = self.options.stop_gradient
        z = {slot: output["z"].float() for slot, output in online.items()}
        return Embeddings(
            online={slot: {"p": output["p"].float()} for slot, output in online.items()},
            target={slot: {"z": rows.detach() if stop else rows} for slot, rows in z.items()},
        )

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """Every global view predicted from every other view: 1/2 a direction with two views."""
        return every_global_from_every_other(slots)

    def pair_loss(self, e: Embeddings, target: str, source: str) -> Tensor:
        """(B,) -cos(p, sg z) (spec 3.1), in [-1, 1]."""
        return -F.cosine_similarity(e.online[source]["p"], e.target[target]["z"], dim=-1)

    def chance_loss(self, batch: int) -> float | None:
        """0: a prediction that has nothing to do with its target."""
        return 0.0

    @torch.no_grad()
    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """Spread of normalised projections and predictions: sqrt(d) x mean std, 0 once collapsed (3.4).

        A BatchNorm at the projector's end keeps every dimension spread while all of them come to say the same, so the
        directions in which projections spread are counted too (their participation ratio, 1 to the rows of the batch).
        """
        z = torch.cat([output["z"] for output in e.target.values()])
        return {
            "projection_std": _spread(z),
            "projection_rank": _directions(z),
            "prediction_std": _spread(torch.cat([output["p"] for output in e.online.values()])),
        }


def _spread(rows: Tensor) -> Tensor:
    return math.sqrt(rows.shape[1]) * F.normalize(rows, dim=-1).std(0).mean()


def _directions(rows: Tensor) -> Tensor:
    rows = F.normalize(rows, dim=-1)
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    return gram.trace().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny)
