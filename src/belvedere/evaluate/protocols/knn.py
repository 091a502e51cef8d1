"""Do the nearest images have the same class? Weighted k-NN on frozen features, as DINO evaluates (arXiv:2104.14294).

Spec evaluation 2.1. Nothing is trained, so it is the number to compare runs by. k is chosen on a tenth of the training
images, then the test images are read once. Raw pixels, the untrained network and the majority class go through the same
lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from sklearn.metrics import confusion_matrix
from torch import Tensor

from belvedere.evaluate.contract import MAJORITY, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, resample
from belvedere.evaluate.scores import TOP, classification
from belvedere.measure.floors import majority
from belvedere.measure.knn import best_classes, count_votes, top_neighbours

# Neighbours an item that the report may draw.
DRAWN = 10


class Options(BaseModel):
    """Neighbours to choose from, and the temperature T of the votes exp(cosine / T)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ks: tuple[PositiveInt, ...] = Field((10, 20, 100, 200), min_length=1)
    # Below 0.02 a vote of exp(1 / T) leaves float32.
    temperature: float = Field(0.07, ge=0.02)


class Knn(Protocol):
    """Top-1, top-5 (from six classes on), balanced accuracy and, of unbalanced classes, F1 in percent."""

    Options = Options
    quick = True

    def run(self, data: EvalData) -> Result:
        """Classify the test images with every encoder in `data.features`."""
        ks = usable_ks(self.options.ks, len(data.train_labels))
        y, val_y = data.choice.of(data.train_labels, data.test_labels)
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        grid: dict[str, dict[int, float]] = {}
        chosen: dict[str, int] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, (train, test) in data.features.items():
            train, test = train.to(data.device), test.to(data.device)
            x, val_x = data.choice.of(train, test)
            on_val = self._votes(x, y, val_x, ks, len(data.classes))
            grid[name] = {k: _percent(best_classes(votes), val_y) for k, votes in on_val.items()}
            k = chosen[name] = max(ks, key=grid[name].__getitem__)
            cosines, index = top_neighbours(train, test, max(k, DRAWN))
            labels = torch.from_numpy(data.train_labels)[index.cpu()]
            votes = count_votes(cosines[:, :k], labels[:, :k], len(data.classes), self.options.temperature)
            ranking = best_classes(votes, min(TOP, len(data.classes))).numpy()
            metrics[name] = classification(ranking, data.test_labels, len(data.classes), counts)
            items[name] = {"top1": (ranking[:, 0] == data.test_labels).astype(np.float64)}
            draws[name] = {
                "neighbours": index[:, :DRAWN].cpu().numpy(),
                "cosines": cosines[:, :DRAWN].cpu().numpy(),
                "predictions": ranking[:, 0],
                "confidence": (votes.amax(1) / votes.sum(1)).numpy(),
                "confusion": confusion_matrix(data.test_labels, ranking[:, 0], labels=range(len(data.classes))),
            }
        always = np.tile(majority(data.train_labels, len(data.classes))[:TOP], (len(data.test_labels), 1))
        metrics[MAJORITY] = classification(always, data.test_labels, len(data.classes), counts)
        return Result(
            protocol="knn",
            metrics=metrics,
            chosen={
                "k": chosen,
                "on": data.choice.said,
                "accuracy": {name: {str(k): value for k, value in row.items()} for name, row in grid.items()},
            },
            settings={
                "ks": list(ks),
                "temperature": self.options.temperature,
                "interval": f"95 % bootstrap over {len(data.test_labels)} test images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def _votes(
        self, train: Tensor, labels: NDArray[np.int64], test: Tensor, ks: tuple[PositiveInt, ...], classes: int
    ) -> dict[int, Tensor]:
        """Votes for every k out of one search."""
        cosines, index = top_neighbours(train, test, max(ks))
        found = torch.from_numpy(labels)[index.cpu()]
        return {k: count_votes(cosines[:, :k], found[:, :k], classes, self.options.temperature) for k in ks}


def usable_ks(ks: tuple[PositiveInt, ...], images: int) -> tuple[int, ...]:
    """The ks, ascending, of at most a fifth of the training images: more neighbours would outvote a small class.

    In a set too small for all of them it is a fifth of the images, at least 1.
    """
    usable = tuple(sorted({k for k in ks if k <= images / 5}))
    return usable or (max(1, images // 5),)


def _percent(best: Tensor, labels: NDArray[np.int64]) -> float:
    return 100 * float((best[:, 0].numpy() == labels).mean())
