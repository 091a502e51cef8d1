"""Supervised metric learning: images of one class are drawn together, others pushed below a margin, and all spread.

"Training Vision Transformers for Image Retrieval", El-Nouby et al., 2021, arXiv:2102.05644 (IRT; spec patch_and_pretext
6), with the memory of past embeddings of "Cross-Batch Memory for Embedding Learning", Wang et al., CVPR 2020,
arXiv:1912.06798 (XBM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.distributed import gather_rows
from belvedere.objectives._contrast import own_rows, similarities
from belvedere.objectives._koleo import koleo
from belvedere.objectives._options import Auto, AutoOptions, NotNegative, require_labels
from belvedere.objectives.contract import Embeddings, Objective, Output, Term
from belvedere.schedules import Clock

UNKNOWN = -1


class ContrastiveMetricOptions(AutoOptions):
    """Settings of the loss; the defaults are the paper's for category retrieval."""

    margin: float = Field(0.5, ge=-1, le=1)
    """Beta: cosine from which on images of different classes repel each other."""
    memory: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Embeddings of past batches that the batch is compared with as well; 0 = off."""
    koleo: NotNegative = 0.7
    """Lambda: weight of the entropy regulariser; 0 = off, 3 to 4 was best for particular objects."""


class UnitClass(nn.Module):
    """The global vector at length 1; nothing is trained here."""

    def forward(self, features: Features) -> Output:
        """{"cls": (N, D)} float32 unit vectors."""
        return {"cls": F.normalize(features.cls.float(), dim=-1)}


def contrastive(z: Tensor, labels: Tensor, others: Tensor, classes: Tensor, margin: float) -> Tensor:
    """(B,) sum over the others of 1 - cosine in one class, and of cosine - margin, where positive, in different ones.

    Args:
        z, others: (B, D) and (M, D) unit vectors.
        labels, classes: (B,) and (M,) their classes; what has none (-1) neither attracts nor repels.
    """
    cosines = similarities(z, others)
    same = labels.unsqueeze(1) == classes
    known = (labels.unsqueeze(1) != UNKNOWN) & (classes != UNKNOWN)
    return (torch.where(same, 1 - cosines, (cosines - margin).clamp(min=0)) * known).sum(1)


class ContrastiveMetric(Objective):
    """Contrastive loss over batch and memory plus lambda x KoLeo; an image's loss is the mean over its views."""

    Options = ContrastiveMetricOptions
    has_pairs: ClassVar[bool] = False
    below_zero: ClassVar[bool] = True
    memory: Tensor
    memory_labels: Tensor
    next: Tensor

    def __init__(self, options: ContrastiveMetricOptions, dim: int) -> None:
        """Make the empty memory.

        Raises:
            UserError: when an option is still "auto".
        """
        super().__init__(options, dim)
        options.require_settled()
        size = int(options.memory)
        self.register_buffer("memory", torch.zeros(size, dim))
        self.register_buffer("memory_labels", torch.full((size,), UNKNOWN))
        self.register_buffer("next", torch.tensor(0))
        # Embeddings of the step's micro-batches, the same on all processes; remembered when the step is done.
        self._seen: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """A memory of the training set's size.

        Raises:
            UserError: when the images have no labels, or one class only.
        """
        require_labels("contrastive_metric", facts)
        return {"memory": (facts.images, "the number of training images, as the paper's")}

    def make_head(self) -> nn.Module:
        """Features -> {"cls": (N, D)} unit vectors."""
        return UnitClass()

    def before_target(self, student: nn.Module, teacher: nn.Module | None, clock: Clock) -> None:
        """Forget what a step that was skipped has seen."""
        self._seen.clear()

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """Unit vectors and labels of the own images, and those of all processes."""
        assert labels is not None
        z = {slot: output["cls"].float() for slot, output in online.items()}
        pool, start = gather_rows(torch.stack(list(z.values()), dim=1))
        classes = gather_rows(labels)[0]
        if torch.is_grad_enabled():
            self._seen.append((pool.detach().flatten(0, 1), classes.repeat_interleave(len(z))))
        return Embeddings(
            online={slot: {"z": rows} for slot, rows in z.items()},
            target={slot: {"pool": rows, "classes": classes} for slot, rows in zip(z, pool.unbind(1), strict=True)},
            settings={"start": start},
            labels=labels,
        )

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """None: images are compared with each other, not views of one image."""
        return []

    def view_loss(self, e: Embeddings, view: str) -> Tensor:
        """(B,) of one view of each image against all views of the batch, the memory and its nearest neighbour."""
        z, labels, options = e.online[view]["z"], e.labels, self.options
        assert labels is not None
        candidates = [(found["pool"], found["classes"]) for found in e.target.values()]
        candidates.append((self.memory, self.memory_labels))
        loss = torch.stack([contrastive(z, labels, *others, options.margin) for others in candidates]).sum(0)
        if options.koleo:
            loss = loss + options.koleo * koleo(z, e.target[view]["pool"], own_rows(z, e.settings["start"]))
        return loss / len(e.online)

    def after_step(
        self, student: nn.Module, teacher: nn.Module | None, clock: Clock, stats: Mapping[str, Tensor]
    ) -> None:
        """Remember the step's embeddings."""
        for z, labels in self._seen:
            self.remember(z, labels)
        self._seen.clear()

    @torch.no_grad()
    def remember(self, z: Tensor, labels: Tensor) -> None:
        """Put rows into the memory as XBM's code does: those that do not fit behind the last take the end's place.

        Args:
            z: (n, D) unit vectors.
            labels: (n,) their classes.
        """
        size = len(self.memory)
        if not size:
            return
        z, labels = z[-size:], labels[-size:]
        place = self.next.clamp(max=size - len(z))
        rows = place + torch.arange(len(z), device=z.device)
        self.memory.index_copy_(0, rows, z)
        self.memory_labels.index_copy_(0, rows, labels)
        self.next.copy_((place + len(z)) % size)

    @torch.no_grad()
    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """Of the first view: mean cosines within and between classes, and mean distance to the nearest neighbour."""
        view = next(iter(e.online))
        z, pool, classes = e.online[view]["z"], e.target[view]["pool"], e.target[view]["classes"]
        assert e.labels is not None
        own = own_rows(z, e.settings["start"])
        cosines = similarities(z, pool)
        other = torch.ones_like(cosines, dtype=torch.bool).scatter(1, own.unsqueeze(1), False)
        same = (e.labels.unsqueeze(1) == classes) & (classes != UNKNOWN)
        found = {"nearest_distance": torch.exp(-koleo(z, pool, own)).mean()}
        for name, pairs in (("positive_cosine", same & other), ("negative_cosine", ~same & other)):
            if pairs.any():
                found[name] = cosines[pairs].mean()
        return found
