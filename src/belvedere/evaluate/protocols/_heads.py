"""Linear classifiers trained side by side on one set of features: one head for every reading and learning rate.

The heads share nothing but the order of the images, so each learns as if it were alone; together they cost little more
than one (DINOv2, arXiv:2304.07193). What they learn from is either there before, or made batch by batch (`Draw`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from belvedere.pretrain.optim import Lars
from belvedere.views.slots import Interpolation

Draw = Callable[[int, NDArray[np.int64]], Tensor]
"""(epoch, rows) -> (n, D) features of these images to learn from in this epoch, on the device that trains."""


class Setting(NamedTuple):
    """What one head differs from the others by."""

    reading: str
    rate: float

    def __str__(self) -> str:
        return f"{self.reading}, lr {self.rate:.3g}"


@dataclass(frozen=True)
class Recipe:
    """How heads are trained.

    Attributes:
        readings: of the features, see `measure/readings.py`.
        rates: learning rates at a batch of 256.
        batch: images a step; a smaller set is one batch.
        epochs, steps: length, whichever is longer, in whole epochs.
        scaled: rates are multiplied with batch / 256.
        cosine: how often the learning rate moves down its half cosine to 0; "never" keeps it.
        normal: weights start as N(0, 0.01) with bias 0; else as torch's linear layer does.
        shuffled: the order of the images is drawn again every epoch.
        standardised: every column is brought to mean 0 and deviation 1, measured on the images that are fitted.
        batchnorm: every column is normalised by the batch, without parameters of its own: a probe with one is another
            protocol (bn-linear) than one without.
        warmup: share of the training in which the rate rises from 0.
        crops: how the random crops that the paper trains on are resampled; None where it trains on cached features.
    """

    readings: tuple[str, ...]
    rates: tuple[float, ...]
    batch: int
    epochs: int
    steps: int = 0
    optimiser: Literal["sgd", "lars", "adam"] = "sgd"
    weight_decay: float = 0.0
    scaled: bool = True
    cosine: Literal["step", "epoch", "never"] = "epoch"
    normal: bool = True
    shuffled: bool = True
    standardised: bool = False
    batchnorm: bool = False
    warmup: float = 0.0
    crops: Interpolation | None = None

    def settings(self) -> list[Setting]:
        """The heads, in order."""
        return [Setting(reading, rate) for reading in self.readings for rate in self.rates]

    def length(self, images: int) -> int:
        """Epochs on so many images."""
        return max(self.epochs, math.ceil(self.steps / math.ceil(images / self.batch)))

    def share_of_rate(self, epoch: int, step: int, per_epoch: int, epochs: int) -> float:
        """The part of the peak learning rate that a step has: linear warm-up, then half a cosine to 0."""
        done = {"step": (epoch + step / per_epoch) / epochs, "epoch": epoch / epochs, "never": 0.0}[self.cosine]
        if done < self.warmup:
            return done / self.warmup
        return (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2


class Heads(nn.Module):
    """One linear classifier a setting, each on its own columns of the features.

    Attributes:
        mean, scale: of the columns, 0 and 1 where features are not standardised.
    """

    def __init__(
        self, settings: Sequence[Setting], columns: Mapping[str, slice], features: Tensor, recipe: Recipe, classes: int
    ) -> None:
        super().__init__()
        self.columns = {name: columns[name] for name in dict.fromkeys(one.reading for one in settings)}
        self.per_reading = len(settings) // len(self.columns)
        width = {name: features[:1, part].shape[1] for name, part in self.columns.items()}
        self.heads = nn.ModuleList(nn.Linear(width[one.reading], classes) for one in settings)
        scale = features.std(0, correction=0)
        # A column that never changes says nothing; divided by 1 it stays 0.
        self.mean = features.mean(0) if recipe.standardised else features.new_zeros(1)
        self.scale = scale.where(scale > 0, 1.0) if recipe.standardised else features.new_ones(1)
        # MAE's epsilon; the columns have no parameters, so that all heads can share it.
        self.norm = nn.BatchNorm1d(features.shape[1], eps=1e-6, affine=False) if recipe.batchnorm else None

    def forward(self, features: Tensor) -> Tensor:
        """(N, heads, classes) logits of (N, D) features; the heads of one reading are one matrix product."""
        features = (features - self.mean) / self.scale
        if self.norm is not None:
            # One image has no deviation: it is read with what was seen before.
            self.norm.train(self.training and len(features) > 1)
            features = self.norm(features)
        found = []
        for i, part in enumerate(self.columns.values()):
            own: list[Any] = list(self.heads)[i * self.per_reading : (i + 1) * self.per_reading]
            weight, bias = torch.cat([head.weight for head in own]), torch.cat([head.bias for head in own])
            found.append(F.linear(features[:, part], weight, bias).reshape(len(features), len(own), -1))
        return torch.cat(found, 1)


def trained(
    features: Tensor,
    labels: Tensor,
    settings: Sequence[Setting],
    columns: Mapping[str, slice],
    recipe: Recipe,
    classes: int,
    seed: int,
    draw: Draw | None = None,
) -> Iterator[tuple[int, Heads]]:
    """Train heads, and give them after every epoch, ready to answer: (epochs done, heads).

    Args:
        features: (N, D) of the images as they are, on the device that trains.
        labels: (N,) class ids, beside them.
        settings: the heads, reading by reading, as many of each.
        columns: of each reading in the features.
        seed: of weights and order.
        draw: gives what is learned from in the place of the features, one forward pass for all heads.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = Heads(settings, columns, features, recipe, classes)
    for head in heads.heads:
        _initialise(head, recipe, generator)
    heads = heads.to(features.device)
    batch = min(recipe.batch, len(features))
    factor = batch / 256 if recipe.scaled else 1.0
    rates = [factor * one.rate for one in settings]
    optimiser = _optimiser(heads, recipe)
    epochs, per_epoch = recipe.length(len(features)), math.ceil(len(features) / batch)
    for epoch in range(epochs):
        heads.train()
        shuffled = torch.randperm(len(features), generator=generator)
        order = shuffled if recipe.shuffled else torch.arange(len(features))
        for step in range(per_epoch):
            rows = order[step * batch : (step + 1) * batch]
            here = rows.to(features.device)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.share_of_rate(epoch, step, per_epoch, epochs)
            logits = heads(features[here] if draw is None else draw(epoch, rows.numpy()))
            truth = labels[here, None].expand(-1, len(settings))
            # The mean over images, summed over heads: each head sees its own loss alone.
            loss = F.cross_entropy(logits.transpose(1, 2), truth) * len(settings)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        heads.eval()
        yield epoch + 1, heads


def _initialise(head: Any, recipe: Recipe, generator: torch.Generator) -> None:
    """As the recipe says, from its own generator: N(0, 0.01), or uniform within 1 / sqrt(width) as in torch."""
    with torch.no_grad():
        if recipe.normal:
            head.weight.normal_(0, 0.01, generator=generator)
            head.bias.zero_()
        else:
            bound = head.in_features**-0.5
            head.weight.uniform_(-bound, bound, generator=generator)
            head.bias.uniform_(-bound, bound, generator=generator)


def _optimiser(heads: Heads, recipe: Recipe) -> torch.optim.Optimizer:
    """A group a head, so that each has its own learning rate."""
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": 0.0} for head in heads.heads]
    decay = recipe.weight_decay
    if recipe.optimiser == "adam":
        return torch.optim.Adam(groups, weight_decay=decay)
    if recipe.optimiser == "lars":
        return Lars(groups, lr=0.0, weight_decay=decay, lr_in_momentum=False)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=decay)
