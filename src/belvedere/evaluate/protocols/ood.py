"""Does the network notice images of a foreign kind? Detection of outliers, given some with --other.

Spec evaluation 2.4. Four scores, high for an outlier. Two need no labels and read the training images as what is known:
the distance to the k-th neighbour ("Out-of-Distribution Detection with Deep Nearest Neighbors", Sun et al., ICML 2022,
arXiv:2204.06507) and Mahalanobis' to their mean, under a covariance shrunk by Ledoit and Wolf's rule. Two read a
logistic probe where there are labels: minus the largest softmax (arXiv:1610.02136) and the energy -log sum exp
(arXiv:2010.03759).

With `ood.classes` it is the ImageNet-O protocol (arXiv:1907.07174): only test images of these classes are known, and
all other classes' columns are left out before the softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp, softmax
from sklearn.covariance import ledoit_wolf
from torch import Tensor
from torch.nn import functional as F

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.evaluate.contract import EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, drawn_rows, from_draws, mean_percent, resample
from belvedere.evaluate.metrics.outliers import Ranked, aurra, rms_calibration_error
from belvedere.evaluate.probe import Probe, ProbeOptions, fit_probe
from belvedere.measure.knn import top_neighbours

Values = NDArray[np.float64]
Counts = NDArray[np.uint8]
Scores = dict[str, tuple[Values, Values]]
"""Of known images and of outliers, by the score's name."""


class Options(BaseModel):
    """What is known, and how far a neighbour may be."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    k: int = Field(10, ge=1)
    """Which neighbour's distance is the score."""
    classes: tuple[str, ...] = ()
    """Known classes by name; none means all."""
    mahalanobis_images: int = Field(5000, ge=2)
    """Most training images that mean and covariance are of."""


class Ood(Protocol):
    """AUROC, AUPR of both sides and FPR95 of every score, in percent; outliers are positive."""

    Options = Options
    needs = ("other",)
    quick = True

    def run(self, data: EvalData) -> Result:
        """Score test images and outliers by every subject.

        Raises:
            UserError: for classes that there are not, or of which no test image is known.
        """
        assert data.other is not None
        kept = self._kept(data)
        known = np.flatnonzero(kept[data.test_labels]) if self.options.classes else np.arange(len(data.test_labels))
        gallery = np.flatnonzero(kept[data.train_labels]) if self.options.classes else np.arange(len(data.train_labels))
        if not len(known) or not len(gallery):
            raise UserError("ood.classes: there are no training or no test images of these classes")
        named = known[data.test_labels[known] >= 0]
        asked = len(named) > 0 and len(np.unique(data.train_labels[data.train_labels >= 0])) > 1
        counts = resample(len(known), data.seed), resample(len(data.other), data.seed + 1)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, Values]] = {}
        scores: dict[str, Scores] = {}
        strengths: dict[str, float] = {}
        for name, (train, test) in data.features.items():
            other = data.subjects[name].features(data.other)
            scores[name] = self._distances(train[gallery], test[known], other, data)
            metrics[name], items[name] = {}, {}
            if asked:
                probe = fit_probe(name, data, ProbeOptions())
                strengths[name] = probe.strength
                scores[name] |= from_probe(probe, test[known], other, kept)
                answers, right = _logits(probe, test[named], kept), data.test_labels[named]
                calibrated, items[name] = calibration(answers, right, resample(len(named), data.seed))
                metrics[name] |= calibrated
            for score, (inside, outside) in scores[name].items():
                metrics[name] |= {f"{score}_{key}": value for key, value in detection(inside, outside, counts).items()}
                items[name][f"{score}_auroc"] = _below(inside, outside)
        return Result(
            protocol="ood",
            metrics=metrics,
            chosen={"C": strengths, "on": data.choice.said} if asked else {},
            settings={
                "k": min(self.options.k, len(gallery)),
                "mahalanobis_images": min(self.options.mahalanobis_images, len(gallery)),
                "known_classes": list(self.options.classes) or "all",
                "known_images": len(known),
                "positive": "images of --other; chance is their share for aupr_out, that of the known for aupr_in",
                "interval": f"95 % bootstrap over {len(known)} test images and {len(data.other)} others, {DRAWS} draws",
            },
            items=items,
            draws={"scores": scores, "known": known},
        )

    def _kept(self, data: EvalData) -> NDArray[np.bool_]:
        """(classes + 1,) which are known; the last stands for images without a label, whose id is -1."""
        for name in self.options.classes:
            if name not in data.classes:
                raise UserError(f"ood.classes: no class '{name}', {plugins.nearest(name, data.classes)}")
        wanted = self.options.classes or data.classes
        return np.array([name in wanted for name in data.classes] + [False])

    def _distances(self, train: Tensor, test: Tensor, other: Tensor, data: EvalData) -> Scores:
        some = np.random.default_rng(data.seed).permutation(len(train))[: self.options.mahalanobis_images]
        fitted = mahalanobis(train[np.sort(some)], torch.cat([test, other]))
        train, test, other = (x.to(data.device) for x in (train, test, other))
        near = knn_distance(train, test, self.options.k), knn_distance(train, other, self.options.k)
        return {"knn": near, "mahalanobis": (fitted[: len(test)], fitted[len(test) :])}


def knn_distance(train: Tensor, images: Tensor, k: int) -> Values:
    """(M,) Euclidean distance of normalised features to the k-th nearest of `train`; all of a smaller set's last."""
    cosines, _ = top_neighbours(train, images, k)
    distances: Values = (2 - 2 * cosines[:, -1].double()).clamp(min=0).sqrt().cpu().numpy()
    return distances


def mahalanobis(train: Tensor, images: Tensor) -> Values:
    """(M,) distance to the mean of `train` under its shrunk covariance, (N, D) and (M, D) features.

    Features are normalised first, as the neighbours' are: an image's length says how much is in it, not what.
    """
    known, asked = (F.normalize(x.double(), dim=1).numpy() for x in (train, images))
    covariance, _ = ledoit_wolf(known)
    # Features that are all equal have no variance: then every other image is equally far in every direction.
    covariance[np.diag_indices_from(covariance)] += np.finfo(np.float32).tiny
    away = asked - known.mean(0)
    distances: Values = np.sqrt((away * cho_solve(cho_factor(covariance), away.T).T).sum(1))
    return distances


def from_probe(probe: Probe, test: Tensor, other: Tensor, kept: NDArray[np.bool_]) -> Scores:
    """Minus the largest softmax, and the energy, of known images and outliers."""
    answers = _logits(probe, test, kept), _logits(probe, other, kept)
    return {
        "softmax": (-confidence(answers[0]), -confidence(answers[1])),
        "energy": (-logsumexp(answers[0], axis=1), -logsumexp(answers[1], axis=1)),
    }


def _logits(probe: Probe, features: Tensor, kept: NDArray[np.bool_]) -> Values:
    return masked(probe.logits(features), kept[:-1])


def masked(logits: Values, kept: NDArray[np.bool_]) -> Values:
    """Logits of the kept classes only; the others are at minus infinity, so that a softmax gives them nothing."""
    return np.where(kept, logits, -np.inf)


def confidence(logits: Values) -> Values:
    """(M,) largest softmax of (M, classes) logits."""
    largest: Values = softmax(logits, axis=1).max(1)
    return largest


def detection(inside: Values, outside: Values, counts: tuple[Counts, Counts]) -> dict[str, Number]:
    """All numbers of a score in percent, with intervals over both kinds of images."""
    ranked = Ranked(inside, outside)
    values = asdict(ranked.measure())
    drawn = [asdict(ranked.measure(n, m)) for n, m in zip(*counts, strict=True)]
    return {key: from_draws(100 * value, 100 * np.array([one[key] for one in drawn])) for key, value in values.items()}


def calibration(
    logits: Values, labels: NDArray[np.int64], counts: Counts
) -> tuple[dict[str, Number], dict[str, Values]]:
    """Accuracy, calibration error and AURRA of the labelled test images in percent, and which were right."""
    right = (logits.argmax(1) == labels).astype(np.float64)
    sure = confidence(logits)
    metrics = {"top1": mean_percent(right, counts)}
    measures: dict[str, Callable[[Values, Values], float]] = {
        "rms_calibration": rms_calibration_error,
        "rms_calibration_published": partial(rms_calibration_error, published=True),
        "aurra": aurra,
    }
    for name, measure in measures.items():
        drawn = np.array([measure(sure[rows], right[rows]) for rows in drawn_rows(counts)])
        metrics[name] = from_draws(100 * measure(sure, right), 100 * drawn)
    return metrics, {"top1": right}


def _below(inside: Values, outside: Values) -> Values:
    """(n,) share of the outliers that score above each known image, a tie counting half: their mean is the AUROC."""
    ordered = np.sort(outside)
    low, high = (np.searchsorted(ordered, inside, side=side) for side in ("left", "right"))
    return 1 - (low + high) / (2 * len(ordered))
