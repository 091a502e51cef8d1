"""How well a score tells outliers from known images, and how well a classifier knows when it is right; spec 2.4.

Outliers are the positive class everywhere, and a high score means outlier. "Published" names the conventions of the
code of ImageNet-A and -O ("Natural Adversarial Examples", Hendrycks et al., CVPR 2021, arXiv:1907.07174), where ours
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Counts = NDArray[np.uint8]
RECALL = 0.95
BIN = 100
"""Images a bin of the calibration error."""


@dataclass(frozen=True)
class Detection:
    """Outliers against known images; all numbers in [0, 1].

    Attributes:
        auroc: chance that an outlier scores above a known image; a tie counts half.
        aupr_out: average precision of finding outliers; the share of outliers is its chance level.
        aupr_in: average precision of finding known images by their low scores.
        fpr95: smallest share of known images taken for outliers where at least 95 % of the outliers are found.
        fpr95_published: that share at the recall nearest to 95 %, which may lie below; of equals the largest.
    """

    auroc: float
    aupr_out: float
    aupr_in: float
    fpr95: float
    fpr95_published: float


class Ranked:
    """Scores of known images and of outliers, sorted once and counted for any draw of them."""

    def __init__(self, known: Values, outliers: Values) -> None:
        """Sort (n,) and (m,) scores together, the highest first."""
        scores = np.concatenate([known, outliers])
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        # Equal scores are one threshold: its last place.
        self._ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        self._known = len(known)

    def measure(self, known: Counts | None = None, outliers: Counts | None = None) -> Detection:
        """The numbers of all images, or of a draw that has each (n,) known image and (m,) outlier so many times."""
        total = len(self._order) - self._known
        n = np.ones(self._known) if known is None else known.astype(np.float64)
        m = np.ones(total) if outliers is None else outliers.astype(np.float64)
        nothing_n, nothing_m = np.zeros(self._known), np.zeros(total)
        hits = np.concatenate([nothing_n, m])[self._order].cumsum()[self._ends]
        alarms = np.concatenate([n, nothing_m])[self._order].cumsum()[self._ends]
        recall, alarm = hits / hits[-1], alarms / alarms[-1]
        return Detection(
            auroc=float(np.trapezoid(np.append(0, recall), np.append(0, alarm))),
            aupr_out=_average_precision(hits, alarms),
            # The lowest scores first: what is left of each above a threshold.
            aupr_in=_average_precision(_left(alarms), _left(hits)),
            fpr95=float(alarm[np.argmax(recall >= RECALL)]),
            fpr95_published=_published_fpr(recall, alarm),
        )


def _left(found: Values) -> Values:
    """What thresholds from the lowest upwards find, given what they find from the highest downwards."""
    left: Values = (found[-1] - np.append(0, found[:-1]))[::-1]
    return left


def _average_precision(hits: Values, alarms: Values) -> float:
    """Precision at every threshold, weighted by the recall that it adds, as scikit-learn has it."""
    taken = hits + alarms
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def _published_fpr(recall: Values, alarm: Values) -> float:
    upto = int(np.argmax(recall >= 1)) + 1
    backwards = np.abs(recall[:upto] - RECALL)[::-1]
    return float(alarm[:upto][::-1][np.argmin(backwards)])


def rms_calibration_error(confidence: Values, right: Values, *, published: bool = False) -> float:
    """Root mean square gap of confidence and accuracy over bins of about 100 images of like confidence.

    Args:
        confidence: (M,) in [0, 1].
        right: (M,) 1 where the answer was right, else 0.
        published: leave out the last bin, the most confident, as the benchmark's code does; 0 where it is the only one.
    """
    order = np.argsort(confidence)
    edges = [*range(0, max(len(order) // BIN, 1) * BIN, BIN), len(order)]
    bins = [order[low:high] for low, high in pairwise(edges)]
    counted = bins[:-1] if published else bins
    gaps = [len(rows) * (confidence[rows].mean() - right[rows].mean()) ** 2 for rows in counted]
    return float(np.sqrt(sum(gaps) / len(order)))


def aurra(confidence: Values, right: Values) -> float:
    """Area under the curve of response rate against accuracy: the accuracy among the n surest, mean over n.

    Args:
        confidence, right: (M,), as `rms_calibration_error`.
    """
    surest = right[np.argsort(confidence)[::-1]]
    return float((surest.cumsum() / np.arange(1, len(surest) + 1)).mean())
