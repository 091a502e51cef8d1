"""Supervised classification: cross-entropy of a linear layer on the global vector with the images' labels.

As every vision transformer is fine-tuned; RelViT's downstream stage, and beside the task `relations` its joint training
("Where are my Neighbors? Exploiting Patches Relations in Self-Supervised Vision Transformer", Camporese et al., BMVC
2022, arXiv:2206.00481; spec patch_and_pretext 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.errors import UserError
from belvedere.objectives._mixing import mix
from belvedere.objectives._options import Auto, AutoOptions
from belvedere.objectives.contract import Embeddings, Objective, Output, Term
from belvedere.schedules import Clock
from belvedere.views.views import Views

# Of MoCo v3's transfers the smallest set (Flowers, 2,040 images) is fine-tuned without mixing, the next one (Pets,
# 3,680) with half of it; mixed images are harder, which a short run does not catch up with.
FEWEST_TO_MIX, SHORTEST_TO_MIX = 5_000, 20
MIXUP, CUTMIX = 0.8, 1.0


class SupervisedOptions(AutoOptions):
    """Settings of the classification."""

    classes: Annotated[int, Field(ge=2)] | Auto = "auto"
    """Outputs of the linear layer."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
    mixup: Annotated[float, Field(ge=0)] | Auto = 0.0
    """Alpha of the Beta law of the shares in which two images are added up; 0 = off."""
    cutmix: Annotated[float, Field(ge=0)] | Auto = 0.0
    """Alpha of the Beta law of the share that a piece of another image takes; 0 = off."""


class Classifier(nn.Module):
    """A linear layer on the global vector, drawn as the transformer's own."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Output:
        """{"cls": (N, classes)} logits."""
        return {"cls": self.linear(features.cls)}


class Supervised(Objective):
    """Every view is classified; an image's loss is the mean over its views, 0 for an image without label."""

    Options = SupervisedOptions
    has_pairs: ClassVar[bool] = False

    def __init__(self, options: SupervisedOptions, dim: int) -> None:
        """Keep the options.

        Raises:
            UserError: when an option is still "auto".
        """
        super().__init__(options, dim)
        options.require_settled()

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """One output a class; mixing where there are images and epochs enough for it.

        Raises:
            UserError: when the images have no labels, one class only, or more classes than the option says.
        """
        if facts.classes < 2:
            found = "have no labels" if facts.classes == 0 else "are all of one class"
            raise UserError(
                f"objective supervised learns from labels, and the images {found}: sort them into one folder a class, "
                "or give images.labels=FILE.csv with the columns path,label"
            )
        given = options.get("classes", "auto")
        if given != "auto" and given < facts.classes:
            raise UserError(f"objective.classes={given}: the labels have {facts.classes} classes; leave it out")
        mixup, cutmix, why = MIXUP, CUTMIX, "DeiT's, as MoCo v3's transfers have it"
        if facts.images < FEWEST_TO_MIX:
            mixup, cutmix, why = 0.0, 0.0, f"off under {FEWEST_TO_MIX:,} images, as MoCo v3 on Flowers"
        elif facts.epochs is not None and facts.epochs < SHORTEST_TO_MIX:
            mixup, cutmix, why = 0.0, 0.0, f"off under {SHORTEST_TO_MIX} epochs, which mixed images need more of"
        return {
            "classes": (facts.classes, "the labels' classes"),
            "mixup": (mixup, why),
            "cutmix": (cutmix, why),
        }

    def make_head(self) -> nn.Module:
        """Features -> {"cls": (N, classes)} logits."""
        return Classifier(self.dim, int(self.options.classes))

    def mixed(self, views: Views, labels: Tensor | None) -> tuple[Views, Tensor | None]:
        """Every image with another one of the batch, where `mixup` or `cutmix` is on; labels are then (B, classes)."""
        mixup, cutmix = float(self.options.mixup), float(self.options.cutmix)
        if labels is None or not (mixup or cutmix):
            return views, labels
        return mix(views, labels, int(self.options.classes), mixup, cutmix)

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """Logits and labels, -1 for an image without one, or the (B, classes) shares of mixed images."""
        return Embeddings(online=online, target={}, labels=labels)

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """None: no view is compared with another."""
        return []

    def view_loss(self, e: Embeddings, view: str) -> Tensor:
        """(B,) cross-entropy over the number of views."""
        assert e.labels is not None
        if e.labels.ndim == 2:
            # What is spread is a share of what an image has of labels, which may be none.
            smoothing = self.options.label_smoothing
            target = (1 - smoothing) * e.labels + smoothing * e.labels.mean(1, keepdim=True)
            return F.cross_entropy(e.online[view]["cls"].float(), target, reduction="none") / len(e.online)
        loss = F.cross_entropy(
            e.online[view]["cls"].float(),
            e.labels,
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.options.label_smoothing,
        )
        return loss / len(e.online)

    def chance_loss(self, batch: int) -> float | None:
        """ln of the number of classes: all are equally likely."""
        return math.log(int(self.options.classes))

    @torch.no_grad()
    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """Share of the labelled images of the micro-batch whose class is the most likely, over all views."""
        assert e.labels is not None
        if e.labels.ndim == 2:  # a mixed image has no one right class
            return {}
        labelled = e.labels >= 0
        right = torch.stack([output["cls"].argmax(1) == e.labels for output in e.online.values()])
        return {"accuracy": right[:, labelled].float().mean()} if labelled.any() else {}
