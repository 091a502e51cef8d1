"""Which groups do the images fall into by themselves? k-means on frozen features; no labels needed.

Features are normalised, and k-means starts ten times (spec evaluation 2.13; ScatSimCLR, arXiv:2108.13939, and iBOT,
arXiv:2111.07832, report it as unsupervised classification). It is fitted on the training images; test images go to the
nearest centre. With labels there are as many clusters as classes, unless told otherwise: normalised mutual information,
adjusted Rand index, Fowlkes-Mallows index, and the accuracy once every cluster has been given a class, one to one, on
the training images (on the test images where papers' habits are asked for). Without labels the number of clusters with
the largest silhouette is taken. Raw pixels and the untrained network go through the same lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_rand_score,
    confusion_matrix,
    fowlkes_mallows_score,
    normalized_mutual_info_score,
    silhouette_samples,
)
from sklearn.preprocessing import normalize

from belvedere.errors import UserError
from belvedere.evaluate.contract import EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import mean_percent, resample

Labels = NDArray[np.int64]
Features = NDArray[np.float32]

AGREEMENTS: dict[str, Callable[[Labels, Labels], float]] = {
    "nmi": normalized_mutual_info_score,
    "ari": adjusted_rand_score,
    "fmi": fowlkes_mallows_score,
}
DRAWS = 200
"""Of the bootstrap: each draw computes three indices anew."""


class Options(BaseModel):
    """The number of clusters, or the numbers to choose from where there are no labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    k: int | None = Field(None, ge=2)
    """None is the number of classes; without labels one of `ks`."""
    ks: tuple[Annotated[int, Field(ge=2)], ...] = Field((2, 3, 4, 5, 6, 8, 10, 12, 16, 20), min_length=1)
    restarts: int = Field(10, ge=1)
    silhouette_images: int = Field(1000, ge=3)
    """Most training images that a silhouette is measured on: it compares all pairs."""


class Cluster(Protocol):
    """NMI, ARI and FMI times 100, matched accuracy and silhouette in percent, each over the test images."""

    Options = Options
    needs = ()
    quick = True

    def run(self, data: EvalData) -> Result:
        """Cluster with every subject.

        Raises:
            UserError: when there are fewer training images than clusters.
        """
        known = data.test_labels >= 0
        labelled = bool(known.any() and (data.train_labels >= 0).any())
        ks = self._numbers(data, labelled)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        grid: dict[str, dict[str, float]] = {}
        chosen: dict[str, int] = {}
        draws: dict[str, Any] = {}
        for name, (train, test) in data.features.items():
            x, read = normalize(train.numpy()), normalize(test.numpy())
            models = {k: self._fit(x, k, data.seed) for k in ks}
            scores = {k: self._silhouette(x, model, data.seed) for k, model in models.items()}
            grid[name] = {str(k): score for k, score in scores.items()}
            chosen[name] = k = max(ks, key=scores.__getitem__)
            model = models[k]
            clusters, own = _assigned(model, read), _assigned(model, x)
            items[name] = {"silhouette": self._silhouettes_of(read, clusters, x, own, data.seed)}
            metrics[name] = {}
            if labelled:
                truth, found = data.test_labels[known], clusters[known]
                metrics[name] = agreement(truth, found, data.seed)
                if k == len(data.classes):
                    seen = data.train_labels >= 0
                    pair = (truth, found) if data.paper else (data.train_labels[seen], own[seen])
                    items[name]["matched"] = (matching(*pair, k)[found] == truth).astype(np.float64)
            metrics[name] |= {
                metric: mean_percent(values, resample(len(values), data.seed)) for metric, values in items[name].items()
            }
            draws[name] = {
                "clusters": own,
                "distances": np.linalg.norm(x - model.cluster_centers_[own], axis=1),
                "test_clusters": clusters,
            }
        on = "silhouette of the training images" if len(ks) > 1 else "nothing: given, or the number of classes"
        return Result(
            protocol="cluster",
            metrics=metrics,
            chosen={"k": chosen, "on": on, "silhouette": grid},
            settings={
                "restarts": self.options.restarts,
                "matched_on": ("test" if data.paper else "training") + " images" if labelled else "no labels",
                "interval": f"95 % bootstrap over {len(data.test_labels)} test images; of NMI, ARI and FMI {DRAWS} "
                "draws, moved to the value, because images drawn twice agree with themselves",
                "silhouettes": "compare numbers of clusters of one encoder, not encoders",
            },
            items=items,
            draws=draws,
        )

    def _numbers(self, data: EvalData, labelled: bool) -> tuple[int, ...]:
        """The numbers of clusters to choose from, ascending."""
        images = len(data.train_labels)
        if self.options.k is None and not labelled:
            # A silhouette needs more images than clusters, and a cluster of a few images is not a group yet.
            return tuple(sorted({k for k in self.options.ks if 2 <= k <= images / 5})) or (min(2, images - 1),)
        k = self.options.k or len(data.classes)
        if not 2 <= k < images:
            raise UserError(
                f"cluster: {k} clusters of {images} training images; set cluster.k to 2 or more, below that number"
            )
        return (k,)

    def _fit(self, x: Features, k: int, seed: int) -> KMeans:
        with warnings.catch_warnings():
            # Fewer distinct features than clusters leave clusters empty; the result is no worse for that.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return KMeans(k, n_init=self.options.restarts, random_state=seed).fit(x)

    def _silhouette(self, x: Features, model: KMeans, seed: int) -> float:
        """Mean silhouette of the training images, percent."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(x))[: self.options.silhouette_images])
        return 100 * float(silhouettes(x[rows], _assigned(model, x)[rows]).mean())

    def _silhouettes_of(
        self, read: Features, clusters: Labels, x: Features, own: Labels, seed: int
    ) -> NDArray[np.float64]:
        """(M,) silhouettes of test images among training images."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(x))[: self.options.silhouette_images])
        values = silhouettes(np.concatenate([read, x[rows]]), np.concatenate([clusters, own[rows]]))
        return values[: len(read)]


def silhouettes(x: Features, clusters: Labels) -> NDArray[np.float64]:
    """(N,) how much nearer an image is to its own cluster than to the next, in [-1, 1]; 0 where there is but one."""
    if not 1 < len(np.unique(clusters)) < len(x):
        return np.zeros(len(x))
    values: NDArray[np.float64] = silhouette_samples(x, clusters).astype(np.float64)
    return values


def matching(truth: Labels, clusters: Labels, k: int) -> Labels:
    """(k,) class of each of k clusters, one to one, so that most images are right (Hungarian method)."""
    table = confusion_matrix(truth, clusters, labels=range(k))
    classes, matched = linear_sum_assignment(table, maximize=True)
    found = np.empty(k, np.int64)
    found[matched] = classes
    return found


def agreement(truth: Labels, clusters: Labels, seed: int) -> dict[str, Number]:
    """NMI, ARI and FMI times 100, with intervals over the images."""
    counts = resample(len(truth), seed, DRAWS)
    found = {}
    for name, index in AGREEMENTS.items():
        value = 100 * float(index(truth, clusters))
        drawn = [100 * float(index(np.repeat(truth, row), np.repeat(clusters, row))) for row in counts]
        low, high = np.percentile(drawn, (2.5, 97.5)) + value - np.mean(drawn)
        found[name] = Number(value, float(low), float(high))
    return found


def _assigned(model: KMeans, x: Features) -> Labels:
    clusters: Labels = model.predict(x).astype(np.int64)
    return clusters
