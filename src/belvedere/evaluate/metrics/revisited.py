"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018, arXiv:1803.11285), section 4; spec evaluation 2.5.

For each query every image of the database is easy, hard, junk or negative. Three protocols read the same ranking:

    easy    finds the easy images           junk: junk and hard ones
    medium  finds the easy and hard images  junk: junk
    hard    finds the hard images           junk: junk and easy ones

Junk is taken out of the ranking before positions are counted, and a query with nothing to find is left out of the mean.
The average precision is the area under the precision-recall curve by trapezoids, not the mean precision at the images
found (rectangles, as torchmetrics and scikit-learn have it), and mP@k asks no further than the last image to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Difficulty = Literal["easy", "medium", "hard"]
Flags = NDArray[np.bool_]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """How well each query found its images.

    Attributes:
        average_precision: (Q,) in [0, 1], NaN for a query with nothing to find.
        precision: (Q, K) precision at each k, NaN likewise.
    """

    average_precision: NDArray[np.float64]
    precision: NDArray[np.float64]

    @property
    def mean_average_precision(self) -> float:
        """mAP over the queries that have something to find, NaN when none has."""
        return float(self._mean(self.average_precision))

    @property
    def mean_precision(self) -> NDArray[np.float64]:
        """(K,) mP@k over the same queries."""
        return np.asarray(self._mean(self.precision))

    def _mean(self, values: NDArray[np.float64]) -> Any:
        asked = ~np.isnan(self.average_precision)
        return values[asked].mean(0) if asked.any() else np.full(values.shape[1:], np.nan)


def revisited(
    order: NDArray[np.integer], easy: Flags, hard: Flags, junk: Flags, difficulty: Difficulty, ks: Sequence[int]
) -> Found:
    """Score rankings by one of the three protocols.

    Args:
        order: (Q, G) database images of every query, the most similar first.
        easy, hard, junk: (Q, G) what each database image is to the query.
        ks: of the precision.
    """
    positive = {"easy": easy, "medium": easy | hard, "hard": hard}[difficulty]
    ignored = {"easy": junk | hard, "medium": junk, "hard": junk | easy}[difficulty]
    found = [positions(*row) for row in zip(order, positive, ignored, strict=True)]
    return Found(
        average_precision=np.array([average_precision(at, len(at)) if len(at) else np.nan for at in found]),
        precision=np.array([[precision_at(at, k) if len(at) else np.nan for k in ks] for at in found]),
    )


def positions(order: NDArray[np.integer], positive: Flags, ignored: Flags) -> Positions:
    """Ascending places, from 0, of the positive images in one ranking from which the ignored ones are removed.

    Args:
        order: (G,) database images, the most similar first.
        positive, ignored: (G,) flags of the database images.
    """
    kept = order[~ignored[order]]
    return np.flatnonzero(positive[kept])


def average_precision(at: Positions, positives: int) -> float:
    """Area under the precision-recall curve by trapezoids, in [0, 1]; what is not in `at` was not found.

    Args:
        at: ascending places, from 0, of the images found.
        positives: how many there are to find.
    """
    before = np.arange(len(at))
    # Precision just before each find and at it; before the first image of a ranking it counts as 1.
    left = np.where(at == 0, 1.0, before / np.maximum(at, 1))
    right = (before + 1) / (at + 1)
    return float(((left + right) / 2).sum() / positives)


def precision_at(at: Positions, k: int) -> float:
    """Share of positives among the first k images, or as far as the last positive where that comes earlier."""
    reach = min(int(at[-1]) + 1, k)
    return float((at < reach).sum() / reach)
