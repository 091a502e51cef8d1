"""Copy detection on Copydays as DINO measures it (arXiv:2104.14294, section 4.2.2, appendix; spec evaluation 2.7).

An image is described by its class token beside the generalised mean of its patch tokens (GeM, Radenovic et al.,
arXiv:1711.02512, equation 3, p = 4). A whitening is learned on images that have nothing to do with the set. Originals
are ranked by cosine, the first 20 are looked at, and a query's average precision is the area by trapezoids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from belvedere.evaluate.metrics.revisited import average_precision
from belvedere.measure.knn import top_neighbours
from belvedere.measure.readings import GEM_EPS, GEM_POWER, gem

TOP = 20
# Share of the largest eigenvalue below which a direction is rounding, which whitening must not blow up.
SMALLEST = 1e-5


def descriptors(cls: Tensor, patches: Tensor, power: float = GEM_POWER, eps: float = GEM_EPS) -> Tensor:
    """(N, 2 D) class token and generalised mean of the patch tokens (the reading "cls+gem"), not normalised.

    Args:
        cls: (N, D) class tokens after the final norm.
        patches: (N, T, D) patch tokens after the final norm; what is below `eps` counts as `eps`.
    """
    return torch.cat([cls, gem(patches, power, eps)], 1)


@dataclass(frozen=True)
class Whitening:
    """The mean (D,) to subtract, and a linear map (D, D) after which what it was learned on is uncorrelated."""

    mean: Tensor
    map: Tensor

    @classmethod
    def learn(cls, x: Tensor) -> Whitening:
        """Learn it on unrelated descriptors (N, D).

        The second moments are those about zero, though the mean is then subtracted from what is whitened: so does the
        published script, and published numbers come from it.
        """
        x = x.double()
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        values = values.clamp(min=float(values.max()) * SMALLEST)
        return cls(x.mean(0), (vectors / values.sqrt()).T)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, D) float32 whitened rows."""
        return ((x.double() - self.mean) @ self.map.T).float()


def similarities(queries: Tensor, database: Tensor) -> Tensor:
    """(Q, G) cosines of descriptors (Q, D) and (G, D)."""
    return F.normalize(queries, dim=1) @ F.normalize(database, dim=1).T


def copy_average_precision(
    queries: Tensor, database: Tensor, original: NDArray[np.int64], top: int = TOP
) -> NDArray[np.float64]:
    """(Q,) average precision of every query, in [0, 1]; 0 where its original is not among the `top` first.

    Args:
        queries: (Q, D) descriptors of edited images.
        database: (G, D) descriptors, the originals among them.
        original: (Q,) the database row that each query was made from.
    """
    nearest = top_neighbours(database, queries, top)[1].cpu().numpy()
    return np.array(
        [average_precision(np.flatnonzero(row == own), 1) for row, own in zip(nearest, original, strict=True)]
    )
