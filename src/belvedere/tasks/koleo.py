"""KoLeo beside any objective: the global vectors of each global view are spread over the sphere.

As DINOv2 adds it to its class tokens (arXiv:2304.07193; spec patch_and_pretext 6): for each crop by itself, weight 0.1.
Over the joined batch of all processes, where DINOv2 takes each device's own: a run does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from belvedere.distributed import gather_rows
from belvedere.objectives._contrast import own_rows
from belvedere.objectives._koleo import EPS, koleo
from belvedere.objectives._options import NotNegative
from belvedere.objectives.contract import is_global
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task


class KoleoOptions(BaseModel):
    """Settings of the regulariser; the default is DINOv2's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: NotNegative = 0.1


class Koleo(Task):
    """-log distance of an image's global vector to the nearest of the batch, summed over the global views."""

    Options = KoleoOptions
    below_zero = True

    def __init__(self, options: KoleoOptions, around: Surroundings) -> None:
        """Keep the options; nothing is trained here."""
        super().__init__(options, around)
        self.slots = tuple(slot for slot in around.sizes if is_global(slot))

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The global views as the student sees them."""
        return {"views": Request(slots=self.slots, how="seen")}

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"spread": (B,)} weight x KoLeo."""
        vectors = [answers["views"].student[slot].cls.float() for slot in self.slots]
        z = F.normalize(torch.stack(vectors, dim=1), dim=-1, eps=EPS)
        pool, start = gather_rows(z)
        each = [koleo(own, all_, own_rows(own, start)) for own, all_ in zip(z.unbind(1), pool.unbind(1), strict=True)]
        return {"spread": self.options.weight * torch.stack(each).sum(0)}
