"""Have the images changed (another site, camera, season)? Distance of your features to those of --other.

Spec evaluation 2.14. The Frechet distance of the two folders in the encoder's own feature space, in percent of the
variance of your features, beside the same distance between two halves of your own images, which is its zero. All sets
have equal counts, because the distance falls with the count. Where the other images have classes of the same names as
yours, the accuracy there stands beside the accuracy here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from belvedere.errors import UserError
from belvedere.evaluate.contract import RUN, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, from_draws, mean_percent, resample
from belvedere.evaluate.metrics.frechet import frechet_distance, total_variance
from belvedere.evaluate.probe import Probe, ProbeOptions, fit_probe
from belvedere.measure.knn import top_neighbours

Rows = NDArray[np.int64]
Values = NDArray[np.float64]


class Options(BaseModel):
    """How long to count."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draws: int = Field(100, ge=20)
    """Splits into halves, of whose distances value and interval are the mean and the middle 95 %."""
    images: int = Field(1000, ge=4)
    """Most images of each folder; each draw takes half of them."""


class Shift(Protocol):
    """Distance to the others, distance within, their ratio; accuracy here and there where classes are shared."""

    Options = Options
    needs = ("other",)
    quick = True

    def run(self, data: EvalData) -> Result:
        """Compare test images and others by every subject.

        Raises:
            UserError: when either has fewer than four images.
        """
        assert data.other is not None
        most = min(len(data.test), len(data.other), self.options.images)
        if most < 4:
            raise UserError(
                f"shift: {len(data.test)} test images and {len(data.other)} others are too few to compare; give four"
            )
        counts = len(data.test), len(data.other)
        splits = [split(*counts, most // 2, data.seed, draw) for draw in range(self.options.draws)]
        shared = SharedClasses(data)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, Values]] = {}
        for name, (_, test) in data.features.items():
            other = data.subjects[name].features(data.other)
            metrics[name] = distances(test.double().numpy(), other.double().numpy(), splits)
            items[name] = {}
            if shared.names:
                right = shared.right(fit_probe(name, data, ProbeOptions()), test, other, data)
                for place, values in right.items():
                    metrics[name][place] = mean_percent(values, resample(len(values), data.seed))
                items[name]["top1_here"] = right["top1_here"]
        return Result(
            protocol="shift",
            metrics=metrics,
            chosen={},
            settings=self._settings(data, most, shared),
            items=items,
            draws=_nearest(*(data.subjects[RUN].features(images) for images in (data.test, data.other))),
        )

    def _settings(self, data: EvalData, most: int, shared: SharedClasses) -> dict[str, Any]:
        assert data.other is not None
        half = most // 2
        settings = {
            "images_a_side": half,
            "draws": self.options.draws,
            "unit": "percent of the variance (trace of the covariance) of the test images' features",
            "interval": f"95 % of {self.options.draws} draws of halves without repeats: repeats, as a bootstrap has "
            "them, raise a Frechet distance as fewer images do",
            "shared_classes": shared.names,
        }
        if len(data.test) != len(data.other):
            settings["unequal"] = (
                f"{len(data.test)} test images and {len(data.other)} others: {half} of each are compared, because the "
                "distance falls with the number of images; compare it only with distances of as many"
            )
        if shared.names:
            settings["accuracy"] = (
                f"logistic probe on {shared.here.sum()} test images and {shared.there.sum()} others of the shared "
                f"classes, 95 % bootstrap over them, {DRAWS} draws"
            )
        return settings


def split(own: int, others: int, half: int, seed: int, draw: int) -> tuple[Rows, Rows, Rows]:
    """Rows of two disjoint parts of the own images, and of the others, each of `half` images."""
    rng = np.random.default_rng([seed, draw])
    ours, theirs = rng.permutation(own), rng.permutation(others)
    return ours[:half], ours[half : 2 * half], theirs[:half]


def distances(test: Values, other: Values, splits: list[tuple[Rows, Rows, Rows]]) -> dict[str, Number]:
    """Distance to the others and within the own images in percent of the own variance, and their ratio, over draws.

    Args:
        test, other: (M, D) and (N, D) features.
    """
    # Features that are all equal are at no distance from each other, and any other is infinitely far: count as is.
    scale = total_variance(test) or 1.0
    within = np.array([frechet_distance(test[a], test[b]) for a, b, _ in splits])
    across = np.array([frechet_distance(test[a], other[c]) for a, _, c in splits])
    found = {"frechet": 100 * across / scale, "frechet_within": 100 * within / scale}
    numbers = {name: from_draws(float(drawn.mean()), drawn) for name, drawn in found.items()}
    if within.mean() > 0:
        numbers["ratio"] = from_draws(float(across.mean() / within.mean()), across / within.mean())
    return numbers


def _nearest(test: Tensor, other: Tensor) -> dict[str, NDArray[Any]]:
    """(N,) how far every other image is from the nearest test image, as 1 less the cosine, and which one that is."""
    cosines, rows = top_neighbours(test, other, 1)
    return {"distances": 1 - cosines[:, 0].cpu().numpy(), "nearest": rows[:, 0].cpu().numpy()}


class SharedClasses:
    """The classes that the training images, the test images and the others all have, by name."""

    def __init__(self, data: EvalData) -> None:
        """Find them; at least two training classes are needed for a probe."""
        other = data.other
        known = set(np.unique(data.train_labels[data.train_labels >= 0]).tolist())
        theirs = np.full(0 if other is None else len(other), -1)
        if other is not None and other.labels is not None and len(known) > 1:
            number = {name: i for i, name in enumerate(data.classes)}
            theirs = np.array([number.get(other.classes[i], -1) if i >= 0 else -1 for i in other.labels])
        shared = known & set(data.test_labels.tolist()) & set(theirs.tolist())
        self.ids = sorted(shared)
        self.names = [data.classes[i] for i in self.ids]
        self._theirs = theirs
        self.here, self.there = np.isin(data.test_labels, self.ids), np.isin(theirs, self.ids)

    def right(self, probe: Probe, test: Tensor, other: Tensor, data: EvalData) -> dict[str, Values]:
        """Whether a probe of all training classes is right on each image of the shared ones, here and there."""
        places = {"top1_here": (test, data.test_labels, self.here), "top1_there": (other, self._theirs, self.there)}
        return {
            name: (probe.logits(x[rows]).argmax(1) == labels[rows]).astype(np.float64)
            for name, (x, labels, rows) in places.items()
        }
