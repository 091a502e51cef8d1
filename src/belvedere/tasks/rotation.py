"""Rotation: which way up is it? Four classes, the quarter turns.

The pretext task of Gidaris et al. (ICLR 2018), in the two forms of the methods that add it to a contrastive loss: SiT
turns the views that everybody trains on (arXiv:2104.03602, spec patch_and_pretext 4), ScatSimCLR classifies four turned
copies of every image in a forward of their own (ICCV workshops 2021, spec 5.2). Class k is k quarter turns clockwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.errors import UserError
from belvedere.objectives._heads import plain_mlp
from belvedere.objectives._options import Count, NotNegative
from belvedere.objectives.contract import is_global
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task
from belvedere.views.params import send
from belvedere.views.views import Views

TURNS = 4


class RotationOptions(BaseModel):
    """Settings of rotation; the defaults are SiT v1's but for the token."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: NotNegative = 1.0
    of: Literal["views", "copies"] = "views"
    """views: each global view is turned by its own angle, for all losses; copies: four further views, one a turn."""
    token: bool = False
    """Read a trained token of its own instead of the global vector (SiT v1 and v2)."""
    hidden: tuple[Count, ...] = ()
    """Widths of the head's hidden layers: none in SiT v1, [2048, 2048] in v2, [512, 128] in ScatSimCLR."""
    activation: Literal["gelu", "relu"] = "gelu"
    bias: bool = True
    """Whether the head's linear layers have one; not in SiT v2."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """After each hidden layer."""


class Rotation(Task):
    """Cross-entropy of the turn, read from the student's global vector or from a token of the task's own."""

    Options = RotationOptions

    def __init__(self, options: RotationOptions, around: Surroundings) -> None:
        """Build the head, and the token where it is wanted.

        Raises:
            UserError: when the views are not square: a quarter turn would show by the shape.
        """
        super().__init__(options, around)
        self.slots = tuple(slot for slot in around.sizes if is_global(slot))
        for slot in self.slots:
            height, width = around.sizes[slot]
            if height != width:
                raise UserError(
                    f"task rotation: views of {height} x {width} px have another shape after a quarter turn; make "
                    "views.size one number"
                )
        activation = {"gelu": nn.GELU, "relu": nn.ReLU}[options.activation]
        widths = [around.dim, *options.hidden, TURNS]
        self.head = plain_mlp(widths, activation, bias=options.bias, dropout=options.dropout)
        if options.token:
            self.extra_tokens = nn.Parameter(torch.empty(1, around.dim))
            nn.init.trunc_normal_(self.extra_tokens, std=0.02)

    def alter(self, scene: Scene) -> Views:
        """Turn each global view by its own angle.

        Masks of patches stay where they were drawn. The record of the views tells their boxes before the turn.
        """
        if self.options.of == "copies":
            return scene.views
        views = scene.views
        return views.replace(pixels={slot: turn(views[slot], self._drawn(scene, slot)) for slot in self.slots})

    def _drawn(self, scene: Scene, slot: str) -> Tensor:
        """(B,) the turn of each image's view."""
        drawn: Tensor = scene.integers(f"rotation {slot}", TURNS)
        return send(drawn, scene.views[slot].device)

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The views as the student sees them, or 4 B turned copies in one batch: turn 0 of all images, turn 1, ..."""
        if self.options.of == "views":
            return {"turned": Request(slots=self.slots, how="seen")}
        # Turned after augmentation: a flip after a quarter turn would make 90 and 270 degrees look alike. And all turns
        # in one forward: in four of them a BatchNorm would take out what tells the turns apart.
        fresh = scene.fresh(TURNS)
        turned = torch.cat([torch.rot90(views, -k, (-2, -1)) for k, views in enumerate(fresh)])
        return {"turned": Request(pixels={"copies": turned})}

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"turn": (B,)} weight x cross-entropy in nats, mean over an image's turned views; chance is ln 4."""
        logits, turns = self._answered(answers["turned"], scene)
        found = F.cross_entropy(logits.float(), turns, reduction="none")
        return {"turn": self.options.weight * found.view(-1, len(scene.views.params.index)).mean(0)}

    def _answered(self, answer: Answer, scene: Scene) -> tuple[Tensor, Tensor]:
        """(V * B, 4) logits and (V * B,) true turns of an image's V turned views, view after view."""
        logits = torch.cat([self.head(self._read(features)) for features in answer.student.values()])
        if self.options.of == "views":
            turns = torch.cat([self._drawn(scene, slot) for slot in answer.student])
        else:
            turns = torch.arange(TURNS, device=logits.device).repeat_interleave(len(logits) // TURNS)
        return logits, turns

    def _read(self, features: Features) -> Tensor:
        return features.prefix[:, -1] if self.options.token else features.cls

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"pixels": (V * B, C, h, w) turned views, "logits": (V * B, 4), "turns": (V * B,) the truth}."""
        logits, turns = self._answered(answers["turned"], scene)
        pixels = answers["turned"].request.pixels
        assert pixels is not None
        return {"pixels": torch.cat(list(pixels.values())), "logits": logits, "turns": turns}


def turn(pixels: Tensor, turns: Tensor) -> Tensor:
    """(B, C, s, s) pixels, each image turned clockwise by its own number of quarters (B,)."""
    turned = torch.stack([torch.rot90(pixels, -k, (-2, -1)) for k in range(TURNS)])
    return turned[turns, torch.arange(len(pixels), device=pixels.device)]
