"""Average precision of images with several labels at once, as VOC 2007 has it on eleven points (spec evaluation 2.3).

The precision at each of the recalls 0, 0.1, ..., 1 is the largest at that recall or a higher one; their mean over the
points, then over the classes, is the number ("The PASCAL Visual Object Classes (VOC) Challenge", Everingham et al.,
IJCV 2010, section 4.2). EsViT's transfer suite (arXiv:2106.09785) reports it of VOC 2007. The usual mean average
precision is scikit-learn's `average_precision_score`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

POINTS = 11


def voc11_map(scores: NDArray[np.floating], truth: NDArray[np.int64]) -> float:
    """Mean over classes of the eleven-point average precision, in [0, 1].

    Args:
        scores: (M, K), the higher the surer that an image shows a class.
        truth: (M, K) ones and zeros; a class that no image shows takes no part.
    """
    shown = np.flatnonzero(truth.any(0))
    return float(np.mean([_eleven_points(scores[:, k], truth[:, k]) for k in shown]))


def _eleven_points(scores: NDArray[np.floating], truth: NDArray[np.int64]) -> float:
    precision, recall, _ = precision_recall_curve(truth, scores)
    # Recalls are ratios of counts, so one of 0.3 may lie a rounding below the point 0.3.
    points = np.linspace(0, 1, POINTS) - 1e-9
    return float(np.mean([precision[recall >= point].max() for point in points]))
