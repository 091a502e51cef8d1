"""What the protocols share that train a pyramid and its heads with the network: options, images, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone
from belvedere.errors import UserError
from belvedere.evaluate.protocols.finetune import ADDED, copy_of, lacks_positions
from belvedere.evaluate.pyramid import Pyramid
from belvedere.images.canvases import Canvases
from belvedere.measure.dense import ENLARGED, dense_size, whole_patches
from belvedere.measure.encoder import Encoder

WARMUP = 1000
"""Most steps that the learning rate rises over; no more than a tenth of the run."""
SIZES = 0.75, 1.25
"""Range of the size of a training image, over that in which it is tested."""
BARE = ("*pos_embed", "*cls_token", "*reg_token", "*mask_token", "*relative_position_bias_table")
"""Parameters that are not decayed, beside norms and biases."""
# Does the backward pass of the images `rows` and returns their losses.
Backward = Callable[[NDArray[np.int64], np.random.Generator], list[float]]


class Options(BaseModel):
    """How network and heads are trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int = Field(12, ge=1)
    batch: int = Field(4, ge=1)
    lr: float = Field(5e-5, gt=0)
    decay: float = Field(0.05, ge=0)
    """Weight decay of AdamW."""
    drop_path: float = Field(0.05, ge=0, lt=1)
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Channels of pyramid and heads; null is 256, and 64 on a CPU."""
    frozen: bool = False
    """Train pyramid and heads only."""
    enlarged: float = Field(ENLARGED, gt=0, le=ENLARGED)
    """Short side of the images, over the training size of the network."""

    def width_on(self, device: torch.device | str) -> int:
        """`width`, or what null means."""
        return self.width or (64 if torch.device(device).type == "cpu" else 256)


@dataclass(frozen=True)
class Scenes:
    """Whole images as the network reads them; `encoder` gives sizes and normalisation, `enlarged` see `Options`.

    `mirrored`: whether half of them are mirrored in training.
    """

    canvases: Canvases
    encoder: Encoder
    enlarged: float
    device: torch.device | str
    mirrored: bool = field(default=True, kw_only=True)

    def __len__(self) -> int:
        return len(self.canvases)

    def pixels(self, i: int, scale: float = 1.0) -> Tensor:
        """(1, C, H, W) normalised pixels of the whole image i, at so many times its usual size."""
        image = torch.from_numpy(self.canvases.pixels(i).copy())[None].to(self.device)
        height, width = dense_size(self.encoder, (image.shape[1], image.shape[2]), self.enlarged)
        return self.encoder.preprocess_whole(image, whole_patches(self.encoder, height * scale, width * scale))


def pyramid_on(scenes: Scenes, at: Sequence[float], options: Options, seed: int) -> Pyramid:
    """A pyramid on a copy of the network that reads the images; `at` see `Pyramid`.

    A transformer that was trained without position embeddings gets fresh ones, unless it is frozen.
    """
    copied = copy_of(scenes.encoder.backbone, options.drop_path, seed, positions=not options.frozen)
    if options.frozen:
        copied.requires_grad_(False)
    return Pyramid(copied, options.width_on(scenes.device), at)


def positions_told(backbone: Backbone, options: Options) -> dict[str, str]:
    """For a result's settings: that position embeddings were added, where they were."""
    return {"positions": ADDED} if lacks_positions(backbone) and not options.frozen else {}


def fit(network: nn.Module, images: int, options: Options, seed: int, name: str, backward: Backward) -> list[float]:
    """Train a network that holds a pyramid; the mean loss of every epoch.

    Args:
        images: how many there are.
        name: of the protocol, for messages.

    Raises:
        UserError: when there was nothing to learn from, or the loss is not finite.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, Pyramid):
            module.keep_statistics()
    groups = param_groups_weight_decay(network, options.decay, no_weight_decay_list=BARE)
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    schedule = scheduled(optimizer, -(-images // options.batch), options.epochs)
    rng = np.random.default_rng(seed)
    losses = []
    for _ in range(options.epochs):
        told: list[float] = []
        for rows in batches_of(images, options.batch, rng):
            optimizer.zero_grad(set_to_none=True)
            told += backward(rows, rng)
            optimizer.step()
            schedule.step()
        if not told:
            raise UserError(f"{name}: nothing is labelled in the training images: there is nothing to learn from")
        if not np.isfinite(told).all():
            raise UserError(f"{name}: the loss is not finite; give a smaller {name}.lr")
        losses.append(float(np.mean(told)))
    network.eval()
    return losses


def batches_of(images: int, batch: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """All images once, in a random order."""
    order = rng.permutation(images)
    yield from np.array_split(order, range(batch, images, batch))


def scheduled(
    optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then a tenth after two thirds of the epochs and a hundredth after eleven twelfths."""
    warmup = min(WARMUP, max(1, steps_per_epoch * epochs // 10))
    drops = [round(epochs * share) * steps_per_epoch for share in (8 / 12, 11 / 12)]

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.1 ** sum(0 < drop <= step for drop in drops)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
