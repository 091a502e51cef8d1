"""Intervals of a metric by bootstrap over test items (spec evaluation, section 0)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_recall_fscore_support, recall_score

from belvedere.evaluate.contract import Number

DRAWS = 1000


def resample(n: int, seed: int, draws: int = DRAWS) -> NDArray[np.uint8]:
    """(draws, n): how often each of n test items is in each bootstrap draw.

    Drawn once and used for every encoder, so that two of them can be compared pair by pair.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((draws, n), np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return counts


def share_right(right: NDArray[np.bool_], counts: NDArray[np.uint8]) -> Number:
    """Share of right answers in percent; `right` is (n,), `counts` from `resample`."""
    drawn = 100 * (counts[:, right].sum(1, dtype=np.int64) / len(right))
    return from_draws(100 * float(right.mean()), drawn)


def drawn_rows(counts: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """The items of each draw, ascending and repeated as often as drawn: for metrics that are no mean of items."""
    items = np.arange(counts.shape[1])
    for row in counts:
        yield np.repeat(items, row)


def mean_percent(values: NDArray[np.float64], counts: NDArray[np.uint8]) -> Number:
    """Mean in percent of shares in [0, 1], (n,) one an item; `counts` from `resample`."""
    return from_draws(100 * float(values.mean()), 100 * (counts @ values / len(values)))


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], counts: NDArray[np.uint8], unit: float = 100.0
) -> Number:
    """By how much the mean of `first` is above that of `second`, (n,) values of the same items, times `unit`.

    The interval is of the difference: what is hard for both takes no part in it. Values (draws, n), of the same draws
    of labels for both, are resampled over the draws, too.
    """
    gap = unit * np.atleast_2d(first - second)
    return from_draws(float(gap.mean()), _redrawn(counts @ gap.T / gap.shape[1], seed=0))


def mean_of_draws(right: NDArray[np.bool_], counts: NDArray[np.uint8], seed: int) -> Number:
    """Share of right answers in percent over (draws, n) answers: both the draws and the n items are resampled."""
    shares = 100 * (counts @ right.T.astype(np.float64)) / right.shape[1]
    return from_draws(100 * float(right.mean()), _redrawn(shares, seed))


def balanced_of_draws(
    right: NDArray[np.bool_], truth: NDArray[np.int64], counts: NDArray[np.uint8], seed: int
) -> Number:
    """Balanced accuracy in percent over (draws, n) answers to n items of classes `truth`, resampled alike."""
    present = np.unique(truth)
    everything = np.ones((1, len(truth)), np.uint8)
    value = np.mean([_recalls(one, truth, present, everything) for one in right])
    recalls = np.stack([np.nanmean(_recalls(one, truth, present, counts), axis=1) for one in right], axis=1)
    return from_draws(100 * float(value), _redrawn(100 * recalls, seed))


def _redrawn(scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Mean over as many of the columns of (resamples, draws), drawn anew in every row."""
    again = np.random.default_rng(seed).integers(scores.shape[1], size=scores.shape)
    means: NDArray[np.float64] = np.take_along_axis(scores, again, 1).mean(1)
    return means


def balanced_accuracy(truth: NDArray[np.int64], predicted: NDArray[np.int64], counts: NDArray[np.uint8]) -> Number:
    """Mean over the classes present of the share of their items that are right, in percent."""
    present = np.unique(truth)
    value = recall_score(truth, predicted, labels=present, average="macro", zero_division=0)
    return from_draws(
        100 * float(value), 100 * np.nanmean(_recalls(truth == predicted, truth, present, counts), axis=1)
    )


def f1_scores(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], counts: NDArray[np.uint8]
) -> tuple[Number, Number, Number]:
    """Macro F1, weighted F1 and macro precision in percent, means over the classes present.

    F1 = 2 TP / (answers + items) and precision = TP / answers of a class; 0 without a right answer. Macro means count
    every class alike (as balanced accuracy, which is the mean recall, but answers that are wrong cost the class that
    they name as well), the weighted one by its items.
    """
    present = np.unique(truth)
    right = truth == predicted
    items, answers = (by_class(labels, present, counts) for labels in (truth, predicted))
    hits = by_class(truth[right], present, counts[:, right])
    f1, precision = 2 * hits / np.maximum(items + answers, 1), hits / np.maximum(answers, 1)
    scores = precision_recall_fscore_support(truth, predicted, labels=present, average="macro", zero_division=0)
    weighted = f1_score(truth, predicted, labels=present, average="weighted", zero_division=0)
    # Only the classes that are in a draw are in its mean.
    macros = (np.nanmean(np.where(items > 0, each, np.nan), axis=1) for each in (f1, precision))
    drawn = next(macros), (f1 * items).sum(1) / items.sum(1), next(macros)
    values = scores[2], weighted, scores[0]
    macro, by_items, named = (from_draws(100 * float(v), 100 * of) for v, of in zip(values, drawn, strict=True))
    return macro, by_items, named


def _recalls(
    right: NDArray[np.bool_], truth: NDArray[np.int64], present: NDArray[np.int64], counts: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """(draws, K) share of right answers among the items of each class; NaN where a draw left a class out."""
    items, found = by_class(truth, present, counts), by_class(truth[right], present, counts[:, right])
    return np.where(items > 0, found / np.maximum(items, 1), np.nan)


def by_class(labels: NDArray[np.int64], classes: NDArray[np.int64], counts: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(draws, K): how many items of each of K classes are in each draw; `labels` (n,), `counts` (draws, n)."""
    found: NDArray[np.int64] = np.stack([counts[:, labels == one].sum(1, dtype=np.int64) for one in classes], axis=1)
    return found


def from_draws(value: float, drawn: NDArray[np.float64]) -> Number:
    """A value with the middle 95 % of what it was in the draws."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Number(value, float(low), float(high))
