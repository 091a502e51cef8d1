"""Scores of segmentation from areas summed over images, as mmsegmentation counts them (spec evaluation 2.9).

IoU = TP / (TP + FP + FN) and Acc = TP / (TP + FN) of a class over all images together; mIoU and mAcc are means over the
classes where they are defined, so a class that is predicted but never there has IoU 0 and no Acc, and one that is in
neither has none. aAcc is the share of labelled pixels that are right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.evaluate.contract import Number
from belvedere.images.masks import IGNORE

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Areas:
    """Labelled pixels of some images, (..., K) each by class: right ones, those predicted, those there.

    They are the diagonal and the two margins of each image's confusion matrix, which is all that the scores read.
    """

    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    there: NDArray[np.int64]

    @staticmethod
    def of(prediction: NDArray[np.uint8], mask: NDArray[np.uint8], classes: int) -> Areas:
        """Areas (K,) of one (h, w) prediction; `IGNORE` in the mask leaves a pixel out of all of them."""
        labelled = mask != IGNORE
        guess, truth = prediction[labelled], mask[labelled]

        def area(of: NDArray[np.uint8]) -> NDArray[np.int64]:
            return np.bincount(of, minlength=classes).astype(np.int64)

        return Areas(area(guess[guess == truth]), area(guess), area(truth))

    @staticmethod
    def stack(parts: list[Areas]) -> Areas:
        """Areas (M, K) of M images."""
        right, predicted, there = (np.stack([getattr(part, name) for part in parts]) for name in _NAMES)
        return Areas(right, predicted, there)

    def drawn(self, counts: NDArray[np.uint8]) -> Areas:
        """Areas (draws, K) of bootstrap draws of the M images, see `intervals.resample`."""
        # In float64, whose products are fast; sums below 2^53 pixels are exact.
        right, predicted, there = (
            (counts.astype(np.float64) @ getattr(self, name).astype(np.float64)).astype(np.int64) for name in _NAMES
        )
        return Areas(right, predicted, there)

    def total(self) -> Areas:
        """Areas (K,) of all images together."""
        return Areas(self.right.sum(0), self.predicted.sum(0), self.there.sum(0))

    def iou(self) -> Floats:
        """(..., K) intersection over union in [0, 1], NaN of a class that is neither there nor predicted."""
        return _share(self.right, self.predicted + self.there - self.right)

    def acc(self) -> Floats:
        """(..., K) share of each class's pixels that are right, NaN of a class that is not there."""
        return _share(self.right, self.there)

    def scores(self) -> dict[str, Floats]:
        """The means mIoU, mAcc and aAcc over classes, (...), in percent; NaN where nothing is labelled."""
        # A row without any class would make nanmean warn; it is NaN either way.
        return {
            "miou": 100 * _mean(self.iou()),
            "macc": 100 * _mean(self.acc()),
            "aacc": 100 * _share(self.right.sum(-1), self.there.sum(-1)),
        }


_NAMES = ("right", "predicted", "there")


def score(areas: Areas, counts: NDArray[np.uint8]) -> tuple[dict[str, Number], list[Number | None]]:
    """mIoU, mAcc and aAcc in percent, and the IoU of every class (None where undefined), with intervals over images.

    Args:
        areas: (M, K).
        counts: bootstrap draws of the M images.

    Raises:
        UserError: when not a single pixel is labelled.
    """
    if not areas.there.any():
        raise UserError("not a single pixel of the test masks is labelled: there is nothing to score")
    total, drawn = areas.total(), areas.drawn(counts)
    spread = drawn.scores()
    numbers = {name: _number(float(value), spread[name]) for name, value in total.scores().items()}
    iou, iou_drawn = 100 * total.iou(), 100 * drawn.iou()
    classes = [
        None if np.isnan(value) else _number(float(value), iou_drawn[:, k]) for k, value in enumerate(iou.tolist())
    ]
    return numbers, classes


def _number(value: float, drawn: Floats) -> Number:
    """A draw in which the score is undefined, because it left out all images of a class, does not count."""
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return Number(value, float(low), float(high))


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Floats:
    shares: Floats = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return shares


def _mean(shares: Floats) -> Floats:
    """Mean over the last axis of what is defined."""
    defined = ~np.isnan(shares)
    sums = np.where(defined, shares, 0).sum(-1)
    means: Floats = np.where(defined.any(-1), sums / np.maximum(defined.sum(-1), 1), np.nan)
    return means
