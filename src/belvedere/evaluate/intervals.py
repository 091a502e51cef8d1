"""Intervals of a metric by bootstrap over test items (spec evaluation, section 0)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import recall_score

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

    The interval is of the difference: what is hard for both takes no part in it.
    """
    gap = unit * (first - second)
    return from_draws(float(gap.mean()), counts @ gap / len(gap))


def mean_of_draws(right: NDArray[np.bool_], counts: NDArray[np.uint8], seed: int) -> Number:
    """Share of right answers in percent over (draws, n) answers: both the draws and the n items are resampled."""
    shares = 100 * (counts @ right.T.astype(np.float64)) / right.shape[1]
    again = np.random.default_rng(seed).integers(len(right), size=(len(counts), len(right)))
    return from_draws(100 * float(right.mean()), np.take_along_axis(shares, again, 1).mean(1))


def balanced_accuracy(truth: NDArray[np.int64], predicted: NDArray[np.int64], counts: NDArray[np.uint8]) -> Number:
    """Mean over the classes present of the share of their items that are right, in percent."""
    present = np.unique(truth)
    value = recall_score(truth, predicted, labels=present, average="macro", zero_division=0)
    by_class = np.argsort(truth, kind="stable")
    starts = np.searchsorted(truth[by_class], present)
    counts = counts[:, by_class]
    items = np.add.reduceat(counts, starts, axis=1, dtype=np.int64)
    right = np.add.reduceat(counts * (truth == predicted)[by_class], starts, axis=1, dtype=np.int64)
    # A class that a draw left out has no recall there.
    recall = np.where(items > 0, right / np.maximum(items, 1), np.nan)
    return from_draws(100 * float(value), 100 * np.nanmean(recall, axis=1))


def from_draws(value: float, drawn: NDArray[np.float64]) -> Number:
    """A value with the middle 95 % of what it was in the draws."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Number(value, float(low), float(high))
