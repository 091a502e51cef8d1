"""Stratified parts and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from belvedere.errors import UserError
from belvedere.evaluate.intervals import balanced_accuracy, resample, share_right
from belvedere.evaluate.protocols.knn import usable_ks
from belvedere.evaluate.splits import hold_out


@given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=8), seed=st.integers(0, 50))
def test_hold_out_is_a_stratified_partition(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if len(labels) < 2:
        with pytest.raises(UserError, match="only one labelled image"):
            hold_out(labels, seed)
        return
    first, second = hold_out(labels, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert len(second) == max(1, round(len(labels) / 10))
    if min(sizes) >= 10:  # a class of fewer has no whole image to give
        for label, size in enumerate(sizes):
            assert abs((labels[second] == label).sum() - size / 10) < 2
    again = hold_out(labels, seed)
    assert np.array_equal(again[1], second)


def test_a_class_of_one_image_stays_in_training() -> None:
    first, second = hold_out(np.array([0] * 30 + [1]), 0)
    assert 30 in first
    assert len(second) == 3


def test_hold_out_by_seed_and_group() -> None:
    labels = np.zeros(200, np.int64)
    assert not np.array_equal(hold_out(labels, 0)[1], hold_out(labels, 1)[1])
    groups = [f"patient {i // 10}" for i in range(200)]
    first, second = hold_out(labels, 0, groups=groups)
    assert len(second) == 20
    assert not {groups[i] for i in first} & {groups[i] for i in second}
    with pytest.raises(UserError, match="only one group"):
        hold_out(labels, 0, groups=["one"] * 200)


def test_small_set_rule() -> None:
    assert usable_ks((10, 20, 100, 200), 2000) == (10, 20, 100, 200)
    assert usable_ks((200, 10, 20, 100), 999) == (10, 20, 100)
    assert usable_ks((10, 20), 49) == (9,)
    assert usable_ks((10, 20), 2) == (1,)


def test_interval_is_that_of_the_binomial() -> None:
    right = np.arange(400) < 300
    number = share_right(right, resample(400, seed=0))
    half = 100 * 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert number.value == 75
    assert number.low == pytest.approx(75 - half, abs=0.6)
    assert number.high == pytest.approx(75 + half, abs=0.6)


def test_balanced_accuracy_is_sklearns_in_every_draw() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([0, 2, 3], 60, p=[0.8, 0.15, 0.05]), rng.integers(0, 4, 60)
    counts = resample(60, seed=1, draws=50)
    number = balanced_accuracy(truth, predicted, counts)
    rows = [np.repeat(np.arange(60), row) for row in counts]
    drawn = [100 * np.mean([(predicted[r][truth[r] == c] == c).mean() for c in np.unique(truth[r])]) for r in rows]
    assert number.low == pytest.approx(np.percentile(drawn, 2.5))
    assert number.high == pytest.approx(np.percentile(drawn, 97.5))
    seen = predicted != 1  # sklearn warns about predicted classes that never occur
    kept = balanced_accuracy(truth[seen], predicted[seen], resample(int(seen.sum()), seed=1, draws=50))
    assert kept.value == pytest.approx(100 * balanced_accuracy_score(truth[seen], predicted[seen]))


def test_one_test_image() -> None:
    number = share_right(np.array([True]), resample(1, seed=0))
    assert (number.low, number.value, number.high) == (100, 100, 100)
