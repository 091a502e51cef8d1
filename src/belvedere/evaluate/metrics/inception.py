"""The Inception score of generated images ("Improved Techniques for Training GANs", arXiv:1606.03498, section 4)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr


def inception_score(probabilities: NDArray[np.float64], splits: int = 10) -> tuple[float, float]:
    """exp of the mean divergence of an image's classes from those of all: 1 at worst, the number of classes at best.

    Args:
        probabilities: (N, C) of a classifier, rows that sum to 1; in the order of the images, which is not shuffled.
        splits: parts of N / splits consecutive rows that a score is taken of.

    Returns:
        Mean and population standard deviation over the parts. Both depend on N, so only equal numbers compare.

    Raises:
        ValueError: when there are fewer rows than parts.
    """
    if len(probabilities) < splits:
        raise ValueError(f"{len(probabilities)} rows for {splits} parts")
    edges = [len(probabilities) * i // splits for i in range(splits + 1)]
    parts = [probabilities[a:b] for a, b in pairwise(edges)]
    scores = [np.exp(rel_entr(part, part.mean(0)).sum(1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))
