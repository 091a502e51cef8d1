"""A toy world for the learned policy: photographs, a frozen network, and a step as the trainer does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.schedules import Clock
from belvedere.views.params import ViewParams
from belvedere.views.policies._retention import retrieval_loss
from belvedere.views.policies.learned import Learned
from belvedere.views.render import render_views
from belvedere.views.slots import Slot
from belvedere.views.views import Views
from tiny import tiles

SIDE = 12
# The whole image, so that a view differs from its image by the operations alone.
WHOLE = Slot("global_a", (SIDE, SIDE), (1.0, 1.0), (1.0, 1.0), flip=0)
CROPS = (Slot("global_a", (SIDE, SIDE), (0.4, 1.0)), Slot("global_b", (SIDE, SIDE), (0.4, 1.0)))
MIDDLE = Clock(50, 10, 100)


def make(slots: tuple[Slot, ...] = CROPS, channels: int = 3, **options: Any) -> Learned:
    return Learned(Learned.Options(**options), slots, channels)


@dataclass
class World:
    """Photographs, and a frozen network whose loss is how far a view is from a target that grows on no operation."""

    images: Tensor
    weights: Tensor

    @classmethod
    def of(cls, count: int) -> World:
        images = torch.from_numpy(tiles(count, (SIDE, SIDE)))
        weights = torch.randn(3 * SIDE * SIDE, 24, generator=torch.Generator().manual_seed(1)) / SIDE
        return cls(images, weights)

    def render_of(self, policy: Learned) -> Callable[..., Views]:
        def render(params: ViewParams, scale: float = 1.0) -> Views:
            return render_views(
                self.images[params.index], params, mean=(0.5,) * 3, std=(0.25,) * 3, program=policy.program
            )

        return render

    def features(self, pixels: Tensor) -> Tensor:
        return F.relu(pixels.flatten(1) @ self.weights.to(pixels.dtype))

    def embed(self, views: Views) -> Tensor:
        return torch.stack([self.features(views[slot]) for slot in views.names])

    def step(self, policy: Learned, clock: Clock, draws: int, loss: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """What the trainer does of a step, for a network that stays as it is."""
        count = len(self.images)
        policy.begin_step(clock)
        params = policy.propose(range(count), [(SIDE, SIDE)] * count, epoch=draws, seed=0)
        render = self.render_of(policy)
        views = render(params)
        regulariser = policy.regulariser(views, render, self.features)
        z = {slot: self.features(policy.adversary(views[slot])) for slot in views.names}
        per_image = loss(z)
        if regulariser is not None:
            ((per_image.sum() + regulariser) / count).backward()
        policy.observe(per_image.detach(), params, {slot: found.detach() for slot, found in z.items()})
        policy.end_step()


def with_lambda(policy: Learned, value: float) -> Learned:
    policy.load_state_dict({**policy.state_dict(), "lambda": value})
    return policy


def distance(z: dict[str, Tensor]) -> Tensor:
    """A loss of an image alone, with operations that raise and operations that lower it."""
    return (z["global_a"] ** 2).mean(1)


def contrast_loss(z: dict[str, Tensor]) -> Tensor:
    """InfoNCE of two views."""
    return retrieval_loss(z["global_a"], z["global_b"])
