"""What every classifying protocol reports of its ranked answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from belvedere.evaluate.contract import Number
from belvedere.evaluate.intervals import balanced_accuracy, f1_scores, share_right

TOP = 5
"""Answers an image that `classification` reads."""


UNBALANCED = 2
"""From how many times as many test images in the largest class as in the smallest accuracy alone tells too little."""


def unbalanced(truth: NDArray[np.int64]) -> bool:
    """Whether the classes of (M,) test images are of so different sizes that the small ones vanish in accuracy."""
    sizes = np.bincount(truth)
    return bool(sizes.max() >= UNBALANCED * sizes[sizes > 0].min())


def classification(
    ranking: NDArray[np.int64], truth: NDArray[np.int64], classes: int, counts: NDArray[np.uint8]
) -> dict[str, Number]:
    """Top-1, top-5 (from six classes on) and balanced accuracy in percent, with intervals.

    Where the classes are `unbalanced` macro-F1 stands beside them, which unlike balanced accuracy also falls when small
    classes are named too often, F1 weighted by class, which many report, and macro precision (spec evaluation 2.2 and
    2.15).

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
    if unbalanced(truth):
        found["macro_f1"], found["weighted_f1"], found["macro_precision"] = f1_scores(truth, ranking[:, 0], counts)
    return found
