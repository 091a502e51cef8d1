"""The Frechet distance of two sets of features ("GANs Trained by a Two Time-Scale Update Rule", arXiv:1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]


def frechet_distance(first: Features, second: Features) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the Gaussians with the sets' means and unbiased covariances.

    Args:
        first, second: (N, D) and (M, D), at least two rows each; fewer rows than dimensions are fine, but the distance
            falls with the number of rows, so only sets of equal size compare.

    The eigenvalues of S1 S2 are the squared singular values of X1 X2^T, the centred features over the root of N - 1:
    no matrix root is taken, and covariances without full rank need no care. Spec evaluation 2.14.
    """
    x, y = _factor(first), _factor(second)
    gap = first.mean(0) - second.mean(0)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(gap @ gap + (x * x).sum() + (y * y).sum() - 2 * root)


def _factor(features: Features) -> Features:
    """(min(N, D), D) matrix R with R^T R = the covariance."""
    centred: Features = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    # The triangle of centred = Q R: a smaller matrix with the same covariance.
    triangle: Features = np.linalg.qr(centred).R
    return triangle


def total_variance(features: Features) -> float:
    """Trace of the covariance: the mean squared distance of (N, D) features to their mean."""
    return float(features.var(0, ddof=1).sum())
