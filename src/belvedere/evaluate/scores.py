"""What every classifying protocol reports of its ranked answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from belvedere.evaluate.contract import Number
from belvedere.evaluate.intervals import balanced_accuracy, share_right

TOP = 5
"""Answers an image that `classification` reads."""


def classification(
    ranking: NDArray[np.int64], truth: NDArray[np.int64], classes: int, counts: NDArray[np.uint8]
) -> dict[str, Number]:
    """Top-1, top-5 (from six classes on) and balanced accuracy in percent, with intervals.

    Args:
        ranking: (M, <= 5) classes of each test image, the best first.
        truth: (M,) their true classes.
        classes: how many there are.
        counts: bootstrap draws, see `intervals.resample`.
    """
    right = ranking == truth[:, None]
    found = {"top1": share_right(right[:, 0], counts)}
    if classes > TOP:
        found["top5"] = share_right(right.any(1), counts)
    found["balanced"] = balanced_accuracy(truth, ranking[:, 0], counts)
    return found
