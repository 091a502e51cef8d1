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
from belvedere.objectives._erasing import erase
from belvedere.objectives._mixing import mix
from belvedere.objectives._options import Auto, AutoOptions, Positive, require_labels
from belvedere.objectives.contract import Embeddings, Objective, Output, Term
from belvedere.schedules import Clock
from belvedere.views.views import Views

# Mixup and cutmix of MoCo v3's transfers, from so many training images on; from the last on they are DeiT's, too.
TRANSFERS = (
    (0, 0.0, 0.0, "as MoCo v3 on Flowers, 2,040 images"),
    (3_680, 0.8, 0.0, "as MoCo v3 on Pets, 3,680 images"),
    (50_000, 0.8, 1.0, "as MoCo v3 on CIFAR-10, 50,000 images, and DeiT"),
)
# DeiT's on ImageNet, MoCo v3's on Flowers.
ERASING = 0.25
# Altered images take longer to learn; the shortest published training on them is MAE's of ViT-L, 50 epochs
# (arXiv:2111.06377, appendix A.1).
SHORTEST_TO_ALTER = 50


class SupervisedOptions(AutoOptions):
    """Settings of the classification."""

    classes: Annotated[int, Field(ge=2)] | Auto = "auto"
    """Outputs of the linear layer."""
    class_weights: tuple[Positive, ...] | Auto | None = None
    """Weight of each class in the loss; null = images count alike, auto = classes do, however few images they have."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes."""
    mixup: Annotated[float, Field(ge=0)] | Auto = 0.0
    """Alpha of the Beta law of the shares in which two images are added up; 0 = off."""
    cutmix: Annotated[float, Field(ge=0)] | Auto = 0.0
    """Alpha of the Beta law of the share that a piece of another image takes; 0 = off."""
    erasing: Annotated[float, Field(ge=0, le=1)] | Auto = 0.0
    """Probability that a rectangle of a view is erased."""


def balanced(sizes: Sequence[int], spare: int = 0) -> tuple[float, ...]:
    """Weights with which every class that has images counts alike and an image counts 1 in the mean.

    Args:
        sizes: images of each class.
        spare: further classes, without any.
    """
    share = sum(sizes) / max(1, sum(size > 0 for size in sizes))
    return tuple(float(f"{share / size:.4g}") if size else 1.0 for size in (*sizes, *(0,) * spare))


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
            UserError: when an option is still "auto", or there are not as many weights as classes.
        """
        super().__init__(options, dim)
        options.require_settled()
        weights = options.class_weights
        if weights is not None and len(weights) != options.classes:
            raise UserError(f"objective.class_weights: has length {len(weights)}, for {options.classes} classes")
        self.weights: Tensor | None
        self.register_buffer("weights", None if weights is None else torch.tensor(weights), persistent=False)

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """One output a class; images are mixed and erased where there are images and epochs enough for it.

        Raises:
            UserError: when the images have no labels, one class only, or more classes than the option says.
        """
        require_labels("supervised", facts)
        given = options.get("classes", "auto")
        if given != "auto" and given < facts.classes:
            raise UserError(f"objective.classes={given}: the labels have {facts.classes} classes; leave it out")
        spare = 0 if given == "auto" else given - facts.classes
        _, mixup, cutmix, why = next(one for one in reversed(TRANSFERS) if facts.images >= one[0])
        erasing = ERASING, "DeiT's"
        if facts.epochs is not None and facts.epochs < SHORTEST_TO_ALTER:
            why = f"off under {SHORTEST_TO_ALTER} epochs, the fewest that papers alter images in (MAE)"
            mixup, cutmix, erasing = 0.0, 0.0, (0.0, why)
        return {
            "classes": (facts.classes, "the labels' classes"),
            "class_weights": (balanced(facts.class_sizes, spare), "images over classes over the class's images"),
            "mixup": (mixup, why),
            "cutmix": (cutmix, why),
            "erasing": erasing,
        }

    def make_head(self) -> nn.Module:
        """Features -> {"cls": (N, classes)} logits."""
        return Classifier(self.dim, int(self.options.classes))

    def mixed(self, views: Views, labels: Tensor | None) -> tuple[Views, Tensor | None]:
        """Views with a rectangle erased, then mixed with another image's, as far as these are on.

        Labels of mixed images are (B, classes).
        """
        mixup, cutmix, erasing = (float(x) for x in (self.options.mixup, self.options.cutmix, self.options.erasing))
        views = erase(views, erasing) if erasing else views
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
            logits = e.online[view]["cls"].float()
            return F.cross_entropy(logits, target, self.weights, reduction="none") / len(e.online)
        loss = F.cross_entropy(
            e.online[view]["cls"].float(),
            e.labels,
            self.weights,
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
