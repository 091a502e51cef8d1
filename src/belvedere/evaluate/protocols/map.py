"""A map of the images on which neighbours stay neighbours, and how many of them really do; no labels needed.

Normalised features are reduced to 50 dimensions by PCA, then to two by t-SNE of scikit-learn (van der Maaten and
Hinton, JMLR 2008), or by UMAP (arXiv:1802.03426) where it is installed, both by cosine and from the run's seed.
Distances between islands of such a map mean nothing; the share of every image's nearest ten that stay among its nearest
ten says how far its neighbourhoods can be believed. Spec evaluation, section 4, picture 5.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from torch import Tensor

from belvedere.errors import UserError
from belvedere.evaluate.contract import EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.measure.knn import top_neighbours

NEIGHBOURS = 10
FEWEST = 4
DIMENSIONS = 50
"""Before the map: the noise of all others costs time and blurs it."""

Points = NDArray[np.float32]


class Options(BaseModel):
    """How many images, and by what."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    images: int = Field(1000, ge=FEWEST)
    """Most training images on the map, drawn from the seed."""
    method: Literal["auto", "tsne", "umap"] = "auto"
    """auto is UMAP where it is installed, else t-SNE."""


class Map(Protocol):
    """Percent of the nearest ten by features that are among the nearest ten on the map."""

    Options = Options
    needs = ()
    quick = True

    def run(self, data: EvalData) -> Result:
        """Map with every subject.

        Raises:
            UserError: for fewer than four training images, or UMAP asked for where it is not installed.
        """
        images = len(data.train_labels)
        if images < FEWEST:
            raise UserError(f"map: {images} training images make no map, give {FEWEST} or more")
        method = self._method()
        rows = np.sort(np.random.default_rng(data.seed).permutation(images)[: self.options.images])
        counts = resample(len(rows), data.seed)
        near = min(NEIGHBOURS, len(rows) - 1)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, (train, _) in data.features.items():
            x = train[torch.from_numpy(rows)]
            points = place(x, method, data.seed)
            items[name] = {"kept": kept(x, torch.from_numpy(points), near)}
            metrics[name] = {"kept": mean_percent(items[name]["kept"], counts)}
            draws[name] = {"rows": rows, "points": points}
        return Result(
            protocol="map",
            metrics=metrics,
            chosen={},
            settings={
                "method": method,
                "images": len(rows),
                "neighbours": near,
                "interval": f"95 % bootstrap over {len(rows)} training images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def _method(self) -> str:
        installed = find_spec("umap") is not None
        if self.options.method == "umap" and not installed:
            raise UserError(
                "map.method=umap: it is not installed; pip install 'belvedere[umap]', or take map.method=tsne"
            )
        return self.options.method if self.options.method != "auto" else "umap" if installed else "tsne"


def place(features: Tensor, method: str, seed: int) -> Points:
    """(N, 2) places of N >= 4 images, each axis centred and the larger spread 1; equal features are one place.

    Args:
        features: (N, D).
        method: "tsne" or "umap".
    """
    x = normalize(features.numpy())
    n = len(x)
    if not np.ptp(x, axis=0).max() > 1e-6:
        # t-SNE divides by the spread of the features, and crashes the process where there is none.
        return np.zeros((n, 2), np.float32)
    x = PCA(min(DIMENSIONS, *x.shape), random_state=seed).fit_transform(x)
    if method == "umap":
        umap: Any = import_module("umap")
        reducer = umap.UMAP(n_neighbors=min(15, n - 1), metric="cosine", init="random", random_state=seed)
        found = reducer.fit_transform(x)
    else:
        # A perplexity counts neighbours; it has to stay well below the number of images.
        perplexity = min(30.0, (n - 1) / 3)
        found = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(x)
    points = np.asarray(found, np.float32)
    points -= points.mean(0)
    points /= max(float(points.std(0).max()), 1e-12)
    return points


def kept(features: Tensor, points: Tensor, near: int) -> NDArray[np.float64]:
    """(N,) share of each image's `near` nearest by cosine of features that are among its nearest on the map."""
    own = torch.arange(len(features))
    _, by_features = top_neighbours(features, features, near, exclude=own)
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(torch.inf)
    by_points = distances.topk(near, largest=False).indices
    same = (by_features[:, :, None] == by_points[:, None, :]).any(2)
    return same.double().mean(1).numpy()
