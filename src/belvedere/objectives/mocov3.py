"""MoCo v3: queries of the student find the momentum encoder's key of the other view among those of the whole batch.

"An Empirical Study of Training Self-Supervised Vision Transformers", Chen, Xie and He, ICCV 2021, arXiv:2104.02057
(spec objectives 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from belvedere.derive import LARGE
from belvedere.distributed import gather_rows
from belvedere.errors import UserError
from belvedere.objectives._contrast import contrast, own_rows, similarities
from belvedere.objectives._ema import ema_update, paced_momentum
from belvedere.objectives._heads import MoCoHead, SiTHead
from belvedere.objectives._options import Auto, AutoOptions, Count, Positive, Share
from belvedere.objectives._pairs import every_global_from_every_other
from belvedere.objectives.contract import Embeddings, Objective, Output, Term, told
from belvedere.schedules import Clock, cosine


class MoCoV3Options(AutoOptions):
    """Settings of MoCo v3; the defaults are the paper's for a vision transformer."""

    temperature: Positive | Auto = "auto"
    hidden: Count | Auto = "auto"
    """Width of the hidden layers of projector and predictor."""
    out: int = Field(256, ge=1)
    layers: Count | Auto = "auto"
    """Linear layers of the projector."""
    predictor_norm: bool = True
    """End the predictor in a BatchNorm; the paper's ResNet does not."""
    head: Literal["mocov3", "sit"] = "mocov3"
    """sit: SiT v3's projector on both sides and no predictor (arXiv:2104.03602)."""
    momentum: Share | Auto = "auto"
    """m0 of the momentum encoder; rises to 1 on a cosine over the run."""


class MoCoV3(Objective):
    """InfoNCE between queries and momentum keys of the other view, both directions, no queue."""

    Options = MoCoV3Options
    has_teacher = True

    def __init__(self, options: MoCoV3Options, dim: int) -> None:
        """Keep the options.

        Raises:
            UserError: when an option is still "auto", or asks for a predictor of a head that has none.
        """
        super().__init__(options, dim)
        options.require_settled()
        if options.head == "sit" and not options.predictor_norm:
            raise UserError("objective.predictor_norm=false: SiT's head has no predictor; leave it out")

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """The paper's temperature; heads from the images and the backbone's width, momentum from the run's length."""
        few = facts.images < LARGE
        rules: dict[str, tuple[Any, str]] = {
            "temperature": (0.2, "the paper's for a transformer at every batch; not probed on few images"),
            "layers": (2, "as SimCLR v1, under 100,000 images") if few else (3, "the paper's"),
        }
        if few:
            rules["hidden"] = 1024, "under 100,000 images"
        elif facts.dim is not None:
            rules["hidden"] = min(4096, round(4096 * facts.dim / 384)), "4096 for the paper's 384-wide ViT-S and above"
        if facts.steps is not None:
            # 300 epochs at batch 4096; 800 at 256.
            paper = (0.996, 4_003_600) if options.get("head") == "sit" else (0.99, 93_750)
            rules["momentum"] = paced_momentum(facts.steps, *paper)
        return rules

    def make_head(self) -> nn.Module:
        """Features -> {"cls": (N, out)} queries, through projector and predictor."""
        o = self.options
        if o.head == "sit":
            return SiTHead(self.dim, int(o.hidden), o.out, int(o.layers))
        return MoCoHead(self.dim, int(o.hidden), o.out, int(o.layers), "norm" if o.predictor_norm else "bare")

    def make_target_head(self) -> nn.Module:
        """Features -> {"cls": (N, out)} keys, through the projector only."""
        o = self.options
        if o.head == "sit":
            return self.make_head()
        return MoCoHead(self.dim, int(o.hidden), o.out, int(o.layers), None)

    @torch.no_grad()
    def before_target(self, student: nn.Module, teacher: nn.Module | None, clock: Clock) -> None:
        """The momentum encoder moves before the keys, towards weights that this step has not updated yet (4.2)."""
        assert teacher is not None
        ema_update(student, teacher, self.momentum(clock))

    def momentum(self, clock: Clock) -> float:
        """m of this step: a cosine from m0 to 1 over all steps."""
        return cosine(clock.step, clock.total_steps, float(self.options.momentum), 1.0)

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """Unit queries of the own images, unit keys of all processes, gathered in one exchange, in rank order."""
        q = {slot: F.normalize(output["cls"].float(), dim=-1, eps=1e-12) for slot, output in online.items()}
        k = {slot: F.normalize(output["cls"].detach().float(), dim=-1, eps=1e-12) for slot, output in target.items()}
        keys, start = gather_rows(torch.stack(list(k.values()), dim=1))
        return Embeddings(
            online={slot: {"q": rows} for slot, rows in q.items()},
            target={slot: {"k": rows} for slot, rows in zip(k, keys.unbind(1), strict=True)},
            settings={"start": start, "momentum": self.momentum(clock)},
        )

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """Both directions in full, as the paper sums them; local views share the same total."""
        return every_global_from_every_other(slots, total=2.0)

    def pair_loss(self, e: Embeddings, target: str, source: str) -> Tensor:
        """(B,) 2T x cross-entropy of the own key among the target view's keys of all processes (4.1)."""
        q = e.online[source]["q"]
        temperature = float(self.options.temperature)
        logits = similarities(q, e.target[target]["k"]) / temperature
        own = own_rows(q, e.settings["start"])
        return 2 * temperature * F.cross_entropy(logits, own, reduction="none")

    def chance_loss(self, batch: int) -> float | None:
        """4T ln B: all keys are equally near."""
        return 4 * float(self.options.temperature) * math.log(batch)

    @torch.no_grad()
    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """Of the first view's queries: how often the own key is the nearest, and mean cosines; and m."""
        q, keys = next(iter(e.online.values()))["q"], list(e.target.values())[-1]["k"]
        own = own_rows(q, e.settings["start"])
        found = contrast(similarities(q, keys), own, float(self.options.temperature))
        return {**found, "momentum": told(e, "momentum", q)}
